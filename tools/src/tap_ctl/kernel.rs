//! Minors of the blktap2 kernel driver, where the kernel has one.
//!
//! The driver chooses the number and gives it a ring and a block device; a marker file goes with it, so
//! that `list`, locking while attached, and `free` are the same with and without it.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use tapdisk_control::minor::{self, Allocation, MarkerMinors, Minors};
use tapdisk_control::{ControlError, ErrorKind, Paths};

/// A tap of the driver.
#[derive(Clone, Debug)]
pub(crate) struct Tap {
    /// Its number.
    pub(crate) minor: u32,
    /// Its block device.
    pub(crate) device: PathBuf,
}

/// The control device of the driver.
pub(crate) trait KernelDriver {
    /// Takes the lowest free tap and makes its nodes.
    fn allocate(&self) -> Result<Tap, ControlError>;

    /// Gives a tap back: ENODEV when there is none, EBUSY while its ring is open.
    fn free(&self, minor: u32) -> Result<(), ControlError>;
}

/// The driver, if the kernel has it.
fn kernel_driver(_paths: &Paths) -> Result<Option<Box<dyn KernelDriver>>, ControlError> {
    Ok(None)
}

/// Where minors come from on this machine. `link`: another name for the block device.
pub(crate) fn minors(paths: &Paths, link: Option<&Path>) -> Result<Box<dyn Minors>, ControlError> {
    Ok(match kernel_driver(paths)? {
        None => Box::new(MarkerMinors::new(paths)),
        Some(driver) => {
            let link = link.map(Path::to_owned);
            Box::new(KernelMinors { driver, paths: paths.clone(), link })
        }
    })
}

struct KernelMinors {
    driver: Box<dyn KernelDriver>,
    paths: Paths,
    link: Option<PathBuf>,
}

impl KernelMinors {
    /// What goes with the tap on our side.
    fn mark(&self, tap: &Tap) -> Result<Allocation, ControlError> {
        let minor = u16::try_from(tap.minor).map_err(|_| {
            let attempt = format!("Allocating: the driver chose minor {}, above 65535", tap.minor);
            ControlError::new(ErrorKind::Minor, Errno::ERANGE, attempt)
        })?;
        minor::mark(&self.paths, minor)?;
        let Some(link) = &self.link else {
            return Ok(Allocation { minor, path: tap.device.clone() });
        };
        match make_link(&tap.device, link) {
            Ok(()) => Ok(Allocation { minor, path: link.clone() }),
            Err(error) => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                let attempt = format!("Linking {} to {}", link.display(), tap.device.display());
                let error = ControlError::new(ErrorKind::System, errno, attempt);
                Err(match minor::free(&self.paths, minor) {
                    Ok(()) => error,
                    Err(left) => error.with_note(&left.to_string()),
                })
            }
        }
    }
}

impl Minors for KernelMinors {
    fn allocate(&self) -> Result<Allocation, ControlError> {
        let tap = self.driver.allocate()?;
        self.mark(&tap).map_err(|error| match self.driver.free(tap.minor) {
            Ok(()) => error,
            Err(left) => error.with_note(&left.to_string()),
        })
    }

    fn free(&self, minor: u16) -> Result<(), ControlError> {
        match self.driver.free(minor.into()) {
            // Allocated while there was no driver.
            Err(error) if error.errno() == Errno::ENODEV as i32 => {}
            result => result?,
        }
        minor::free(&self.paths, minor)
    }
}

/// A link of an earlier disk is replaced, anything else is left alone.
fn make_link(device: &Path, link: &Path) -> io::Result<()> {
    match symlink(device, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.is_symlink() => {
            std::fs::remove_file(link)?;
            symlink(device, link)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// A driver with a list of taken numbers.
    struct Fake {
        next: u32,
        taken: Rc<RefCell<Vec<u32>>>,
    }

    impl KernelDriver for Fake {
        fn allocate(&self) -> Result<Tap, ControlError> {
            self.taken.borrow_mut().push(self.next);
            Ok(Tap { minor: self.next, device: format!("/dev/tapdev{}", self.next).into() })
        }

        fn free(&self, minor: u32) -> Result<(), ControlError> {
            let mut taken = self.taken.borrow_mut();
            let Some(at) = taken.iter().position(|number| *number == minor) else {
                return Err(ControlError::new(ErrorKind::Minor, Errno::ENODEV, "Freeing a tap"));
            };
            taken.remove(at);
            Ok(())
        }
    }

    struct Bench {
        dir: PathBuf,
        taken: Rc<RefCell<Vec<u32>>>,
        minors: KernelMinors,
    }

    impl Bench {
        fn new(name: &str, next: u32, link: Option<&str>) -> Self {
            let name = format!("tap-ctl-kernel-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            let taken = Rc::new(RefCell::new(Vec::new()));
            let minors = KernelMinors {
                driver: Box::new(Fake { next, taken: Rc::clone(&taken) }),
                paths: Paths::new(dir.join("run"), dir.join("dev"), dir.join("shm")),
                link: link.map(|link| dir.join(link)),
            };
            Self { dir, taken, minors }
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }

    #[test]
    fn a_tap_has_a_marker_and_is_known_by_its_device() {
        let bench = Bench::new("allocate", 7, None);
        let allocation = bench.minors.allocate().unwrap();
        assert_eq!(allocation, Allocation { minor: 7, path: "/dev/tapdev7".into() });
        assert!(bench.minors.paths.marker(7).exists());
        bench.minors.free(7).unwrap();
        assert!(!bench.minors.paths.marker(7).exists());
        assert!(bench.taken.borrow().is_empty());
    }

    #[test]
    fn a_minor_from_before_the_driver_was_there_is_freed_too() {
        let bench = Bench::new("before", 7, None);
        minor::mark(&bench.minors.paths, 3).unwrap();
        bench.minors.free(3).unwrap();
        assert_eq!(bench.minors.free(3).unwrap_err().errno(), Errno::ENOENT as i32);
    }

    #[test]
    fn a_tap_that_cannot_be_marked_is_given_back() {
        let bench = Bench::new("undo", 70000, None);
        assert_eq!(bench.minors.allocate().unwrap_err().errno(), Errno::ERANGE as i32);
        assert!(bench.taken.borrow().is_empty());
    }

    #[test]
    fn a_stale_link_is_replaced_and_a_file_is_not() {
        let bench = Bench::new("link", 7, Some("name"));
        let link = bench.dir.join("name");
        symlink("/dev/elsewhere", &link).unwrap();
        assert_eq!(bench.minors.allocate().unwrap().path, link);
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("/dev/tapdev7"));
        bench.minors.free(7).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::fs::write(&link, "data").unwrap();
        assert_eq!(bench.minors.allocate().unwrap_err().errno(), Errno::EEXIST as i32);
        assert!(bench.taken.borrow().is_empty());
        assert!(!bench.minors.paths.marker(7).exists());
    }
}
