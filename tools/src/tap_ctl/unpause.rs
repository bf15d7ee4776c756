//! `tap-ctl unpause`: opens a paused disk's image again, or another one.

use std::ffi::OsStr;

use tapdisk_control::message::{Flags, Params};

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "unpause",
    short: "p:m:a:2:c:h",
    long: &[],
    usage: "usage: unpause <-p pid> <-m minor> [-a type:/path/to/file] [-2 secondary] [-c \
            </path/to/logfile> insert log layer to track changed blocks]\n",
    help: "Opens the image of a paused disk again and lets its guests go on.

  -a type:path  another image, of the same size, for example a new snapshot's leaf
  -2 type:path  another second image; 'null' ends mirroring
  -c file       log the blocks that are written; has to be given each time, else logging ends
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    let mut params = Params {
        path: options.argument(b'a').unwrap_or_default().to_owned(),
        log: options.argument(b'c').map(OsStr::to_owned),
        ..Params::default()
    };
    if let Some(secondary) = options.argument(b'2') {
        params.flags = Flags::SECONDARY;
        params.secondary = secondary.to_owned();
    }
    Ok(client.resume(minor, params)?)
}
