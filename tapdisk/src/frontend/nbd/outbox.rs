//! What one client has yet to be sent: reply headers in the connection's memory, and the data that
//! follows them.
//!
//! ```text
//!   pieces    [header|header][data][header][data] ...     what the kernel is given, in order
//!   replies   end and buffer, end and buffer, ...         what is free when so much is sent
//! ```
//!
//! Headers are laid one behind the other in a ring of bytes, so that a row of replies without data
//! is one piece for the kernel. Replies leave in the order in which they were queued, and so the
//! ring needs no free list. Sized once for all the replies that a client can be owed.

use super::SOCKET_SEGMENTS_MAX;
use super::handshake;
use super::wire::Header;
use crate::memory::{Memory, Segment};
use crate::row::Row;

/// A queued reply, or some bytes of the handshake.
#[derive(Clone, Copy, Debug, Default)]
struct Reply {
    /// How much of the stream is sent when all of it is.
    end: u64,
    /// What is free then; empty when there is nothing.
    buffer: Segment,
    is_handshake: bool,
}

/// Something that is sent completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Bytes of the handshake.
    Handshake,
    /// A reply; its buffer, which may be empty, is free.
    Reply(Segment),
}

/// The replies that wait to be sent, oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    pieces: Row<Segment>,
    replies: Row<Reply>,
    /// Bytes of the stream: queued so far, and sent so far.
    queued: u64,
    sent: u64,
    /// The ring of header bytes.
    cells: Segment,
    /// Where the next header goes.
    tail: u32,
    /// The youngest piece is one of headers, and may go on.
    is_open: bool,
}

/// How many bytes of headers a client can be owed: a reply for each of its requests, before them
/// the reply to one option, what is lost where the ring ends, and what is written beyond the end of
/// a header. An option is answered only when nothing else is queued, so that its reply never
/// crosses the end.
pub(super) fn cells_bytes(requests: u16) -> u32 {
    (u32::from(requests) + 4) * Header::CELL_BYTES + handshake::REPLY_BYTES_MAX
}

impl Outbox {
    /// For a client with so many requests at a time; `cells` is memory of [`cells_bytes`].
    pub(super) fn new(requests: u16, cells: Segment) -> Self {
        let replies_max = usize::from(requests) + 1;
        Self {
            pieces: Row::new(replies_max * 2),
            replies: Row::new(replies_max),
            queued: 0,
            sent: 0,
            cells,
            tail: 0,
            is_open: false,
        }
    }

    /// Forgets what was not sent, and hands the buffers of replies out.
    pub(super) fn clear(&mut self, mut give_back: impl FnMut(Segment)) {
        while let Some(reply) = self.replies.pop() {
            if reply.buffer.len > 0 {
                give_back(reply.buffer);
            }
        }
        self.pieces.clear();
        (self.queued, self.sent, self.tail) = (0, 0, 0);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Queues a reply: a header, and what follows it. `buffer` comes back when all of it is sent.
    ///
    /// # Panics
    /// When there are more than one for each request and one for the handshake.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        header: &Header,
        data: Segment,
        buffer: Segment,
        memory: &mut Memory,
    ) {
        let len = header.len();
        let at = self.cell(len, Header::CELL_BYTES);
        // All of the cell: its size is known when this is compiled. The next header goes over the
        // rest.
        memory.write(self.cells, at, header.cell());
        self.add(Segment { offset: self.cells.offset + at, len, ..self.cells });
        if data.len > 0 {
            self.queued += u64::from(data.len);
            self.pieces.push(data);
            self.is_open = false;
        }
        self.replies.push(Reply { end: self.queued, buffer, is_handshake: false });
    }

    /// Queues bytes of the handshake.
    ///
    /// # Panics
    /// As [`Outbox::push`].
    pub(super) fn push_bytes(&mut self, bytes: &[u8], memory: &mut Memory) {
        let len = u32::try_from(bytes.len()).expect("replies of the handshake are short");
        let at = self.cell(len, len);
        let cell = self.cells.part(at, len);
        memory.copy_in(cell, bytes);
        self.add(cell);
        let buffer = Segment::EMPTY;
        self.replies.push(Reply { end: self.queued, buffer, is_handshake: true });
    }

    /// Room for the next header of `len` bytes, from the start of the ring; `room` are written.
    #[inline]
    fn cell(&mut self, len: u32, room: u32) -> u32 {
        if self.is_empty() || self.tail + room > self.cells.len {
            self.tail = 0;
        }
        let at = self.tail;
        self.tail += len;
        at
    }

    /// Appends a header to the stream.
    #[inline(always)]
    fn add(&mut self, cell: Segment) {
        self.queued += u64::from(cell.len);
        if self.is_open
            && let Some(last) = self.pieces.last_mut()
            && last.offset + last.len == cell.offset
        {
            last.len += cell.len;
        } else {
            self.pieces.push(cell);
            self.is_open = true;
        }
    }

    /// What goes into the next system call, and the sum of its lengths.
    pub(super) fn next(&self) -> (&[Segment], u64) {
        let pieces = self.pieces.as_slice();
        if pieces.len() <= SOCKET_SEGMENTS_MAX {
            return (pieces, self.queued - self.sent);
        }
        let most = &pieces[..SOCKET_SEGMENTS_MAX];
        (most, most.iter().map(|piece| u64::from(piece.len)).sum())
    }

    /// Takes note that the kernel took `bytes` more.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        assert!(self.sent <= self.queued, "no more is sent than was queued");
        if self.sent == self.queued {
            return self.pieces.clear();
        }
        let mut left = u32::try_from(bytes).expect("one call sends less than 4 GiB");
        while left > 0 {
            let piece = self.pieces.first_mut().expect("what is not sent is there");
            if left < piece.len {
                *piece = piece.part(left, piece.len - left);
                return;
            }
            left -= piece.len;
            self.pieces.pop();
        }
    }

    /// Takes out the next one that is sent completely.
    #[inline]
    pub(super) fn pop_sent(&mut self) -> Option<Sent> {
        let Reply { end, buffer, is_handshake } = self.replies.first()?;
        if end > self.sent {
            return None;
        }
        self.replies.pop();
        Some(if is_handshake { Sent::Handshake } else { Sent::Reply(buffer) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::status::Status;

    const REQUESTS: u16 = 4;

    fn outbox() -> (Memory, Outbox) {
        let mut memory = Memory::new(64 << 10).unwrap();
        let cells = memory.allocate(cells_bytes(REQUESTS)).unwrap();
        (memory, Outbox::new(REQUESTS, cells))
    }

    fn simple(cookie: u64) -> Header {
        Header::simple(cookie, Status::Done)
    }

    #[test]
    fn replies_without_data_are_one_piece() {
        let (mut memory, mut outbox) = outbox();
        for _ in 0..REQUESTS {
            outbox.push(&simple(1), Segment::EMPTY, Segment::EMPTY, &mut memory);
        }
        let (pieces, bytes) = outbox.next();
        assert_eq!((pieces, bytes), (&[outbox.cells.part(0, 64)][..], 64));
    }

    #[test]
    fn what_goes_into_one_call_is_bounded() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let cells = memory.allocate(cells_bytes(100)).unwrap();
        let data = memory.allocate(8192).unwrap();
        let mut outbox = Outbox::new(100, cells);
        for _ in 0..100 {
            outbox.push(&simple(1), data.part(4096, 100), data, &mut memory);
        }
        let (pieces, bytes) = outbox.next();
        assert_eq!((pieces.len(), bytes), (128, 64 * (16 + 100)));
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn asserts_on_more_replies_than_requests() {
        let (mut memory, mut outbox) = outbox();
        for _ in 0..=2 * (REQUESTS + 1) {
            outbox.push(&simple(1), Segment::EMPTY, Segment::EMPTY, &mut memory);
        }
    }

    proptest! {
        /// Against a plain queue of bytes: whatever is sent in whatever pieces, the stream is the
        /// replies in their order, and each is given back when its last byte is gone.
        #[test]
        fn the_stream_is_the_replies_in_order(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u32..300, 0usize..800), 1..300),
        ) {
            let (mut memory, mut outbox) = outbox();
            let data = memory.allocate(4096).unwrap();
            let mut stream: VecDeque<u8> = VecDeque::new();
            let mut ends: VecDeque<(Sent, usize)> = VecDeque::new();
            let mut free = REQUESTS;
            let (mut pushed, mut sent) = (0usize, 0usize);
            let pattern: Vec<u8> = (0..4096).map(|index| u8::try_from(index % 253).unwrap()).collect();
            memory.copy_in(data, &pattern);
            for (step, (push, is_long, data_bytes, send_bytes)) in steps.into_iter().enumerate() {
                if push && outbox.is_empty() && step % 3 == 0 {
                    let bytes = vec![u8::try_from(step % 256).unwrap(); 256];
                    outbox.push_bytes(&bytes, &mut memory);
                    stream.extend(&bytes);
                    pushed += 256;
                    ends.push_back((Sent::Handshake, pushed));
                } else if push && free > 0 {
                    free -= 1;
                    let cookie = step as u64;
                    let header = if is_long { Header::data(cookie, 7, data_bytes) } else { simple(cookie) };
                    let buffer = data.part(u32::try_from(step).unwrap(), data_bytes);
                    outbox.push(&header, buffer, buffer, &mut memory);
                    stream.extend(header.as_slice());
                    stream.extend(&pattern[step..][..data_bytes as usize]);
                    pushed += header.as_slice().len() + data_bytes as usize;
                    ends.push_back((Sent::Reply(buffer), pushed));
                } else {
                    let (pieces, bytes) = outbox.next();
                    let mut gathered = Vec::new();
                    for piece in pieces {
                        let mut bytes = vec![0; piece.len as usize];
                        memory.copy_out(*piece, &mut bytes);
                        gathered.extend(bytes);
                    }
                    prop_assert_eq!(gathered.len() as u64, bytes);
                    let taken: Vec<u8> = stream.drain(..send_bytes.min(gathered.len())).collect();
                    prop_assert_eq!(&gathered[..taken.len()], &taken[..]);
                    sent += taken.len();
                    outbox.advance(taken.len());
                    while let Some(item) = outbox.pop_sent() {
                        let (expected, end) = ends.pop_front().unwrap();
                        prop_assert_eq!(item, expected);
                        prop_assert!(end <= sent);
                        free += u16::from(item != Sent::Handshake);
                    }
                    prop_assert!(ends.front().is_none_or(|(_, end)| *end > sent));
                }
            }
        }
    }
}
