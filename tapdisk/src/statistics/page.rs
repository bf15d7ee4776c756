//! Counters in `/dev/shm`, for other programs: xcp-rrdd, xentop.
//!
//! A room with `unsafe`. Each file is one page that starts with blktap's `struct stats`; its layout
//! is written down in [`tapdisk_control::statistics`], where the reading side is.
//!
//! ```text
//!   td3-<pid>/            0700, ours
//!       vdi-<minor>       0600, the disk            nbd-<minor>, blktap-<minor>   its doors
//! ```
//!
//! Invariants:
//! * The fields are only ever accessed as atomics of 8 bytes, aligned: a reader in another process
//!   sees an old or a new value, never half of one.
//! * The page is allocated before it is mapped: a full `/dev/shm` is an error of the constructor,
//!   not a SIGBUS at some store.
//! * Nothing in `/dev/shm` is trusted: anybody may make names there. The directory is used only if
//!   it is a real one, ours, and closed to others; files are made afresh inside, by the open
//!   directory.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, posix_fallocate};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, geteuid, mkdir, unlinkat};
use tapdisk_control::statistics::{
    Counter, STATISTICS_FILE_SIZE, STATISTICS_SIZE, STATISTICS_VERSION, VERSION_AT,
};

/// Whose counters a page shows: the start of its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// The disk: `vdi-<minor>`.
    Vdi,
    /// Its NBD server: `nbd-<minor>`.
    Nbd,
    /// Its kernel ring: `blktap-<minor>`.
    Blktap,
}

impl PageKind {
    fn name(self, minor: u16) -> String {
        match self {
            Self::Vdi => format!("vdi-{minor}"),
            Self::Nbd => format!("nbd-{minor}"),
            Self::Blktap => format!("blktap-{minor}"),
        }
    }
}

/// What a page shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageValues {
    /// Requests taken and not yet answered.
    pub outstanding: u64,
    /// Reads taken.
    pub read_submitted: u64,
    /// Reads answered.
    pub read_completed: u64,
    /// Sectors of 512 bytes read.
    pub read_sectors: u64,
    /// The sum of the times of reads, in microseconds.
    pub read_ticks_us: u64,
    /// Writes taken.
    pub write_submitted: u64,
    /// Writes answered.
    pub write_completed: u64,
    /// Sectors of 512 bytes written.
    pub write_sectors: u64,
    /// The sum of the times of writes, in microseconds.
    pub write_ticks_us: u64,
    /// Requests answered with an error.
    pub io_errors: u64,
    /// Bit 0: the disk is short of memory for requests. We never are: the memory is there from the
    /// start.
    pub flags: u64,
}

impl PageValues {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            outstanding: self.outstanding.wrapping_add(other.outstanding),
            read_submitted: self.read_submitted.wrapping_add(other.read_submitted),
            read_completed: self.read_completed.wrapping_add(other.read_completed),
            read_sectors: self.read_sectors.wrapping_add(other.read_sectors),
            read_ticks_us: self.read_ticks_us.wrapping_add(other.read_ticks_us),
            write_submitted: self.write_submitted.wrapping_add(other.write_submitted),
            write_completed: self.write_completed.wrapping_add(other.write_completed),
            write_sectors: self.write_sectors.wrapping_add(other.write_sectors),
            write_ticks_us: self.write_ticks_us.wrapping_add(other.write_ticks_us),
            io_errors: self.io_errors.wrapping_add(other.io_errors),
            flags: self.flags | other.flags,
        }
    }

    fn get(&self, counter: Counter) -> u64 {
        match counter {
            Counter::Outstanding => self.outstanding,
            Counter::ReadsSubmitted => self.read_submitted,
            Counter::ReadsCompleted => self.read_completed,
            Counter::ReadSectors => self.read_sectors,
            Counter::ReadTicksUs => self.read_ticks_us,
            Counter::WritesSubmitted => self.write_submitted,
            Counter::WritesCompleted => self.write_completed,
            Counter::WriteSectors => self.write_sectors,
            Counter::WriteTicksUs => self.write_ticks_us,
            Counter::IoErrors => self.io_errors,
            Counter::Flags => self.flags,
        }
    }
}

/// The open directory; removed with the last page or with its handle, whichever goes last.
struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Not empty or gone already: nothing that we could do better at exit.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// The directory of this process.
#[derive(Debug)]
pub struct StatsDirectory {
    directory: Arc<Directory>,
}

impl StatsDirectory {
    /// Makes `td3-<pid>` in `shm` (`/dev/shm`), or takes over and empties what an earlier process
    /// with the same pid left.
    ///
    /// # Errors
    /// What making it says; `PermissionDenied` when somebody else's file or directory is there. A
    /// disk is served as well without: a warning.
    pub fn create(shm: &Path, pid: u32) -> io::Result<Self> {
        let path = shm.join(format!("td3-{pid}"));
        let with_path = |error: io::Error| with_path(&path, &error);
        match mkdir(&path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(with_path(errno.into())),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(&path, flags, Mode::empty()).map_err(|errno| with_path(errno.into()))?;
        check_and_close(&fd).and_then(|()| empty(&fd, &path)).map_err(with_path)?;
        Ok(Self { directory: Arc::new(Directory { fd, path }) })
    }

    /// Makes the page of a disk or door.
    ///
    /// # Errors
    /// What the system says, no space mostly: a warning.
    pub fn page(&self, kind: PageKind, minor: u16) -> io::Result<StatsPage> {
        StatsPage::create(&self.directory, kind.name(minor))
            .map_err(|error| with_path(&self.directory.path.join(kind.name(minor)), &error))
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Directory").field(&self.path).finish()
    }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Makes sure that the directory is ours, and that nobody else gets in.
fn check_and_close(directory: &OwnedFd) -> io::Result<()> {
    let owner = fstat(directory)?.st_uid;
    let own = geteuid().as_raw();
    if owner != own {
        let text = format!("Owned by user {owner}, expected {own}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    fchmod(directory, Mode::S_IRWXU)?;
    Ok(())
}

/// Removes what a predecessor left. The directory is ours and `shm` is sticky, so nobody can put
/// another one in its place between the check and this.
fn empty(directory: &OwnedFd, path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        match unlinkat(directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            // A directory is none of our kind; it does no harm but to stay.
            Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The counters of one disk or door in shared memory; the file goes when this is dropped.
#[derive(Debug)]
pub struct StatsPage {
    mapping: MmapRaw,
    name: String,
    /// Last: the directory can go only after the file.
    directory: Arc<Directory>,
}

impl StatsPage {
    fn create(directory: &Arc<Directory>, name: String) -> io::Result<Self> {
        // A page of the same name is stale: a process serves a minor once.
        match unlinkat(&directory.fd, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(directory.fd.as_fd(), name.as_str(), flags, mode)?;
        let mapping = match map(&file) {
            Ok(mapping) => mapping,
            Err(error) => {
                let _ = unlinkat(&directory.fd, name.as_str(), UnlinkatFlags::NoRemoveDir);
                return Err(error);
            }
        };
        let page = Self { mapping, name, directory: Arc::clone(directory) };
        // The version is a u32, padding follows: as one field of 8 bytes.
        let mut version = [0; 8];
        version[..4].copy_from_slice(&STATISTICS_VERSION.to_ne_bytes());
        page.field(VERSION_AT).store(u64::from_ne_bytes(version), Ordering::Relaxed);
        Ok(page)
    }

    /// Shows `values`. Eleven stores: cheap enough for every turn of the loop.
    pub fn publish(&mut self, values: &PageValues) {
        for counter in Counter::ALL {
            self.field(counter.offset()).store(values.get(counter), Ordering::Relaxed);
        }
    }

    /// The 8 bytes at `offset`.
    fn field(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < STATISTICS_SIZE, "no field at {offset}");
        let base = self.mapping.as_mut_ptr();
        // SAFETY: `offset` is below 96 (checked above), and the mapping is 4096 bytes long.
        let address = unsafe { base.add(offset) };
        // SAFETY: valid for as long as `self`, which owns the mapping (and the file cannot shrink
        // under it: mode 0600 in our directory of mode 0700); aligned, because a mapping starts on
        // a page and `offset` is a multiple of 8; every access of this process is atomic, because
        // this function is the only way to it.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }
}

/// Gives the file its page and maps it.
fn map(file: &OwnedFd) -> io::Result<MmapRaw> {
    let size = libc::off_t::try_from(STATISTICS_FILE_SIZE).expect("one page");
    loop {
        match posix_fallocate(file, 0, size) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    MmapOptions::new().len(STATISTICS_FILE_SIZE).map_raw(file)
}

impl Drop for StatsPage {
    fn drop(&mut self) {
        let directory = &self.directory.fd;
        // Gone already: what we want.
        let _ = unlinkat(directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::AtomicU32;

    /// A directory of its own for each test; goes with it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("tapdisk-page-{}-{count}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_ne_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn a_reader_finds_each_counter_at_its_offset() {
        let scratch = Scratch::new();
        let directory = StatsDirectory::create(&scratch.0, 42).unwrap();
        let mut page = directory.page(PageKind::Vdi, 7).unwrap();
        page.publish(&PageValues {
            outstanding: 8,
            read_submitted: 16,
            read_completed: 24,
            read_sectors: 32,
            read_ticks_us: 40,
            write_submitted: 48,
            write_completed: 56,
            write_sectors: 64,
            write_ticks_us: 72,
            io_errors: 80,
            flags: 88,
        });
        let bytes = fs::read(scratch.0.join("td3-42/vdi-7")).unwrap();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()), 1);
        for offset in (8..96).step_by(8) {
            assert_eq!(word(&bytes, offset), offset as u64, "at {offset}");
        }
        assert!(bytes[96..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn files_are_regular_and_for_the_owner_only() {
        let scratch = Scratch::new();
        let directory = StatsDirectory::create(&scratch.0, 42).unwrap();
        let _page = directory.page(PageKind::Nbd, 65535).unwrap();
        let file = fs::symlink_metadata(scratch.0.join("td3-42/nbd-65535")).unwrap();
        assert!(file.is_file());
        assert_eq!(file.permissions().mode() & 0o7777, 0o600);
        let directory = fs::symlink_metadata(scratch.0.join("td3-42")).unwrap();
        assert_eq!(directory.permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn everything_is_gone_after_the_last_page_in_either_order() {
        let scratch = Scratch::new();
        let directory = StatsDirectory::create(&scratch.0, 1).unwrap();
        let page = directory.page(PageKind::Blktap, 0).unwrap();
        drop(page);
        assert_eq!(fs::read_dir(scratch.0.join("td3-1")).unwrap().count(), 0);
        drop(directory);
        assert!(!scratch.0.join("td3-1").exists());

        let directory = StatsDirectory::create(&scratch.0, 1).unwrap();
        let page = directory.page(PageKind::Blktap, 0).unwrap();
        drop(directory);
        assert!(scratch.0.join("td3-1/blktap-0").exists());
        drop(page);
        assert!(!scratch.0.join("td3-1").exists());
    }

    #[test]
    fn what_a_predecessor_left_is_cleaned_and_its_directory_closed() {
        let scratch = Scratch::new();
        let left = scratch.0.join("td3-9");
        fs::create_dir(&left).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(left.join("vdi-3"), b"old").unwrap();
        symlink("/etc/passwd", left.join("nbd-3")).unwrap();
        let directory = StatsDirectory::create(&scratch.0, 9).unwrap();
        assert_eq!(fs::read_dir(&left).unwrap().count(), 0);
        assert_eq!(fs::metadata(&left).unwrap().mode() & 0o777, 0o700);
        drop(directory);
        assert!(!left.exists());
    }

    #[test]
    fn a_link_in_place_of_a_file_is_replaced_and_not_followed() {
        let scratch = Scratch::new();
        let victim = scratch.0.join("victim");
        fs::write(&victim, b"precious").unwrap();
        let directory = StatsDirectory::create(&scratch.0, 9).unwrap();
        symlink(&victim, scratch.0.join("td3-9/vdi-3")).unwrap();
        let mut page = directory.page(PageKind::Vdi, 3).unwrap();
        page.publish(&PageValues::default());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(fs::symlink_metadata(scratch.0.join("td3-9/vdi-3")).unwrap().is_file());
    }

    #[test]
    fn refuses_a_link_in_place_of_the_directory() {
        let scratch = Scratch::new();
        let elsewhere = scratch.0.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), b"precious").unwrap();
        symlink(&elsewhere, scratch.0.join("td3-5")).unwrap();
        let error = StatsDirectory::create(&scratch.0, 5).unwrap_err();
        assert!(error.to_string().contains("td3-5"), "{error}");
        assert!(elsewhere.join("file").exists());
    }

    #[test]
    fn a_missing_shm_is_an_error_that_names_it() {
        let error = StatsDirectory::create(Path::new("/nonexistent/shm"), 5).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/shm/td3-5"), "{error}");
    }
}
