//! vhd-util: makes, inspects, checks, changes and joins VHD images.
//!
//! One file for each command; `image` opens, `dump` is what `read -p` and `check` show.

mod attribute;
mod check;
mod coalesce;
mod compact;
mod convert;
mod copy;
pub(crate) mod create;
mod dump;
mod fill;
pub(crate) mod image;
mod key;
mod making;
mod map;
mod modify;
pub(crate) mod perform;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
pub(crate) mod set;
pub(crate) mod snapshot;
mod source;
mod summary;
mod watched;
mod writer;

use crate::program::Program;

/// The program.
pub const PROGRAM: Program = Program {
    name: "vhd-util",
    commands: &[
        create::COMMAND,
        snapshot::COMMAND,
        query::COMMAND,
        read::COMMAND,
        set::COMMAND,
        repair::COMMAND,
        resize::COMMAND,
        fill::COMMAND,
        coalesce::COMMAND,
        modify::COMMAND,
        scan::COMMAND,
        check::COMMAND,
        revert::COMMAND,
        key::COMMAND,
        copy::COMMAND,
    ],
    more_commands: &[convert::COMMAND, map::COMMAND, compact::COMMAND],
    unknown: "invalid COMMAND",
    nothing_status: 0,
    takes_debug: true,
    help: HELP,
};

const HELP: &str = "VHD images: fixed, dynamic, and differencing ones on a parent.

  vhd-util create -n disk.vhd -s 10240           a dynamic image of 10240 MB
  vhd-util snapshot -n child.vhd -p disk.vhd     what is written from now on
  vhd-util query -vsfp -n child.vhd              size, file size, hidden, parent
  vhd-util scan -f -c -m '/srv/*.vhd'            many at once
  vhd-util check -n child.vhd                    is it sound?
  vhd-util coalesce -n child.vhd                 its data into its parent
  vhd-util convert -f qcow2 -n a.qcow2 -N a.vhd  from and to other formats
  vhd-util map -n child.vhd                      what is stored where

'vhd-util COMMAND --help' tells more about one. The exit status is 0 or an errno. An image that is
open for writing is locked.

Environment:
  VHD_UTIL_ERRORS   'long': explain errors also when standard error is no terminal
  VHD_UTIL_PARENTS  directories, with colons between, where raw parents may be besides that of their
                    child
  TAPDISK_LOCK      'always', 'never' or 'auto': whether images are locked
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_explains_itself() {
        for command in PROGRAM.commands.iter().chain(PROGRAM.more_commands) {
            assert!(command.usage.contains("options:") || command.name == "key");
            assert!(command.help.ends_with('\n') && command.short.ends_with('h'));
        }
    }
}
