//! td-util: the few operations on images of any type that a storage manager of files runs.
//!
//! One file for each command; what they do with VHDs is vhd-util's.

mod create;
mod query;
mod set;
mod snapshot;

use std::ffi::{OsStr, OsString};

use crate::console::{Console, Failure};
use crate::options::{Options, Parsed};

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A VHD.
    Vhd,
    /// A raw file.
    Aio,
}

/// A command of td-util: `NAME TYPE [OPTIONS] ...`.
struct Command {
    name: &'static str,
    short: &'static str,
    /// Behind `usage: td-util NAME TYPE `.
    usage: &'static str,
    /// The exit status of `-h`.
    usage_status: u8,
    /// Whether a wrong option is complained about once more.
    repeats: bool,
    /// Why raw files have no such thing.
    not_of_aio: Option<&'static str>,
    run: Run,
}

type Done = Result<(), Failure>;

/// What it does, with so many operands.
enum Run {
    One(fn(&mut Console, Kind, &Options, &OsStr) -> Done),
    Two(fn(&mut Console, Kind, &Options, [&OsStr; 2]) -> Done),
    Three(fn(&mut Console, &Options, [&OsStr; 3]) -> Done),
}

const COMMANDS: [Command; 4] = [create::COMMAND, snapshot::COMMAND, query::COMMAND, set::COMMAND];

/// As ever: what is no command ends so.
const NO_COMMAND: u8 = 255;

/// Runs it with the arguments after its name; the exit status.
#[must_use]
pub fn start(arguments: &[OsString]) -> u8 {
    let name = arguments.first().map(OsString::as_os_str);
    let title = format!("td-util {}", name.unwrap_or_default().display());
    let mut console = Console::standard(&title, false);
    let Some(name) = name else {
        console.complain(help());
        return NO_COMMAND;
    };
    if name == "--help" {
        let result = console.print(format!("{}\n{HELP}", help()));
        return console.finish(result);
    }
    let Some(command) = COMMANDS.iter().find(|command| name == command.name) else {
        console.complain(format!("invalid COMMAND {}\n{}", name.display(), help()));
        return NO_COMMAND;
    };
    let kind = arguments.get(1).map_or(OsStr::new(""), OsString::as_os_str);
    let kind = match kind.to_str() {
        Some("vhd") => Kind::Vhd,
        Some("aio") => Kind::Aio,
        _ => {
            console.complain(format!("invalid TYPE '{}'.\n{TYPES}", kind.display()));
            return NO_COMMAND;
        }
    };
    let result = run(&mut console, command, kind, arguments.get(2..).unwrap_or_default());
    console.finish(result)
}

fn run(
    console: &mut Console,
    command: &Command,
    kind: Kind,
    arguments: &[OsString],
) -> Result<(), Failure> {
    if let (Kind::Aio, Some(why)) = (kind, command.not_of_aio) {
        console.complain(format!("{why}\n"));
        return Err(Failure::Status(22));
    }
    match Options::parse(command.short, &["--no-lock"], arguments) {
        Parsed::Options(options) => {
            let operands: Vec<&OsStr> = options.operands().collect();
            match (&command.run, &operands[..]) {
                (Run::One(run), [one]) => run(console, kind, &options, one),
                (Run::Two(run), [one, two]) => run(console, kind, &options, [one, two]),
                (Run::Three(run), [one, two, three]) => run(console, &options, [one, two, three]),
                _ => command.refuse(console, kind),
            }
        }
        Parsed::Help => console.print(format!("{}\n{HELP}", command.usage(kind))),
        Parsed::Usage => {
            console.complain(command.usage(kind));
            if command.usage_status == 0 { Ok(()) } else { Err(Failure::Status(22)) }
        }
        Parsed::Wrong(wrong) => {
            console.complain(format!("{}: {wrong}\n", command.name));
            if command.repeats {
                console.complain("Unknown option ?\n");
            }
            command.refuse(console, kind)
        }
    }
}

impl Command {
    fn usage(&self, kind: Kind) -> String {
        let kind = if kind == Kind::Vhd { "vhd" } else { "aio" };
        format!("usage: td-util {} {kind} {}\n", self.name, self.usage)
    }

    /// Says how it is used; EINVAL.
    fn refuse(&self, console: &mut Console, kind: Kind) -> Result<(), Failure> {
        console.complain(self.usage(kind));
        Err(Failure::Status(22))
    }
}

const TYPES: &str = "TYPE := { vhd | aio }\n";

fn help() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    let names = names.join(" | ");
    format!(
        "Tapdisk Utilities: v1.0.0\nusage: td-util COMMAND [TYPE] [OPTIONS]\nCOMMAND := {{ {names} \
         }}\n{TYPES}"
    )
}

const HELP: &str =
    "  td-util create vhd 10240 disk.vhd          a dynamic image of 10240 MB; -r: a fixed one
  td-util snapshot vhd child.vhd disk.vhd    a differencing image on it
  td-util query vhd -vpf child.vhd           size in MB, parent, hidden
  td-util set vhd disk.vhd hidden 1

'vhd-util --help' tells what more there is for VHDs. The exit status is 0, an errno, or 255.
";
