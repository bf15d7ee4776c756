//! The door of the blktap2 kernel driver: a ring shared with the block device `tapdevN`.
//!
//! A room with `unsafe`: it lends the ring's data pages to the disk's memory, and takes them back.
//!
//! All of it happens on the one thread that opened and mapped the ring: the driver moves requests
//! into the ring only inside poll, in the caller's context. So each turn that may have changed
//! something polls once without waiting, takes all that there is, and responds to all that has
//! ended with one call. Data goes between the ring's pages and the image file without a copy.
//!
//! Invariants:
//! * The pages are lent ([`Memory::set_ring`]) exactly while `ring` is mapped: from
//!   [`BlktapDoor::open`] to [`BlktapDoor::unmap`], and for ever when requests are outstanding
//!   then.
//! * A request that was taken is answered once, also when it is malformed.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use blktap_ioctl::{DeviceParams, MappedRing, RequestId, Ring, RingFault, RingRequest, TrimParams};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{Frontend, Intake, Ready};
use crate::error::DiskError;
use crate::memory::{Memory, RegionId, Segment};
use crate::request::{Answer, DiskInfo, Op, Request, Token};
use crate::status::Status;
use crate::time::Now;

pub use blktap_ioctl::Removal;

/// What the door has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStatistics {
    /// Requests taken.
    pub taken: u64,
    /// Requests answered.
    pub answered: u64,
    /// Polls, each a system call.
    pub polls: u64,
    /// Polls that published requests.
    pub kicks_in: u64,
    /// Notifications sent: one for all answers of a turn.
    pub kicks_out: u64,
    /// Malformed entries.
    pub faults: u64,
}

/// The door.
#[derive(Debug)]
pub struct BlktapDoor {
    ring: MappedRing,
    /// Something may have been published, or may be by a poll: look before sleeping.
    look: bool,
    suspended: bool,
    unpushed: bool,
    has_device: bool,
    statistics: RingStatistics,
    /// Why the ring is not read any more.
    dead: Option<RingFault>,
    dead_told: bool,
}

impl BlktapDoor {
    /// Opens and maps the ring of a minor, on the thread that will serve it.
    ///
    /// # Errors
    /// What the driver says: ENXIO when the minor is not allocated, EBUSY when it is served
    /// already.
    pub fn open(path: &Path, memory: &mut Memory) -> Result<Self, DiskError> {
        let error = |error: io::Error, what| DiskError::io(&error, what).at(path);
        let ring = Ring::open(path).map_err(|refused| error(refused, "Cannot open the ring"))?;
        Self::new(ring, memory).map_err(|refused| error(refused, "Cannot map the ring"))
    }

    /// The door of a ring that is open: of the driver, or of its simulation.
    ///
    /// # Errors
    /// What mapping says.
    pub fn new(ring: Ring, memory: &mut Memory) -> io::Result<Self> {
        let ring = ring.map().map_err(|(_, error)| error)?;
        // SAFETY: `data_area` names the mapped data pages. They stay mapped until `unmap` of this
        // door, which takes them out of the memory before it unmaps; a `MappedRing` that is dropped
        // with requests outstanding leaves its pages mapped. No other ring is lent to this memory:
        // a disk has one, and its thread makes it first.
        unsafe { memory.set_ring(Some(ring.data_area())) };
        Ok(Self {
            ring,
            look: true,
            suspended: false,
            unpushed: false,
            has_device: false,
            statistics: RingStatistics::default(),
            dead: None,
            dead_told: false,
        })
    }

    /// Makes the block device. Requests come from now on.
    ///
    /// # Errors
    /// What the driver says.
    pub fn create_device(&mut self, info: DiskInfo) -> Result<(), DiskError> {
        let params = DeviceParams {
            sector_size: info.sector_size,
            physical_sector_size: info.sector_size,
            read_only: info.read_only,
            flush: true,
            trim: Some(TrimParams { granularity: 4096, alignment: 0, reads_zero: false }),
            ..DeviceParams::new(info.size / 512)
        };
        self.ring
            .create_device(&params)
            .map_err(|error| DiskError::io(&error, "Cannot make the block device"))?;
        self.has_device = true;
        self.suspended = false;
        self.look = true;
        Ok(())
    }

    /// Removes the block device, unless somebody has it open. Without one there is nothing to do.
    ///
    /// # Errors
    /// What the driver says; in use is no error.
    pub fn remove_device(&mut self) -> Result<Removal, DiskError> {
        if !self.has_device {
            return Ok(Removal::Removed);
        }
        let removal = self
            .ring
            .remove_device()
            .map_err(|error| DiskError::io(&error, "Cannot remove the block device"))?;
        self.has_device = removal == Removal::Busy;
        Ok(removal)
    }

    /// What it has counted.
    #[must_use]
    pub fn statistics(&self) -> RingStatistics {
        self.statistics
    }

    /// Why the ring is not read any more; said once.
    pub fn take_fault(&mut self) -> Option<RingFault> {
        self.dead.filter(|_| !std::mem::replace(&mut self.dead_told, true))
    }

    /// There may be requests that no event will announce: answers made room for them in the ring,
    /// or they found no room in the disk.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.look && !self.suspended && self.dead.is_none()
    }

    /// Gives the ring back to the driver. With requests outstanding its pages stay mapped for ever,
    /// and in the memory.
    pub fn unmap(mut self, registry: &Registry, memory: &mut Memory) {
        self.flush(memory);
        let _ = registry.deregister(&mut SourceFd(&self.ring.as_fd().as_raw_fd()));
        if self.ring.outstanding() == 0 {
            // SAFETY: no request is outstanding, so no I/O uses the pages; they are mapped until
            // the next statement.
            unsafe { memory.set_ring(None) };
            drop(self.ring.unmap());
        } else {
            memory.leak();
        }
    }

    #[inline]
    fn begin(&mut self, request: &RingRequest, intake: &mut impl Intake) {
        let op = match request.op {
            blktap_ioctl::Op::Read => Op::Read,
            blktap_ioctl::Op::Write => Op::Write,
            blktap_ioctl::Op::Flush => Op::Flush,
            blktap_ioctl::Op::Trim => Op::Trim,
        };
        self.statistics.taken += 1;
        intake.start(|out| {
            let token = Token { peer: 0, number: u64::from(request.id.index()) };
            out.set(token, op, (request.offset(), request.bytes));
            out.may_punch = true;
            for segment in request.segments() {
                let (offset, len) = (segment.offset, segment.len);
                out.segments.push(Segment { region: RegionId::Ring, offset, len });
            }
        });
    }

    fn fault(&mut self, fault: RingFault) {
        self.statistics.faults += 1;
        match fault {
            RingFault::Malformed { id, .. } => {
                self.ring.respond(id, Status::Failed(nix::errno::Errno::EINVAL).to_blkif());
                self.unpushed = true;
                self.look = true;
            }
            fatal => self.dead = Some(fatal),
        }
    }
}

impl Frontend for BlktapDoor {
    fn register(&mut self, registry: &Registry, base: usize) -> io::Result<()> {
        let fd = self.ring.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), mio::Token(base), Interest::READABLE)
    }

    fn ready(&mut self, _: usize, _: Ready) {
        self.look = true;
    }

    fn pull<I: Intake>(&mut self, intake: &mut I) -> bool {
        if self.suspended || self.dead.is_some() {
            return false;
        }
        if std::mem::take(&mut self.look) {
            self.statistics.polls += 1;
            self.statistics.kicks_in += u64::from(self.ring.poll_now().unwrap_or(false));
        }
        while self.dead.is_none() && intake.has_room() {
            match self.ring.take() {
                Some(Ok(request)) => self.begin(&request, intake),
                Some(Err(fault)) => self.fault(fault),
                None => break,
            }
        }
        // What is left there is announced by nobody again.
        self.look |= !intake.has_room();
        false
    }

    #[inline]
    fn answer(&mut self, request: &Request, answer: Answer, _: &mut Memory) {
        let id = RequestId::new(request.token.number).expect("what a ring names its requests");
        self.ring.respond(id, answer.status.to_blkif());
        self.unpushed = true;
        self.statistics.answered += 1;
        self.look = true;
    }

    fn flush(&mut self, _: &mut Memory) {
        // EACCES is all that the driver could say, to a forked child: we are none.
        if self.unpushed && self.ring.push_responses().is_ok() {
            self.unpushed = false;
            self.statistics.kicks_out += 1;
        }
    }

    fn deadline(&self) -> Now {
        Now::NEVER
    }

    fn suspend(&mut self) {
        self.suspended = true;
    }

    fn resume(&mut self) {
        self.suspended = false;
        self.look = true;
    }

    fn close(&mut self, _: &Registry, _: &mut Memory) {
        self.suspended = true;
    }

    fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        let outstanding = self.ring.outstanding();
        writeln!(out, "ring: {outstanding} outstanding, {:?}", self.statistics)?;
        if let Some(fault) = &self.dead {
            writeln!(out, "ring: not read any more: {fault}")?;
        }
        Ok(())
    }
}
