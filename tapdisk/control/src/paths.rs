//! Where things are: sockets, markers, device nodes, statistics.
//!
//! The names are a contract: a storage manager finds sockets and markers by them.
//!
//! ```text
//!   /run/blktap-control/           TAPDISK_RUN_DIR   ctl<pid>  nbd<pid>.<minor>  tapdisk/tapdisk-<minor>
//!   /dev/xen/blktap-2/             TAPDISK_DEV_DIR   control  blktap<minor>  tapdev<minor>
//!   /dev/shm/                      TAPDISK_SHM_DIR   td3-<pid>/vdi-<minor>
//! ```

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::error::{ControlError, ErrorKind};

/// The longest path of a socket, in bytes, without its NUL: `sun_path` has 108.
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// The three directories, and the names in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    run: PathBuf,
    devices: PathBuf,
    shared_memory: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self::new("/run/blktap-control", "/dev/xen/blktap-2", "/dev/shm")
    }
}

impl Paths {
    /// Paths under these directories.
    pub fn new(
        run: impl Into<PathBuf>,
        devices: impl Into<PathBuf>,
        shared_memory: impl Into<PathBuf>,
    ) -> Self {
        Self { run: run.into(), devices: devices.into(), shared_memory: shared_memory.into() }
    }

    /// The usual paths, or what `TAPDISK_RUN_DIR`, `TAPDISK_DEV_DIR` and `TAPDISK_SHM_DIR` say. An
    /// empty variable counts as absent; a relative path is taken from the working directory of now,
    /// which a daemon leaves.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let usual = Self::default();
        let get = |name, default| match variable(name) {
            // Without a working directory it stays what it is, and leads nowhere as before.
            Some(value) if !value.is_empty() => {
                std::path::absolute(&value).unwrap_or_else(|_| PathBuf::from(value))
            }
            _ => default,
        };
        Self {
            run: get("TAPDISK_RUN_DIR", usual.run),
            devices: get("TAPDISK_DEV_DIR", usual.devices),
            shared_memory: get("TAPDISK_SHM_DIR", usual.shared_memory),
        }
    }

    /// The directory of the sockets.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// The directory of the kernel driver's nodes.
    #[must_use]
    pub fn device_dir(&self) -> &Path {
        &self.devices
    }

    /// The directory of the markers.
    #[must_use]
    pub fn marker_dir(&self) -> PathBuf {
        self.run.join("tapdisk")
    }

    /// The marker of a minor: the file that says that the number is taken.
    #[must_use]
    pub fn marker(&self, minor: u16) -> PathBuf {
        self.marker_dir().join(format!("tapdisk-{minor}"))
    }

    /// The control socket of a tapdisk.
    #[must_use]
    pub fn control_socket(&self, pid: i32) -> PathBuf {
        self.run.join(format!("ctl{pid}"))
    }

    /// The NBD socket of a disk.
    #[must_use]
    pub fn nbd_socket(&self, pid: i32, minor: u16) -> PathBuf {
        self.run.join(format!("nbd{pid}.{minor}"))
    }

    /// The kernel driver's block device of a minor.
    #[must_use]
    pub fn block_device(&self, minor: u32) -> PathBuf {
        self.devices.join(format!("tapdev{minor}"))
    }

    /// The kernel driver's ring of a minor.
    #[must_use]
    pub fn ring_device(&self, minor: u32) -> PathBuf {
        self.devices.join(format!("blktap{minor}"))
    }

    /// The kernel driver's control device.
    #[must_use]
    pub fn control_device(&self) -> PathBuf {
        self.devices.join("control")
    }

    /// The directory of a tapdisk's statistics.
    #[must_use]
    pub fn statistics_dir(&self, pid: i32) -> PathBuf {
        self.shared_memory.join(format!("td3-{pid}"))
    }

    /// The statistics of a disk, see [`crate::statistics`].
    #[must_use]
    pub fn statistics(&self, pid: i32, minor: u16) -> PathBuf {
        self.statistics_dir(pid).join(format!("vdi-{minor}"))
    }

    /// Makes the run directory, mode 0700, unless it is there. Its parent has to exist.
    ///
    /// # Errors
    /// What mkdir says; EPERM when it is there and others may write to it, or it is somebody
    /// else's: who can make and remove sockets in it controls all disks.
    pub fn create_run_dir(&self) -> Result<(), ControlError> {
        create_private_dir(&self.run)
    }

    /// Makes the run directory and that of the markers.
    ///
    /// # Errors
    /// Those of [`Paths::create_run_dir`].
    pub fn create_marker_dir(&self) -> Result<(), ControlError> {
        self.create_run_dir()?;
        create_private_dir(&self.marker_dir())
    }
}

/// The pid in the name of a control socket, `ctl<pid>`.
#[must_use]
pub fn pid_of_control_socket(name: &str) -> Option<i32> {
    number_after(name, "ctl")
}

/// The minor in the name of a marker, `tapdisk-<minor>`.
#[must_use]
pub fn minor_of_marker(name: &str) -> Option<u16> {
    number_after(name, "tapdisk-")
}

/// A number without sign and leading zeros: the one spelling that [`Paths`] produces.
fn number_after<T: std::str::FromStr + ToString>(name: &str, prefix: &str) -> Option<T> {
    let digits = name.strip_prefix(prefix)?;
    let number: T = digits.parse().ok()?;
    (number.to_string() == digits && !digits.starts_with('-')).then_some(number)
}

/// Refuses a path that is too long for a socket, with the numbers.
///
/// # Errors
/// ENAMETOOLONG.
pub fn check_socket_path(path: &Path) -> Result<(), ControlError> {
    let len = path.as_os_str().as_bytes().len();
    if len <= SOCKET_PATH_LEN_MAX {
        return Ok(());
    }
    let attempt = format!(
        "Naming the socket {}, {len} bytes, want at most {SOCKET_PATH_LEN_MAX}",
        path.display()
    );
    Err(ControlError::new(ErrorKind::Invalid, Errno::ENAMETOOLONG, attempt))
}

fn create_private_dir(path: &Path) -> Result<(), ControlError> {
    match DirBuilder::new().mode(0o700).create(path) {
        // Another one was faster, or it was there before.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_private(path),
        Err(error) => {
            let attempt = format!("Making the directory {}", path.display());
            Err(ControlError::system(ErrorKind::System, &error, attempt))
        }
        Ok(()) => Ok(()),
    }
}

/// A directory that was there: nobody but its owner may write to it, and that is this user, or root
/// whom everybody has to trust. The same goes for a link that leads there.
fn check_private(path: &Path) -> Result<(), ControlError> {
    let failed = |error: io::Error| {
        let attempt = format!("Looking at the directory {}", path.display());
        ControlError::system(ErrorKind::System, &error, attempt)
    };
    let own = geteuid().as_raw();
    let link = fs::symlink_metadata(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let refused = |errno, what: &str| {
        let attempt = format!("Using the directory {}: {what}", path.display());
        Err(ControlError::new(ErrorKind::System, errno, attempt))
    };
    if !found.is_dir() {
        return refused(Errno::ENOTDIR, "found something else there");
    }
    let strangers = [link.uid(), found.uid()];
    if let Some(owner) = strangers.into_iter().find(|owner| ![own, 0].contains(owner)) {
        return refused(Errno::EPERM, &format!("found user {owner} for its owner, want {own}"));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let what = format!("found mode {mode:04o}, want 0700: only its owner may write to it");
        return refused(Errno::EPERM, &what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn names_are_those_a_storage_manager_looks_for() {
        let paths = Paths::default();
        assert_eq!(paths.control_socket(12), Path::new("/run/blktap-control/ctl12"));
        assert_eq!(paths.nbd_socket(12, 3), Path::new("/run/blktap-control/nbd12.3"));
        assert_eq!(paths.marker(3), Path::new("/run/blktap-control/tapdisk/tapdisk-3"));
        assert_eq!(paths.block_device(3), Path::new("/dev/xen/blktap-2/tapdev3"));
        assert_eq!(paths.ring_device(3), Path::new("/dev/xen/blktap-2/blktap3"));
        assert_eq!(paths.statistics(12, 3), Path::new("/dev/shm/td3-12/vdi-3"));
    }

    #[test]
    fn a_variable_moves_its_directory_unless_it_is_empty() {
        let paths = Paths::from_variables(|name| match name {
            "TAPDISK_RUN_DIR" => Some("/tmp/r".into()),
            "TAPDISK_DEV_DIR" => Some("".into()),
            _ => None,
        });
        assert_eq!(paths, Paths::new("/tmp/r", "/dev/xen/blktap-2", "/dev/shm"));
    }

    #[test]
    fn a_relative_directory_is_made_absolute() {
        let paths = Paths::from_variables(|_| Some("some/where".into()));
        let here = env::current_dir().unwrap();
        assert_eq!(paths.run_dir(), here.join("some/where"));
    }

    #[test]
    fn only_the_spelling_that_is_written_is_read() {
        assert_eq!(pid_of_control_socket("ctl42"), Some(42));
        assert_eq!(minor_of_marker("tapdisk-16383"), Some(16383));
        for name in ["ctl", "ctl042", "ctl+42", "ctl-42", "ctl42x", "nbd42", "ctl99999999999"] {
            assert_eq!(pid_of_control_socket(name), None, "{name}");
        }
        for name in ["tapdisk-", "tapdisk-65536", "tapdisk-01", "tapdisk-1.tmp"] {
            assert_eq!(minor_of_marker(name), None, "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TestDir::new("paths-mode");
        let run = dir.path().join("given");
        let paths = Paths::new(&run, dir.path(), dir.path());
        fs::create_dir(&run).unwrap();
        for (mode, is_fine) in
            [(0o700, true), (0o755, true), (0o770, false), (0o707, false), (0o1777, false)]
        {
            fs::set_permissions(&run, fs::Permissions::from_mode(mode)).unwrap();
            let result = paths.create_marker_dir();
            assert_eq!(result.is_ok(), is_fine, "{mode:o}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.errno(), Errno::EPERM as i32);
                assert!(error.attempt().contains(&format!("found mode {mode:04o}")), "{error}");
            }
        }
        fs::remove_dir_all(&run).unwrap();
        fs::write(&run, "").unwrap();
        assert_eq!(paths.create_run_dir().unwrap_err().errno(), Errno::ENOTDIR as i32);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_so_is_his_link_to_ours() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can give a directory away");
            return;
        }
        let dir = TestDir::new("paths-owner");
        let (own, link, given) =
            (dir.path().join("own"), dir.path().join("link"), dir.path().join("given"));
        let make = |run: &Path| Paths::new(run, dir.path(), dir.path()).create_run_dir();
        make(&own).unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        make(&link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        make(&given).unwrap();
        std::os::unix::fs::chown(&given, Some(65534), None).unwrap();
        for path in [&link, &given] {
            let error = make(path).unwrap_err();
            assert_eq!(error.errno(), Errno::EPERM as i32);
            assert!(error.attempt().contains("found user 65534"), "{error}");
        }
    }

    #[test]
    fn a_socket_path_has_at_most_107_bytes() {
        let longest = format!("/{}", "x".repeat(106));
        assert!(check_socket_path(Path::new(&longest)).is_ok());
        let longer = format!("/{}", "x".repeat(107));
        let error = check_socket_path(Path::new(&longer)).unwrap_err();
        assert_eq!(error.errno(), Errno::ENAMETOOLONG as i32);
        assert!(error.attempt().contains("108 bytes, want at most 107"));
    }
}
