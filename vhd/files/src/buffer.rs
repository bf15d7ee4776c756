//! Memory that direct I/O can use: it starts at a multiple of 4096.

use std::ops::{Deref, DerefMut};

/// What direct I/O of all storage is content with, for memory, offsets and lengths.
pub const ALIGNMENT: usize = 4096;

/// Bytes, all zero at first.
#[derive(Debug)]
pub struct AlignedBuffer {
    /// With room for what is in front of the first aligned byte. Never moved or grown.
    memory: Box<[u8]>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Of `length` bytes.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let room = length.checked_add(ALIGNMENT).expect("a buffer is smaller than memory");
        let memory = vec![0; room].into_boxed_slice();
        // `align_offset` may say that it cannot tell; then direct I/O fails, and nothing else.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, start, length }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let rest = self.memory.get(self.start..).unwrap_or_default();
        rest.get(..self.length).expect("the memory is larger by the alignment")
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let rest = self.memory.get_mut(self.start..).unwrap_or_default();
        rest.get_mut(..self.length).expect("the memory is larger by the alignment")
    }
}

/// Does this memory start where direct I/O wants it to?
pub(crate) fn is_aligned(bytes: &[u8], alignment: usize) -> bool {
    bytes.as_ptr().addr().is_multiple_of(alignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_a_multiple_of_4096_and_is_as_long_as_was_asked() {
        for length in [0, 1, 511, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.len(), length);
            assert!(is_aligned(&buffer, ALIGNMENT));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}
