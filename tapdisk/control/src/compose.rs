//! A disk from nothing to open in one call, and back. What fails halfway is undone.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::Client;
use crate::error::ControlError;
use crate::message::Params;
use crate::minor::Minors;
use crate::paths::Paths;
use crate::spawn::spawn;

/// A disk that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its tapdisk.
    pub pid: i32,
    /// Its number.
    pub minor: u16,
    /// Its marker or block device.
    pub path: PathBuf,
}

/// Allocates a minor, starts a daemon, attaches the minor and opens the image.
///
/// # Errors
/// That of the step which failed; the steps before it are undone, and what could not be undone is
/// told in the error.
pub fn create(
    paths: &Paths,
    minors: &dyn Minors,
    program: &OsStr,
    params: Params,
) -> Result<Created, ControlError> {
    let allocation = minors.allocate()?;
    let minor = allocation.minor;
    match spawn_and_open(paths, program, minor, params) {
        Ok(pid) => Ok(Created { pid, minor, path: allocation.path }),
        Err(error) => Err(match minors.free(minor) {
            Ok(()) => error,
            Err(left) => error.with_note(&format!("minor {minor} is still allocated ({left})")),
        }),
    }
}

fn spawn_and_open(
    paths: &Paths,
    program: &OsStr,
    minor: u16,
    params: Params,
) -> Result<i32, ControlError> {
    let pid = spawn(program)?;
    let client = Client::new(paths, pid);
    if let Err(error) = client.attach(minor) {
        // A daemon without disks would stay for ever. It is nobody's child and has only just said
        // its pid, so the number is its own.
        return Err(match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) => error,
            Err(errno) => error.with_note(&format!("tapdisk {pid} could not be ended ({errno})")),
        });
    }
    match client.open(minor, params) {
        Ok(_) => Ok(pid),
        // Detaching its last disk ends the daemon.
        Err(error) => Err(match client.detach(minor) {
            Ok(()) => error,
            Err(left) => error.with_note(&format!("minor {minor} is still attached ({left})")),
        }),
    }
}

/// Closes the image, detaches the disk and frees the minor; stops at the first error. `timeout` is
/// for closing.
///
/// # Errors
/// That of the step which failed.
pub fn destroy(
    paths: &Paths,
    minors: &dyn Minors,
    pid: i32,
    minor: u16,
    timeout: Option<Duration>,
) -> Result<(), ControlError> {
    let client = Client::new(paths, pid);
    client.close(minor, false, timeout)?;
    client.detach(minor)?;
    minors.free(minor)
}
