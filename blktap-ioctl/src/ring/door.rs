//! Where a ring leads: to the driver, or to the kernel's half simulated in this process.
//!
//! A closed set. Everything above works alike on both, so that what the tests run is what
//! production runs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::mapping::Pages;
use crate::abi::{DeviceInfoBoth, NAME_SIZE, Params};
#[cfg(feature = "sim")]
use crate::sim::SimRing;
use crate::sys;

/// The other side of an open ring.
#[derive(Debug)]
pub(crate) enum Door {
    /// The driver's character device.
    Device(File),
    /// The simulated kernel.
    #[cfg(feature = "sim")]
    Sim(SimRing),
}

/// Calls the driver, or the method of the same name of the simulated kernel.
macro_rules! either {
    ($self:ident, $name:ident $(, $argument:expr)*) => {
        match $self {
            Self::Device(file) => sys::$name(file.as_fd() $(, $argument)*),
            #[cfg(feature = "sim")]
            Self::Sim(sim) => sim.$name($($argument),*),
        }
    };
}

impl Door {
    /// What becomes readable when polling is worth while.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Device(file) => file.as_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(sim) => sim.event(),
        }
    }

    pub(crate) fn map(&self) -> io::Result<Pages> {
        match self {
            Self::Device(file) => Pages::map(file.as_fd()),
            #[cfg(feature = "sim")]
            Self::Sim(sim) => sim.map(),
        }
    }

    /// The pages were unmapped; a driver sees that by itself.
    pub(crate) fn unmapped(&self) {
        match self {
            Self::Device(_) => {}
            #[cfg(feature = "sim")]
            Self::Sim(sim) => sim.unmapped(),
        }
    }

    /// Runs the driver's poll method in the caller's context. Returns whether it has news.
    pub(crate) fn poll(&self) -> io::Result<bool> {
        match self {
            Self::Device(file) => poll_device(file),
            #[cfg(feature = "sim")]
            Self::Sim(sim) => Ok(sim.poll()),
        }
    }

    pub(crate) fn respond(&self) -> io::Result<()> {
        either!(self, respond)
    }

    pub(crate) fn create_device(&self, info: &mut DeviceInfoBoth) -> Result<(), Errno> {
        either!(self, create_device, info)
    }

    pub(crate) fn create_device_compat(&self, params: &Params) -> Result<(), Errno> {
        either!(self, create_device_compat, params)
    }

    pub(crate) fn remove_device(&self) -> Result<(), Errno> {
        either!(self, remove_device)
    }

    pub(crate) fn set_params(&self, params: &Params) -> io::Result<()> {
        either!(self, set_params, params)
    }

    pub(crate) fn pause(&self) -> io::Result<()> {
        either!(self, pause)
    }

    pub(crate) fn reopen(&self) -> io::Result<[u8; NAME_SIZE]> {
        either!(self, reopen)
    }

    pub(crate) fn resume(&self, error: i32) -> io::Result<()> {
        either!(self, resume, error)
    }
}

fn poll_device(file: &File) -> io::Result<bool> {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    loop {
        match nix::poll::poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    if events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL) {
        return Err(io::Error::other("The ring's device does not poll"));
    }
    Ok(events.contains(PollFlags::POLLIN))
}
