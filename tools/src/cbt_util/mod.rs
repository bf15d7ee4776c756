//! cbt-util: makes, reads and joins the logs of changed blocks that a tapdisk with `-C` writes.
//!
//! A log is of one process at a time: a tapdisk maps it while its disk runs, and a storage manager
//! calls this while the disk is paused or closed. So nothing is locked.

mod coalesce;
mod create;
mod get;
mod log;
mod set;

use crate::program::Program;

/// The program.
pub const PROGRAM: Program = Program {
    name: "cbt-util",
    commands: &[create::COMMAND, set::COMMAND, get::COMMAND, coalesce::COMMAND],
    more_commands: &[],
    unknown: "Invalid COMMAND",
    nothing_status: 22,
    takes_debug: false,
    help: HELP,
};

const HELP: &str = "Logs of changed blocks: one bit for each 64 KiB of a disk, set by its tapdisk
before each write.

  cbt-util create -n disk.cbt -s 10737418240     a new log of a disk of 10 GiB
  cbt-util get -n disk.cbt -b                    the bitmap, raw: bit N is bit N%8 of byte N/8
  cbt-util coalesce -p older.cbt -c newer.cbt    adds the blocks of the older to the newer
  cbt-util set -n disk.cbt -s 21474836480        the disk has grown

'cbt-util COMMAND --help' tells more about one. The exit status is 0 or an errno.

Environment:
  VHD_UTIL_ERRORS   'long': explain errors also when standard error is no terminal
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_explains_itself() {
        for command in PROGRAM.commands {
            assert!(command.usage.starts_with(&format!("cbt-util {}: ", command.name)));
            assert!(command.help.ends_with('\n') && command.short.ends_with('h'));
        }
    }
}
