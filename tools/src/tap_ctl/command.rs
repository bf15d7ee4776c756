//! What all commands have in common: a table entry, their options, and how they fail.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use tapdisk_control::{Client, ControlError, ErrorKind};

use crate::getopt::{Getopt, Item, Wrong};
use crate::number::atoi;
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

/// What the options of a command came to.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// It can run.
    Options(Options),
    /// `-h`.
    Usage,
    /// `--help`.
    Help,
    /// getopt's complaint.
    Wrong(Wrong),
}

/// The options of a call, in order.
#[derive(Debug, Default)]
pub(crate) struct Options {
    items: Vec<Item>,
}

impl Options {
    /// Reads the arguments of a command. What comes first decides: help or a mistake.
    pub(crate) fn parse(command: &Command, arguments: &[OsString]) -> Parsed {
        let mut long = command.long.to_vec();
        long.push("--help");
        let mut options = Self::default();
        for item in Getopt::new(command.short, &long, arguments) {
            match item {
                Err(wrong) => return Parsed::Wrong(wrong),
                Ok(Item::Short(b'h', None)) => return Parsed::Usage,
                Ok(Item::Long("--help")) => return Parsed::Help,
                Ok(item) => options.items.push(item),
            }
        }
        Parsed::Options(options)
    }

    /// Whether a short option was given.
    pub(crate) fn has(&self, option: u8) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Short(given, _) if *given == option))
    }

    /// Whether a long option was given.
    pub(crate) fn has_long(&self, name: &str) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Long(given) if *given == name))
    }

    /// The argument of an option; the last one counts.
    pub(crate) fn argument(&self, option: u8) -> Option<&OsStr> {
        self.items.iter().rev().find_map(|item| match item {
            Item::Short(given, argument) if *given == option => argument.as_deref(),
            _ => None,
        })
    }

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
