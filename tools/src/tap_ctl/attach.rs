//! `tap-ctl attach`: makes a disk in a tapdisk.

use nix::errno::Errno;
use tapdisk_control::ErrorKind;

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "attach",
    short: "p:m:h",
    long: &[],
    usage: "usage: attach <-p pid> <-m minor>\n",
    help:
        "Makes a disk without an image in a tapdisk. The minor has to be allocated and not attached.
Whatever the tapdisk says against it, the exit status is 22, as it always was.
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    client.attach(minor).map_err(|error| match error.kind() {
        ErrorKind::Refused => Failure::Masked(error, Errno::EINVAL),
        _ => error.into(),
    })
}
