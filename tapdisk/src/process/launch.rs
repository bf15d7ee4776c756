//! Into the background, and the word to who waits in the foreground.
//!
//! ```text
//!   tap-ctl spawn ── runs ──> parent ── fork ──> daemon
//!        │                      │                  │  opens its control socket
//!        │ <──── stdout: the socket's path ─────── │  ready
//!        │                      │ <── status ───── │
//!        │ <─── exit status ─── ┘                  ▼  serves
//! ```
//!
//! The parent stays until the daemon is ready, so that a failed start is an exit status and not a
//! silent end of the pipe.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::signals::SignalMask;
use super::sys::{self, Side};

/// What the parent exits with when the daemon ends without a word. Callers of `tap-ctl spawn` try
/// again after 1.
const STATUS_DIED: u8 = 1;

/// The longest word of a daemon to its parent, in bytes: less than a pipe holds.
const WORD_MAX: usize = 1024;

/// A start that is under way: somebody waits for [`Launch::ready`] or [`Launch::failed`]. Dropped
/// without either, it is a failure with status 1.
#[derive(Debug)]
pub struct Launch {
    /// Where the caller listens: the standard output at the start.
    stdout: File,
    /// To the waiting parent; none in the foreground.
    parent: Option<PipeWriter>,
}

impl Launch {
    /// The daemon serves: prints the path of its control socket, closes the standard output of the
    /// caller, and lets the parent go.
    ///
    /// # Errors
    /// What writing says, for example that nobody listens any more; the parent then exits with it.
    pub fn ready(mut self, control: &Path) -> io::Result<()> {
        let mut line = control.as_os_str().as_bytes().to_vec();
        line.push(b'\n');
        let printed = self.stdout.write_all(&line);
        self.report(printed.as_ref().map_or_else(status_of, |()| 0), "");
        printed
    }

    /// The daemon gives up: the parent says why on its standard error, and exits with `status`, an
    /// errno by custom (0 counts as 1). In the foreground the caller says it itself.
    pub fn failed(mut self, status: u8, why: &str) {
        self.report(status.max(1), why);
    }

    fn report(&mut self, status: u8, why: &str) {
        if let Some(mut parent) = self.parent.take() {
            let mut word = vec![status];
            word.extend_from_slice(why.as_bytes());
            word.truncate(WORD_MAX);
            // A parent that was killed meanwhile wants no word.
            let _ = parent.write_all(&word);
        }
    }
}

fn status_of(error: &io::Error) -> u8 {
    error.raw_os_error().and_then(|errno| u8::try_from(errno).ok()).unwrap_or(STATUS_DIED).max(1)
}

/// Stays in the foreground.
///
/// # Errors
/// What dup says.
pub fn foreground() -> io::Result<Launch> {
    Ok(Launch { stdout: duplicate_stdout()?, parent: None })
}

/// Goes into the background: only the daemon returns from this, in a session of its own, at `/`,
/// with its standard streams at `/dev/null`. The parent waits for its word and exits.
///
/// # Errors
/// `Unsupported` when there is another thread; otherwise what the system says.
pub fn daemonise(mask: &SignalMask) -> io::Result<Launch> {
    let stdout = duplicate_stdout()?;
    let (reader, writer) = io::pipe()?;
    if sys::split()? == Side::Parent {
        drop(writer);
        drop(stdout);
        // A person who interrupts the start means this process; the daemon has the signal blocked.
        let _ = mask.restore();
        sys::exit_now(await_status(reader));
    }
    drop(reader);
    let launch = Launch { stdout, parent: Some(writer) };
    match detach() {
        Ok(()) => Ok(launch),
        Err(error) => {
            launch.failed(status_of(&error), &error.to_string());
            Err(error)
        }
    }
}

fn await_status(reader: PipeReader) -> u8 {
    let mut word = Vec::new();
    // A word that was cut off is told as far as it came.
    let _ = reader.take(WORD_MAX as u64).read_to_end(&mut word);
    // The end of the pipe without a byte: it died or gave up without a word.
    let Some((status, why)) = word.split_first() else { return STATUS_DIED };
    if !why.is_empty() {
        let _ = writeln!(io::stderr(), "tapdisk: {}", String::from_utf8_lossy(why));
    }
    *status
}

fn detach() -> io::Result<()> {
    setsid()?;
    chdir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

fn duplicate_stdout() -> io::Result<File> {
    // A number of 3 or above, closed in programs that we start.
    let copy: OwnedFd = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(File::from(copy))
}

/// Takes from others the permission to write to what this process makes, sockets first of all: who
/// may write to one may connect. What the caller forbids beyond that stays forbidden.
pub fn restrict_umask() {
    let others = Mode::S_IWGRP | Mode::S_IWOTH;
    let inherited = umask(others);
    umask(inherited | others);
}

/// Closes every descriptor from `first` on that the caller of this program left open: a leaked pipe
/// or lock would stay open for as long as the disk is served.
///
/// Call it before anything is opened: it closes what is there, whoever owns it.
///
/// # Errors
/// What reading `/proc/self/fd` says, on kernels without close_range (before 5.9).
pub fn close_inherited(first: u32) -> io::Result<()> {
    match sys::close_from(first) {
        Ok(()) => Ok(()),
        Err(Errno::ENOSYS | Errno::EPERM) => close_listed(first),
        Err(errno) => Err(errno.into()),
    }
}

/// The same, one by one. The list is complete before the first is closed: its own descriptor is on
/// it.
pub(super) fn close_listed(first: u32) -> io::Result<()> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(number) = number.filter(|number| *number >= first) {
            open.extend(RawFd::try_from(number));
        }
    }
    open.into_iter().for_each(sys::close_one);
    Ok(())
}
