//! All disks of all tapdisks, and all minors without one: a three-way outer join.
//!
//! ```text
//!   markers   tapdisk/tapdisk-<minor>   1       ctl100: 1     pid=100 minor=1 state=.. type:path
//!   sockets   ctl<pid>, asked for PID   2       ctl200: -     pid=200
//!   disks     each socket's LIST                              minor=2
//! ```
//!
//! Order: sockets by name, in each the last attached disk first; then the markers that no disk
//! claimed, by name. A socket at which nobody answers is passed over in silence and left where it
//! is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;

use crate::client::Client;
use crate::error::{ControlError, ErrorKind};
use crate::message::ListEntry;
use crate::paths::{Paths, minor_of_marker, pid_of_control_socket};

/// Names of the state bits of a disk.
pub const STATE_NAMES: [(u32, &str); 12] = [
    (0x001, "dead"),
    (0x002, "closed"),
    (0x004, "quiesce-requested"),
    (0x008, "quiesced"),
    (0x010, "pause-requested"),
    (0x020, "paused"),
    (0x040, "shutdown-requested"),
    (0x080, "locking"),
    (0x100, "log-dropped"),
    (0x200, "resume-failed"),
    (WAITING_FOR_SPACE, "waiting-for-space"),
    (WRITES_LOST, "writes-lost"),
];

/// Requests wait until the storage has space: not a bit of blktap's, and clear of its.
pub const WAITING_FOR_SPACE: u32 = 0x1000;

/// The storage may have lost what was answered, and every FLUSH fails, or the next one: not a bit
/// of blktap's either.
pub const WRITES_LOST: u32 = 0x2000;

/// An image as a disk names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Before the first colon: `vhd`, `aio` ...
    pub kind: OsString,
    /// All that follows.
    pub path: OsString,
}

impl ImageName {
    /// Splits `type:path` at the first colon.
    #[must_use]
    pub fn split(name: &OsStr) -> Option<Self> {
        let mut parts = name.as_bytes().splitn(2, |byte| *byte == b':');
        let (kind, path) = (parts.next()?, parts.next()?);
        Some(Self {
            kind: OsString::from_vec(kind.to_vec()),
            path: OsString::from_vec(path.to_vec()),
        })
    }
}

/// One line of the list. What is not known is absent; pid and minor never both are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The tapdisk.
    pub pid: Option<i32>,
    /// The disk.
    pub minor: Option<u16>,
    /// Its state bits, see [`STATE_NAMES`]; present when there is a tapdisk and a disk.
    pub state: Option<u32>,
    /// Its image while one is open.
    pub image: Option<ImageName>,
}

/// Everything.
///
/// # Errors
/// When the run directory cannot be read; one that does not exist holds nothing.
pub fn list(paths: &Paths) -> Result<Vec<Row>, ControlError> {
    let mut orphans: Vec<u16> =
        names(&paths.marker_dir())?.iter().filter_map(|name| minor_of_marker(name)).collect();
    let mut rows = Vec::new();
    for pid in names(paths.run_dir())?.iter().filter_map(|name| pid_of_control_socket(name)) {
        let client = Client::new(paths, pid);
        if client.pid().is_err() {
            continue;
        }
        match disks(&client) {
            Ok(disks) if !disks.is_empty() => rows.extend(disks),
            // It has none yet, or went away just now: what is known of it is that it was there.
            _ => rows.push(Row { pid: Some(pid), ..Row::default() }),
        }
    }
    let claimed: BTreeSet<u16> = rows.iter().filter_map(|row| row.minor).collect();
    orphans.retain(|minor| !claimed.contains(minor));
    rows.extend(orphans.into_iter().map(|minor| Row { minor: Some(minor), ..Row::default() }));
    Ok(rows)
}

/// The disks of one tapdisk; nothing when nobody answers at its socket.
///
/// # Errors
/// EPROTO, ENOENT or ECONNREFUSED when it goes away in between, ETIMEDOUT when it hangs.
pub fn list_process(paths: &Paths, pid: i32) -> Result<Vec<Row>, ControlError> {
    let client = Client::new(paths, pid);
    if client.pid().is_err() {
        return Ok(Vec::new());
    }
    let mut rows = disks(&client)?;
    if rows.is_empty() {
        rows.push(Row { pid: Some(pid), ..Row::default() });
    }
    Ok(rows)
}

fn disks(client: &Client) -> Result<Vec<Row>, ControlError> {
    let entries = client.list()?;
    entries.into_iter().rev().map(|entry| row(client.process(), &entry)).collect()
}

fn row(pid: i32, entry: &ListEntry) -> Result<Row, ControlError> {
    let mut row =
        Row { pid: Some(pid), minor: Some(entry.minor), state: Some(entry.state), image: None };
    if !entry.path.is_empty() {
        row.image = ImageName::split(&entry.path);
        if row.image.is_none() {
            let attempt = format!(
                "Listing tapdisk {pid}: minor {} has image {:?}, want type:path",
                entry.minor, entry.path
            );
            return Err(ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt));
        }
    }
    Ok(row)
}

/// The names in a directory, sorted by bytes.
fn names(dir: &Path) -> Result<Vec<String>, ControlError> {
    let failed = |error: &io::Error| {
        let attempt = format!("Reading the directory {}", dir.display());
        ControlError::system(ErrorKind::System, error, attempt)
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
        Ok(entries) => entries,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        names.extend(name.into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    use super::*;
    use crate::minor;
    use crate::test_dir::TestDir;

    #[test]
    fn an_image_is_split_at_the_first_colon() {
        let name = ImageName::split(OsStr::new("nbd:unix:/a b=c")).unwrap();
        assert_eq!(name, ImageName { kind: "nbd".into(), path: "unix:/a b=c".into() });
        let name = ImageName::split(OsStr::new(":")).unwrap();
        assert_eq!(name, ImageName { kind: "".into(), path: "".into() });
        assert_eq!(ImageName::split(OsStr::new("vhd")), None);
    }

    #[test]
    fn no_directory_is_an_empty_list() {
        let paths = Paths::new("/nonexistent/run", "/nonexistent/dev", "/nonexistent/shm");
        assert_eq!(list(&paths), Ok(Vec::new()));
        assert_eq!(list_process(&paths, 1), Ok(Vec::new()));
    }

    /// A killed daemon whose disk is in use: the kernel keeps it, and its socket takes connections.
    /// Without the look at the process each of these would wait for ever.
    #[test]
    fn a_daemon_that_was_killed_is_not_waited_for() {
        let dir = TestDir::new("list");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        dir.paths().create_run_dir().unwrap();
        let _listener = UnixListener::bind(dir.paths().control_socket(pid)).unwrap();
        minor::mark(&dir.paths(), 3).unwrap();
        child.kill().unwrap();
        let id = Id::Pid(Pid::from_raw(pid));
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        let client = Client::new(&dir.paths(), pid).with_query_timeout(Duration::MAX);
        assert!(client.pid().is_err());
        assert!(client.close(3, false, None).is_err());
        let orphan = Row { minor: Some(3), ..Row::default() };
        assert_eq!(list(&dir.paths()), Ok(vec![orphan]));
        child.wait().unwrap();
    }

    /// The same, and it was asked before it was killed.
    #[test]
    fn a_daemon_that_is_killed_meanwhile_is_not_waited_for() {
        let dir = TestDir::new("list-meanwhile");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        dir.paths().create_run_dir().unwrap();
        let listener = UnixListener::bind(dir.paths().control_socket(pid)).unwrap();
        let client = Client::new(&dir.paths(), pid);
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| client.close(3, false, None));
            // It has connected, after it looked at the process.
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
            child.kill().unwrap();
            assert!(closing.join().unwrap().is_err());
        });
        child.wait().unwrap();
    }

    #[test]
    fn every_state_bit_has_one_name() {
        let bits = STATE_NAMES.iter().fold(0, |bits, (bit, _)| bits | bit);
        assert_eq!(bits, 0x33ff);
    }
}
