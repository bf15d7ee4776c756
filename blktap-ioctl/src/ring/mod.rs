//! The ring of one tap, as two types: what cannot be done yet, or any more, has no method.
//!
//! ```text
//!   Ring::open ──> Ring ──map──> MappedRing ──unmap──> Ring ──drop──> closed
//!                                 poll_now, take, respond, push_responses, create_device, ...
//! ```
//!
//! A driver of Linux 4.19 crashes the caller when a ring is polled before it is mapped. It has no
//! method for that:
//!
//! ```compile_fail,E0599
//! # use blktap_ioctl::Ring;
//! fn polls_before_map(mut ring: Ring) {
//!     let _ = ring.poll_now();
//! }
//! ```
//!
//! nor a descriptor that could be registered:
//!
//! ```compile_fail,E0277
//! # use blktap_ioctl::Ring;
//! fn registers_before_map(ring: &Ring) -> impl std::os::fd::AsFd + '_ {
//!     ring
//! }
//! ```
//!
//! It also crashes when two threads poll and respond. A mapped ring stays on its thread:
//!
//! ```compile_fail,E0277
//! # use blktap_ioctl::MappedRing;
//! fn moves_to_another_thread(mut ring: MappedRing) {
//!     std::thread::spawn(move || ring.poll_now());
//! }
//! ```
//!
//! ```compile_fail,E0277
//! # use blktap_ioctl::MappedRing;
//! fn is_shared(ring: &MappedRing) {
//!     std::thread::scope(|scope| { scope.spawn(|| ring.outstanding()); });
//! }
//! ```
//!
//! Nothing is polled or answered once it is unmapped:
//!
//! ```compile_fail,E0382
//! # use blktap_ioctl::MappedRing;
//! fn polls_after_unmap(mut ring: MappedRing) {
//!     let opened = ring.unmap();
//!     let _ = ring.poll_now();
//! }
//! ```
//!
//! and the result of `unmap` cannot be taken for a ring that is unmapped, since with I/O in flight
//! it is not:
//!
//! ```compile_fail,E0308
//! # use blktap_ioctl::{MappedRing, Ring};
//! fn unmaps_under_io(ring: MappedRing) -> Ring {
//!     ring.unmap()
//! }
//! ```
//!
//! Dropped with requests outstanding a `MappedRing` leaves its pages mapped for ever, and so the
//! ring busy until the process ends: a leak, instead of I/O into memory that is something else by
//! then.
//!
//! What types cannot keep, and the server must:
//! * Deregister the fd from epoll before `unmap`, and before dropping a ring that leaks its pages:
//!   the pages keep the file open, and epoll would go on polling it.
//! * No fork between `open` and the end: the mapping is not inherited, and the driver serves only
//!   the process that mapped it.
//! * blktap-dkms 2.0.91 maps the pages of each request over the data area and unmaps them after its
//!   response. In between the kernel may give these addresses to any other mapping of the process,
//!   which the next request would replace. Nothing in user space prevents this; the drivers of
//!   2009, XenServer and XCP-ng keep the area.

mod device;
mod door;
mod entry;
mod lease;
mod mapped;
mod mapping;
#[cfg(feature = "sim")]
mod raw;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

pub use device::{CreatedDevice, DeviceParams, Removal, TrimParams};
pub use entry::{EntryFault, Op, Reason, RequestId, RingRequest, Segment, parse_entry};
pub use mapped::{Busy, MappedRing, Message, RingFault};
#[cfg(feature = "sim")]
pub use raw::RawRing;

pub(crate) use door::Door;
#[cfg(feature = "sim")]
pub(crate) use mapping::{Index, Pages};

/// A ring that is open and not mapped: it cannot be polled. One opener at a time.
#[derive(Debug)]
pub struct Ring {
    door: Door,
}

impl Ring {
    /// Opens the ring's node. In the process that will serve it: a fork after this loses it.
    ///
    /// # Errors
    /// EBUSY when it is open already, ENXIO when the minor is not allocated, and those of open.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { door: Door::Device(file) })
    }

    pub(crate) fn from_door(door: Door) -> Self {
        Self { door }
    }

    /// Maps the ring and its data pages: a fresh, empty ring.
    ///
    /// # Errors
    /// Gives the ring back, with what mmap says: EBUSY while it is mapped already.
    pub fn map(self) -> Result<MappedRing, (Self, io::Error)> {
        match self.door.map() {
            Ok(pages) => Ok(MappedRing::new(pages, self.door)),
            Err(error) => Err((self, error)),
        }
    }
}
