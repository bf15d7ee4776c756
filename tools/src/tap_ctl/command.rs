//! What all commands have in common: a table entry, their options, and how they fail.

use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::time::Duration;

use nix::errno::Errno;
use tap_tools::number::atoi;
use tapdisk_control::{Client, ControlError, ErrorKind};

use crate::session::Session;

/// A command of tap-ctl.
pub(crate) struct Command {
    /// How it is called.
    pub(crate) name: &'static str,
    /// Its short options, as getopt has them.
    pub(crate) short: &'static str,
    /// Its long options besides `--help`.
    pub(crate) long: &'static [&'static str],
    /// What `-h` and a wrong call print: programs compare it.
    pub(crate) usage: &'static str,
    /// What `--help` prints after that: for people.
    pub(crate) help: &'static str,
    /// What it does.
    pub(crate) run: fn(&Session, &Options) -> Result<(), Failure>,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// What it tried failed.
    Control(ControlError),
    /// The same, but callers expect this exit status instead of the errno.
    Masked(ControlError, Errno),
    /// It has told why; the exit status.
    Told(u8),
    /// Its output could not be written.
    Output(io::Error),
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

/// The options of a call, and what tap-ctl's commands make of them.
#[derive(Debug, Default)]
pub(crate) struct Options(tap_tools::options::Options);

impl From<tap_tools::options::Options> for Options {
    fn from(options: tap_tools::options::Options) -> Self {
        Self(options)
    }
}

impl Deref for Options {
    type Target = tap_tools::options::Options;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Options {
    /// An argument that has to be there.
    pub(crate) fn required(&self, option: u8) -> Result<&OsStr, Failure> {
        self.argument(option).ok_or_else(|| missing(option))
    }

    /// The argument of an option as a number; -1 counts as absent, as it always has.
    pub(crate) fn number(&self, option: u8) -> Result<Option<i32>, Failure> {
        let Some(text) = self.argument(option) else { return Ok(None) };
        match atoi(text) {
            Some(-1) => Ok(None),
            Some(number) => Ok(Some(number)),
            None => Err(invalid(&format!(
                "Option -{} has {}, want a number of 32 bits",
                char::from(option),
                text.display()
            ))),
        }
    }

    /// The same, when it has to be in the range of a narrower type.
    pub(crate) fn unsigned<T: TryFrom<i32>>(&self, option: u8) -> Result<Option<T>, Failure> {
        let Some(number) = self.number(option)? else { return Ok(None) };
        let narrow = T::try_from(number).map_err(|_| {
            let option = char::from(option);
            let max = if size_of::<T>() == 2 { "65535" } else { "2147483647" };
            invalid(&format!("Option -{option} has {number}, want 0 to {max}"))
        })?;
        Ok(Some(narrow))
    }

    /// `-p pid`, as the client of that tapdisk, and `-m minor`: both have to be there.
    pub(crate) fn disk(&self, session: &Session) -> Result<(Client, u16), Failure> {
        let pid = self.number(b'p')?.ok_or_else(|| missing(b'p'))?;
        let minor = self.minor()?;
        Ok((Client::new(&session.paths, pid), minor))
    }

    /// `-m minor`.
    pub(crate) fn minor(&self) -> Result<u16, Failure> {
        self.unsigned(b'm')?.ok_or_else(|| missing(b'm'))
    }

    /// `-t seconds`: 0 is no limit.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>, Failure> {
        let seconds: u32 = self.unsigned(b't')?.unwrap_or(0);
        Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
    }
}

fn missing(option: u8) -> Failure {
    Failure::Usage(format!("Option -{} is missing", char::from(option)))
}

/// A value that makes no sense.
pub(crate) fn invalid(attempt: &str) -> Failure {
    ControlError::new(ErrorKind::Invalid, Errno::EINVAL, attempt).into()
}
