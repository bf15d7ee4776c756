//! `tap-ctl spawn`: starts a tapdisk.

use tapdisk_control::spawn::{daemon_program, spawn};

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "spawn",
    short: "h",
    long: &[],
    usage: "usage: spawn\n",
    help:
        "Starts a tapdisk without disks and prints its pid. It ends after its last disk is detached.
The program is the one that the variable TAPDISK names, else tapdisk beside tap-ctl, else
/usr/libexec/tapdisk, else the first in PATH. Fails with the exit status of the tapdisk.
",
    run,
};

fn run(session: &Session, _options: &Options) -> Result<(), Failure> {
    let pid = spawn(&daemon_program())?;
    if session.is_terminal() {
        session.print(format!("tapdisk spawned with pid {pid}\n"))
    } else {
        session.print(format!("{pid}\n"))
    }
}
