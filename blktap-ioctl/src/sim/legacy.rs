//! Pause and resume of the drivers of 2009: the toolstack's side in sysfs, the server's by ioctls.
//!
//! ```text
//!   running ──request_pause──> requested ──PAUSE──> paused ──RESUME(0)──> running
//!                (the message comes when nothing is pending)   └─RESUME(errno)─> paused
//! ```

use nix::errno::Errno;

use super::Driver;
use super::disk::Disk;
use super::state::State;
use crate::abi::{MESSAGE_NONE, MESSAGE_PAUSE, MESSAGE_RESUME, NAME_SIZE, Params};

/// Where a pause is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PauseState {
    /// Requests move.
    #[default]
    Running,
    /// No more requests move; the server is to come to rest.
    Requested,
    /// The server is at rest.
    Paused,
}

#[derive(Debug)]
pub(super) struct Pause {
    pub(super) state: PauseState,
    name: [u8; NAME_SIZE],
    /// What the server said to the last resume: 0 or a negative errno.
    pub(super) response: Option<i32>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { state: PauseState::Running, name: [0; NAME_SIZE], response: None }
    }
}

impl Pause {
    pub(super) fn is_stopped(&self) -> bool {
        self.state != PauseState::Running
    }

    pub(super) fn set_name(&mut self, name: [u8; NAME_SIZE]) {
        self.name = name;
    }
}

impl State {
    /// sysfs `pause`.
    pub(super) fn request_pause(&mut self) {
        self.pause.state = PauseState::Requested;
        self.announce_pause();
    }

    /// The message, once nothing is pending.
    pub(super) fn announce_pause(&mut self) {
        if self.pause.state == PauseState::Requested && self.pending() == 0 {
            self.pages.set_message(MESSAGE_PAUSE);
        }
    }

    /// sysfs `name` and `resume`.
    pub(super) fn request_resume(&mut self, name: &[u8]) -> Result<(), Errno> {
        if self.pause.state != PauseState::Paused {
            return Err(Errno::EPERM);
        }
        let mut buffer = [0; NAME_SIZE];
        let target = buffer.get_mut(..name.len()).ok_or(Errno::ENAMETOOLONG)?;
        target.copy_from_slice(name);
        self.pause.name = buffer;
        self.pause.response = None;
        self.pages.set_message(MESSAGE_RESUME);
        Ok(())
    }

    pub(super) fn pause_reached(&mut self) -> Result<(), Errno> {
        self.check_call(PauseState::Requested)?;
        self.pause.state = PauseState::Paused;
        self.pages.set_message(MESSAGE_NONE);
        Ok(())
    }

    pub(super) fn reopen(&mut self) -> Result<[u8; NAME_SIZE], Errno> {
        self.check_call(PauseState::Paused)?;
        self.pages.set_message(MESSAGE_NONE);
        Ok(self.pause.name)
    }

    pub(super) fn set_params(&mut self, params: &Params) -> Result<(), Errno> {
        self.check_call(PauseState::Paused)?;
        let disk = Disk::from_params(params)?;
        disk.check()?;
        self.disk = Some(disk);
        self.pause.name = params.name;
        Ok(())
    }

    pub(super) fn resume(&mut self, error: i32) -> Result<(), Errno> {
        self.check_call(PauseState::Paused)?;
        self.pause.response = Some(error);
        if error == 0 {
            self.pause.state = PauseState::Running;
        }
        self.pages.set_message(MESSAGE_NONE);
        Ok(())
    }

    fn check_call(&self, wanted: PauseState) -> Result<(), Errno> {
        self.check_mapped()?;
        if self.options.driver != Driver::Legacy {
            return Err(Errno::ENOTTY);
        }
        if self.pause.state == wanted { Ok(()) } else { Err(Errno::EINVAL) }
    }
}
