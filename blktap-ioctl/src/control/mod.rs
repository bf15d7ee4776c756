//! The control device: allocates and frees taps, and the nodes through which they are opened.

mod node;
mod proc;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::abi::{
    BLOCK_NODE_PREFIX, CONTROL_NODE, DEVICE_DIRECTORY, MISC_MAJOR, RING_NODE_PREFIX, TapHandle,
};
use crate::sys;
use node::{Device, make_node, open_node};
pub use proc::{Majors, MiscDevice, parse_proc_devices, parse_proc_misc};

/// Where things are; [`Default`] is where they are on a running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Of the nodes that are made here. `/dev/xen/blktap-2`.
    pub device_directory: PathBuf,
    /// Where the kernel or udev make theirs. `/dev`.
    pub device_root: PathBuf,
    /// `/proc/misc`.
    pub proc_misc: PathBuf,
    /// `/proc/devices`.
    pub proc_devices: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            device_directory: DEVICE_DIRECTORY.into(),
            device_root: "/dev".into(),
            proc_misc: "/proc/misc".into(),
            proc_devices: "/proc/devices".into(),
        }
    }
}

impl Places {
    /// The node of a tap's ring.
    #[must_use]
    pub fn ring_path(&self, minor: u32) -> PathBuf {
        self.device_directory.join(format!("{RING_NODE_PREFIX}{minor}"))
    }

    /// The node of a tap's block device.
    #[must_use]
    pub fn device_path(&self, minor: u32) -> PathBuf {
        self.device_directory.join(format!("{BLOCK_NODE_PREFIX}{minor}"))
    }

    /// The control device as the kernel lists it; `None` when the driver is not there.
    ///
    /// # Errors
    /// When `/proc/misc` cannot be read.
    pub fn driver(&self) -> Result<Option<MiscDevice>, ControlError> {
        Ok(parse_proc_misc(&read_text(&self.proc_misc)?))
    }

    /// The driver's majors.
    ///
    /// # Errors
    /// When `/proc/devices` cannot be read.
    pub fn majors(&self) -> Result<Majors, ControlError> {
        Ok(parse_proc_devices(&read_text(&self.proc_devices)?))
    }
}

fn read_text(path: &Path) -> Result<String, ControlError> {
    let bytes = fs::read(path).map_err(|source| ControlError::at("read", path, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What went wrong with a tap.
#[derive(Debug)]
pub enum ControlError {
    /// The kernel has no blktap driver.
    NoDriver,
    /// The tap's ring is open or mapped.
    Busy {
        /// Whose.
        minor: u32,
    },
    /// No such tap.
    NotAllocated {
        /// What was asked for.
        minor: u32,
    },
    /// All minors are in use, or there is no memory for another one.
    Exhausted,
    /// A system call on a file.
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
}

impl ControlError {
    fn at(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// The number that programs expect.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoDriver => Errno::ENOSYS,
            Self::Busy { .. } => Errno::EBUSY,
            Self::NotAllocated { .. } => Errno::ENODEV,
            Self::Exhausted => Errno::ENOMEM,
            Self::Io { source, .. } => source.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => formatter.write_str("The blktap kernel driver is not there"),
            Self::Busy { minor } => write!(formatter, "Tap {minor} is open or mapped"),
            Self::NotAllocated { minor } => write!(formatter, "Tap {minor} is not allocated"),
            Self::Exhausted => formatter.write_str("No tap is free"),
            Self::Io { action, path, .. } => {
                write!(formatter, "Cannot {action} {}", path.display())
            }
        }
    }
}

impl std::error::Error for ControlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A tap that is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its number, and that of both its nodes.
    pub minor: u32,
    /// For [`Ring::open`](crate::Ring::open).
    pub ring_path: PathBuf,
    /// The block device, once it is created.
    pub device_path: PathBuf,
}

/// The control device, open.
#[derive(Debug)]
pub struct Control {
    file: File,
    path: PathBuf,
    places: Places,
}

impl Control {
    /// Opens the control device, by whatever node there is; makes one where there is none.
    ///
    /// # Errors
    /// [`ControlError::NoDriver`]; and what the file system says.
    pub fn open(places: Places) -> Result<Self, ControlError> {
        let MiscDevice { name, minor } = places.driver()?.ok_or(ControlError::NoDriver)?;
        let device = Device::character(MISC_MAJOR, minor);
        let own = places.device_directory.join(CONTROL_NODE);
        for path in [&own, &places.device_root.join(name)] {
            let opened = open_node(path, device);
            if let Some(file) = opened.map_err(|source| ControlError::at("open", path, source))? {
                return Ok(Self { file, path: path.clone(), places });
            }
        }
        make_node(&own, device).map_err(|source| ControlError::at("make node", &own, source))?;
        let opened = open_node(&own, device).and_then(|file| {
            file.ok_or_else(|| io::Error::other("Somebody exchanged the node at the same time"))
        });
        let file = opened.map_err(|source| ControlError::at("open", &own, source))?;
        Ok(Self { file, path: own, places })
    }

    /// Allocates the lowest free minor and makes its nodes, for root alone.
    ///
    /// # Errors
    /// [`ControlError::Exhausted`]; what mknod says, and then the minor is free again.
    pub fn allocate(&self) -> Result<Tap, ControlError> {
        let handle = match sys::alloc_tap(self.file.as_fd()) {
            Ok(handle) => handle,
            Err(Errno::ENOMEM) => return Err(ControlError::Exhausted),
            Err(errno) => {
                return Err(ControlError::at("allocate a tap with", &self.path, errno.into()));
            }
        };
        let TapHandle { ring_major, block_major, minor } = handle;
        let tap = Tap {
            minor,
            ring_path: self.places.ring_path(minor),
            device_path: self.places.device_path(minor),
        };
        let nodes = [
            (&tap.ring_path, Device::character(ring_major, minor)),
            (&tap.device_path, Device::block(block_major, minor)),
        ];
        for (path, device) in nodes {
            if let Err(source) = make_node(path, device) {
                // Nobody has opened it, so this cannot be busy; and there is nothing to do about
                // it.
                let _ = sys::free_tap(self.file.as_fd(), minor);
                return Err(ControlError::at("make node", path, source));
            }
        }
        Ok(tap)
    }

    /// Frees a minor. Its nodes stay: they may already be those of the next one to get this minor,
    /// who makes them anew in any case.
    ///
    /// # Errors
    /// [`ControlError::Busy`] while its ring is open or mapped, [`ControlError::NotAllocated`].
    pub fn free(&self, minor: u32) -> Result<(), ControlError> {
        match sys::free_tap(self.file.as_fd(), minor) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(ControlError::Busy { minor }),
            // EINVAL: beyond what the driver has.
            Err(Errno::ENODEV | Errno::EINVAL) => Err(ControlError::NotAllocated { minor }),
            Err(errno) => Err(ControlError::at("free a tap with", &self.path, errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_driver_there_is_nothing_to_open() {
        let places = Places { proc_misc: "/dev/null".into(), ..Places::default() };
        assert_eq!(places.driver().unwrap(), None);
        let error = Control::open(places).unwrap_err();
        assert!(matches!(error, ControlError::NoDriver));
        assert_eq!(error.errno(), Errno::ENOSYS);
    }

    #[test]
    fn an_unreadable_list_is_not_an_absent_driver() {
        let places = Places { proc_misc: "/dev/null/misc".into(), ..Places::default() };
        assert!(matches!(places.driver(), Err(ControlError::Io { .. })));
    }

    #[test]
    fn nodes_are_named_after_the_minor() {
        let places = Places { device_directory: "/d".into(), ..Places::default() };
        assert_eq!(places.ring_path(7), Path::new("/d/blktap7"));
        assert_eq!(places.device_path(7), Path::new("/d/tapdev7"));
    }

    #[test]
    fn an_error_keeps_the_number_of_its_cause() {
        assert_eq!(ControlError::Busy { minor: 3 }.errno(), Errno::EBUSY);
        assert_eq!(ControlError::NotAllocated { minor: 3 }.errno(), Errno::ENODEV);
        let denied = io::Error::from(Errno::EPERM);
        let error = ControlError::at("make node", Path::new("/d/control"), denied);
        assert_eq!(error.errno(), Errno::EPERM);
        assert_eq!(error.to_string(), "Cannot make node /d/control");
    }
}
