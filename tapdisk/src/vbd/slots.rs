//! The one table of requests in flight, and the lists that they wait in.
//!
//! ```text
//!   free -> running -> finished -> free
//!             |  ^
//!             v  |   awaiting room     the queue is full
//!           waiting  awaiting image    it reads or writes metadata first
//!                    awaiting writes   a flush behind writes that are not answered yet
//!                    parked            to be tried again at a time
//!                    awaiting space    to be tried again when the storage has some
//!                    held              a layer keeps it for ever
//! ```
//!
//! Lists are links in tables: taking, moving and freeing a slot allocates nothing. Those that run
//! are only counted: they are found by their number, when their I/O ends. Those that are free are a
//! stack, those that have finished a row that is answered from its front: every request passes
//! there.

use crate::chain::Progress;
use crate::request::Request;
use crate::row::Row;
use crate::status::Status;
use crate::time::Now;

/// Index of a slot. There are as many slots as it has values, so that none is out of bounds.
pub(super) type SlotIndex = u8;

/// How many slots there are.
pub(super) const COUNT: usize = 1 << SlotIndex::BITS;

/// Where a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Free,
    /// Has I/O in the queue.
    Running,
    AwaitingRoom,
    AwaitingImage,
    AwaitingWrites,
    Parked,
    AwaitingSpace,
    Held,
    Finished,
}

const PLACES: usize = 9;

/// A request in flight, and where it is.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Slot {
    pub(super) request: Request,
    pub(super) place: Place,
    pub(super) door: u8,
    pub(super) status: Status,
    pub(super) progress: Progress,
    /// It took the short way: it is one I/O, and nobody but its door is told of its end.
    pub(super) is_short: bool,
    /// The order in which requests came: tells the uses of a slot apart, too.
    pub(super) sequence: u64,
    pub(super) started: Now,
    /// When parked: when to try again.
    pub(super) due: Now,
    /// Neighbours in the list of its place.
    link: Link,
    /// Of a flush that waits: how many changes that came before it have not ended.
    waits_for: u16,
}

const FREE: Slot = Slot {
    request: Request::NONE,
    place: Place::Free,
    door: 0,
    status: Status::Done,
    progress: Progress::NONE,
    is_short: false,
    sequence: 0,
    started: Now(0),
    due: Now(0),
    link: NO_LINK,
    waits_for: 0,
};

#[derive(Clone, Copy, Debug)]
struct Link {
    next: Option<SlotIndex>,
    previous: Option<SlotIndex>,
}

const NO_LINK: Link = Link { next: None, previous: None };

#[derive(Clone, Copy)]
struct Ends {
    head: Option<SlotIndex>,
    tail: Option<SlotIndex>,
    count: u16,
}

const NO_ENDS: Ends = Ends { head: None, tail: None, count: 0 };

/// The table.
pub(super) struct Slots {
    slots: Box<[Slot; COUNT]>,
    /// What was freed last is taken first: it is in the cache.
    free: Vec<SlotIndex>,
    running: usize,
    finished: Row<SlotIndex>,
    /// Of the other places.
    lists: [Ends; PLACES],
    sequence: u64,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            slots: Box::new([FREE; COUNT]),
            free: (0..=SlotIndex::MAX).rev().collect(),
            running: 0,
            finished: Row::new(COUNT),
            lists: [NO_ENDS; PLACES],
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

    #[inline]
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    #[inline]
    pub(super) fn count(&self, place: Place) -> usize {
        match place {
            Place::Free => self.free.len(),
            Place::Running => self.running,
            Place::Finished => self.finished.len(),
            _ => usize::from(self.lists[place as usize].count),
        }
    }

    /// The oldest one there; not of those that run or are free.
    #[inline]
    pub(super) fn first(&self, place: Place) -> Option<SlotIndex> {
        match place {
            Place::Finished => self.finished.first(),
            _ => self.lists[place as usize].head,
        }
    }

    /// The newest request's number, and the number of the oldest one that waits for I/O.
    pub(super) fn span(&self) -> (u64, u64) {
        let with_parts = self.slots.iter().filter(|slot| slot.progress.parts > 0);
        let oldest = with_parts.map(|slot| slot.sequence).min();
        (self.sequence, oldest.unwrap_or(self.sequence + 1))
    }

    /// All that are there: for a dump.
    pub(super) fn at(&self, place: Place) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(move |slot| slot.place == place)
    }

    /// Takes a free slot; `fill` makes its request, which is running from now on.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        door: u8,
        now: Now,
        fill: impl FnOnce(&mut Request),
    ) -> (SlotIndex, &mut Slot) {
        let index = self.free.pop().expect("the caller asked for room");
        // Neither can wrap: there are 256 slots, and 2^64 requests do not come.
        self.running = self.running.wrapping_add(1);
        let sequence = self.sequence.wrapping_add(1);
        self.sequence = sequence;
        let slot = self.get_mut(index);
        fill(&mut slot.request);
        slot.place = Place::Running;
        slot.door = door;
        slot.sequence = sequence;
        slot.started = now;
        (index, slot)
    }

    /// Moves a slot that is neither free nor finished to another place, to the end of its list.
    pub(super) fn move_to(&mut self, index: SlotIndex, place: Place) {
        let left = self.get(index).place;
        if left == Place::Running {
            self.running -= 1;
        } else {
            self.unlink(index, left);
        }
        self.append(index, place);
    }

    /// The request has ended: it waits to be answered, and flushes need not wait for it.
    #[inline(always)]
    pub(super) fn finish(&mut self, index: SlotIndex) {
        let slot = self.get_mut(index);
        let place = std::mem::replace(&mut slot.place, Place::Finished);
        if place == Place::Running {
            // It is one of them.
            self.running = self.running.wrapping_sub(1);
        } else {
            self.unlink(index, place);
        }
        if self.count(Place::AwaitingWrites) > 0 {
            self.tell_flushes(index);
        }
        self.finished.push(index);
    }

    /// The same for one that took the short way, if it did and all is well. Flushes are not told.
    #[inline(always)]
    pub(super) fn finish_short(&mut self, index: SlotIndex) -> bool {
        let slot = &mut self.slots[usize::from(index)];
        let is_short = slot.is_short && slot.status == Status::Done && slot.place == Place::Running;
        if is_short {
            slot.progress.parts = 0;
            slot.place = Place::Finished;
            // It is one of them.
            self.running = self.running.wrapping_sub(1);
            self.finished.push(index);
        }
        is_short
    }

    /// Whether the flush in `index` has to wait for changes that came before it and have not ended;
    /// then it waits for these. Counted when there is a flush: a list of changes would cost each of
    /// them more than all flushes cost.
    pub(super) fn must_wait(&mut self, index: SlotIndex) -> bool {
        let flush = self.get(index).sequence;
        let is_earlier = |slot: &&Slot| {
            let has_ended = matches!(slot.place, Place::Free | Place::Finished);
            !has_ended && slot.request.op.is_change() && slot.sequence < flush
        };
        let count = self.slots.iter().filter(is_earlier).count();
        let waits = count > 0;
        if waits {
            self.get_mut(index).waits_for = u16::try_from(count).expect("one for each slot");
            self.move_to(index, Place::AwaitingWrites);
        }
        waits
    }

    /// The oldest flush that waits, if it has nothing to wait for any more.
    pub(super) fn due_flush(&self) -> Option<SlotIndex> {
        self.first(Place::AwaitingWrites).filter(|index| self.get(*index).waits_for == 0)
    }

    /// A request has ended: flushes that came after it need not wait for it if it is a change.
    #[inline(never)]
    fn tell_flushes(&mut self, index: SlotIndex) {
        let Slot { request, sequence, .. } = self.get(index);
        let (is_change, sequence) = (request.op.is_change(), *sequence);
        let mut next = self.first(Place::AwaitingWrites).filter(|_| is_change);
        while let Some(flush) = next {
            let flush = self.get_mut(flush);
            if flush.sequence > sequence {
                flush.waits_for -= 1;
            }
            next = flush.link.next;
        }
    }

    /// Hands every slot that has finished to `each`, oldest first, and frees it; returns how many.
    #[inline]
    pub(super) fn free_finished(&mut self, mut each: impl FnMut(&Slot)) -> usize {
        let count = self.finished.len();
        for index in self.finished.as_slice() {
            let slot = &mut self.slots[usize::from(*index)];
            slot.place = Place::Free;
            each(slot);
        }
        self.free.extend_from_slice(self.finished.as_slice());
        self.finished.clear();
        count
    }

    fn append(&mut self, index: SlotIndex, place: Place) {
        self.get_mut(index).place = place;
        if place == Place::Running {
            self.running += 1;
            return;
        }
        let list = &mut self.lists[place as usize];
        list.count += 1;
        let previous = list.tail.replace(index);
        match previous {
            Some(previous) => self.get_mut(previous).link.next = Some(index),
            None => list.head = Some(index),
        }
        self.get_mut(index).link = Link { next: None, previous };
    }

    fn unlink(&mut self, index: SlotIndex, place: Place) {
        let Link { next, previous } = self.get(index).link;
        assert!(!matches!(place, Place::Free | Place::Finished), "these are taken from the front");
        let list = &mut self.lists[place as usize];
        list.count -= 1;
        match previous {
            Some(previous) => self.slots[usize::from(previous)].link.next = next,
            None => list.head = next,
        }
        match next {
            Some(next) => self.slots[usize::from(next)].link.previous = previous,
            None => list.tail = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Op, Token};

    fn take(slots: &mut Slots, op: Op) -> SlotIndex {
        slots.take(0, Now(0), |request| request.set(Token::default(), op, (0, 0))).0
    }

    #[test]
    fn every_slot_is_in_one_list() {
        let mut slots = Slots::new();
        let first = take(&mut slots, Op::Read);
        let second = take(&mut slots, Op::Read);
        slots.move_to(first, Place::Parked);
        assert_eq!(slots.count(Place::Free), COUNT - 2);
        assert_eq!(slots.first(Place::Parked), Some(first));
        assert_eq!((slots.count(Place::Parked), slots.count(Place::Running)), (1, 1));
        slots.finish(first);
        slots.finish(second);
        assert_eq!(slots.free_finished(|_| {}), 2);
        assert_eq!((slots.count(Place::Free), slots.count(Place::Running)), (COUNT, 0));
        assert_eq!(slots.first(Place::Parked), None);
        let all: Vec<_> = (0..COUNT).map(|_| take(&mut slots, Op::Read)).collect();
        assert!((0..=SlotIndex::MAX).all(|index| all.contains(&index)), "{all:?}");
        assert_eq!(slots.at(Place::Running).count(), COUNT);
    }

    #[test]
    fn a_list_keeps_its_order_when_one_in_the_middle_leaves() {
        let mut slots = Slots::new();
        let all: Vec<_> = (0..4).map(|_| take(&mut slots, Op::Read)).collect();
        all.iter().for_each(|index| slots.move_to(*index, Place::Parked));
        slots.move_to(all[1], Place::Held);
        slots.move_to(all[1], Place::Parked);
        for index in [all[0], all[2], all[3], all[1]] {
            assert_eq!(slots.first(Place::Parked), Some(index));
            slots.finish(index);
        }
        for (number, index) in all.iter().enumerate() {
            slots.get_mut(*index).request.offset = number as u64;
        }
        let mut order = Vec::new();
        assert_eq!(slots.free_finished(|slot| order.push(slot.request.offset)), 4);
        assert_eq!(order, [0, 2, 3, 1]);
        assert_eq!((slots.first(Place::Finished), slots.count(Place::Free)), (None, COUNT));
    }

    #[test]
    fn a_flush_waits_only_for_changes_that_came_before_it() {
        let mut slots = Slots::new();
        let before = take(&mut slots, Op::Write);
        take(&mut slots, Op::Read);
        let flush = take(&mut slots, Op::Flush);
        let after = take(&mut slots, Op::Write);
        assert!(slots.must_wait(flush));
        slots.finish(after);
        assert_eq!(slots.due_flush(), None);
        slots.finish(before);
        assert_eq!(slots.due_flush(), Some(flush));
    }

    #[test]
    fn a_flush_waits_for_changes_that_are_parked_and_not_for_those_that_have_ended() {
        let mut slots = Slots::new();
        let [ended, parked] = [Op::Trim, Op::Write].map(|op| take(&mut slots, op));
        slots.move_to(parked, Place::Parked);
        slots.finish(ended);
        let first = take(&mut slots, Op::Flush);
        assert!(slots.must_wait(first));
        slots.finish(parked);
        assert_eq!(slots.due_flush(), Some(first));
        let second = take(&mut slots, Op::Flush);
        assert!(!slots.must_wait(second), "all have ended");
        slots.free_finished(|_| {});
        assert!(!slots.must_wait(second), "and are answered");
    }

    #[test]
    fn changes_end_in_any_order_and_flushes_begin_in_theirs() {
        let mut slots = Slots::new();
        let writes: Vec<_> = (0..5).map(|_| take(&mut slots, Op::Write)).collect();
        let flush = take(&mut slots, Op::Flush);
        let last = take(&mut slots, Op::WriteZeroes);
        let second = take(&mut slots, Op::Flush);
        assert!(slots.must_wait(flush) && slots.must_wait(second));
        slots.finish(last);
        for index in [2, 4, 0, 3] {
            slots.finish(writes[index]);
            assert_eq!(slots.due_flush(), None);
        }
        slots.finish(writes[1]);
        assert_eq!(slots.due_flush(), Some(flush));
        slots.move_to(flush, Place::Running);
        assert_eq!(slots.due_flush(), Some(second));
    }

    #[test]
    fn a_slot_tells_its_uses_apart() {
        let mut slots = Slots::new();
        let index = take(&mut slots, Op::Read);
        let first = slots.get(index).sequence;
        slots.finish(index);
        slots.free_finished(|_| {});
        assert_eq!(take(&mut slots, Op::Read), index);
        assert_ne!(slots.get(index).sequence, first);
    }
}
