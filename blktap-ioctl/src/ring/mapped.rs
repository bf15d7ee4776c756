//! A ring that is mapped: requests out, responses in.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;

use super::Ring;
use super::door::Door;
use super::entry::{EntryFault, Reason, RequestId, RingRequest, parse_entry};
use super::lease::Lease;
use super::mapping::{Index, Pages};
use crate::abi::{
    MESSAGE_CLOSE, MESSAGE_NONE, MESSAGE_PAUSE, MESSAGE_RESUME, RING_ENTRIES, STATUS_OKAY,
};

/// A ring that its one thread maps, polls and answers.
///
/// ```text
///   one turn:   poll_now   [take]*   ...   [respond]*   push_responses
/// ```
///
/// Not `Send` and not `Sync`: drivers crash when one thread polls while another one responds, and
/// they publish requests only to the process that mapped the ring.
#[derive(Debug)]
pub struct MappedRing {
    /// Before `door`: unmapped before the device is closed.
    lease: Lease,
    door: Door,
    /// Requests that were read out, counted like the ring's indices.
    req_cons: u32,
    /// Requests that the kernel published, as of the last look.
    req_prod: u32,
    /// Responses that were written.
    rsp_prod: u32,
    /// The driver was not told of some responses.
    is_unpushed: bool,
    is_dead: bool,
    message_seen: u8,
    not_send: PhantomData<*mut ()>,
}

/// What a ring says, besides requests (drivers of 2009 and OpenXT; `Close` also dkms).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Nothing.
    None,
    /// Come to rest, then [`MappedRing::pause`].
    Pause,
    /// [`MappedRing::reopen`], open that image, [`MappedRing::set_params`], [`MappedRing::resume`].
    Resume,
    /// The tap is being removed. Is never taken back.
    Close,
    /// A number without a meaning.
    Unknown(u8),
}

/// Why an entry of the ring is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// It is malformed, and waits for an answer: [`MappedRing::respond`] to `id` with an error
    /// status, so that the kernel's request ends.
    Malformed {
        /// What to respond to; it is outstanding until then.
        id: RequestId,
        /// What is wrong.
        reason: Reason,
    },
    /// The id is past 31. The ring is dead.
    Id(u64),
    /// The id is that of a request that has not ended. The ring is dead.
    Duplicate(RequestId),
    /// The kernel's index is out of step: more requests than entries, or fewer than before. The
    /// ring is dead.
    Index {
        /// As found.
        req_prod: u32,
        /// Requests taken so far.
        req_cons: u32,
        /// Responses written so far.
        rsp_prod: u32,
    },
}

impl RingFault {
    /// Whether nothing more comes out of the ring; what is outstanding can still be answered.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Malformed { .. })
    }
}

impl fmt::Display for RingFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Malformed { id, reason } => write!(formatter, "Request {}: {reason}", id.index()),
            Self::Id(found) => write!(formatter, "Request id {found}, not 0 to 31"),
            Self::Duplicate(id) => {
                write!(formatter, "Request id {} again, before it ended", id.index())
            }
            Self::Index { req_prod, req_cons, rsp_prod } => write!(
                formatter,
                "Producer index {req_prod}, with {req_cons} taken and {rsp_prod} answered of 32"
            ),
        }
    }
}

impl std::error::Error for RingFault {}

/// Why a ring cannot be unmapped yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Requests taken and not answered.
    pub outstanding: u32,
    /// Requests answered, without [`MappedRing::push_responses`].
    pub unpushed: u32,
}

impl fmt::Display for Busy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outstanding, unpushed } = self;
        write!(formatter, "{outstanding} requests outstanding, {unpushed} responses not pushed")
    }
}

impl std::error::Error for Busy {}

impl MappedRing {
    pub(super) fn new(pages: Pages, door: Door) -> Self {
        // Zero in a fresh ring. What counts is only that both sides start at the same point.
        let start = pages.index(Index::Responses);
        Self {
            lease: Lease::new(pages),
            door,
            req_cons: start,
            req_prod: start,
            rsp_prod: start,
            is_unpushed: false,
            is_dead: false,
            message_seen: MESSAGE_NONE,
            not_send: PhantomData,
        }
    }

    /// Runs the driver's poll method: the only place where it moves requests into the ring.
    ///
    /// Returns whether there are requests to take, or there was an event without: a new message, or
    /// the last close of the block device (reported once). Call it after each wake and once before
    /// each sleep; on `true` do not sleep, unless the server has no room for what is there. Waiting
    /// for the fd (by epoll) polls, too: requests may have come that way, so [`MappedRing::take`]
    /// counts, not whether the fd was reported. An event with nothing to take is normal.
    ///
    /// # Errors
    /// What poll says; none is expected.
    pub fn poll_now(&mut self) -> io::Result<bool> {
        let polled = self.door.poll()?;
        let message = self.lease.pages().message();
        // A message makes the driver say yes for as long as it stands, some for ever.
        let is_event = if message == MESSAGE_NONE { polled } else { message != self.message_seen };
        self.message_seen = message;
        let published = self.lease.pages().index(Index::Requests);
        Ok(is_event || (!self.is_dead && published != self.req_cons))
    }

    /// Takes the next request out of the ring, `None` when there is none.
    ///
    /// The entry is copied once, and the copy is checked. A request, or a fault that is not fatal,
    /// is outstanding until it is answered. After a fatal fault, reported once, there is nothing
    /// more.
    pub fn take(&mut self) -> Option<Result<RingRequest, RingFault>> {
        match self.next_entry() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(fault) => return Some(Err(self.die(fault))),
        }
        let entry = self.lease.pages().entry(self.req_cons);
        self.req_cons = self.req_cons.wrapping_add(1);
        let (id, operation, result) = match parse_entry(&entry) {
            Ok(request) => (request.id, request.op.to_raw(), Ok(request)),
            Err(EntryFault::Malformed { id, operation, reason }) => {
                (id, operation, Err(RingFault::Malformed { id, reason }))
            }
            Err(EntryFault::Id(found)) => return Some(Err(self.die(RingFault::Id(found)))),
        };
        if !self.lease.take(id, operation) {
            return Some(Err(self.die(RingFault::Duplicate(id))));
        }
        Some(result)
    }

    /// Whether there is an entry to read; looks at the kernel's index once for a batch of them.
    fn next_entry(&mut self) -> Result<bool, RingFault> {
        if self.is_dead {
            return Ok(false);
        }
        if self.req_prod == self.req_cons {
            let found = self.lease.pages().index(Index::Requests);
            let fresh = found.wrapping_sub(self.req_cons);
            let open = found.wrapping_sub(self.rsp_prod);
            if fresh > RING_ENTRIES || open > RING_ENTRIES {
                return Err(RingFault::Index {
                    req_prod: found,
                    req_cons: self.req_cons,
                    rsp_prod: self.rsp_prod,
                });
            }
            self.req_prod = found;
        }
        Ok(self.req_prod != self.req_cons)
    }

    fn die(&mut self, fault: RingFault) -> RingFault {
        self.is_dead = true;
        fault
    }

    /// Writes the response to a request; the driver sees it with [`MappedRing::push_responses`].
    ///
    /// `status` is 0, or one of `abi::STATUS_*`. The caller is through with the request's pages.
    ///
    /// # Panics
    /// When the request is not outstanding: a driver would crash on it.
    pub fn respond(&mut self, id: RequestId, status: i16) {
        let operation = self.lease.answer(id);
        let [low, high] = status.to_ne_bytes();
        let tail = u64::from_ne_bytes([operation, 0, low, high, 0, 0, 0, 0]);
        self.lease.pages().write_response(self.rsp_prod, [u64::from(id.index()), tail]);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.is_unpushed = true;
    }

    /// Hands all responses written since the last call to the driver, with one system call; none
    /// when there is nothing to hand over. Afterwards the pages of these requests are gone.
    ///
    /// # Errors
    /// What the driver says, EACCES in a forked child; the responses are offered again by the next
    /// call.
    pub fn push_responses(&mut self) -> io::Result<()> {
        if !self.is_unpushed {
            return Ok(());
        }
        self.lease.pages().set_index(Index::Responses, self.rsp_prod);
        self.door.respond()?;
        self.is_unpushed = false;
        self.lease.pushed();
        Ok(())
    }

    /// Requests taken and not answered, at most 32.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.lease.held()
    }

    /// Whether a fatal fault was reported.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// The data pages: the address of the first one, and their size in bytes (352 pages). They stay
    /// mapped until the ring is unmapped or, with requests outstanding, for ever. Those of a
    /// request exist from the time it is taken until the push of its response; touching others is
    /// SIGBUS.
    #[must_use]
    pub fn data_area(&self) -> (*mut u8, usize) {
        self.lease.pages().data_area()
    }

    /// Copies out of the data pages of an outstanding request; for servers that copy.
    ///
    /// # Panics
    /// When `offset`, in bytes, and the length are not inside of the data area.
    pub fn copy_out(&self, offset: u32, bytes: &mut [u8]) {
        self.lease.pages().copy_out(offset as usize, bytes);
    }

    /// Copies into the data pages of an outstanding request.
    ///
    /// # Panics
    /// As [`MappedRing::copy_out`].
    pub fn copy_in(&mut self, offset: u32, bytes: &[u8]) {
        self.lease.pages().copy_in(offset as usize, bytes);
    }

    /// What the kernel asks for, besides requests.
    #[must_use]
    pub fn message(&self) -> Message {
        match self.lease.pages().message() {
            MESSAGE_NONE => Message::None,
            MESSAGE_PAUSE => Message::Pause,
            MESSAGE_RESUME => Message::Resume,
            MESSAGE_CLOSE => Message::Close,
            other => Message::Unknown(other),
        }
    }

    /// The requested pause is reached: nothing is outstanding, the image is closed (2009).
    ///
    /// # Errors
    /// EINVAL when no pause was requested, ENOTTY where the driver has no such call.
    pub fn pause(&mut self) -> io::Result<()> {
        self.door.pause()
    }

    /// While paused (2009): the name to open next, as the toolstack wrote it, mostly `type:path`.
    ///
    /// # Errors
    /// EINVAL when not paused, ENOTTY where the driver has no such call.
    pub fn reopen(&mut self) -> io::Result<OsString> {
        let name = self.door.reopen()?;
        let text = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(OsString::from_vec(text.to_vec()))
    }

    /// Ends the pause; or stays paused and gives the error to who asked for the resume (2009).
    ///
    /// # Errors
    /// EINVAL when not paused, ENOTTY where the driver has no such call.
    pub fn resume(&mut self, outcome: Result<(), Errno>) -> io::Result<()> {
        self.door.resume(outcome.map_or_else(|errno| -(errno as i32), |()| i32::from(STATUS_OKAY)))
    }

    /// Unmaps the pages. Deregister the fd first, and remove the device: what the kernel still has
    /// is answered with EIO, and what comes after waits for the next mapping.
    ///
    /// # Errors
    /// Gives the ring back while requests are outstanding or responses are not pushed.
    // The ring itself is the larger part of the error: it is given back.
    #[allow(clippy::result_large_err)]
    pub fn unmap(self) -> Result<Ring, (Self, Busy)> {
        let busy = Busy { outstanding: self.lease.held(), unpushed: self.lease.answered() };
        if busy.outstanding != 0 || busy.unpushed != 0 {
            return Err((self, busy));
        }
        let Self { lease, door, .. } = self;
        drop(lease);
        door.unmapped();
        Ok(Ring::from_door(door))
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
    }
}

/// To be registered for readability, level- or edge-triggered, by the ring's own thread; never with
/// the kernel's AIO poll, which runs elsewhere.
impl AsFd for MappedRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.fd()
    }
}
