//! `tap-ctl create`: allocate, spawn, attach and open in one step.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tapdisk_control::compose;
use tapdisk_control::spawn::daemon_program;

use crate::command::{Command, Failure, Options};
use crate::image_options::{image_help, params};
use crate::kernel;
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "create",
    short: "a:RDd:e:r2:st:C:h",
    long: &["--shared"],
    usage: "usage: create <-a type:/path/to/file> [-d device name] [-R readonly] [-e <minor> stack on \
            existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 \
            <path> use secondary image (in mirror mode if no -s)] [-s fail over to the secondary \
            image on ENOSPC] [-t request timeout in seconds] [-D no O_DIRECT] [-C \
            <path/to/logfile> insert log layer to track changed blocks]\n",
    help: concat!(
        "Takes a minor, starts a tapdisk, attaches the minor to it and opens the image; prints what
'tap-ctl allocate' would. When a step fails those before it are undone.

",
        image_help!(),
        "  -d name       with the kernel driver: also link the block device here
"
    ),
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let params = params(options, options.required(b'a')?)?;
    let link = options.argument(b'd').map(Path::new);
    let minors = kernel::minors(&session.paths, link)?;
    let created = compose::create(&session.paths, minors.as_ref(), &daemon_program(), params)?;
    let mut line = created.path.as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    session.print(line)
}
