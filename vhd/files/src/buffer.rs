//! Memory that direct I/O can use: it starts at a multiple of 4096.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// What direct I/O of all storage is content with, for memory, offsets and lengths.
pub const ALIGNMENT: usize = 4096;

/// Bytes in a huge page of the processors that Xen runs on.
const HUGE_PAGE: usize = 2 << 20;

/// Buffers from this size on lie in huge pages, if the kernel has some.
const HUGE_FROM: usize = HUGE_PAGE;

/// Bytes, all zero at first.
///
/// Storage takes a buffer as so many pieces as it has runs of memory, and some takes 1 MiB in one
/// piece in a third of the time that it takes for 256 of them: a large buffer starts on a huge
/// page.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Memory,
    /// What is in front of the first aligned byte.
    start: usize,
    length: usize,
}

/// With room for what is in front of the first aligned byte. Never moved or grown.
#[derive(Debug)]
enum Memory {
    Small(Box<[u8]>),
    Mapped(MmapMut),
}

impl AlignedBuffer {
    /// Of `length` bytes.
    #[must_use]
    pub fn new(length: usize) -> Self {
        if length >= HUGE_FROM
            && let Some(buffer) = Self::mapped(length)
        {
            return buffer;
        }
        let room = length.checked_add(ALIGNMENT).expect("a buffer is smaller than memory");
        let memory = vec![0; room].into_boxed_slice();
        // `align_offset` may say that it cannot tell; then direct I/O fails, and nothing else.
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory: Memory::Small(memory), start, length }
    }

    /// `None` when the system does not give that much in one piece.
    fn mapped(length: usize) -> Option<Self> {
        let memory = MmapMut::map_anon(length.checked_add(HUGE_PAGE)?).ok()?;
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(HUGE_PAGE) - address;
        // A kernel without huge pages says EINVAL, and the buffer is as good as any other.
        let _ = memory.advise_range(Advice::HugePage, start, length);
        Some(Self { memory: Memory::Mapped(memory), start, length })
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let memory = match &self.memory {
            Memory::Small(memory) => memory,
            Memory::Mapped(memory) => memory.as_ref(),
        };
        let rest = memory.get(self.start..).unwrap_or_default();
        rest.get(..self.length).expect("the memory is larger by the alignment")
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = match &mut self.memory {
            Memory::Small(memory) => memory,
            Memory::Mapped(memory) => memory.as_mut(),
        };
        let rest = memory.get_mut(self.start..).unwrap_or_default();
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
        for length in [0, 1, 511, 4096, HUGE_FROM - 1, HUGE_FROM, (2 << 20) + 4096] {
            let mut buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.len(), length);
            assert!(is_aligned(&buffer, ALIGNMENT));
            assert!(length < HUGE_FROM || is_aligned(&buffer, HUGE_PAGE), "{length} bytes");
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
    }
}
