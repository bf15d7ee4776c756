//! tap-ctl: controls tapdisks. Options, output and exit status are those of blktap's tap-ctl, which
//! a storage manager parses; what is new takes a long option or a new name.
//!
//! One file for each command; `command` has what they share, `session` how they talk.

#![forbid(unsafe_code)]

mod allocate;
mod attach;
mod check;
mod close;
mod command;
mod create;
mod destroy;
mod detach;
mod free;
mod image_options;
mod kernel;
mod list;
mod major;
mod open;
mod pause;
mod sample;
mod session;
mod snapshot;
mod spawn;
mod stats;
mod top;
mod unpause;

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use command::Command;
use session::Session;
use tap_tools::options::{Options, Parsed};

/// The commands, in the order in which the usage has them.
const COMMANDS: [Command; 13] = [
    list::COMMAND,
    allocate::COMMAND,
    free::COMMAND,
    create::COMMAND,
    destroy::COMMAND,
    spawn::COMMAND,
    attach::COMMAND,
    detach::COMMAND,
    open::COMMAND,
    close::COMMAND,
    pause::COMMAND,
    unpause::COMMAND,
    stats::COMMAND,
];

/// More commands. The usage is compared by programs, so only `--help` names these.
const MORE_COMMANDS: [Command; 4] =
    [top::COMMAND, major::COMMAND, check::COMMAND, snapshot::COMMAND];

fn main() -> ExitCode {
    let (arguments, debug) = arguments();
    let session = Session::new(debug);
    let name = arguments.first().map_or(OsStr::new(""), OsString::as_os_str);
    let known = COMMANDS.iter().chain(&MORE_COMMANDS).find(|command| name == command.name);
    ExitCode::from(match known {
        Some(command) => run(&session, command, arguments.get(1..).unwrap_or_default()),
        None => {
            let text = if name == "--help" { help() } else { usage() };
            // As ever: this is no failure, whatever it was that is unknown.
            drop(session.print(text));
            0
        }
    })
}

/// The arguments after the program's name, without `--debug`, which may be anywhere.
fn arguments() -> (Vec<OsString>, bool) {
    let all: Vec<OsString> = env::args_os().skip(1).collect();
    let arguments: Vec<OsString> =
        all.iter().filter(|argument| *argument != "--debug").cloned().collect();
    let debug = arguments.len() != all.len();
    (arguments, debug)
}

fn run(session: &Session, command: &Command, arguments: &[OsString]) -> u8 {
    session.debug(command.name);
    let result = match Options::parse(command.short, command.long, arguments) {
        Parsed::Options(options) => (command.run)(session, &options.into()),
        Parsed::Help => session.print(format!("{}\n{}", command.usage, command.help)),
        // attach has always written it to the other side.
        Parsed::Usage if command.name == attach::COMMAND.name => {
            session.complain(command.usage);
            Ok(())
        }
        Parsed::Usage => session.print(command.usage),
        Parsed::Wrong(wrong) => {
            session.complain(&format!("{}: {wrong}\n", command.name));
            Err(command::Failure::Usage(format!("Wrong use: {wrong}")))
        }
    };
    match result {
        Ok(()) => 0,
        Err(failure) => session.fail(command, &failure),
    }
}

fn usage() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    format!("usage: tap-ctl COMMAND [OPTIONS]\nCOMMAND := {{ {} }}\n", names.join(" | "))
}

fn help() -> String {
    let mut text = usage();
    let more: Vec<&str> = MORE_COMMANDS.iter().map(|command| command.name).collect();
    text.push_str(&format!("         also {}\n", more.join(", ")));
    text.push_str(HELP);
    text
}

const HELP: &str = "
Controls tapdisk processes. A disk is a minor of a tapdisk:

  tap-ctl allocate                                takes minor N, prints its name
  tap-ctl spawn                                   starts a tapdisk, prints its pid P
  tap-ctl attach -p P -m N                        makes disk N in it
  tap-ctl open -p P -m N -a aio:/srv/disk.raw     opens the image
  tap-ctl list                                    shows it
  tap-ctl close -p P -m N                         and back
  tap-ctl detach -p P -m N                        ends the tapdisk after its last disk
  tap-ctl free -m N

'tap-ctl create' and 'tap-ctl destroy' do each half in one step.
'tap-ctl COMMAND --help' tells more about one.

Exit status: 0, or an errno (22: wrong use, 2: no such tapdisk or minor, 110: timeout).

Environment:
  TAPDISK           the daemon's program
  TAPDISK_RUN_DIR   sockets and markers; /run/blktap-control
  TAPDISK_DEV_DIR   nodes of the kernel driver; /dev/xen/blktap-2
  TAPDISK_SHM_DIR   statistics; /dev/shm
  TAPDISK_LOCK      for 'spawn' and 'create': which images a tapdisk locks while it may write them;
                    auto (default: those of this host), always, never
  TAP_CTL_ERRORS    'long': explain errors also when standard error is no terminal;
                    'short': say only what the C library says
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_explains_itself() {
        for command in COMMANDS.iter().chain(&MORE_COMMANDS) {
            let start = format!("usage: {}", command.name);
            assert!(command.usage.starts_with(&start), "{}", command.name);
            assert!(command.usage.ends_with('\n'), "{}", command.name);
            assert!(command.help.ends_with('\n'), "{}", command.name);
            assert!(command.short.contains('h'), "{}", command.name);
        }
    }

    #[test]
    fn the_usage_names_the_commands_of_blktap_4_and_no_more() {
        assert_eq!(
            usage(),
            "usage: tap-ctl COMMAND [OPTIONS]\nCOMMAND := { list | allocate | free | create | \
             destroy | spawn | attach | detach | open | close | pause | unpause | stats }\n"
        );
    }
}
