//! vhd-util: makes, inspects, checks, changes and joins VHD images.
//!
//! One file for each command; `image` opens, `dump` is what `read -p` and `check` show.

mod attribute;
mod check;
mod coalesce;
pub(crate) mod create;
mod dump;
mod fill;
pub(crate) mod image;
mod key;
mod making;
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
mod summary;

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
    ],
    more_commands: &[],
    unknown: "invalid COMMAND",
    nothing_status: 0,
    takes_debug: true,
    help: HELP,
};

const HELP: &str = "VHD images: fixed, dynamic, and differencing ones on a parent.

'vhd-util COMMAND --help' tells more about one. The exit status is 0 or an errno.
";
