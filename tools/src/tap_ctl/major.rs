//! `tap-ctl major`: the major of the kernel driver's block devices.

use blktap_ioctl::Places;
use nix::errno::Errno;
use tapdisk_control::{ControlError, ErrorKind};

use crate::command::{Command, Failure, Options, invalid};
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
    let majors = Places::default().majors().map_err(|error| failed(error.errno()))?;
    let major = majors.block.ok_or_else(|| failed(Errno::ENODEV))?;
    session.print(format!("{major}\n"))
}
