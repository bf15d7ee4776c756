//! The one table of requests in flight, and the lists that they wait in.
//!
//! ```text
//!   free -> running -> finished -> free
//!             |  ^
//!             v  |   awaiting room     the queue is full
//!           waiting  awaiting writes   a flush behind writes that are not answered yet
//!                    parked            to be tried again at a time
//!                    held              a layer keeps it for ever
//! ```
//!
//! Lists are links in the table: taking, moving and freeing a slot allocates nothing.

use crate::request::{Extent, Op, Request, Segments, Token};
use crate::status::Status;
use crate::time::Now;

/// Index of a slot: below the table's size, at most 65,534.
pub(super) type SlotIndex = u16;

const NONE: SlotIndex = SlotIndex::MAX;

/// Which list a slot is in, besides the list of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    /// Has I/O in the queue.
    Running,
    AwaitingRoom,
    AwaitingWrites,
    Parked,
    Held,
    Finished,
}

const PLACES: usize = 7;

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) request: Request,
    pub(super) door: u8,
    place: Place,
    /// Told apart from earlier uses of the slot.
    pub(super) generation: u32,
    /// Bytes of the request that are mapped.
    pub(super) cursor: u64,
    /// I/Os in the queue.
    pub(super) parts: u32,
    pub(super) status: Status,
    pub(super) extent: Option<Extent>,
    pub(super) started: Now,
    /// When parked: when to try again.
    pub(super) due: Now,
    /// The order in which requests came.
    pub(super) sequence: u64,
    next: SlotIndex,
    previous: SlotIndex,
    /// Links of the list of changes.
    newer: SlotIndex,
    older: SlotIndex,
}

const EMPTY: Request = Request {
    token: Token(0),
    op: Op::Flush,
    fua: false,
    may_punch: false,
    offset: 0,
    len: 0,
    segments: Segments::NONE,
};

#[derive(Clone, Copy)]
struct Ends {
    head: SlotIndex,
    tail: SlotIndex,
    count: u16,
}

const NO_ENDS: Ends = Ends { head: NONE, tail: NONE, count: 0 };

/// The table.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    lists: [Ends; PLACES],
    /// Writes, trims and zeroings that are not answered, oldest first.
    changes: Ends,
    sequence: u64,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        assert!(count < NONE, "the last index means none");
        let slot = Slot {
            request: EMPTY,
            door: 0,
            place: Place::Free,
            generation: 0,
            cursor: 0,
            parts: 0,
            status: Status::Done,
            extent: None,
            started: Now(0),
            due: Now(0),
            sequence: 0,
            next: NONE,
            previous: NONE,
            newer: NONE,
            older: NONE,
        };
        let mut slots = Self {
            slots: vec![slot; usize::from(count)].into(),
            lists: [NO_ENDS; PLACES],
            changes: NO_ENDS,
            sequence: 0,
        };
        for index in 0..count {
            slots.append(index, Place::Free);
        }
        slots
    }

    pub(super) fn get(&self, index: SlotIndex) -> &Slot {
        &self.slots[usize::from(index)]
    }

    pub(super) fn get_mut(&mut self, index: SlotIndex) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn count(&self, place: Place) -> usize {
        usize::from(self.lists[place as usize].count)
    }

    pub(super) fn first(&self, place: Place) -> Option<SlotIndex> {
        some(self.lists[place as usize].head)
    }

    pub(super) fn after(&self, index: SlotIndex) -> Option<SlotIndex> {
        some(self.get(index).next)
    }

    /// Takes a free slot for a request; it is running from now on.
    pub(super) fn take(&mut self, door: u8, request: &Request, now: Now) -> SlotIndex {
        let index = self.first(Place::Free).expect("the caller asked for room");
        self.sequence += 1;
        let sequence = self.sequence;
        let slot = self.get_mut(index);
        slot.request = *request;
        slot.door = door;
        slot.generation = slot.generation.wrapping_add(1);
        slot.started = now;
        slot.sequence = sequence;
        slot.extent = None;
        if request.op.is_change() {
            self.append_change(index);
        }
        self.move_to(index, Place::Running);
        index
    }

    /// Moves a slot to the end of another list.
    pub(super) fn move_to(&mut self, index: SlotIndex, place: Place) {
        self.unlink(index);
        self.append(index, place);
    }

    /// The request is answered, or will be before any other: flushes need not wait for it.
    pub(super) fn settle(&mut self, index: SlotIndex) {
        let slot = self.get(index);
        if !slot.request.op.is_change() {
            return;
        }
        let (older, newer) = (slot.older, slot.newer);
        match some(older) {
            Some(older) => self.get_mut(older).newer = newer,
            None => self.changes.head = newer,
        }
        match some(newer) {
            Some(newer) => self.get_mut(newer).older = older,
            None => self.changes.tail = older,
        }
        self.changes.count -= 1;
    }

    /// Whether a change came before the request in `index` and is not settled.
    pub(super) fn has_earlier_change(&self, index: SlotIndex) -> bool {
        some(self.changes.head)
            .is_some_and(|oldest| self.get(oldest).sequence < self.get(index).sequence)
    }

    fn append(&mut self, index: SlotIndex, place: Place) {
        let tail = std::mem::replace(&mut self.lists[place as usize].tail, index);
        match some(tail) {
            Some(tail) => self.get_mut(tail).next = index,
            None => self.lists[place as usize].head = index,
        }
        self.lists[place as usize].count += 1;
        let slot = self.get_mut(index);
        slot.place = place;
        slot.previous = tail;
        slot.next = NONE;
    }

    fn unlink(&mut self, index: SlotIndex) {
        let Slot { place, next, previous, .. } = *self.get(index);
        match some(previous) {
            Some(previous) => self.get_mut(previous).next = next,
            None => self.lists[place as usize].head = next,
        }
        match some(next) {
            Some(next) => self.get_mut(next).previous = previous,
            None => self.lists[place as usize].tail = previous,
        }
        self.lists[place as usize].count -= 1;
    }

    fn append_change(&mut self, index: SlotIndex) {
        let tail = std::mem::replace(&mut self.changes.tail, index);
        match some(tail) {
            Some(tail) => self.get_mut(tail).newer = index,
            None => self.changes.head = index,
        }
        self.changes.count += 1;
        let slot = self.get_mut(index);
        slot.older = tail;
        slot.newer = NONE;
    }
}

fn some(index: SlotIndex) -> Option<SlotIndex> {
    (index != NONE).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(op: Op) -> Request {
        Request { op, ..EMPTY }
    }

    #[test]
    fn every_slot_is_in_one_list() {
        let mut slots = Slots::new(4);
        let first = slots.take(0, &request(Op::Read), Now(0));
        let second = slots.take(0, &request(Op::Read), Now(0));
        slots.move_to(first, Place::Parked);
        assert_eq!(slots.count(Place::Free), 2);
        assert_eq!(slots.first(Place::Parked), Some(first));
        assert_eq!(slots.first(Place::Running), Some(second));
        slots.move_to(first, Place::Free);
        slots.move_to(second, Place::Free);
        assert_eq!(slots.count(Place::Free), 4);
        assert_eq!(slots.first(Place::Running), None);
    }

    #[test]
    fn a_flush_sees_only_changes_that_came_before_it() {
        let mut slots = Slots::new(8);
        let before = slots.take(0, &request(Op::Write), Now(0));
        let flush = slots.take(0, &request(Op::Flush), Now(0));
        let after = slots.take(0, &request(Op::Write), Now(0));
        assert!(slots.has_earlier_change(flush));
        slots.settle(before);
        assert!(!slots.has_earlier_change(flush));
        slots.settle(after);
        assert_eq!(slots.changes.count, 0);
    }

    #[test]
    fn changes_settle_in_any_order() {
        let mut slots = Slots::new(8);
        let writes: Vec<_> = (0..5).map(|_| slots.take(0, &request(Op::Write), Now(0))).collect();
        let flush = slots.take(0, &request(Op::Flush), Now(0));
        for index in [2, 4, 0, 3] {
            slots.settle(writes[index]);
            assert!(slots.has_earlier_change(flush));
        }
        slots.settle(writes[1]);
        assert!(!slots.has_earlier_change(flush));
    }

    #[test]
    fn a_slot_tells_its_uses_apart() {
        let mut slots = Slots::new(1);
        let index = slots.take(0, &request(Op::Read), Now(0));
        let first = slots.get(index).generation;
        slots.move_to(index, Place::Free);
        slots.take(0, &request(Op::Read), Now(0));
        assert_ne!(slots.get(index).generation, first);
    }
}
