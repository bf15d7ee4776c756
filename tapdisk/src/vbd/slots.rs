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
//! Lists are links in tables: taking, moving and freeing a slot allocates nothing. Those that run
//! are only counted: they are found by their number, when their I/O ends. Those that are free are a
//! stack, those that have finished a row that is answered from its front: every request passes
//! there.

use crate::request::{Extent, Op, Request, Segments, Token};
use crate::status::Status;
use crate::time::Now;

/// Index of a slot: below the table's size, at most 65,534.
pub(super) type SlotIndex = u16;

const NONE: SlotIndex = SlotIndex::MAX;

/// Where a slot is, besides the list of changes.
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

/// A request in flight. Four cache lines each, and an index is a shift.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Slot {
    pub(super) request: Request,
    pub(super) door: u8,
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

const FREE: Slot = Slot {
    request: EMPTY,
    door: 0,
    generation: 0,
    cursor: 0,
    parts: 0,
    status: Status::Done,
    extent: None,
    started: Now(0),
    due: Now(0),
    sequence: 0,
    newer: NONE,
    older: NONE,
};

/// The place of a slot, and its neighbours there.
#[derive(Clone, Copy)]
struct Link {
    place: Place,
    next: SlotIndex,
    previous: SlotIndex,
}

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
    links: Box<[Link]>,
    /// What was freed last is taken first: it is in the cache.
    free: Vec<SlotIndex>,
    running: usize,
    finished: Vec<SlotIndex>,
    /// How many of the finished are freed already.
    answered: usize,
    /// Of the other places.
    lists: [Ends; PLACES],
    /// Writes, trims and zeroings that are not answered, oldest first.
    changes: Ends,
    sequence: u64,
}

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        assert!(count < NONE, "the last index means none");
        let free = Link { place: Place::Free, next: NONE, previous: NONE };
        Self {
            slots: vec![FREE; usize::from(count)].into(),
            links: vec![free; usize::from(count)].into(),
            free: (0..count).rev().collect(),
            running: 0,
            finished: Vec::with_capacity(usize::from(count)),
            answered: 0,
            lists: [NO_ENDS; PLACES],
            changes: NO_ENDS,
            sequence: 0,
        }
    }

    #[inline]
    pub(super) fn get(&self, index: SlotIndex) -> &Slot {
        &self.slots[usize::from(index)]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: SlotIndex) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn count(&self, place: Place) -> usize {
        match place {
            Place::Free => self.free.len(),
            Place::Running => self.running,
            Place::Finished => self.finished.len() - self.answered,
            _ => usize::from(self.lists[place as usize].count),
        }
    }

    /// The oldest one there; not of those that run or are free.
    #[inline]
    pub(super) fn first(&self, place: Place) -> Option<SlotIndex> {
        match place {
            Place::Finished => self.finished.get(self.answered).copied(),
            _ => some(self.lists[place as usize].head),
        }
    }

    /// All that are there: for a dump.
    pub(super) fn at(&self, place: Place) -> impl Iterator<Item = &Slot> {
        let both = self.slots.iter().zip(&self.links);
        both.filter(move |(_, link)| link.place == place).map(|(slot, _)| slot)
    }

    /// Takes a free slot for a request; it is running from now on.
    #[inline]
    pub(super) fn take(&mut self, door: u8, request: &Request, now: Now) -> SlotIndex {
        let index = self.free.pop().expect("the caller asked for room");
        self.links[usize::from(index)].place = Place::Running;
        self.running += 1;
        self.sequence += 1;
        let sequence = self.sequence;
        let slot = self.get_mut(index);
        slot.request.set(request);
        slot.door = door;
        slot.generation = slot.generation.wrapping_add(1);
        slot.started = now;
        slot.sequence = sequence;
        slot.extent = None;
        if request.op.is_change() {
            self.append_change(index);
        }
        index
    }

    /// Moves a slot that is neither free nor finished to another place, to the end of its list.
    #[inline]
    pub(super) fn move_to(&mut self, index: SlotIndex, place: Place) {
        self.unlink(index);
        self.append(index, place);
    }

    /// The request is answered, or will be before any other: flushes need not wait for it.
    #[inline]
    pub(super) fn settle(&mut self, index: SlotIndex) {
        if self.get(index).request.op.is_change() {
            self.unlink_change(index);
        }
    }

    /// Whether a change came before the request in `index` and is not settled.
    pub(super) fn has_earlier_change(&self, index: SlotIndex) -> bool {
        some(self.changes.head)
            .is_some_and(|oldest| self.get(oldest).sequence < self.get(index).sequence)
    }

    #[inline]
    fn append(&mut self, index: SlotIndex, place: Place) {
        self.links[usize::from(index)].place = place;
        match place {
            Place::Running => self.running += 1,
            Place::Finished => self.finished.push(index),
            Place::Free => self.free.push(index),
            _ => self.append_listed(index, place),
        }
    }

    fn append_listed(&mut self, index: SlotIndex, place: Place) {
        let list = &mut self.lists[place as usize];
        list.count += 1;
        let previous = std::mem::replace(&mut list.tail, index);
        match some(previous) {
            Some(previous) => self.links[usize::from(previous)].next = index,
            None => list.head = index,
        }
        self.links[usize::from(index)] = Link { place, next: NONE, previous };
    }

    #[inline]
    fn unlink(&mut self, index: SlotIndex) {
        if self.links[usize::from(index)].place == Place::Running {
            self.running -= 1;
        } else {
            self.unlink_listed(index);
        }
    }

    fn unlink_listed(&mut self, index: SlotIndex) {
        let Link { place, next, previous } = self.links[usize::from(index)];
        let list = &mut self.lists[place as usize];
        assert!(!matches!(place, Place::Free | Place::Finished), "these are taken from the front");
        list.count -= 1;
        match some(previous) {
            Some(previous) => self.links[usize::from(previous)].next = next,
            None => list.head = next,
        }
        match some(next) {
            Some(next) => self.links[usize::from(next)].previous = previous,
            None => list.tail = previous,
        }
    }

    /// Frees the slot that finished first.
    #[inline]
    pub(super) fn free_finished(&mut self) {
        let index = self.first(Place::Finished).expect("the caller asked for it");
        self.answered += 1;
        if self.answered == self.finished.len() {
            self.finished.clear();
            self.answered = 0;
        }
        self.append(index, Place::Free);
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

    fn unlink_change(&mut self, index: SlotIndex) {
        let Slot { older, newer, .. } = *self.get(index);
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
}

#[inline]
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
        assert_eq!((slots.count(Place::Parked), slots.count(Place::Running)), (1, 1));
        slots.move_to(first, Place::Finished);
        slots.move_to(second, Place::Finished);
        slots.free_finished();
        slots.free_finished();
        assert_eq!((slots.count(Place::Free), slots.count(Place::Running)), (4, 0));
        assert_eq!(slots.first(Place::Parked), None);
        let all: Vec<_> = (0..4).map(|_| slots.take(0, &request(Op::Read), Now(0))).collect();
        assert!((0..4).all(|index| all.contains(&index)), "{all:?}");
        assert_eq!(slots.at(Place::Running).count(), 4);
    }

    #[test]
    fn a_list_keeps_its_order_when_one_in_the_middle_leaves() {
        let mut slots = Slots::new(4);
        let all: Vec<_> = (0..4).map(|_| slots.take(0, &request(Op::Read), Now(0))).collect();
        all.iter().for_each(|index| slots.move_to(*index, Place::Parked));
        slots.move_to(all[1], Place::Held);
        slots.move_to(all[1], Place::Parked);
        for index in [all[0], all[2], all[3], all[1]] {
            assert_eq!(slots.first(Place::Parked), Some(index));
            slots.move_to(index, Place::Finished);
        }
        for index in [all[0], all[2], all[3], all[1]] {
            assert_eq!(slots.first(Place::Finished), Some(index));
            slots.free_finished();
        }
        assert_eq!((slots.first(Place::Finished), slots.count(Place::Free)), (None, 4));
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
        slots.move_to(index, Place::Finished);
        slots.free_finished();
        slots.take(0, &request(Op::Read), Now(0));
        assert_ne!(slots.get(index).generation, first);
    }
}
