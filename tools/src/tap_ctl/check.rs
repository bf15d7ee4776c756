//! `tap-ctl check`: whether the kernel has the blktap driver.

use blktap_ioctl::Places;
use nix::errno::Errno;
use tapdisk_control::{ControlError, ErrorKind};

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "check",
    short: "h",
    long: &[],
    usage: "usage: check\n",
    help:
        "Prints ok when the kernel has the blktap driver, else what is missing, and fails with 38.
Without the driver disks are served over NBD and to Xen guests, but have no block device here.
",
    run,
};

fn run(session: &Session, _options: &Options) -> Result<(), Failure> {
    let missing = match Places::default().driver() {
        Ok(Some(_)) => return session.print("ok\n"),
        Ok(None) => "blktap kernel module not installed",
        Err(_) => "failed to open /proc/misc",
    };
    session.print(format!("{missing}\n"))?;
    Err(ControlError::new(ErrorKind::System, Errno::ENOSYS, missing).into())
}
