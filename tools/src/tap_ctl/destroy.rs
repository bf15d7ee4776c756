//! `tap-ctl destroy`: close, detach and free in one step.

use tapdisk_control::compose;

use crate::command::{Command, Failure, Options};
use crate::kernel;
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "destroy",
    short: "p:m:t:h",
    long: &[],
    usage: "usage: destroy <-p pid> <-m minor> [-t timeout secs]\n",
    help: "Closes the image of a disk, detaches it (which ends the tapdisk after its last disk) and
gives the minor back. Stops at the first step that fails.

  -t seconds  how long closing may take; 0, the default: as long as it does
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    let timeout = options.timeout()?;
    let minors = kernel::minors(&session.paths, None)?;
    Ok(compose::destroy(&session.paths, minors.as_ref(), client.process(), minor, timeout)?)
}
