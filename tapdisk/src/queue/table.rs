//! The fixed table of I/Os that the queue knows: a slab with a free list, and the FIFO of those
//! that wait.
//!
//! An I/O is named towards the engines by its key: index and generation. A result whose key does
//! not name a running I/O is our own error (or the kernel's), and asserted.

use super::engine::Verb;
use super::{FileId, Io, IoOp, Tag};
use crate::row::Row;

/// Ends a group.
pub(super) const NONE: u32 = u32::MAX;

/// Names one I/O while it is known: generation in the upper half, index in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(pub(super) u64);

impl Key {
    /// The index in the table.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the index")]
    pub(super) fn index(self) -> u32 {
        self.0 as u32
    }

    /// The same index in its next life.
    fn reborn(self) -> Self {
        Self(self.0.wrapping_add(1 << 32))
    }
}

/// Where an I/O is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not in use.
    Free,
    /// In the FIFO.
    Waiting,
    /// Staged in the engine or with the kernel; all members of a group are.
    Engine,
    /// With the helper thread.
    Worker,
}

/// One I/O. A cache line each, and an index is a shift.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Entry {
    pub(super) tag: Tag,
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes that are done: a continuation starts there.
    pub(super) done: u64,
    /// The next one in the group that it leads or is in.
    pub(super) next: u32,
    pub(super) op: IoOp,
    /// The step that it is at.
    pub(super) verb: Verb,
    /// After this step comes a sync.
    pub(super) then_sync: bool,
    pub(super) file: FileId,
    /// How many iovecs it has.
    pub(super) pieces: u8,
    pub(super) state: State,
    /// A read or write that has not run yet. Not one that was merged when that failed, nor one that
    /// is half done.
    pub(super) may_merge: bool,
    /// Ends with ECANCELED instead of being continued.
    pub(super) cancelled: bool,
    /// The engine cannot do it.
    pub(super) by_worker: bool,
}

/// All of them.
pub(super) struct Table {
    entries: Box<[Entry]>,
    free: Vec<u32>,
    /// The FIFO.
    waiting: Row<u32>,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        let count = u32::try_from(capacity).expect("checked by the queue");
        let unused = |index: u32| Entry {
            tag: Tag(0),
            key: Key(u64::from(index)),
            offset: 0,
            len: 0,
            done: 0,
            next: NONE,
            op: IoOp::Flush,
            verb: Verb::Sync,
            then_sync: false,
            file: FileId::NOBODY,
            pieces: 0,
            state: State::Free,
            may_merge: false,
            cancelled: false,
            by_worker: false,
        };
        Self {
            entries: (0..count).map(unused).collect(),
            free: (0..count).rev().collect(),
            waiting: Row::new(capacity),
        }
    }

    /// How many more fit.
    #[inline]
    pub(super) fn unused(&self) -> usize {
        self.free.len()
    }

    /// How many are known.
    pub(super) fn used(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// How many are in the FIFO.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The oldest one in the FIFO.
    #[inline]
    pub(super) fn front(&self) -> Option<u32> {
        self.waiting.first()
    }

    /// Takes a free one for an I/O; it joins the FIFO.
    #[inline(always)]
    pub(super) fn allocate(&mut self, io: &Io<'_>, verb: Verb, then_sync: bool) -> u32 {
        let index = self.free.pop().expect("push asserts that there is room");
        let entry = &mut self.entries[index as usize];
        *entry = Entry {
            tag: io.tag,
            key: entry.key.reborn(),
            offset: io.offset,
            len: io.len,
            done: 0,
            next: NONE,
            op: io.op,
            verb,
            then_sync,
            file: io.file,
            pieces: u8::try_from(io.segments.len()).expect("at most 11, push asserts it"),
            state: State::Waiting,
            may_merge: verb.has_data(),
            cancelled: false,
            by_worker: false,
        };
        self.waiting.push(index);
        index
    }

    /// Puts one to the front of the FIFO.
    pub(super) fn push_front(&mut self, index: u32) {
        self.entries[index as usize].state = State::Waiting;
        self.waiting.push_first(index);
    }

    /// Takes the oldest one off the FIFO, for the engine.
    #[inline(always)]
    pub(super) fn take_front(&mut self) -> Option<(u32, &Entry)> {
        let index = self.waiting.pop()?;
        let entry = &mut self.entries[index as usize];
        entry.state = State::Engine;
        Some((index, entry))
    }

    /// How many are on a file.
    pub(super) fn count_of(&self, file: FileId) -> usize {
        let is_of = |entry: &&Entry| entry.state != State::Free && entry.file == file;
        self.entries.iter().filter(is_of).count()
    }

    /// Gives one back; tells whose it was.
    #[inline]
    pub(super) fn release(&mut self, index: u32) -> Tag {
        let entry = &mut self.entries[index as usize];
        assert!(entry.state != State::Free, "an I/O ends once");
        entry.state = State::Free;
        self.free.push(index);
        entry.tag
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// Looks at the running I/O of a key, and gives it back if it has ended: then tells whose it
    /// was.
    #[inline(always)]
    pub(super) fn end_running(
        &mut self,
        key: Key,
        is_end: impl FnOnce(&Entry) -> bool,
    ) -> Option<Tag> {
        let entry = &mut self.entries[key.index() as usize];
        assert!(
            entry.key == key && matches!(entry.state, State::Engine | State::Worker),
            "a result names an I/O that runs"
        );
        if !is_end(entry) {
            return None;
        }
        entry.state = State::Free;
        self.free.push(key.index());
        Some(entry.tag)
    }

    /// Marks what runs as cancelled and tells the key of each I/O in the engine.
    pub(super) fn cancel_running(&mut self, mut tell: impl FnMut(Key)) {
        for entry in &mut self.entries {
            entry.cancelled |= entry.state != State::Free;
            if entry.state == State::Engine {
                tell(entry.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocate(table: &mut Table) -> u32 {
        let (op, file) = (IoOp::Flush, FileId::NOBODY);
        let io = Io { tag: Tag(7), op, file, offset: 0, len: 0, segments: &[] };
        table.allocate(&io, Verb::Sync, false)
    }

    #[test]
    #[should_panic(expected = "an I/O that runs")]
    fn asserts_on_the_key_of_an_earlier_life() {
        let mut table = Table::new(1);
        let index = allocate(&mut table);
        let old = table.get(index).key;
        table.release(index);
        let index = allocate(&mut table);
        table.get_mut(index).state = State::Engine;
        let key = table.get(index).key;
        assert_eq!((key.index(), table.end_running(key, |_| false)), (index, None));
        table.end_running(old, |_| true);
    }

    #[test]
    #[should_panic(expected = "ends once")]
    fn asserts_on_a_second_end() {
        let mut table = Table::new(2);
        let index = allocate(&mut table);
        table.release(index);
        table.release(index);
    }

    #[test]
    fn the_fifo_keeps_its_order_through_takes_and_returns() {
        let mut table = Table::new(8);
        let mut order = Vec::new();
        let mut take = |table: &mut Table, count| {
            for _ in 0..count {
                order.push(table.take_front().unwrap().0);
            }
        };
        let all: Vec<u32> = (0..4).map(|_| allocate(&mut table)).collect();
        take(&mut table, 2);
        table.push_front(all[1]);
        assert_eq!(table.waiting(), 3);
        take(&mut table, 3);
        assert_eq!((table.waiting(), table.front()), (0, None));
        table.push_front(all[0]);
        let last = allocate(&mut table);
        take(&mut table, 2);
        assert_eq!(order, [all[0], all[1], all[1], all[2], all[3], all[0], last]);
    }
}
