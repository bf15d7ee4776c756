//! What goes over a socket in one system call.
//!
//! A room with `unsafe`, as all of [`super`].
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Memory, Segment};

/// The most pieces of one message.
///
/// 128: 64 replies with a header and data each; more than the requests that one client has in
/// flight in any workload that we measure.
pub const PIECES_MAX: usize = 128;

/// The table that messages are put together in, one at a time.
pub(super) type Iovecs = [libc::iovec; PIECES_MAX];

pub(super) const NO_IOVECS: Iovecs =
    [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES_MAX];

/// The pieces so far: the first `count` of the memory's table.
struct Pieces<'a> {
    memory: &'a mut Memory,
    count: usize,
    /// The sum of their lengths.
    bytes: usize,
}

impl<'a> Pieces<'a> {
    fn new(memory: &'a mut Memory) -> Self {
        Self { memory, count: 0, bytes: 0 }
    }

    #[inline(always)]
    fn push(&mut self, iovec: libc::iovec) {
        self.bytes += iovec.iov_len;
        self.memory.iovecs[self.count] = iovec;
        self.count += 1;
    }

    fn header(&mut self) -> libc::msghdr {
        // SAFETY: msghdr is a C struct of integers and pointers: all zeros is a valid value of it.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.memory.iovecs.as_mut_ptr();
        header.msg_iovlen = self.count;
        header
    }
}

/// What is received goes into these segments, in order.
pub struct Incoming<'a>(Pieces<'a>);

impl<'a> Incoming<'a> {
    pub(super) fn new(memory: &'a mut Memory) -> Self {
        Self(Pieces::new(memory))
    }

    /// Appends a segment.
    ///
    /// # Panics
    /// When there are [`PIECES_MAX`] already.
    #[inline]
    pub fn segment(&mut self, segment: Segment) {
        self.0.push(self.0.memory.iovec(segment));
    }

    /// Appends a part of `first`, which is `part_len` bytes long, before each of `others`: one part
    /// after the other from its start. `first` is looked at once, not part by part.
    ///
    /// # Panics
    /// When there is no room, or `first` is not long enough.
    #[inline]
    pub fn alternate(
        &mut self,
        first: Segment,
        part_len: u32,
        others: impl ExactSizeIterator<Item = Segment>,
    ) {
        let Pieces { memory, count, bytes } = &mut self.0;
        let Memory { regions, iovecs, .. } = &mut **memory;
        let (first, others_len) = (super::iovec(regions, first), others.len());
        let part_len = part_len as usize;
        let is_enough = others_len.checked_mul(part_len).is_some_and(|all| all <= first.iov_len);
        assert!(is_enough, "{others_len} parts of {part_len} in {} bytes", first.iov_len);
        let (pairs, _) = iovecs[*count..].as_chunks_mut::<2>();
        assert!(others_len <= pairs.len(), "no room for {others_len} pairs");
        *count += 2 * others_len;
        let (mut pairs, mut iov_base) = (pairs.iter_mut(), first.iov_base);
        others.for_each(|other| {
            let other = super::iovec(regions, other);
            *bytes += part_len + other.iov_len;
            let pair = pairs.next().expect("there is room for as many");
            *pair = [libc::iovec { iov_base, iov_len: part_len }, other];
            // Inside `first`, or its end: as many parts fit as there are others.
            iov_base = iov_base.wrapping_byte_add(part_len);
        });
    }

    /// How many bytes fit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Receives what a socket has.
    ///
    /// # Errors
    /// What recvmsg says; `WouldBlock` when there is nothing. `Ok(0)` is the end of the stream.
    pub fn receive(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut header = self.0.header();
        // SAFETY: the header names `count` initialised iovecs of live, writable mappings, checked
        // by `address`; both outlive the call.
        let result =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// What is sent: segments, and bytes that somebody else keeps for so long.
pub struct Outgoing<'a> {
    pieces: Pieces<'a>,
    borrowed: PhantomData<&'a [u8]>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(memory: &'a mut Memory) -> Self {
        Self { pieces: Pieces::new(memory), borrowed: PhantomData }
    }

    /// How many more pieces fit.
    #[must_use]
    #[inline]
    pub fn room(&self) -> usize {
        PIECES_MAX.saturating_sub(self.pieces.count)
    }

    /// Appends a segment.
    ///
    /// # Panics
    /// When there is no room.
    #[inline]
    pub fn segment(&mut self, segment: Segment) {
        self.pieces.push(self.pieces.memory.iovec(segment));
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// When there is no room.
    #[inline]
    pub fn borrowed(&mut self, bytes: &'a [u8]) {
        let iov_base = bytes.as_ptr().cast_mut().cast();
        self.pieces.push(libc::iovec { iov_base, iov_len: bytes.len() });
    }

    /// The sum of the lengths.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces.bytes
    }

    /// Sends all of it, or as much as the socket takes; never raises SIGPIPE.
    ///
    /// # Errors
    /// What sendmsg says; `WouldBlock` when the socket's buffer is full.
    pub fn send(mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let header = self.pieces.header();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header names `count` initialised iovecs, of live mappings, checked by
        // `address`, or of slices that are borrowed for as long as this value is; sendmsg only
        // reads.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl std::fmt::Debug for Incoming<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Incoming({} bytes)", self.bytes())
    }
}

impl std::fmt::Debug for Outgoing<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Outgoing({} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn receives_in_turns_into_parts_of_one_segment_and_into_others() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut memory = Memory::new(16 << 10).unwrap();
        let [first, a, b] = [4, 3, 3].map(|len| memory.allocate(len).unwrap());
        (&left).write_all(b"12abc34def").unwrap();
        let mut message = memory.incoming();
        message.alternate(first, 2, [a, b].into_iter());
        assert_eq!(message.bytes(), 10);
        assert_eq!(message.receive(right.as_fd()).unwrap(), 10);
        for (segment, wanted) in [(first, &b"1234"[..]), (a, b"abc"), (b, b"def")] {
            let mut bytes = vec![0; wanted.len()];
            memory.copy_out(segment, &mut bytes);
            assert_eq!(bytes, wanted);
        }
    }

    #[test]
    #[should_panic(expected = "2 parts of 3 in 4 bytes")]
    fn parts_do_not_go_past_the_end_of_their_segment() {
        let mut memory = Memory::new(16 << 10).unwrap();
        let first = memory.allocate(4).unwrap();
        memory.incoming().alternate(first, 3, [first, first].into_iter());
    }

    #[test]
    fn sends_and_receives_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut memory = Memory::new(16 << 10).unwrap();
        let out = memory.allocate(8).unwrap();
        let back = memory.allocate(10).unwrap();
        memory.copy_in(out, b"abcdefgh");
        let mut message = memory.outgoing();
        message.segment(out.part(4, 4));
        message.borrowed(b"--");
        message.segment(out.part(0, 4));
        assert_eq!((message.bytes(), message.room()), (10, PIECES_MAX - 3));
        assert_eq!(message.send(left.as_fd()).unwrap(), 10);
        let mut receive = || {
            let mut message = memory.incoming();
            message.segment(back.part(0, 3));
            message.segment(back.part(3, 7));
            message.receive(right.as_fd())
        };
        assert_eq!(receive().unwrap(), 10);
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut bytes = [0; 10];
        memory.copy_out(back, &mut bytes);
        assert_eq!(&bytes, b"efgh--abcd");
    }
}
