//! `td-util snapshot`: a differencing image.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use super::create::unknown_b;
use super::{Command, Kind, Run};
use crate::console::{Console, Failure};
use crate::number::atoi;
use crate::options::Options;
use crate::vhd_util::snapshot::{COMMAND as VHD_SNAPSHOT, make};

pub(super) const COMMAND: Command = Command {
    name: "snapshot",
    short: "hmbl:",
    usage: "[-h help] [-m parent_raw] [-b file_is_fixed_size] [-l snapshot depth limit] <FILENAME> \
            <BACKING_FILENAME>",
    usage_status: 0,
    repeats: false,
    not_of_aio: Some("Cannot create snapshot of aio image type"),
    run: Run::Two(run),
};

fn run(
    console: &mut Console,
    _: Kind,
    options: &Options,
    [path, parent]: [&OsStr; 2],
) -> Result<(), Failure> {
    if !Path::new(parent).exists() {
        console.complain(format!("File {} not found\n", parent.display()));
        return Err(Failure::new(Errno::ENOENT, "A parent is a file"));
    }
    if options.has(b'b') {
        return unknown_b(console, &VHD_SNAPSHOT);
    }
    let limit = options.argument(b'l').and_then(atoi).unwrap_or(0);
    make(console, Path::new(path), Path::new(parent), 0, limit, options)
}
