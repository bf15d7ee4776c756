//! The surroundings of a command: paths, its output, and how its failure is told.
//!
//! Programs call tap-ctl and compare what it says on standard error with the words of the C
//! library. So when that is not a terminal exactly those are said, but for an error that blktap
//! does not have; to a person (or with `TAP_CTL_ERRORS=long`) one line tells what was attempted, on
//! what, and what to do next.

use std::env;
use std::io::{self, IsTerminal, Write};

use nix::errno::Errno;
use tap_tools::console::exit_status;
use tapdisk_control::error::strerror;
use tapdisk_control::list::WRITES_LOST;
use tapdisk_control::message::ListEntry;
use tapdisk_control::{Client, ControlError, ErrorKind, Paths};

use crate::command::{Command, Failure};

/// What a command finds.
#[derive(Debug)]
pub(crate) struct Session {
    /// Where things are.
    pub(crate) paths: Paths,
    debug: bool,
    long_errors: bool,
    terminal: bool,
}

impl Session {
    pub(crate) fn new(debug: bool) -> Self {
        let wish = env::var_os("TAP_CTL_ERRORS");
        let long_errors = match wish.as_deref().and_then(|wish| wish.to_str()) {
            Some("long") => true,
            Some("short") => debug,
            _ => debug || io::stderr().is_terminal(),
        };
        let paths = Paths::from_env();
        Self { paths, debug, long_errors, terminal: io::stdout().is_terminal() }
    }

    /// With `--debug`: where a command looks.
    pub(crate) fn debug(&self, command: &str) {
        if self.debug {
            self.complain(&format!("tap-ctl {command}: {:?}\n", self.paths));
        }
    }

    /// Whether a person reads the output.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes to standard output, all of it now.
    pub(crate) fn print(&self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_ref()).and_then(|()| out.flush()).map_err(Failure::Output)
    }

    /// Writes to standard error. Nobody is left to tell when that fails.
    pub(crate) fn complain(&self, text: &str) {
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }

    /// After a command that closed an image: what is done is done, but somebody should know that
    /// the storage may have lost what was answered.
    pub(crate) fn warn_of_loss(&self, command: &str, client: &Client, minor: u16) {
        let is_lost = |disk: &ListEntry| disk.minor == minor && disk.state & WRITES_LOST != 0;
        if client.list().is_ok_and(|disks| disks.iter().any(is_lost)) {
            self.complain(&format!(
                "tap-ctl {command}: Warning: the storage of minor {minor} may have lost what was \
                 written and not flushed (EIO at a flush; see the log of tapdisk {})\n",
                client.process()
            ));
        }
    }

    /// Tells why a command failed; returns the exit status.
    pub(crate) fn fail(&self, command: &Command, failure: &Failure) -> u8 {
        match failure {
            Failure::Told(status) => *status,
            Failure::Usage(why) => {
                self.complain(command.usage);
                let error = ControlError::new(ErrorKind::Invalid, Errno::EINVAL, why);
                self.tell(command, &error, Errno::EINVAL as i32)
            }
            Failure::Control(error) => self.tell(command, error, error.errno()),
            Failure::Masked(error, errno) => self.tell(command, error, *errno as i32),
            // The reader of a pipe went away: it knows.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                exit_status(Errno::EPIPE as i32)
            }
            Failure::Output(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
                let error = ControlError::with_status(ErrorKind::System, errno, "Writing output");
                self.tell(command, &error, errno)
            }
        }
    }

    /// Says the error; `errno` is the one that callers of the program see.
    fn tell(&self, command: &Command, error: &ControlError, errno: i32) -> u8 {
        if self.long_errors || is_locked(command.name, error) {
            let next = next_step(command.name, error);
            self.complain(&format!("tap-ctl {}: {error}; {next}\n", command.name));
        } else {
            self.complain(&format!("{}\n", strerror(errno)));
        }
        exit_status(errno)
    }
}

/// An image that somebody else writes. blktap has no such error, so nobody compares its text, and
/// who reads it in the log of a storage manager needs to know who that is.
fn is_locked(command: &str, error: &ControlError) -> bool {
    matches!(command, "open" | "create" | "unpause")
        && error.kind() == ErrorKind::Refused
        && error.errno() == Errno::EAGAIN as i32
}

/// What a person can do about it.
fn next_step(command: &str, error: &ControlError) -> String {
    let errno = Errno::from_raw(error.errno());
    let text = match (error.kind(), errno) {
        (ErrorKind::Spawn, Errno::ENOENT) => "the variable TAPDISK may name the daemon's program",
        (ErrorKind::Spawn, _) => "see the system's log for what tapdisk says",
        (ErrorKind::Invalid, _) => return format!("see 'tap-ctl {command} --help'"),
        (ErrorKind::Connect | ErrorKind::Minor | ErrorKind::System, Errno::EACCES) => {
            "are you root?"
        }
        (ErrorKind::Connect, Errno::ENOENT) => {
            "no such tapdisk runs; 'tap-ctl list' shows those that do"
        }
        (ErrorKind::Connect, _) => {
            "the tapdisk is gone and its socket is left; 'tap-ctl list' shows those that run"
        }
        (ErrorKind::Timeout, _) => {
            "the tapdisk or its storage hangs: see its log, or allow it more time with -t"
        }
        (ErrorKind::Vanished, _) => "the tapdisk ended meanwhile; look again with 'tap-ctl list'",
        (ErrorKind::Protocol, _) => "tap-ctl and tapdisk may be of different versions",
        (ErrorKind::Refused, Errno::ENODEV) => {
            "it has no such minor; 'tap-ctl list -p PID' shows those it has"
        }
        (ErrorKind::Refused, Errno::EAGAIN) if is_locked(command, error) => {
            "close it there first, or see --shared in 'tap-ctl open --help'"
        }
        (ErrorKind::Refused, Errno::EALREADY) => "close the image that is open first",
        (ErrorKind::Refused, Errno::EBUSY) => "it is in use: close the image or its device first",
        (ErrorKind::Refused, Errno::EEXIST) => "this minor is attached already",
        (ErrorKind::Refused, _) => "see 'tap-ctl list' for its state and the tapdisk's log",
        (ErrorKind::Minor, Errno::ENOENT) => "'tap-ctl list' shows the minors that are allocated",
        (ErrorKind::Minor, Errno::EAGAIN | Errno::EBUSY) => {
            "a tapdisk has it attached: 'tap-ctl detach' it first"
        }
        (ErrorKind::Minor, Errno::ENOSPC) => {
            "'tap-ctl list' shows minors without pid: 'tap-ctl free' them"
        }
        (ErrorKind::System, Errno::ENOSYS | Errno::ENODEV) => {
            "load the kernel's blktap module if a block device is needed"
        }
        (ErrorKind::Minor | ErrorKind::System, _) => "see the directory's owner, mode and space",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_what_to_do_next() {
        let error = ControlError::new(ErrorKind::Connect, Errno::ENOENT, "Connecting to x");
        assert!(next_step("attach", &error).contains("'tap-ctl list'"));
        let error = ControlError::new(ErrorKind::Invalid, Errno::EINVAL, "Minor 70000");
        assert_eq!(next_step("attach", &error), "see 'tap-ctl attach --help'");
        let error = ControlError::new(ErrorKind::Spawn, Errno::EPERM, "Starting tapdisk");
        assert!(next_step("spawn", &error).contains("log"));
    }
}
