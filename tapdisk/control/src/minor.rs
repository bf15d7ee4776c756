//! Minors: the numbers of disks. A number is taken while its marker file exists, and attached while
//! a tapdisk holds an exclusive flock on that file, which dies with the process.
//!
//! ```text
//!   allocate   flock(dir)  create marker N     the first N that is free
//!   attach                 flock(marker)       held by the daemon until detach
//!   free       flock(dir)  flock(marker) unlink marker
//! ```
//!
//! The lock on the directory makes "look, then create or remove" one step for all programs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{ControlError, ErrorKind};
use crate::paths::Paths;

/// How many minors there are: 0 up to this.
pub const MINORS: u16 = 16384;

/// How long a tapdisk that let go of its ring may take to let go of the marker, too. It does both
/// in one breath, but a process that was killed closes its files in no order.
const HOLDER_LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks at a marker.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// A number that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The number.
    pub minor: u16,
    /// What `allocate` prints: the marker, or the kernel's block device.
    pub path: PathBuf,
}

/// Where minors come from: marker files, or the kernel driver and marker files.
pub trait Minors {
    /// Takes a number.
    ///
    /// # Errors
    /// ENOSPC when all are taken; else what the system says.
    fn allocate(&self) -> Result<Allocation, ControlError>;

    /// Gives a number back.
    ///
    /// # Errors
    /// ENOENT when it is not taken, EAGAIN (or EBUSY) while it is attached.
    fn free(&self, minor: u16) -> Result<(), ControlError>;
}

/// Minors that are marker files and nothing else.
#[derive(Clone, Debug)]
pub struct MarkerMinors {
    paths: Paths,
}

impl MarkerMinors {
    /// Markers under these paths.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self { paths: paths.clone() }
    }
}

impl Minors for MarkerMinors {
    fn allocate(&self) -> Result<Allocation, ControlError> {
        allocate_below(&self.paths, MINORS)
    }

    fn free(&self, minor: u16) -> Result<(), ControlError> {
        free(&self.paths, minor)
    }
}

/// A marker that this process has locked: the disk is attached until this is dropped.
#[derive(Debug)]
pub struct MarkerLock {
    _file: Flock<File>,
}

/// Locks the marker of a minor, for as long as the disk is attached.
///
/// # Errors
/// ENOENT when the minor is not allocated, EAGAIN when another process has it.
pub fn lock_marker(paths: &Paths, minor: u16) -> Result<MarkerLock, ControlError> {
    let path = paths.marker(minor);
    let attempt = || format!("Locking the marker of minor {minor}, {}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(|error| ControlError::system(ErrorKind::Minor, &error, attempt()))?;
    hold(file).map_err(|errno| ControlError::new(ErrorKind::Minor, errno, attempt()))
}

/// Locks an open marker. One that was freed since it was opened is none: its number may be taken
/// again already, with another file.
fn hold(file: File) -> Result<MarkerLock, Errno> {
    let file = lock(file, FlockArg::LockExclusiveNonblock)?;
    match file.metadata() {
        Ok(metadata) if metadata.nlink() > 0 => Ok(MarkerLock { _file: file }),
        Ok(_) => Err(Errno::ENOENT),
        Err(error) => Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
    }
}

/// Makes the marker of this very number, which the kernel driver chose.
///
/// # Errors
/// EEXIST when the number is taken; else what the system says.
pub fn mark(paths: &Paths, minor: u16) -> Result<(), ControlError> {
    paths.create_marker_dir()?;
    let _lock = lock_dir(&paths.marker_dir())?;
    create(&paths.marker(minor)).map_err(|error| failed_to_create(paths, minor, &error))
}

/// Removes the marker of a minor.
///
/// # Errors
/// ENOENT when it is not allocated, EAGAIN while a tapdisk has it attached.
pub fn free(paths: &Paths, minor: u16) -> Result<(), ControlError> {
    let path = paths.marker(minor);
    let _lock = lock_dir(&paths.marker_dir())?;
    let _marker = lock_marker(paths, minor)?;
    fs::remove_file(&path).map_err(|error| {
        let attempt = format!("Removing the marker of minor {minor}, {}", path.display());
        ControlError::system(ErrorKind::Minor, &error, attempt)
    })
}

/// Removes the marker of a minor that the kernel driver has given up: whoever still has it attached
/// is about to end.
///
/// # Errors
/// ENOENT when it is not allocated, EAGAIN when the tapdisk has it still after five seconds.
#[allow(clippy::disallowed_methods, reason = "flock has no deadline")]
pub fn free_after_driver(paths: &Paths, minor: u16) -> Result<(), ControlError> {
    let start = Instant::now();
    free_patiently(paths, minor, || {
        thread::sleep(LOOK_AGAIN_AFTER);
        start.elapsed() < HOLDER_LEAVES_WITHIN
    })
}

/// `wait` waits before the next look, and tells whether there is one.
fn free_patiently(
    paths: &Paths,
    minor: u16,
    mut wait: impl FnMut() -> bool,
) -> Result<(), ControlError> {
    loop {
        match free(paths, minor) {
            Err(error) if error.errno() == Errno::EAGAIN as i32 && wait() => {}
            result => return result,
        }
    }
}

/// Takes the first free number below `end`.
fn allocate_below(paths: &Paths, end: u16) -> Result<Allocation, ControlError> {
    paths.create_marker_dir()?;
    let _lock = lock_dir(&paths.marker_dir())?;
    for minor in 0..end {
        let path = paths.marker(minor);
        match create(&path) {
            Ok(()) => return Ok(Allocation { minor, path }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed_to_create(paths, minor, &error)),
        }
    }
    let dir = paths.marker_dir();
    let attempt = format!("Allocating a minor in {}: all {end} are taken", dir.display());
    Err(ControlError::new(ErrorKind::Minor, Errno::ENOSPC, attempt))
}

fn create(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn failed_to_create(paths: &Paths, minor: u16, error: &io::Error) -> ControlError {
    let attempt = format!("Making the marker {}", paths.marker(minor).display());
    ControlError::system(ErrorKind::Minor, error, attempt)
}

fn lock_dir(dir: &Path) -> Result<Flock<File>, ControlError> {
    let attempt = || format!("Locking the directory of markers, {}", dir.display());
    let file = File::open(dir)
        .map_err(|error| ControlError::system(ErrorKind::Minor, &error, attempt()))?;
    lock(file, FlockArg::LockExclusive)
        .map_err(|errno| ControlError::new(ErrorKind::Minor, errno, attempt()))
}

fn lock(mut file: File, how: FlockArg) -> Result<Flock<File>, Errno> {
    loop {
        match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn the_first_free_number_is_taken() {
        let dir = TestDir::new("minor-first");
        let minors = MarkerMinors::new(&dir.paths());
        let numbers: Vec<u16> = (0..3).map(|_| minors.allocate().unwrap().minor).collect();
        assert_eq!(numbers, [0, 1, 2]);
        minors.free(1).unwrap();
        let again = minors.allocate().unwrap();
        assert_eq!(again, Allocation { minor: 1, path: dir.paths().marker(1) });
    }

    #[test]
    fn directories_and_markers_belong_to_their_owner_alone() {
        let dir = TestDir::new("minor-modes");
        let path = MarkerMinors::new(&dir.paths()).allocate().unwrap().path;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(dir.paths().run_dir()), 0o700);
        assert_eq!(mode(&dir.paths().marker_dir()), 0o700);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn allocating_with_all_numbers_taken_is_an_error() {
        let dir = TestDir::new("minor-full");
        let paths = dir.paths();
        for minor in 0..3 {
            assert_eq!(allocate_below(&paths, 3).unwrap().minor, minor);
        }
        let error = allocate_below(&paths, 3).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC as i32);
        assert!(error.attempt().contains("all 3 are taken"));
    }

    #[test]
    fn freeing_what_is_not_allocated_says_so() {
        let dir = TestDir::new("minor-absent");
        let minors = MarkerMinors::new(&dir.paths());
        assert_eq!(minors.free(0).unwrap_err().errno(), Errno::ENOENT as i32);
        minors.allocate().unwrap();
        assert_eq!(minors.free(7).unwrap_err().errno(), Errno::ENOENT as i32);
    }

    #[test]
    fn a_minor_is_not_freed_while_it_is_attached() {
        let dir = TestDir::new("minor-attached");
        let paths = dir.paths();
        let minors = MarkerMinors::new(&paths);
        minors.allocate().unwrap();
        let attached = lock_marker(&paths, 0).unwrap();
        assert_eq!(lock_marker(&paths, 0).unwrap_err().errno(), Errno::EAGAIN as i32);
        assert_eq!(minors.free(0).unwrap_err().errno(), Errno::EAGAIN as i32);
        assert!(paths.marker(0).exists());
        drop(attached);
        minors.free(0).unwrap();
        assert_eq!(lock_marker(&paths, 0).unwrap_err().errno(), Errno::ENOENT as i32);
    }

    #[test]
    fn a_minor_that_the_driver_gave_up_is_freed_when_its_holder_leaves() {
        let dir = TestDir::new("minor-leaves");
        let paths = dir.paths();
        MarkerMinors::new(&paths).allocate().unwrap();
        let mut attached = Some(lock_marker(&paths, 0).unwrap());
        let refused = free_patiently(&paths, 0, || false).unwrap_err();
        assert_eq!(refused.errno(), Errno::EAGAIN as i32);
        free_patiently(&paths, 0, || attached.take().is_some()).unwrap();
        assert!(!paths.marker(0).exists());
        assert_eq!(free_after_driver(&paths, 0).unwrap_err().errno(), Errno::ENOENT as i32);
    }

    #[test]
    fn a_marker_that_was_freed_before_it_was_locked_is_none() {
        let dir = TestDir::new("minor-race");
        let minors = MarkerMinors::new(&dir.paths());
        minors.allocate().unwrap();
        let opened = File::open(dir.paths().marker(0)).unwrap();
        minors.free(0).unwrap();
        minors.allocate().unwrap();
        assert_eq!(hold(opened).unwrap_err(), Errno::ENOENT);
        assert!(lock_marker(&dir.paths(), 0).is_ok());
    }

    #[test]
    fn a_number_is_marked_once() {
        let dir = TestDir::new("minor-mark");
        let paths = dir.paths();
        mark(&paths, 5).unwrap();
        assert_eq!(mark(&paths, 5).unwrap_err().errno(), Errno::EEXIST as i32);
        assert!(paths.marker(5).exists());
    }
}
