//! `tap-ctl free`: gives a minor back.

use crate::command::{Command, Failure, Options};
use crate::kernel;
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "free",
    short: "m:h",
    long: &[],
    usage: "usage: free <-m minor>\n",
    help: "Gives a minor back that 'tap-ctl allocate' took.
Fails with 2 when it is not taken, with 11 while a tapdisk has it attached.
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let minor = options.minor()?;
    Ok(kernel::minors(&session.paths, None)?.free(minor)?)
}
