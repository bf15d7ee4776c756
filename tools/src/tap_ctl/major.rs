//! `tap-ctl major`: the major of the kernel driver's block devices.

use std::fs;

use nix::errno::Errno;
use tapdisk_control::{ControlError, ErrorKind};

use crate::command::{Command, Failure, Options, invalid};
use crate::proc::block_major;
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "major",
    short: "bch",
    long: &[],
    usage: "usage: major [-b | -c]\n",
    help: "Prints the major number of the blktap driver's block devices; fails with 19 without it.

  -b  block devices, the default
  -c  character devices: not supported, as ever
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    if options.has(b'c') {
        return Err(invalid("Option -c is not supported"));
    }
    let failed =
        |errno| ControlError::new(ErrorKind::System, errno, "Looking for tapdev in /proc/devices");
    let devices = fs::read_to_string("/proc/devices")
        .map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
    let major = block_major(&devices).ok_or_else(|| failed(Errno::ENODEV))?;
    session.print(format!("{major}\n"))
}
