//! `tap-ctl allocate`: takes a minor.

use std::os::unix::ffi::OsStrExt;

use crate::command::{Command, Failure, Options};
use crate::kernel;
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "allocate",
    short: "h",
    long: &[],
    usage: "usage: allocate\n",
    help: "Takes the first free minor, 0 to 16383, and prints its marker, a path that ends in
tapdisk-<minor>; or its block device, tapdev<minor>, where the kernel has the blktap driver.
It stays taken, across reboots of tapdisks, until 'tap-ctl free'.
",
    run,
};

fn run(session: &Session, _options: &Options) -> Result<(), Failure> {
    let minors = kernel::minors(&session.paths, None)?;
    let allocation = minors.allocate()?;
    let mut line = allocation.path.as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    session.print(line)
}
