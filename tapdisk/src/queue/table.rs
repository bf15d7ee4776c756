//! The fixed table of I/Os that the queue knows: a slab with a free list.
//!
//! An I/O is named towards the engines by its key: index and generation. A result whose key does not
//! name a running I/O is our own error (or the kernel's), and asserted.

use super::engine::Verb;
use super::{FileId, Io, IoOp, Tag};

/// Ends a chain.
pub(super) const NONE: u32 = u32::MAX;

/// Names one I/O while it is known: generation in the upper half, index in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(pub(super) u64);

impl Key {
    /// The index in the table.
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the index")]
    pub(super) fn index(self) -> u32 {
        self.0 as u32
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

/// How far an operation of several steps has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The operation itself.
    Main,
    /// The first way of it is not supported: a durable write without its flag (then [`Phase::Sync`]),
    /// zeros without a hole.
    Second,
    /// Done but for making it durable.
    Sync,
}

/// One I/O.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) tag: Tag,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes that are done: a continuation starts there.
    pub(super) done: u64,
    /// The next member of the group that it leads or is in.
    pub(super) next: u32,
    generation: u32,
    pub(super) op: IoOp,
    pub(super) file: FileId,
    /// How many iovecs it has.
    pub(super) pieces: u8,
    pub(super) state: State,
    pub(super) phase: Phase,
    /// The step that it was staged for.
    pub(super) verb: Verb,
    /// Not to be merged: it was, and that failed; or it is half done.
    pub(super) alone: bool,
    /// Ends with ECANCELED instead of being continued.
    pub(super) cancelled: bool,
    /// The engine cannot do it.
    pub(super) by_worker: bool,
}

/// All of them.
pub(super) struct Table {
    entries: Box<[Entry]>,
    free: Vec<u32>,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        let count = u32::try_from(capacity).expect("checked by the queue");
        let unused = Entry {
            tag: Tag(0),
            offset: 0,
            len: 0,
            done: 0,
            next: NONE,
            generation: 0,
            op: IoOp::Flush,
            file: FileId::NOBODY,
            pieces: 0,
            state: State::Free,
            phase: Phase::Main,
            verb: Verb::Sync,
            alone: false,
            cancelled: false,
            by_worker: false,
        };
        Self { entries: vec![unused; capacity].into(), free: (0..count).rev().collect() }
    }

    /// How many are known.
    pub(super) fn used(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Takes a free one for an I/O that will wait.
    pub(super) fn allocate(&mut self, io: &Io<'_>) -> u32 {
        let index = self.free.pop().expect("push asserts that there is room");
        let entry = &mut self.entries[index as usize];
        *entry = Entry {
            tag: io.tag,
            offset: io.offset,
            len: io.len,
            done: 0,
            next: NONE,
            generation: entry.generation.wrapping_add(1),
            op: io.op,
            file: io.file,
            pieces: u8::try_from(io.segments.len()).expect("at most 11, push asserts it"),
            state: State::Waiting,
            phase: Phase::Main,
            verb: Verb::Sync,
            alone: false,
            cancelled: false,
            by_worker: false,
        };
        index
    }

    /// Gives one back.
    pub(super) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert!(entry.state != State::Free, "an I/O ends once");
        entry.state = State::Free;
        self.free.push(index);
    }

    pub(super) fn get(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// The key of a known I/O.
    pub(super) fn key(&self, index: u32) -> Key {
        Key(u64::from(self.get(index).generation) << 32 | u64::from(index))
    }

    /// The index of a running I/O.
    pub(super) fn running(&self, key: Key) -> u32 {
        let index = key.index();
        let entry = self.get(index);
        assert!(
            self.key(index) == key && matches!(entry.state, State::Engine | State::Worker),
            "result for key {:#x}, which is not running: {entry:?}",
            key.0
        );
        index
    }

    /// Marks what runs as cancelled and tells the key of each I/O in the engine.
    pub(super) fn cancel_running(&mut self, mut tell: impl FnMut(Key)) {
        for index in 0..u32::try_from(self.entries.len()).expect("checked by the queue") {
            let entry = self.get_mut(index);
            entry.cancelled |= entry.state != State::Free;
            if entry.state == State::Engine {
                tell(self.key(index));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io() -> Io<'static> {
        let (op, file) = (IoOp::Flush, FileId::NOBODY);
        Io { tag: Tag(7), op, file, offset: 0, len: 0, segments: &[] }
    }

    #[test]
    #[should_panic(expected = "not running")]
    fn asserts_on_the_key_of_an_earlier_life() {
        let mut table = Table::new(1);
        let index = table.allocate(&io());
        let old = table.key(index);
        table.release(index);
        let index = table.allocate(&io());
        table.get_mut(index).state = State::Engine;
        assert_eq!(table.running(table.key(index)), index);
        table.running(old);
    }

    #[test]
    #[should_panic(expected = "ends once")]
    fn asserts_on_a_second_end() {
        let mut table = Table::new(2);
        let index = table.allocate(&io());
        table.release(index);
        table.release(index);
    }
}
