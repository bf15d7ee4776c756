//! The requests of one client: a fixed table, and the lists that run through it.
//!
//! ```text
//!   Free ──> Receiving ──> Running ──> Answered ──> Free
//!     └─────────────────────^   └──> Again ──^ (the next extent of a block status request)
//! ```
//!
//! A slot owns its buffer from when it is taken until it is free again. While it is Running the
//! buffer belongs to whoever serves the request: it is not freed, whatever becomes of the client.

use super::NO_SLOT;
use super::wire::{self, Command, DESCRIPTOR_BYTES, EXTENTS_MAX, LOOKUPS_MAX};
use crate::memory::{Memory, Segment};
use crate::request::Extent;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// A write whose payload is not here yet.
    Receiving,
    /// Started, not answered.
    Running,
    /// A block status request that waits to be started for its next extent.
    Again,
    /// Its reply is queued.
    Answered,
}

/// One request of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) command: Command,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
    /// Its data, or the descriptors of a block status request; empty for the others.
    pub(super) buffer: Segment,
    /// How many bytes of the range the descriptors in the buffer describe.
    pub(super) described: u32,
    /// How many descriptors are in the buffer.
    pub(super) descriptors: u32,
    /// How many times it was started.
    pub(super) lookups: u32,
    /// The length and flags of the last descriptor.
    pub(super) last: (u32, u32),
    next: u16,
}

impl Slot {
    const FREE: Self = Self {
        state: State::Free,
        command: Command::NONE,
        cookie: 0,
        offset: 0,
        len: 0,
        buffer: Segment::EMPTY,
        described: 0,
        descriptors: 0,
        lookups: 0,
        last: (0, 0),
        next: NO_SLOT,
    };

    /// Adds an extent to the descriptors of a block status request; whether it wants to be started
    /// again for the next one.
    pub(super) fn describe(&mut self, extent: Extent, memory: &mut Memory) -> bool {
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
        let place = self.buffer.part(at, DESCRIPTOR_BYTES);
        memory.copy_in(place, &wire::descriptor(self.last.0, flags));
        !self.command.one_extent
            && self.described < self.len
            && self.descriptors < EXTENTS_MAX
            && self.lookups < LOOKUPS_MAX
    }
}

/// All requests of a client.
#[derive(Debug)]
pub(super) struct Slots {
    table: Box<[Slot]>,
    free: u16,
    again: u16,
    used: u16,
}

impl Slots {
    /// A table of `count` free slots.
    pub(super) fn new(count: u16) -> Self {
        let link = |index: u16| {
            if index + 1 < count { index + 1 } else { NO_SLOT }
        };
        let table = (0..count).map(|index| Slot { next: link(index), ..Slot::FREE }).collect();
        Self { table, free: 0, again: NO_SLOT, used: 0 }
    }

    pub(super) fn has_free(&self) -> bool {
        self.free != NO_SLOT
    }

    pub(super) fn used(&self) -> u16 {
        self.used
    }

    /// Takes a free slot for a request.
    ///
    /// # Panics
    /// When there is none.
    #[inline]
    pub(super) fn take(
        &mut self,
        state: State,
        command: Command,
        (cookie, offset, len): (u64, u64, u32),
        buffer: Segment,
    ) -> u16 {
        let index = self.free;
        let slot = self.table.get_mut(usize::from(index)).expect("the caller asked has_free");
        assert!(slot.state == State::Free, "slot {index} is {:?}", slot.state);
        self.free = slot.next;
        self.used += 1;
        *slot = Slot { state, command, cookie, offset, len, buffer, ..Slot::FREE };
        index
    }

    /// Makes a slot free and returns what was its buffer.
    #[inline]
    pub(super) fn free(&mut self, index: u16) -> Segment {
        let slot = &mut self.table[usize::from(index)];
        assert!(slot.state != State::Free, "slot {index} is in use");
        slot.state = State::Free;
        slot.next = self.free;
        self.free = index;
        self.used -= 1;
        std::mem::replace(&mut slot.buffer, Segment::EMPTY)
    }

    #[inline]
    pub(super) fn get(&mut self, index: u16) -> &mut Slot {
        &mut self.table[usize::from(index)]
    }

    /// Remembers that a slot wants to be started again.
    pub(super) fn push_again(&mut self, index: u16) {
        let slot = &mut self.table[usize::from(index)];
        slot.state = State::Again;
        slot.next = self.again;
        self.again = index;
    }

    pub(super) fn has_again(&self) -> bool {
        self.again != NO_SLOT
    }

    /// A slot that wants to be started again.
    pub(super) fn pop_again(&mut self) -> Option<u16> {
        let index = self.again;
        let slot = self.table.get(usize::from(index))?;
        self.again = slot.next;
        Some(index)
    }

    /// The peer is gone: frees every slot that is not running, and hands out its buffer.
    pub(super) fn abandon(&mut self, mut give_back: impl FnMut(Segment)) {
        self.again = NO_SLOT;
        for index in 0..u16::try_from(self.table.len()).expect("a table of u16 slots") {
            if !matches!(self.table[usize::from(index)].state, State::Free | State::Running) {
                give_back(self.free(index));
            }
        }
    }
}
