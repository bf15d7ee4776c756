//! Minors of the blktap2 kernel driver, where the kernel has one.
//!
//! The driver chooses the number and gives it a ring and a block device; a marker file goes with
//! it, so that `list`, locking while attached, and `free` are the same with and without it.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use blktap_ioctl::{Control, Places};
use nix::errno::Errno;
use tapdisk_control::minor::{self, Allocation, MarkerMinors, Minors};
use tapdisk_control::{ControlError, ErrorKind, Paths};

/// The most numbers that are passed over because a marker has them. A driver that is loaded while
/// disks without it run starts at 0 like they did.
const COLLISIONS_MAX: usize = 1024;

/// A tap of the driver.
#[derive(Clone, Debug)]
struct Tap {
    minor: u32,
    device: PathBuf,
}

/// The control device of the driver.
trait KernelDriver {
    /// Takes the lowest free tap and makes its nodes.
    fn allocate(&self) -> Result<Tap, ControlError>;

    /// Gives a tap back: ENODEV when there is none, EBUSY while its ring is open.
    fn free(&self, minor: u32) -> Result<(), ControlError>;
}

impl KernelDriver for Control {
    fn allocate(&self) -> Result<Tap, ControlError> {
        let tap = Control::allocate(self).map_err(|error| translate(&error))?;
        Ok(Tap { minor: tap.minor, device: tap.device_path })
    }

    fn free(&self, minor: u32) -> Result<(), ControlError> {
        Control::free(self, minor).map_err(|error| translate(&error))
    }
}

fn translate(error: &blktap_ioctl::ControlError) -> ControlError {
    ControlError::new(ErrorKind::Minor, error.errno(), error.to_string())
}

/// The driver, if the kernel has it. A place without /proc has none.
fn kernel_driver(paths: &Paths) -> Result<Option<Box<dyn KernelDriver>>, ControlError> {
    let places = Places { device_directory: paths.device_dir().into(), ..Places::default() };
    if !places.proc_misc.exists() {
        return Ok(None);
    }
    match Control::open(places) {
        Ok(control) => Ok(Some(Box::new(control))),
        Err(blktap_ioctl::ControlError::NoDriver) => Ok(None),
        Err(error) => Err(translate(&error)),
    }
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
    /// A tap whose number no marker has. `passed` are taps that were taken on the way: the driver
    /// gives out the lowest, so they are kept until one fits.
    fn allocate_marked(&self, passed: &mut Vec<u32>) -> Result<Allocation, ControlError> {
        loop {
            let tap = self.driver.allocate()?;
            passed.push(tap.minor);
            let minor = u16::try_from(tap.minor).map_err(|_| {
                let attempt = format!("Allocating: the driver chose {}, above 65535", tap.minor);
                ControlError::new(ErrorKind::Minor, Errno::ERANGE, attempt)
            })?;
            match minor::mark(&self.paths, minor) {
                Ok(()) => {
                    passed.pop();
                    return Ok(Allocation { minor, path: tap.device });
                }
                Err(error)
                    if error.errno() == Errno::EEXIST as i32 && passed.len() < COLLISIONS_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the device its other name.
    fn link(&self, allocation: Allocation) -> Result<Allocation, ControlError> {
        let Some(link) = &self.link else { return Ok(allocation) };
        let Allocation { minor, path } = allocation;
        make_link(&path, link).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            let attempt = format!("Linking {} to {}", link.display(), path.display());
            noting(ControlError::new(ErrorKind::System, errno, attempt), self.free(minor))
        })?;
        Ok(Allocation { minor, path: link.clone() })
    }
}

/// The error, and what undoing left behind.
fn noting(error: ControlError, undone: Result<(), ControlError>) -> ControlError {
    match undone {
        Ok(()) => error,
        Err(left) => error.with_note(&left.to_string()),
    }
}

impl Minors for KernelMinors {
    fn allocate(&self) -> Result<Allocation, ControlError> {
        let mut passed = Vec::new();
        let mut result = self.allocate_marked(&mut passed);
        for minor in passed {
            let freed = self.driver.free(minor);
            result = result.map_err(|error| noting(error, freed));
        }
        self.link(result?)
    }

    fn free(&self, minor: u16) -> Result<(), ControlError> {
        match self.driver.free(minor.into()) {
            // Allocated while there was no driver.
            Err(error) if error.errno() == Errno::ENODEV as i32 => {}
            result => result?,
        }
        minor::free_after_driver(&self.paths, minor)
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

    /// A driver with a list of taken numbers, which starts at `first`.
    struct Fake {
        first: u32,
        taken: Rc<RefCell<Vec<u32>>>,
    }

    impl KernelDriver for Fake {
        fn allocate(&self) -> Result<Tap, ControlError> {
            let mut taken = self.taken.borrow_mut();
            let minor = (self.first..).find(|minor| !taken.contains(minor)).unwrap();
            taken.push(minor);
            Ok(Tap { minor, device: format!("/dev/tapdev{minor}").into() })
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
        fn new(name: &str, first: u32, link: Option<&str>) -> Self {
            let name = format!("tap-ctl-kernel-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            let taken = Rc::new(RefCell::new(Vec::new()));
            let minors = KernelMinors {
                driver: Box::new(Fake { first, taken: Rc::clone(&taken) }),
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
    fn a_number_that_a_disk_without_the_driver_has_is_passed_over() {
        let bench = Bench::new("collision", 0, None);
        minor::mark(&bench.minors.paths, 0).unwrap();
        minor::mark(&bench.minors.paths, 1).unwrap();
        assert_eq!(bench.minors.allocate().unwrap().minor, 2);
        assert_eq!(*bench.taken.borrow(), [2]);
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
