//! `tap-ctl snapshot`: what a disk holds now stays as it is; its changes go into a new image.
//!
//! The new leaf is made before the pause: an empty child names its parent and holds nothing of it,
//! so guests wait only for the exchange. Whatever fails, the disk goes on as it was.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::errno::Errno;
use tap_tools::console::Console;
use tapdisk_control::list::WAITING_FOR_SPACE;
use tapdisk_control::message::Params;
use tapdisk_control::{Client, ControlError, ErrorKind};

use crate::command::{Command, Failure, Options, invalid};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "snapshot",
    short: "p:m:n:t:h",
    long: &[],
    usage: "usage: snapshot <-p pid> <-m minor> <-n /path/to/new.vhd> [-t timeout secs]\n",
    help: "Makes a new VHD on the disk's image, and lets the disk go on in it: what it held up to
then stays as it is, in the image that it had. Guests wait while the images are exchanged. When a
step fails, the disk goes on as before, and the new image is removed.

  -n file     the new image; there must be no file of this name, but it may be a block device
  -t seconds  how long the pause may take, else it fails with 110; 0, the default: as it does
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    // The daemon opens it, too, and is in another directory.
    let given = options.required(b'n')?;
    let new = &std::path::absolute(given).unwrap_or_else(|_| given.into());
    let timeout = options.timeout()?;
    let name = name_of(&client, minor)?;
    let (path, is_raw) = match name.as_bytes().split(|byte| *byte == b':').next() {
        Some(b"vhd") => (&name.as_bytes()[4..], false),
        Some(b"aio") => (&name.as_bytes()[4..], true),
        _ => {
            let text = format!("The disk is {}, want vhd: or aio:", name.display());
            return Err(invalid(&text));
        }
    };
    let is_device = match std::fs::metadata(new) {
        Ok(found) if found.file_type().is_block_device() => true,
        Ok(_) => {
            let text = format!("{} is there already", new.display());
            return Err(ControlError::new(ErrorKind::System, Errno::EEXIST, text).into());
        }
        Err(_) => false,
    };
    make(OsStr::from_bytes(path), new, is_raw)?;
    let exchanged = exchange(&client, minor, new, &name, timeout);
    if exchanged.is_err() && !is_device {
        // Nothing was written to it.
        let _ = std::fs::remove_file(new);
    }
    exchanged
}

/// `type:path` of a disk that runs.
fn name_of(client: &Client, minor: u16) -> Result<OsString, Failure> {
    let disks = client.list()?;
    let disk = disks.into_iter().find(|disk| {
        // Full storage is no obstacle: the new image may lie elsewhere.
        disk.minor == minor && disk.state & !WAITING_FOR_SPACE == 0
    });
    let name = disk.map(|disk| disk.path).unwrap_or_default();
    if name.is_empty() {
        return Err(invalid(&format!("Minor {minor} has no image that runs")));
    }
    Ok(name)
}

/// Makes the new leaf, as `vhd-util snapshot` does. A parent that is still empty may not be so when
/// the images are exchanged: it is linked to all the same.
fn make(parent: &OsStr, new: &Path, is_raw: bool) -> Result<(), Failure> {
    let mut arguments: Vec<OsString> =
        vec!["-e".into(), "-p".into(), parent.to_owned(), "-n".into(), new.into()];
    if is_raw {
        arguments.push("-m".into());
    }
    let mut console = Console::standard("tap-ctl snapshot", false);
    let status =
        tap_tools::vhd_util::PROGRAM.dispatch(&mut console, OsStr::new("snapshot"), &arguments);
    if status == 0 { Ok(()) } else { Err(Failure::Told(status)) }
}

fn exchange(
    client: &Client,
    minor: u16,
    new: &Path,
    old: &OsStr,
    timeout: Option<std::time::Duration>,
) -> Result<(), Failure> {
    client.pause(minor, timeout)?;
    let mut path = b"vhd:".to_vec();
    path.extend_from_slice(new.as_os_str().as_bytes());
    let params = Params { path: OsString::from_vec(path), ..Params::default() };
    let Err(error) = client.resume(minor, params) else { return Ok(()) };
    let back = Params { path: old.to_owned(), ..Params::default() };
    match client.resume(minor, back) {
        Ok(()) => Err(error.with_note("the disk goes on in the image that it had").into()),
        Err(second) => {
            let note = format!("and the disk stays paused: {second}");
            Err(error.with_note(&note).into())
        }
    }
}
