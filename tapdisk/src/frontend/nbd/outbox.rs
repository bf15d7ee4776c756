//! What one client has yet to be sent: reply headers in the arena, and the data that follows them.
//!
//! Headers are laid one behind the other in a ring of bytes, so that a row of replies without data is
//! one segment for the kernel. Replies leave in the order in which they were queued, and so the ring
//! needs no free list. Sized once for all the replies that a client can be owed.

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

/// How many bytes of headers a client with `slots` slots can be owed: a reply for each, before them the
/// reply to one option, and what is lost where the ring ends. An option is answered only when nothing
/// else is queued, so that its reply never crosses the end.
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

    /// Names what to send next: fills `segments` and returns how many, and the sum of their lengths.
    pub(super) fn gather(&self, segments: &mut [Segment]) -> (usize, usize) {
        let (mut used, mut bytes, mut skip) = (0usize, 0, self.sent);
        let (wrapped, straight) = self.entries.split_at(self.first);
        for entry in straight.iter().chain(wrapped).take(self.count) {
            for part in [entry.header, entry.data] {
                let part = skip_front(part, &mut skip);
                if part.len == 0 {
                    continue;
                }
                let last = segments[..used].last_mut();
                // Neighbours in memory are one segment, whatever they hold.
                if let Some(last) = last.filter(|last| last.offset + last.len == part.offset) {
                    last.len += part.len;
                } else if used < segments.len() {
                    segments[used] = part;
                    used += 1;
                } else {
                    return (used, bytes);
                }
                bytes += part.len as usize;
            }
        }
        (used, bytes)
    }

    /// Takes note that the kernel took `bytes` more.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.sent += u32::try_from(bytes).expect("one call sends less than 4 GiB");
    }

    /// Takes out the next reply that is sent completely: whose it was, [`NO_SLOT`] for the handshake.
    pub(super) fn pop_sent(&mut self) -> Option<u16> {
        if self.count == 0 {
            assert!(self.sent == 0, "no more is sent than was queued");
            return None;
        }
        let entry = self.entries[self.first];
        if self.sent < entry.len() {
            return None;
        }
        self.sent -= entry.len();
        self.first += 1;
        if self.first == self.entries.len() {
            self.first = 0;
        }
        self.count -= 1;
        Some(entry.slot)
    }
}

/// What is left of a segment when its first `skip` bytes are gone; the rest of `skip` stays.
fn skip_front(segment: Segment, skip: &mut u32) -> Segment {
    let gone = segment.len.min(*skip);
    *skip -= gone;
    Segment { offset: segment.offset + gone, len: segment.len - gone, ..segment }
}
