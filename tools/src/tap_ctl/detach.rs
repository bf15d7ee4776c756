//! `tap-ctl detach`: removes a disk from a tapdisk.

use nix::errno::Errno;
use tapdisk_control::ErrorKind;

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "detach",
    short: "p:m:h",
    long: &[],
    usage: "usage: detach <-p pid> <-m minor>\n",
    help: "Removes a disk, whose image has to be closed, from a tapdisk; ends the tapdisk after its last
disk. Whatever the tapdisk says against it, the exit status is 22, as it always was.
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    match client.detach(minor) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Refused => {
            // On standard output, where callers know it from.
            let pid = client.process();
            session.print(format!("got unexpected result 'error' from {pid}\n"))?;
            Err(Failure::Masked(error, Errno::EINVAL))
        }
        Err(error) => Err(error.into()),
    }
}
