//! What one client has yet to be sent: reply headers in the arena, and the data that follows them.
//!
//! Headers are laid one behind the other in a ring of bytes, so that a row of replies without data
//! is one segment for the kernel. Replies leave in the order in which they were queued, and so the
//! ring needs no free list. Sized once for all the replies that a client can be owed.

use super::NO_SLOT;
use super::handshake;
use super::wire;
use crate::memory::{Memory, Segment};

/// One queued reply, or some bytes of the handshake.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Whose it is; [`NO_SLOT`] for the handshake.
    slot: u16,
    header: Segment,
    /// Empty when nothing follows the header.
    data: Segment,
}

impl Entry {
    const NONE: Self = Self { slot: NO_SLOT, header: Segment::EMPTY, data: Segment::EMPTY };

    fn len(&self) -> u32 {
        self.header.len + self.data.len
    }
}

/// The replies that wait to be sent, oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    /// A ring; one place for each slot and one for the handshake.
    entries: Box<[Entry]>,
    first: usize,
    count: usize,
    /// Bytes of the first entry that the kernel has already.
    sent: u32,
    /// The ring of header bytes; empty while there is no client.
    cells: Segment,
    /// Where the next header goes.
    tail: u32,
}

/// How many bytes of headers a client with `slots` slots can be owed: a reply for each, before them
/// the reply to one option, and what is lost where the ring ends. An option is answered only when
/// nothing else is queued, so that its reply never crosses the end.
pub(super) fn cells_bytes(slots: u16) -> u32 {
    (u32::from(slots) + 1) * wire::REPLY_BYTES_MAX + handshake::REPLY_BYTES_MAX
}

impl Outbox {
    pub(super) fn new(slots: u16) -> Self {
        Self {
            entries: vec![Entry::NONE; usize::from(slots) + 1].into(),
            first: 0,
            count: 0,
            sent: 0,
            cells: Segment::EMPTY,
            tail: 0,
        }
    }

    /// Starts for a new client with memory of [`cells_bytes`].
    pub(super) fn open(&mut self, cells: Segment) {
        assert!(self.cells.len == 0 && self.count == 0, "one client after the other");
        self.cells = cells;
        self.tail = 0;
    }

    /// Forgets what was not sent and gives the memory back.
    pub(super) fn close(&mut self) -> Segment {
        self.count = 0;
        self.sent = 0;
        std::mem::replace(&mut self.cells, Segment::EMPTY)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Queues a reply.
    ///
    /// # Panics
    /// When there are more than one for each slot and one for the handshake.
    #[inline]
    pub(super) fn push(&mut self, slot: u16, header: &[u8], data: Segment, memory: &mut Memory) {
        assert!(self.count < self.entries.len(), "a slot has one reply");
        let header = self.cell(header, memory);
        let mut index = self.first + self.count;
        if index >= self.entries.len() {
            index -= self.entries.len();
        }
        self.entries[index] = Entry { slot, header, data };
        self.count += 1;
    }

    fn cell(&mut self, header: &[u8], memory: &mut Memory) -> Segment {
        let len = u32::try_from(header.len()).expect("headers are short");
        if self.count == 0 || self.tail + len > self.cells.len {
            self.tail = 0;
        }
        let cell = self.cells.part(self.tail, len);
        self.tail += len;
        memory.copy_in(cell, header);
        cell
    }

    /// Names what to send next: fills `segments` and returns how many, and the sum of their
    /// lengths.
    pub(super) fn gather(&self, segments: &mut [Segment]) -> (usize, usize) {
        let mut list = List { segments, used: 0, bytes: 0, skip: self.sent };
        let mut index = self.first;
        for _ in 0..self.count {
            let entry = &self.entries[index];
            if !(list.add(entry.header) && list.add(entry.data)) {
                break;
            }
            index += 1;
            if index == self.entries.len() {
                index = 0;
            }
        }
        (list.used, list.bytes)
    }

    /// Takes note that the kernel took `bytes` more.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.sent += u32::try_from(bytes).expect("one call sends less than 4 GiB");
    }

    /// Takes out the next reply that is sent completely: whose it was, [`NO_SLOT`] for the
    /// handshake.
    pub(super) fn pop_sent(&mut self) -> Option<u16> {
        if self.count == 0 {
            assert!(self.sent == 0, "no more is sent than was queued");
            return None;
        }
        let entry = &self.entries[self.first];
        let (slot, len) = (entry.slot, entry.len());
        if self.sent < len {
            return None;
        }
        self.sent -= len;
        self.first += 1;
        if self.first == self.entries.len() {
            self.first = 0;
        }
        self.count -= 1;
        Some(slot)
    }
}

/// The segments of one system call.
struct List<'a> {
    segments: &'a mut [Segment],
    used: usize,
    bytes: usize,
    /// What the kernel has already.
    skip: u32,
}

impl List<'_> {
    /// Appends what is left of a segment; `false` when the list is full.
    #[inline]
    fn add(&mut self, mut part: Segment) -> bool {
        if self.skip > 0 {
            let gone = part.len.min(self.skip);
            self.skip -= gone;
            part = part.part(gone, part.len - gone);
        }
        if part.len == 0 {
            return true;
        }
        // Neighbours in memory are one segment, whatever they hold.
        if let Some(last) = self.segments[..self.used].last_mut()
            && last.offset + last.len == part.offset
        {
            last.len += part.len;
        } else if let Some(next) = self.segments.get_mut(self.used) {
            *next = part;
            self.used += 1;
        } else {
            return false;
        }
        self.bytes += part.len as usize;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: u16 = 4;

    fn memory() -> (Memory, Segment) {
        let mut memory = Memory::new(64 << 10).unwrap();
        let cells = memory.allocate(cells_bytes(SLOTS)).unwrap();
        (memory, cells)
    }

    #[test]
    fn replies_without_data_are_one_segment() {
        let (mut memory, cells) = memory();
        let mut outbox = Outbox::new(SLOTS);
        outbox.open(cells);
        for slot in 0..SLOTS {
            outbox.push(slot, &[0; 16], Segment::EMPTY, &mut memory);
        }
        let mut segments = [Segment::EMPTY; 8];
        assert_eq!(outbox.gather(&mut segments), (1, 64));
        assert_eq!(segments[0], cells.part(0, 64));
    }

    #[test]
    fn what_goes_into_one_call_is_bounded() {
        let (mut memory, cells) = memory();
        let data = memory.allocate(8192).unwrap();
        let mut outbox = Outbox::new(SLOTS);
        outbox.open(cells);
        for slot in 0..SLOTS {
            outbox.push(slot, &[0; 16], data.part(4096, 100), &mut memory);
        }
        assert_eq!(outbox.gather(&mut [Segment::EMPTY; 3]), (3, 16 + 100 + 16));
    }

    #[test]
    #[should_panic(expected = "a slot has one reply")]
    fn asserts_on_more_replies_than_slots() {
        let (mut memory, cells) = memory();
        let mut outbox = Outbox::new(SLOTS);
        outbox.open(cells);
        for slot in 0..=SLOTS + 1 {
            outbox.push(slot, &[0; 16], Segment::EMPTY, &mut memory);
        }
    }

    proptest! {
        /// Against a plain queue of bytes: whatever is sent in whatever pieces, the stream is the
        /// replies in their order, and each is given back when its last byte is gone.
        #[test]
        fn the_stream_is_the_replies_in_order(
            steps in prop::collection::vec((any::<bool>(), 16usize..=28, 0u32..300, 0usize..800), 1..300),
        ) {
            let (mut memory, cells) = memory();
            let data = memory.allocate(4096).unwrap();
            let mut outbox = Outbox::new(SLOTS);
            outbox.open(cells);
            let mut stream: VecDeque<u8> = VecDeque::new();
            let mut ends: VecDeque<(u16, usize)> = VecDeque::new();
            let mut free: Vec<u16> = (0..SLOTS).collect();
            let (mut pushed, mut sent) = (0usize, 0usize);
            let pattern: Vec<u8> = (0..4096).map(|index| u8::try_from(index % 253).unwrap()).collect();
            memory.copy_in(data, &pattern);
            for (step, (push, header_bytes, data_bytes, send_bytes)) in steps.into_iter().enumerate() {
                if push && (outbox.is_empty() || !free.is_empty()) {
                    let is_option = outbox.is_empty() && step % 3 == 0;
                    let slot = if is_option { NO_SLOT } else { free.pop().unwrap() };
                    let header_bytes = if is_option { 256 } else { header_bytes };
                    let header = vec![u8::try_from(step % 256).unwrap(); header_bytes];
                    outbox.push(slot, &header, data.part(u32::try_from(step).unwrap(), data_bytes), &mut memory);
                    stream.extend(&header);
                    stream.extend(&pattern[step..][..data_bytes as usize]);
                    pushed += header_bytes + data_bytes as usize;
                    ends.push_back((slot, pushed));
                } else {
                    let mut segments = [Segment::EMPTY; 5];
                    let (used, bytes) = outbox.gather(&mut segments);
                    let mut gathered = Vec::new();
                    for segment in &segments[..used] {
                        let mut piece = vec![0; segment.len as usize];
                        memory.copy_out(*segment, &mut piece);
                        gathered.extend(piece);
                    }
                    prop_assert_eq!(gathered.len(), bytes);
                    let taken: Vec<u8> = stream.drain(..send_bytes.min(bytes)).collect();
                    prop_assert_eq!(&gathered[..taken.len()], &taken[..]);
                    sent += taken.len();
                    outbox.advance(taken.len());
                    while let Some(slot) = outbox.pop_sent() {
                        let (expected, end) = ends.pop_front().unwrap();
                        prop_assert_eq!(slot, expected);
                        prop_assert!(end <= sent);
                        if slot != NO_SLOT {
                            free.push(slot);
                        }
                    }
                    prop_assert!(ends.front().is_none_or(|(_, end)| *end > sent));
                }
            }
        }
    }
}
