//! `tap-ctl pause`: stops a disk's I/O and closes its image.

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "pause",
    short: "p:m:t:h",
    long: &[],
    usage: "usage: pause <-p pid> <-m minor> [-t timeout secs]\n",
    help: "Stops the I/O of a disk and closes its image; guests wait. Meanwhile the image may be
snapshotted, coalesced or moved. 'tap-ctl unpause' goes on.

  -t seconds  how long it may take, else it fails with 110; 0, the default: as long as it does
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    client.pause(minor, options.timeout()?)?;
    session.warn_of_loss("pause", &client, minor);
    Ok(())
}
