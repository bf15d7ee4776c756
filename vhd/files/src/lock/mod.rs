//! One writer for each image: a lock on the file or device that is opened for writing.
//!
//! Two programs that write one image destroy it, and say nothing while they do. So who opens an
//! image for writing takes an exclusive lock on it: an open file description lock (fcntl(2),
//! F_OFD_SETLK). It belongs to the open file, not to the process:
//!
//! * a second writer in the same process is refused too;
//! * it ends with the last descriptor, so it cannot be forgotten - and not before the last I/O in
//!   the kernel ends, because that holds the file open as well. A daemon killed while its storage
//!   hangs keeps the image until its last write cannot land any more.
//!
//! A reader takes no lock, and no writer is refused because of one. That is on purpose: each parent
//! of a chain is open for reading in any number of daemons, and a storage manager coalesces a child
//! into its parent while daemons read that parent. A parent's lock would forbid what is right.
//!
//! What a lock on a device covers is its node: two nodes made by hand for one device are two locks.
//!
//! Locks of other programs count. QEMU says with shared locks on single bytes what it does with an
//! image (from byte 100) and what it does not bear from others (from byte 200); the first of each
//! is reading. All bytes behind those two are locked here, so that
//!
//! * QEMU writes no image that is open for writing here, nor the other way round;
//! * neither reads one that the other writes, as long as it does not say that it bears it
//!   (`qemu-img -U`).
//!
//! [`Policy`] says where locks are taken.

mod holder;
mod storage;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

pub use holder::Holder;
pub use storage::is_shared_between_hosts;

/// The environment variable that sets the policy of tools and daemons: [`Policy`] as text.
pub const VARIABLE: &str = "TAPDISK_LOCK";

/// On which images a writer takes the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// On devices and on file systems of this host alone; not where other hosts see the lock.
    ///
    /// A lock that a network file system keeps may outlive the host that took it (NFS 3 until that
    /// host is up again), just when the image is needed elsewhere, and images that several hosts
    /// write together on purpose are such files. Who manages storage of several hosts has locks of
    /// his own. Storage that knows no locks is written without one.
    #[default]
    Auto,
    /// Everywhere; an image that cannot be locked cannot be written.
    Always,
    /// Nowhere.
    Never,
}

impl Policy {
    /// The policy that [`VARIABLE`] asks for; `None` when it is not set, or empty.
    ///
    /// # Errors
    /// The text of the variable when it is no policy.
    pub fn from_environment() -> Result<Option<Self>, UnknownPolicy> {
        match std::env::var_os(VARIABLE) {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => text.to_string_lossy().parse().map(Some),
        }
    }
}

/// A text that names no [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy(String);

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Found {:?} where auto, always or never was wanted", self.0)
    }
}

impl std::error::Error for UnknownPolicy {}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => Err(UnknownPolicy(other.to_owned())),
        }
    }
}

/// What became of a lock that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The image is locked for as long as the file is open.
    Locked,
    /// Not locked: [`Policy::Never`].
    NotWanted,
    /// Not locked: [`Policy::Auto`], and other hosts may use this file system too.
    SharedStorage,
    /// Not locked: [`Policy::Auto`], and this storage has no locks. Worth a warning.
    Unsupported(Errno),
}

/// Why an image could not be locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockError {
    path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Held(Option<Holder>),
    Failed(Errno),
}

impl LockError {
    /// EAGAIN when somebody else has the lock; else what the system says.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match &self.kind {
            Kind::Held(_) => Errno::EAGAIN,
            Kind::Failed(errno) => *errno,
        }
    }

    /// Who has the lock, where that is known.
    #[must_use]
    pub fn holder(&self) -> Option<&Holder> {
        match &self.kind {
            Kind::Held(holder) => holder.as_ref(),
            Kind::Failed(_) => None,
        }
    }

    /// The text without the path, for errors that name it themselves.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.kind {
            Kind::Held(Some(holder)) => format!("The image is in use: {holder} has locked it"),
            Kind::Held(None) => "The image is in use: a process that cannot be seen from here, or \
                                 one on another host, has locked it"
                .to_owned(),
            Kind::Failed(_) => "Cannot lock the image for writing".to_owned(),
        }
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.reason(), self.path.display())?;
        match &self.kind {
            Kind::Held(_) => Ok(()),
            Kind::Failed(errno) => write!(formatter, ": {}", errno.desc()),
        }
    }
}

impl std::error::Error for LockError {}

/// Locks an image that is open for writing, as the policy says, without waiting. The lock ends when
/// the last descriptor of this open file is closed and its last I/O has ended.
///
/// Call it before the first byte that decides anything is read: whoever held the lock until now may
/// just have changed it. To call it again for a file that is locked changes nothing.
///
/// # Errors
/// EAGAIN when another open file holds a lock on the image, with the process that has it; EBADF for
/// a file that is not open for writing; ENOLCK and others under [`Policy::Always`].
pub fn lock_for_writing(file: &File, path: &Path, policy: Policy) -> Result<Outcome, LockError> {
    match policy {
        Policy::Never => Ok(Outcome::NotWanted),
        Policy::Auto if is_shared_between_hosts(file) => Ok(Outcome::SharedStorage),
        _ => settle(set_exclusive(file), file, path, policy),
    }
}

/// What the system's answer to the wish for a lock means.
fn settle(
    answer: Result<(), Errno>,
    file: &File,
    path: &Path,
    policy: Policy,
) -> Result<Outcome, LockError> {
    let failed = |kind| Err(LockError { path: path.to_owned(), kind });
    match answer {
        Ok(()) => Ok(Outcome::Locked),
        Err(Errno::EAGAIN | Errno::EACCES) => failed(Kind::Held(holder::find(file))),
        // No lock manager, a kernel older than these locks (3.15), a file system without them.
        Err(errno @ (Errno::ENOLCK | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP))
            if policy == Policy::Auto =>
        {
            Ok(Outcome::Unsupported(errno))
        }
        Err(errno) => failed(Kind::Failed(errno)),
    }
}

/// Ends a lock before the file is closed. A completion that was just reaped may hold the open file
/// for a moment longer than its last descriptor: who hands an image over calls this first.
///
/// Not for a file with I/O under way: then the lock has to end with that, and does.
pub fn unlock(file: &File) {
    // One that cannot be given back ends with the file.
    let _ = set(file, libc::F_UNLCK, 0, 0);
}

/// What is locked: the start and the length in bytes, 0 for all that follows. The bytes need not be
/// there; they are what QEMU has for everything but reading.
const RANGES: [(i64, i64); 2] = [(101, 99), (201, 0)];

/// All ranges or none. Who has the first one wins: all take it first.
fn set_exclusive(file: &File) -> Result<(), Errno> {
    let [(first, first_len), (second, second_len)] = RANGES;
    set(file, libc::F_WRLCK, first, first_len)?;
    set(file, libc::F_WRLCK, second, second_len).inspect_err(|_| unlock(file))
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> Result<(), Errno> {
    let range = libc::flock {
        l_type: i16::try_from(kind).expect("lock types are 0 to 2"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests;
