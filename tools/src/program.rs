//! A program of several commands: finds the one that is asked for, reads its options, runs it.

use std::ffi::{OsStr, OsString};

use nix::errno::Errno;

use crate::console::{Console, Failure};
use crate::options::{Options, Parsed};

/// Where a usage text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// How it is called.
    pub name: &'static str,
    /// Its short options, as getopt has them.
    pub short: &'static str,
    /// Its long options besides `--help`.
    pub long: &'static [&'static str],
    /// What `-h` and a wrong call print: programs compare it.
    pub usage: &'static str,
    /// Where that goes.
    pub usage_stream: Stream,
    /// The exit status of `-h`.
    pub usage_status: u8,
    /// What `--help` prints after that: for people.
    pub help: &'static str,
    /// What it does.
    pub run: fn(&mut Console, &Options) -> Result<(), Failure>,
}

impl Command {
    /// Prints the usage and says why; EINVAL.
    ///
    /// # Errors
    /// Always: the failure to return.
    pub fn refuse(&self, console: &mut Console, why: &str) -> Result<(), Failure> {
        self.print_usage(console)?;
        Err(Failure::new(Errno::EINVAL, why))
    }

    fn print_usage(&self, console: &mut Console) -> Result<(), Failure> {
        match self.usage_stream {
            Stream::Out => console.print(self.usage),
            Stream::Error => {
                console.complain(self.usage);
                Ok(())
            }
        }
    }

    /// Reads the arguments and runs it; the exit status.
    pub fn start(&self, console: &mut Console, arguments: &[OsString]) -> u8 {
        let result = match Options::parse(self.short, self.long, arguments) {
            Parsed::Options(options) => (self.run)(console, &options),
            Parsed::Help => console.print(format!("{}\n{}", self.usage, self.help)),
            Parsed::Usage => match self.print_usage(console) {
                Ok(()) if self.usage_status != 0 => Err(Failure::Status(self.usage_status)),
                result => result,
            },
            Parsed::Wrong(wrong) => {
                console.complain(format!("{}: {wrong}\n", self.name));
                self.refuse(console, "Wrong use")
            }
        };
        console.finish(result)
    }
}

/// A program's commands and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// How it is called.
    pub name: &'static str,
    /// The commands of the reference; its usage names these.
    pub commands: &'static [Command],
    /// More commands. Programs compare the usage, so only `--help` names these.
    pub more_commands: &'static [Command],
    /// What is said of a command that there is not, before its name.
    pub unknown: &'static str,
    /// The exit status without a command.
    pub nothing_status: u8,
    /// What `--help` prints after the usage.
    pub help: &'static str,
    /// Whether `--debug` is taken out of a command's arguments, wherever it is.
    pub takes_debug: bool,
}

impl Program {
    /// Runs it with the arguments after its name; the exit status.
    #[must_use]
    pub fn start(&self, arguments: &[OsString]) -> u8 {
        let Some((name, rest)) = arguments.split_first() else {
            let mut console = Console::standard(self.name, false);
            let result = console.print(self.usage());
            let status = console.finish(result);
            return if status == 0 { self.nothing_status } else { status };
        };
        let is_debug = |argument: &&OsString| self.takes_debug && *argument == "--debug";
        let debug = rest.iter().any(|argument| is_debug(&argument));
        let rest: Vec<OsString> =
            rest.iter().filter(|argument| !is_debug(argument)).cloned().collect();
        let title = format!("{} {}", self.name, name.display());
        self.dispatch(&mut Console::standard(&title, debug), name, &rest)
    }

    /// The same with a console of the caller's, and `--debug` taken out.
    pub fn dispatch(&self, console: &mut Console, name: &OsStr, arguments: &[OsString]) -> u8 {
        let mut commands = self.commands.iter().chain(self.more_commands);
        if let Some(command) = commands.find(|command| name == command.name) {
            return command.start(console, arguments);
        }
        let text = if name == "--help" {
            self.help()
        } else {
            console.complain(format!("{} {}\n", self.unknown, name.display()));
            self.usage()
        };
        // As ever: this is no failure, whatever it was that is unknown.
        let result = console.print(text);
        console.finish(result)
    }

    fn usage(&self) -> String {
        let names: Vec<&str> = self.commands.iter().map(|command| command.name).collect();
        let name = self.name;
        format!("usage: {name} COMMAND [OPTIONS]\nCOMMAND := {{ {} }}\n", names.join(" | "))
    }

    fn help(&self) -> String {
        let mut text = self.usage();
        if !self.more_commands.is_empty() {
            let more: Vec<&str> = self.more_commands.iter().map(|command| command.name).collect();
            text.push_str(&format!("         also {}\n", more.join(", ")));
        }
        text.push('\n');
        text.push_str(self.help);
        text
    }
}
