//! The kernel's half of a ring, in this process: for tests, fuzzing and benchmarks.
//!
//! [`create`] gives both ends: a [`Ring`], the production type, and a [`SimDevice`], which stands
//! for the block layer above the driver and for its users.
//!
//! ```text
//!   SimDevice ──submit──> block queue ──poll_now──> ring ──take──> server
//!       ^                  (depth n)    (32 slots)                   │
//!       └──completions── done <──RESPOND── ring <──respond, push─────┘
//! ```
//!
//! It keeps the driver's rules:
//! * Requests move into the ring only inside the ring's poll method, on the server's thread, each
//!   into the lowest free slot; at most 32 are outstanding, further ones wait in the block queue.
//! * RESPOND takes what was published, in any order. A wrong operation is EIO for the caller; a
//!   response to no request is counted ([`SimDevice::violations`]), where a driver may crash.
//! * The pages of a request are fresh when it comes and lost after its response. Here they hold
//!   [`POISON_FRESH`] and [`POISON_LOST`], so that a read answered without data, and a page touched
//!   too late, are seen.
//! * The device is busy while it is open; its last close is an event of the ring, once.
//! * EACCES before the ring is mapped; unmapping ends what is outstanding with EIO.
//!
//! The ring's descriptor is an eventfd that becomes readable when polling is worth while. Unlike
//! the driver's it does not publish by being waited for: `poll_now` does.
//!
//! After [`create`] nothing is allocated.

mod device;
mod disk;
mod hostile;
mod kernel;
mod legacy;
mod queue;
mod state;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

pub use device::{Completion, SimDevice};
pub use disk::Disk;
pub use hostile::Hostile;
pub use legacy::PauseState;
pub use queue::{Outcome, Segments, SimSegment};

use crate::abi::{DeviceInfoBoth, NAME_SIZE, Params};
use crate::ring::{DeviceParams, Door, MappedRing, Pages, RawRing, Ring};
use kernel::Kernel;
use state::State;

/// What the pages of a request hold before the server puts something there.
pub const POISON_FRESH: u8 = 0xA5;

/// What they hold after the response.
pub const POISON_LOST: u8 = 0xDB;

/// Whose rules the simulated driver follows where generations differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// XenServer and XCP-ng: no flush, no trim, no messages.
    Xcp,
    /// blktap-dkms: flush and trim when asked for.
    Dkms,
    /// 2009: the old ioctls, pause and resume by messages.
    Legacy,
}

/// How to simulate.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Whose rules.
    pub driver: Driver,
    /// Requests in the block layer at most, those in the ring included: 1 to 65535. Linux: 128.
    pub queue_depth: u16,
    /// Fill pages with poison. Costs up to two passes over the pages of each request.
    pub poison: bool,
    /// Move the data of reads and writes between the pages and the caller. Without it completions
    /// of reads have no data, and writes carry what the pages happened to hold.
    pub copy_data: bool,
    /// Where the ring's indices start; 0 in a driver. Near `u32::MAX` they soon wrap.
    pub first_index: u32,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            driver: Driver::Xcp,
            queue_depth: 128,
            poison: true,
            copy_data: true,
            first_index: 0,
        }
    }
}

/// A tap, allocated and with its ring open.
///
/// # Errors
/// What the kernel says about memfd, eventfd and mmap.
///
/// # Panics
/// With a queue depth of 0.
pub fn create(options: SimOptions) -> io::Result<(Ring, SimDevice)> {
    let kernel = Arc::new(Kernel::new(options)?);
    let ring = Ring::from_door(Door::Sim(SimRing { kernel: Arc::clone(&kernel) }));
    Ok((ring, SimDevice::new(kernel)))
}

/// A tap, allocated and with its ring open, for a server that keeps no rule.
///
/// # Errors
/// As [`create`].
///
/// # Panics
/// As [`create`].
pub fn create_raw(options: SimOptions) -> io::Result<(RawRing, SimDevice)> {
    let kernel = Arc::new(Kernel::new(options)?);
    let ring = RawRing::from_door(Door::Sim(SimRing { kernel: Arc::clone(&kernel) }));
    Ok((ring, SimDevice::new(kernel)))
}

/// A tap with its ring mapped and its device created.
///
/// # Errors
/// Those of [`create`] and of [`MappedRing::create_device`].
pub fn serve(options: SimOptions, params: &DeviceParams) -> io::Result<(MappedRing, SimDevice)> {
    let (ring, device) = create(options)?;
    let mut ring = ring.map().map_err(|(_, error)| error)?;
    ring.create_device(params)?;
    Ok((ring, device))
}

/// The ring's file: what system calls on it do.
#[derive(Debug)]
pub(crate) struct SimRing {
    kernel: Arc<Kernel>,
}

impl SimRing {
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.kernel.ring_event()
    }

    pub(crate) fn map(&self) -> io::Result<Pages> {
        self.kernel.map()
    }

    pub(crate) fn unmapped(&self) {
        self.kernel.end_after(State::unmapped);
    }

    /// Not inlined, nor are its like: a profile tells the simulation from the server.
    #[inline(never)]
    pub(crate) fn poll(&self) -> bool {
        self.kernel.poll()
    }

    #[inline(never)]
    pub(crate) fn respond(&self) -> io::Result<()> {
        Ok(self.kernel.respond()?)
    }

    pub(crate) fn create_device(&self, info: &mut DeviceInfoBoth) -> Result<(), Errno> {
        self.kernel.lock().create_device(info)
    }

    pub(crate) fn create_device_compat(&self, params: &Params) -> Result<(), Errno> {
        self.kernel.lock().create_device_compat(params)
    }

    pub(crate) fn remove_device(&self) -> Result<(), Errno> {
        self.kernel.lock().remove_device()
    }

    pub(crate) fn set_params(&self, params: &Params) -> io::Result<()> {
        Ok(self.kernel.lock().set_params(params)?)
    }

    pub(crate) fn pause(&self) -> io::Result<()> {
        Ok(self.kernel.lock().pause_reached()?)
    }

    pub(crate) fn reopen(&self) -> io::Result<[u8; NAME_SIZE]> {
        Ok(self.kernel.lock().reopen()?)
    }

    pub(crate) fn resume(&self, error: i32) -> io::Result<()> {
        Ok(self.kernel.wake_after(|state| state.resume(error))?)
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        self.kernel.end_after(State::closed);
    }
}
