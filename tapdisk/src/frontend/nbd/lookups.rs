//! The block status requests of one client that are under way: a small fixed table.
//!
//! ```text
//!   Free ──> Running ──> Again ──> Running ... ──> Free     once for each extent
//! ```
//!
//! All other requests need no table: what their reply is made of comes back with the answer.

use super::wire::{self, DESCRIPTOR_BYTES, EXTENTS_MAX, LOOKUPS_MAX, RawRequest};
use crate::memory::{Memory, Segment};
use crate::request::Extent;

/// How many a client may have at a time; further ones stay in its socket. Arbitrary: clients that
/// were seen ask for one.
const AT_ONCE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Running,
    /// Waits to be started for its next extent.
    Again,
}

/// One block status request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup {
    state: State,
    pub(super) cookie: u64,
    offset: u64,
    len: u32,
    one_extent: bool,
    /// For the descriptors.
    pub(super) buffer: Segment,
    /// How many bytes of the range the descriptors in the buffer describe.
    described: u32,
    /// How many descriptors are in the buffer.
    descriptors: u32,
    /// How many times it was started.
    lookups: u32,
    /// The length and flags of the last descriptor.
    last: (u32, u32),
}

impl Lookup {
    const FREE: Self = Self {
        state: State::Free,
        cookie: 0,
        offset: 0,
        len: 0,
        one_extent: false,
        buffer: Segment::EMPTY,
        described: 0,
        descriptors: 0,
        lookups: 0,
        last: (0, 0),
    };

    /// The rest of its range: offset and length in bytes.
    pub(super) fn rest(&self) -> (u64, u64) {
        (self.offset + u64::from(self.described), u64::from(self.len - self.described))
    }

    /// So many bytes of the buffer are descriptors, as they are sent.
    pub(super) fn descriptors_len(&self) -> u32 {
        self.descriptors * DESCRIPTOR_BYTES
    }

    /// Adds an extent to the descriptors; whether it wants to be started again for the next one.
    fn describe(&mut self, extent: Extent, memory: &mut Memory) -> bool {
        let left = self.len - self.described;
        let len = u32::try_from(extent.len).ok().filter(|len| (1..=left).contains(len));
        let len = len.expect("an extent is not empty and not longer than what was asked for");
        self.described += len;
        self.lookups += 1;
        let flags = wire::state_flags(extent.kind);
        if self.descriptors > 0 && self.last.1 == flags {
            self.last.0 += len;
        } else {
            self.last = (len, flags);
            self.descriptors += 1;
        }
        let at = (self.descriptors - 1) * DESCRIPTOR_BYTES;
        memory.write(self.buffer, at, &wire::descriptor(self.last.0, flags));
        !self.one_extent
            && self.described < self.len
            && self.descriptors < EXTENTS_MAX
            && self.lookups < LOOKUPS_MAX
    }
}

/// All of a client.
#[derive(Debug)]
pub(super) struct Lookups {
    table: [Lookup; AT_ONCE],
    /// How many want to be started again.
    again: usize,
}

impl Lookups {
    pub(super) fn new() -> Self {
        Self { table: [Lookup::FREE; AT_ONCE], again: 0 }
    }

    pub(super) fn has_free(&self) -> bool {
        self.table.iter().any(|lookup| lookup.state == State::Free)
    }

    /// Takes a request in, which is running from now on; returns its number.
    ///
    /// # Panics
    /// When there is no place.
    pub(super) fn take(&mut self, raw: &RawRequest, one_extent: bool, buffer: Segment) -> u64 {
        let place = self.table.iter().position(|lookup| lookup.state == State::Free);
        let place = place.expect("the caller asked has_free");
        let (cookie, offset, len) = (raw.cookie, raw.offset, raw.len);
        let state = State::Running;
        self.table[place] =
            Lookup { state, cookie, offset, len, one_extent, buffer, ..Lookup::FREE };
        place as u64
    }

    /// One that is running.
    pub(super) fn get(&mut self, number: u64) -> &mut Lookup {
        let place = usize::try_from(number).expect("below AT_ONCE");
        let lookup = &mut self.table[place];
        assert!(lookup.state == State::Running, "lookup {number} is {:?}", lookup.state);
        lookup
    }

    /// Takes the extent that a running one found; whether it waits for its next turn.
    pub(super) fn describe(&mut self, number: u64, extent: Extent, memory: &mut Memory) -> bool {
        let lookup = self.get(number);
        let again = lookup.describe(extent, memory);
        if again {
            lookup.state = State::Again;
            self.again += 1;
        }
        again
    }

    #[inline]
    pub(super) fn has_again(&self) -> bool {
        self.again > 0
    }

    /// One that waits for its next turn; it is running from now on.
    pub(super) fn pop_again(&mut self) -> Option<(u64, Lookup)> {
        let place = self.table.iter().position(|lookup| lookup.state == State::Again)?;
        self.again -= 1;
        self.table[place].state = State::Running;
        Some((place as u64, self.table[place]))
    }

    /// Forgets a running one.
    pub(super) fn free(&mut self, number: u64) {
        self.get(number).state = State::Free;
    }

    /// The peer is gone: forgets all that are not running, and hands out their buffers.
    pub(super) fn abandon(&mut self, mut give_back: impl FnMut(Segment)) {
        self.again = 0;
        for lookup in self.table.iter_mut().filter(|lookup| lookup.state == State::Again) {
            lookup.state = State::Free;
            give_back(lookup.buffer);
        }
    }
}
