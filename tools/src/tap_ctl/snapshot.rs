//! `tap-ctl snapshot`: what disks hold now stays as it is; their changes go into new images.
//!
//! The new leaves are made before the pause: an empty child names its parent and holds nothing of
//! it, so guests wait only for the exchange. All disks are paused before the first goes on, so that
//! the snapshot is of one moment. Whatever fails, all go on as they were: a disk that was already
//! exchanged is paused again, and what it wrote meanwhile is merged into the image that it had.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use tap_tools::console::Console;
use tap_tools::getopt::Item;
use tap_tools::number::atoi;
use tapdisk_control::list::{WAITING_FOR_SPACE, WRITES_LOST};
use tapdisk_control::message::Params;
use tapdisk_control::{Client, ControlError, ErrorKind};

use crate::command::{Command, Failure, Options, invalid};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "snapshot",
    short: "p:m:n:t:h",
    long: &[],
    usage: "usage: snapshot <-p pid> <-m minor> <-n /path/to/new.vhd> [more -p -m -n] \
[-t timeout secs]\n",
    help: "Makes a new VHD on the disk's image, and lets the disk go on in it: what it held up to
then stays as it is, in the image that it had. Guests wait while the images are exchanged. When a
step fails, the disk goes on as before, and the new image is removed.

  -n file     the new image; there must be no file of this name, but it may be a block device
  -t seconds  how long a pause may take, else it fails with 110; 0, the default: as it does

-p, -m and -n once more for each further disk: all are paused before the first goes on, so that the
snapshot of a guest's disks is of one moment. When one fails, all go on as before.
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let timeout = options.timeout()?;
    let disks = disks(session, options)?;
    for (index, disk) in disks.iter().enumerate() {
        if let Err(failure) = disk.make() {
            disks[..index].iter().for_each(Disk::remove);
            return Err(failure);
        }
    }
    exchange(&disks, timeout)?;
    disks.iter().for_each(|disk| session.warn_of_loss("snapshot", &disk.client, disk.minor));
    Ok(())
}

/// A disk and where it goes on.
struct Disk {
    client: Client,
    minor: u16,
    /// `type:path`.
    old: OsString,
    new: PathBuf,
    is_device: bool,
}

/// The first `-p`, `-m` and `-n` are the first disk's, and so on.
fn disks(session: &Session, options: &Options) -> Result<Vec<Disk>, Failure> {
    let all = |wanted: u8| {
        let items = options.items().iter();
        items
            .filter_map(move |item| match item {
                Item::Short(option, Some(argument)) if *option == wanted => Some(argument),
                _ => None,
            })
            .collect::<Vec<&OsString>>()
    };
    let (pids, minors, names) = (all(b'p'), all(b'm'), all(b'n'));
    // What is wrong with one is told as it is everywhere.
    options.disk(session)?;
    options.required(b'n')?;
    if pids.len() != names.len() || minors.len() != names.len() {
        let (pids, minors, names) = (pids.len(), minors.len(), names.len());
        let text = format!("There are {pids} -p, {minors} -m and {names} -n, want as many of each");
        return Err(Failure::Usage(text));
    }
    let mut disks: Vec<Disk> = Vec::new();
    for ((pid, minor), name) in pids.into_iter().zip(minors).zip(names) {
        let found = atoi(pid).zip(atoi(minor).and_then(|minor| u16::try_from(minor).ok()));
        let Some((pid, minor)) = found else {
            let text = format!("-p {} -m {} is no disk", pid.display(), minor.display());
            return Err(invalid(&text));
        };
        let disk = Disk::find(Client::new(&session.paths, pid), minor, name)?;
        if disks.iter().any(|other| other.old == disk.old || other.new == disk.new) {
            let (old, new) = (disk.old.display(), disk.new.display());
            return Err(invalid(&format!("{old} with {new} is there twice")));
        }
        disks.push(disk);
    }
    Ok(disks)
}

impl Disk {
    /// That runs, and for which `new` can be made.
    fn find(client: Client, minor: u16, new: &OsStr) -> Result<Self, Failure> {
        let old = name_of(&client, minor)?;
        if !old.as_bytes().starts_with(b"vhd:") && !old.as_bytes().starts_with(b"aio:") {
            return Err(invalid(&format!("The disk is {}, want vhd: or aio:", old.display())));
        }
        // The daemon opens it, too, and is in another directory.
        let new = std::path::absolute(new).unwrap_or_else(|_| new.into());
        let is_device = match std::fs::metadata(&new) {
            Ok(found) if found.file_type().is_block_device() => true,
            Ok(_) => {
                let text = format!("{} is there already", new.display());
                return Err(ControlError::new(ErrorKind::System, Errno::EEXIST, text).into());
            }
            Err(_) => false,
        };
        Ok(Self { client, minor, old, new, is_device })
    }

    /// Makes the new leaf, as `vhd-util snapshot` does. A parent that is still empty may not be so
    /// when the images are exchanged: it is linked to all the same.
    fn make(&self) -> Result<(), Failure> {
        let (kind, parent) = self.old.as_bytes().split_at(4);
        let mut arguments: Vec<OsString> = vec!["-e".into(), "-p".into()];
        arguments.extend([OsStr::from_bytes(parent).to_owned(), "-n".into()]);
        arguments.push(self.new.clone().into());
        if kind == b"aio:" {
            arguments.push("-m".into());
        }
        match vhd_util("snapshot", &arguments) {
            0 => Ok(()),
            status => Err(Failure::Told(status)),
        }
    }

    /// Only once nothing uses it and nothing is in it.
    fn remove(&self) {
        if !self.is_device {
            let _ = std::fs::remove_file(&self.new);
        }
    }

    fn resume(&self, path: OsString) -> Result<(), ControlError> {
        self.client.resume(self.minor, Params { path, ..Params::default() })
    }

    /// `type:path` of the new one.
    fn new_name(&self) -> OsString {
        let mut path = b"vhd:".to_vec();
        path.extend_from_slice(self.new.as_os_str().as_bytes());
        OsString::from_vec(path)
    }

    fn resume_new(&self) -> Result<(), ControlError> {
        self.resume(self.new_name())
    }

    /// After a pause that failed with `error`: it may have come about all the same, because the
    /// answer came after the timeout. Not when another command was in its way: then a pause is
    /// somebody else's.
    fn go_on(&self, error: ControlError, path: OsString) -> ControlError {
        let others = [Errno::EBUSY, Errno::EINVAL, Errno::ENODEV].map(|errno| errno as i32);
        if error.kind() == ErrorKind::Refused && others.contains(&error.errno()) {
            return error;
        }
        match self.resume(path) {
            Err(second) if second.errno() != Errno::EINVAL as i32 => {
                error.with_note(&format!("and minor {} stays paused: {second}", self.minor))
            }
            // It was paused, or it was not.
            _ => error,
        }
    }

    /// From its pause on in the image that it had.
    fn put_back(&self) -> Result<(), String> {
        self.resume(self.old.clone())
            .map_err(|error| format!("and minor {} stays paused: {error}", self.minor))?;
        self.remove();
        Ok(())
    }

    /// The same when it already runs in the new one: what it wrote there comes along.
    fn take_back(&self, timeout: Option<Duration>) -> Result<(), String> {
        let stays =
            |why: &str| format!("minor {} stays in {}: {why}", self.minor, self.new.display());
        if let Err(error) = self.client.pause(self.minor, timeout) {
            return Err(stays(&self.go_on(error, self.new_name()).to_string()));
        }
        let status = vhd_util("coalesce", &["-n".into(), self.new.clone().into()]);
        if status == 0 {
            return self.put_back();
        }
        self.resume_new()
            .map_err(|error| format!("and minor {} stays paused: {error}", self.minor))?;
        Err(stays(&format!("merging it failed with {status}")))
    }
}

/// Its errors are told as `vhd-util` tells them; of what it prints nobody wants to know.
fn vhd_util(command: &str, arguments: &[OsString]) -> u8 {
    let mut console = Console::standard("tap-ctl snapshot", false).without_output();
    tap_tools::vhd_util::PROGRAM.dispatch(&mut console, OsStr::new(command), arguments)
}

/// `type:path` of a disk that runs.
fn name_of(client: &Client, minor: u16) -> Result<OsString, Failure> {
    let disks = client.list()?;
    let disk = disks.into_iter().find(|disk| {
        // Full storage is no obstacle: the new image may lie elsewhere. Nor is a loss.
        disk.minor == minor && disk.state & !(WAITING_FOR_SPACE | WRITES_LOST) == 0
    });
    let name = disk.map(|disk| disk.path).unwrap_or_default();
    if name.is_empty() {
        return Err(invalid(&format!("Minor {minor} has no image that runs")));
    }
    Ok(name)
}

/// Exchanges the images of all, or of none.
fn exchange(disks: &[Disk], timeout: Option<Duration>) -> Result<(), Failure> {
    for (index, disk) in disks.iter().enumerate() {
        if let Err(error) = disk.client.pause(disk.minor, timeout) {
            let (paused, running) = disks.split_at(index);
            // These were not paused, and go on.
            running.iter().for_each(Disk::remove);
            let error = disk.go_on(error, disk.old.clone());
            return Err(undo(paused, &[], timeout, error));
        }
    }
    for (index, disk) in disks.iter().enumerate() {
        if let Err(error) = disk.resume_new() {
            let (exchanged, paused) = disks.split_at(index);
            return Err(undo(paused, exchanged, timeout, error));
        }
    }
    Ok(())
}

/// The paused ones first: their guests wait.
fn undo(
    paused: &[Disk],
    exchanged: &[Disk],
    timeout: Option<Duration>,
    error: ControlError,
) -> Failure {
    let back = paused.iter().map(Disk::put_back);
    let back = back.chain(exchanged.iter().map(|disk| disk.take_back(timeout)));
    let troubles: Vec<String> = back.filter_map(Result::err).collect();
    match (troubles.is_empty(), paused.len() + exchanged.len()) {
        (true, 0) => error.into(),
        (true, 1) => error.with_note("the disk goes on in the image that it had").into(),
        (true, _) => error.with_note("the disks go on in the images that they had").into(),
        (false, _) => error.with_note(&troubles.join("; ")).into(),
    }
}
