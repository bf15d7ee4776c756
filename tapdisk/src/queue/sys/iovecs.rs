//! The fixed table of iovecs: a row for each I/O, and room to gather those of merged and continued
//! ones in a row.
//!
//! A room with `unsafe`: see [`super`] for the contract.
#![allow(unsafe_code)]

use crate::memory::{Memory, Segment};
use crate::request::SEGMENTS_MAX;

/// One iovec, made of a segment by `Memory`. Laid out as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(in crate::queue) struct Piece(libc::iovec);

// SAFETY: an address and a length; who may touch the bytes is a matter of the I/O that they belong
// to, not of a thread.
unsafe impl Send for Piece {}

impl Piece {
    const NONE: Self = Self(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });

    /// Its length in bytes.
    #[inline]
    pub(in crate::queue) fn len(self) -> usize {
        self.0.iov_len
    }

    /// Its address.
    #[inline]
    pub(super) fn address(self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// What is left of it after the first `bytes`.
    fn after(self, bytes: usize) -> Self {
        assert!(bytes <= self.0.iov_len, "a piece has no more than its length");
        Self(libc::iovec {
            iov_base: self.0.iov_base.wrapping_byte_add(bytes),
            iov_len: self.0.iov_len - bytes,
        })
    }

    /// Copies what lies there out, for the simulation.
    pub(in crate::queue) fn copy_out(self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.len(), "{} bytes of a piece of {}", bytes.len(), self.len());
        let address = self.address();
        // SAFETY: the piece is valid for its length (contract), which was checked; a region is
        // never borrowed as a slice, so they do not overlap.
        unsafe { address.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies bytes there, for the simulation.
    pub(in crate::queue) fn copy_in(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len(), "{} bytes into a piece of {}", bytes.len(), self.len());
        let address = self.address();
        // SAFETY: as in `copy_out`, the other way round.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

/// A run of pieces in the table.
#[derive(Clone, Copy, Debug)]
pub(in crate::queue) struct Span {
    start: usize,
    count: usize,
}

/// The table. First half: a row of [`SEGMENTS_MAX`] for each I/O; second half: gathered ones, which
/// always fit, because an I/O is staged at most once at a time.
pub(in crate::queue) struct Iovecs {
    pieces: Box<[Piece]>,
    /// Where the second half starts.
    half: usize,
    /// The end of what is gathered.
    end: usize,
}

impl Span {
    /// How many pieces.
    #[inline]
    pub(in crate::queue) fn len(self) -> usize {
        self.count
    }
}

impl Iovecs {
    pub(in crate::queue) fn new(capacity: usize) -> Self {
        let half = capacity * SEGMENTS_MAX;
        Self { pieces: vec![Piece::NONE; half * 2].into(), half, end: half }
    }

    /// Sets the row of an I/O; returns the sum of the lengths.
    #[inline(always)]
    pub(in crate::queue) fn fill(
        &mut self,
        index: u32,
        memory: &Memory,
        segments: &[Segment],
    ) -> u64 {
        match segments {
            [one] => {
                self.pieces[index as usize * SEGMENTS_MAX] = Piece(memory.iovec(*one));
                u64::from(one.len)
            }
            many => self.fill_many(index, memory, many),
        }
    }

    #[inline(never)]
    fn fill_many(&mut self, index: u32, memory: &Memory, segments: &[Segment]) -> u64 {
        let start = index as usize * SEGMENTS_MAX;
        let row = &mut self.pieces[start..start + SEGMENTS_MAX];
        let mut bytes = 0;
        for (piece, segment) in row.iter_mut().zip(segments) {
            *piece = Piece(memory.iovec(*segment));
            bytes += u64::from(segment.len);
        }
        bytes
    }

    /// The row of an I/O.
    #[inline]
    pub(in crate::queue) fn own(index: u32, count: u8) -> Span {
        Span { start: index as usize * SEGMENTS_MAX, count: usize::from(count) }
    }

    /// Forgets what was gathered. Nothing staged may still refer to it.
    pub(in crate::queue) fn start_gathering(&mut self) {
        self.end = self.half;
    }

    /// An empty span behind what is gathered, to be extended.
    pub(in crate::queue) fn open(&self) -> Span {
        Span { start: self.end, count: 0 }
    }

    /// Adds the row of an I/O, without its first `skip` bytes, to the span that was opened last.
    /// Memory that goes on where the piece before it ends becomes one piece with it.
    pub(in crate::queue) fn extend(&mut self, span: &mut Span, index: u32, count: u8, skip: u64) {
        let mut skip = usize::try_from(skip).expect("less than the memory of one I/O");
        let own = Self::own(index, count);
        for at in own.start..own.start + own.count {
            let piece = self.pieces[at];
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let piece = piece.after(skip);
            skip = 0;
            if span.count > 0 {
                let last = &mut self.pieces[self.end - 1].0;
                if last.iov_base.wrapping_byte_add(last.iov_len) == piece.0.iov_base {
                    last.iov_len += piece.0.iov_len;
                    continue;
                }
            }
            self.pieces[self.end] = piece;
            self.end += 1;
            span.count += 1;
        }
    }

    /// The pieces of a span.
    #[inline]
    pub(in crate::queue) fn get(&self, span: Span) -> &[Piece] {
        &self.pieces[span.start..span.start + span.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionId;

    fn lengths(iovecs: &Iovecs, span: Span) -> Vec<usize> {
        iovecs.get(span).iter().map(|piece| piece.len()).collect()
    }

    #[test]
    fn a_continuation_starts_in_the_middle_of_a_piece() {
        let memory = Memory::new(64 << 10).unwrap();
        let mut iovecs = Iovecs::new(2);
        let segment = |offset, len| Segment { region: RegionId::Arena, offset, len };
        let segments = [segment(0, 512), segment(8192, 1024), segment(4096, 512)];
        assert_eq!(iovecs.fill(1, &memory, &segments), 2048);
        for (skip, left) in [
            (0, vec![512, 1024, 512]),
            (511, vec![1, 1024, 512]),
            (512, vec![1024, 512]),
            (1536, vec![512]),
            (1537, vec![511]),
        ] {
            iovecs.start_gathering();
            let mut span = iovecs.open();
            iovecs.extend(&mut span, 1, 3, skip);
            assert_eq!(lengths(&iovecs, span), left, "after {skip}");
            let first = iovecs.get(span)[0].address() as usize;
            let base = iovecs.get(Iovecs::own(1, 3))[0].address() as usize;
            let wanted = match skip {
                0..512 => skip,
                512..1536 => 8192 + skip - 512,
                _ => 4096 + skip - 1536,
            };
            assert_eq!((first - base) as u64, wanted, "after {skip}");
        }
    }

    #[test]
    fn gathered_memory_that_goes_on_is_one_piece() {
        let memory = Memory::new(64 << 10).unwrap();
        let mut iovecs = Iovecs::new(3);
        for (index, offset) in [(0, 0), (1, 4096), (2, 12288)] {
            let segment = Segment { region: RegionId::Arena, offset, len: 4096 };
            iovecs.fill(index, &memory, &[segment]);
        }
        let mut span = iovecs.open();
        for index in 0..3 {
            iovecs.extend(&mut span, index, 1, 0);
        }
        assert_eq!(lengths(&iovecs, span), [8192, 4096]);
        // The next one starts anew, even where it would fit.
        let mut other = iovecs.open();
        iovecs.extend(&mut other, 2, 1, 0);
        assert_eq!(lengths(&iovecs, other), [4096]);
    }
}
