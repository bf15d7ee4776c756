//! `td-util set`: whether an image is hidden.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use super::{Command, Kind, Run};
use crate::console::{Console, Failure};
use crate::number::atoi;
use crate::options::Options;
use crate::vhd_util::set;

pub(super) const COMMAND: Command = Command {
    name: "set",
    short: "h",
    usage: "[-h help] <FILENAME> <FIELD> <VALUE>\nFIELD := { hidden }",
    usage_status: 22,
    repeats: true,
    not_of_aio: Some("Cannot set fields of aio images"),
    run: Run::Three(run),
};

fn run(
    console: &mut Console,
    options: &Options,
    [path, field, value]: [&OsStr; 3],
) -> Result<(), Failure> {
    let path = Path::new(path);
    if field != "hidden" {
        console.complain(format!("Invalid field {}\n", field.display()));
        return COMMAND.refuse(console, Kind::Vhd);
    }
    let Some(value) = atoi(value).and_then(|value| u8::try_from(value).ok()) else {
        return Err(Failure::new(Errno::EINVAL, "A value is a number from 0 to 255"));
    };
    set::set(console, path, false, value, options)
}
