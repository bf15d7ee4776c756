//! `tap-ctl close`: closes an image.

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "close",
    short: "p:m:ft:h",
    long: &[],
    usage: "usage: close <-p pid> <-m minor> [-f force] [-t timeout secs]\n",
    help: "Closes the image of a disk when its requests are done; the disk stays attached.

  -f          do not wait for the requests of guests
  -t seconds  how long it may take, else it fails with 110; 0, the default: as long as it does
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    client.close(minor, options.has(b'f'), options.timeout()?)?;
    session.warn_of_loss("close", &client, minor);
    Ok(())
}
