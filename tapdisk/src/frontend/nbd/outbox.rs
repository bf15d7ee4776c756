//! What one client has yet to be sent: bytes of the handshake, and replies in their order.
//!
//! A reply is its header and, in the buffer of its request, the data that follows. What the kernel
//! is given is put together when it is sent, and not kept: what it did not take is put together
//! again. Sized once for all the replies that a client can be owed.

use super::handshake;
use super::wire::Header;
use crate::memory::{Outgoing, Segment};
use crate::row::Row;

/// Bytes that are sent at a time, about: in between what the client asks for next is given to the
/// storage, which would wait while all of a burst of large replies is copied.
const SEND_BYTES_MAX: u32 = 512 << 10;

/// A queued reply.
#[derive(Clone, Copy, Debug, Default)]
struct Reply {
    header: Header,
    /// What is free when all is sent; empty when there is nothing.
    buffer: Segment,
    /// So many bytes of the buffer follow the header.
    data_len: u32,
}

impl Reply {
    #[inline]
    fn len(&self) -> usize {
        self.header.len() + self.data_len as usize
    }

    fn data(&self) -> Segment {
        Segment { len: self.data_len, ..self.buffer }
    }
}

/// The replies that wait to be sent, oldest first.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Bytes of the handshake, which go before all replies: the first `opening_len` of them.
    opening: Box<[u8]>,
    opening_len: usize,
    replies: Row<Reply>,
    /// How much of the first of these is sent.
    sent: usize,
}

impl Outbox {
    /// For a client with so many requests at a time.
    pub(super) fn new(requests: u16) -> Self {
        Self {
            opening: vec![0; handshake::REPLY_BYTES_MAX as usize].into(),
            opening_len: 0,
            replies: Row::new(usize::from(requests)),
            sent: 0,
        }
    }

    /// Forgets what was not sent, and hands the buffers of replies out.
    pub(super) fn clear(&mut self, mut give_back: impl FnMut(Segment)) {
        for reply in self.replies.as_slice() {
            if reply.buffer.len > 0 {
                give_back(reply.buffer);
            }
        }
        self.replies.clear();
        (self.opening_len, self.sent) = (0, 0);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.opening_len == 0
    }

    /// Queues a reply: a header, and after it so many bytes of the buffer, which comes back when
    /// all of it is sent.
    ///
    /// # Panics
    /// When there are more than one for each request.
    #[inline(always)]
    pub(super) fn push(&mut self, header: Header, buffer: Segment, data_len: u32) {
        self.replies.push(Reply { header, buffer, data_len });
    }

    /// Queues bytes of the handshake.
    ///
    /// # Panics
    /// When something is queued: an option is answered when the peer has read the answer before.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        assert!(self.is_empty(), "the handshake speaks only when all is sent");
        self.opening[..bytes.len()].copy_from_slice(bytes);
        self.opening_len = bytes.len();
    }

    /// Puts the next message together: all that is queued, or as much as it has room for.
    pub(super) fn fill<'a>(&'a self, message: &mut Outgoing<'a>) {
        let mut replies = self.replies.as_slice();
        if self.opening_len > 0 {
            message.borrowed(&self.opening[self.sent..self.opening_len]);
        } else if self.sent > 0
            && let Some((first, rest)) = replies.split_first()
        {
            replies = rest;
            if let Some(header) = first.header.as_slice().get(self.sent..) {
                message.borrowed(header);
            }
            let skip = self.sent.saturating_sub(first.header.len());
            let skip = u32::try_from(skip).expect("less than the data");
            let len = (first.data_len - skip).min(SEND_BYTES_MAX);
            message.segment(first.data().part(skip, len));
            if skip + len < first.data_len {
                return;
            }
        }
        for reply in replies {
            if message.room() < 2 || message.bytes() >= SEND_BYTES_MAX as usize {
                return;
            }
            message.borrowed(reply.header.as_slice());
            if reply.data_len > 0 {
                let len = reply.data_len.min(SEND_BYTES_MAX);
                message.segment(reply.data().part(0, len));
                if len < reply.data_len {
                    return;
                }
            }
        }
    }

    /// Takes note that the kernel took `bytes` more, and hands the buffers of what is sent
    /// completely out; returns how many replies that are.
    #[inline]
    pub(super) fn advance(&mut self, bytes: usize, mut give_back: impl FnMut(Segment)) -> u16 {
        let mut bytes = self.sent + bytes;
        if self.opening_len > 0 {
            if bytes < self.opening_len {
                self.sent = bytes;
                return 0;
            }
            bytes -= std::mem::take(&mut self.opening_len);
        }
        let mut count = 0;
        for reply in self.replies.as_slice() {
            if bytes < reply.len() {
                break;
            }
            bytes -= reply.len();
            count += 1;
            if reply.buffer.len > 0 {
                give_back(reply.buffer);
            }
        }
        self.replies.drop_first(usize::from(count));
        assert!(bytes == 0 || !self.replies.is_empty(), "no more is sent than was queued");
        self.sent = bytes;
        count
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::{Memory, PIECES_MAX};
    use crate::status::Status;

    const REQUESTS: u16 = 4;

    fn simple(cookie: u64) -> Header {
        Header::simple(cookie, Status::Done)
    }

    /// What would be sent next.
    fn message(outbox: &Outbox, memory: &mut Memory) -> Vec<u8> {
        let (left, mut right) = UnixStream::pair().expect("two sockets");
        let mut message = memory.outgoing();
        outbox.fill(&mut message);
        let len = message.bytes();
        assert_eq!(message.send(left.as_fd()).expect("the socket has room"), len);
        let mut bytes = vec![0; len];
        right.read_exact(&mut bytes).expect("all of it comes");
        bytes
    }

    #[test]
    fn what_goes_into_one_call_is_bounded() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let data = memory.allocate(8192).unwrap();
        let mut outbox = Outbox::new(100);
        for _ in 0..100 {
            outbox.push(simple(1), data, 100);
        }
        let mut message = memory.outgoing();
        outbox.fill(&mut message);
        assert_eq!((message.room(), message.bytes()), (0, PIECES_MAX / 2 * (16 + 100)));
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn asserts_on_more_replies_than_requests() {
        let mut outbox = Outbox::new(REQUESTS);
        for _ in 0..=2 * REQUESTS {
            outbox.push(simple(1), Segment::EMPTY, 0);
        }
    }

    proptest! {
        /// Against a plain queue of bytes: whatever is sent in whatever pieces, the stream is the
        /// replies in their order, and each is given back when its last byte is gone.
        #[test]
        fn the_stream_is_the_replies_in_order(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u32..300, 0usize..800), 1..300),
        ) {
            let mut memory = Memory::new(64 << 10).unwrap();
            let data = memory.allocate(4096).unwrap();
            let mut outbox = Outbox::new(REQUESTS);
            let mut stream: VecDeque<u8> = VecDeque::new();
            let mut ends: VecDeque<(Segment, usize)> = VecDeque::new();
            let mut free = REQUESTS;
            let (mut pushed, mut sent) = (0usize, 0usize);
            let pattern: Vec<u8> = (0..4096).map(|index| u8::try_from(index % 253).unwrap()).collect();
            memory.copy_in(data, &pattern);
            for (step, (push, is_long, data_bytes, send_bytes)) in steps.into_iter().enumerate() {
                prop_assert_eq!(outbox.is_empty(), stream.is_empty());
                if push && outbox.is_empty() && step % 3 == 0 {
                    let bytes = vec![u8::try_from(step % 256).unwrap(); 256];
                    outbox.push_bytes(&bytes);
                    stream.extend(&bytes);
                    pushed += 256;
                } else if push && free > 0 {
                    free -= 1;
                    let cookie = step as u64;
                    let header = if is_long { Header::data(cookie, 7, data_bytes) } else { simple(cookie) };
                    let buffer = data.part(u32::try_from(step).unwrap(), 1000);
                    outbox.push(header, buffer, data_bytes);
                    stream.extend(header.as_slice());
                    stream.extend(&pattern[step..][..data_bytes as usize]);
                    pushed += header.len() + data_bytes as usize;
                    ends.push_back((buffer, pushed));
                } else if !outbox.is_empty() {
                    let gathered = message(&outbox, &mut memory);
                    prop_assert_eq!(&gathered, stream.make_contiguous());
                    let taken = send_bytes.min(gathered.len());
                    stream.drain(..taken);
                    sent += taken;
                    let mut given = Vec::new();
                    let count = outbox.advance(taken, |buffer| given.push(buffer));
                    prop_assert_eq!(usize::from(count), given.len());
                    free += count;
                    for buffer in given {
                        let (expected, end) = ends.pop_front().unwrap();
                        prop_assert_eq!(buffer, expected);
                        prop_assert!(end <= sent);
                    }
                    prop_assert!(ends.front().is_none_or(|(_, end)| *end > sent));
                }
            }
        }
    }
}
