//! `tap-ctl open`: opens an image.

use std::io::{self, Read};

use nix::errno::Errno;
use tapdisk_control::message::Key;
use tapdisk_control::{ControlError, ErrorKind};

use crate::command::{Command, Failure, Options};
use crate::image_options::{image_help, params};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "open",
    short: "a:RDm:p:e:r2:st:C:Eh",
    long: &["--shared"],
    usage: "usage: open <-p pid> <-m minor> <-a type:/path/to/file> [-R readonly] [-e <minor> stack on \
            existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 \
            <path> use secondary image (in mirror mode if no -s)] [-s fail over to the secondary \
            image on ENOSPC] [-t request timeout in seconds] [-D no O_DIRECT] [-C \
            </path/to/logfile> insert log layer to track changed blocks] [-E read encryption key \
            from stdin]\n",
    help: concat!(
        "Opens an image in an attached disk and serves it.

",
        image_help!(),
        "  -E            the image is encrypted: read its key, 32 or 64 bytes, from standard input
"
    ),
    run,
};

/// What callers know: the exit status of a key of another size.
const BAD_KEY: u8 = 1;

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    let mut params = params(options, options.required(b'a')?)?;
    if options.has(b'E') {
        params.key = Some(read_key(session)?);
    }
    client.open(minor, params)?;
    Ok(())
}

/// All of standard input, which has to be a key of 256 or 512 bits.
fn read_key(session: &Session) -> Result<Key, Failure> {
    let mut bytes = Vec::with_capacity(65);
    io::stdin().lock().take(65).read_to_end(&mut bytes).map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        ControlError::new(ErrorKind::System, errno, "Reading the key from standard input")
    })?;
    if matches!(bytes.len(), 32 | 64) {
        return Ok(Key::new(&bytes).expect("32 and 64 bytes are a key"));
    }
    session.complain("Unsupported keysize, use either 256 bit or 512 bit key\n");
    Err(Failure::Told(BAD_KEY))
}
