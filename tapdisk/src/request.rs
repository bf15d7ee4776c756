//! A request, as it leaves a door: pulled, running, answered.

use crate::memory::Segment;
use crate::status::Status;

/// The most segments of one request: what a ring entry of the blktap2 ABI holds.
pub const SEGMENTS_MAX: usize = 11;

/// The smallest unit of every door, in bytes.
pub const SECTOR_SIZE: u32 = 512;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the segments from the disk.
    Read,
    /// Put the segments onto the disk; with `fua` it is durable when it is answered.
    Write,
    /// All writes taken before this one are durable when it is answered.
    Flush,
    /// The range may lose its contents; it reads as zeros or as before.
    Trim,
    /// The range reads as zeros afterwards.
    WriteZeroes,
    /// What the start of the range holds: data, a hole, or zeros.
    BlockStatus,
}

impl Op {
    /// Whether it changes the disk, and so is refused on one that is read-only.
    #[must_use]
    #[inline]
    pub fn is_change(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// Whether its segments carry data.
    #[must_use]
    #[inline]
    pub fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// A door's own name for a request; it comes back with the answer, unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// Of several behind one door: who asked.
    pub peer: u16,
    /// What that one calls it; need not be the only one of its name.
    pub number: u64,
}

/// The memory of a request, in order: at most [`SEGMENTS_MAX`] pieces.
#[derive(Clone, Copy)]
pub struct Segments {
    items: [Segment; SEGMENTS_MAX],
    count: u8,
    /// The sum of their lengths.
    bytes: u64,
}

impl Segments {
    /// No memory: flush, trim, write zeroes, block status.
    pub const NONE: Self = Self { items: [Segment::EMPTY; SEGMENTS_MAX], count: 0, bytes: 0 };

    /// One piece.
    #[must_use]
    #[inline]
    pub fn one(segment: Segment) -> Self {
        let mut segments = Self::NONE;
        segments.set(segment);
        segments
    }

    /// Becomes one piece.
    #[inline]
    pub fn set(&mut self, segment: Segment) {
        // Field by field: as a whole it would go through the stack.
        let Segment { region, offset, len } = segment;
        self.items[0] = Segment { region, offset, len };
        self.count = 1;
        self.bytes = u64::from(len);
    }

    /// Forgets all pieces.
    #[inline]
    pub fn clear(&mut self) {
        self.count = 0;
        self.bytes = 0;
    }

    /// Appends a piece; joins it to the last one when that ends where this begins.
    ///
    /// # Panics
    /// When there are [`SEGMENTS_MAX`] pieces already: the door checks the count before.
    #[inline]
    pub fn push(&mut self, segment: Segment) {
        self.bytes += u64::from(segment.len);
        let count = usize::from(self.count);
        if let Some(last) = count.checked_sub(1).and_then(|index| self.items.get_mut(index))
            && last.region == segment.region
            && last.offset + last.len == segment.offset
        {
            last.len += segment.len;
            return;
        }
        assert!(count < SEGMENTS_MAX, "a request has at most eleven segments");
        self.items[count] = segment;
        self.count += 1;
    }

    /// The first piece, empty when there is none.
    #[must_use]
    #[inline]
    pub fn first(&self) -> Segment {
        if self.count > 0 { self.items[0] } else { Segment::EMPTY }
    }

    /// The pieces.
    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &[Segment] {
        &self.items[..usize::from(self.count)]
    }

    /// The sum of the lengths, in bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for Segments {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.as_slice()).finish()
    }
}

/// One request of a guest or client.
///
/// The memory that `segments` names belongs to the door and stays valid and untouched by it until
/// the answer.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The door's name for it.
    pub token: Token,
    /// What to do.
    pub op: Op,
    /// For a write (also of zeros, and for trim): durable when answered.
    pub fua: bool,
    /// For [`Op::WriteZeroes`]: the range may become a hole.
    pub may_punch: bool,
    /// The first byte on the virtual disk.
    pub offset: u64,
    /// How many bytes; for reads and writes the sum of the segments.
    pub len: u64,
    /// Where the data is or goes.
    pub segments: Segments,
}

impl Request {
    /// Nothing yet: what a door makes a request of.
    pub const NONE: Self = Self {
        token: Token { peer: 0, number: 0 },
        op: Op::Flush,
        fua: false,
        may_punch: false,
        offset: 0,
        len: 0,
        segments: Segments::NONE,
    };

    /// Becomes another one, without memory so far. In place: most requests have one piece of
    /// memory, and all have room for eleven, so that one is not moved lightly.
    #[inline]
    pub fn set(&mut self, token: Token, op: Op, (offset, len): (u64, u64)) {
        self.token = token;
        self.op = op;
        self.fua = false;
        self.may_punch = false;
        self.offset = offset;
        self.len = len;
        self.segments.clear();
    }
}

/// What a part of the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes somewhere in a file.
    Data,
    /// Nothing is stored; reads as zeros.
    Hole,
    /// Stored, and reads as zeros.
    Zero,
}

/// The answer to [`Op::BlockStatus`]: the first `len` bytes of the range are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In bytes, at least 1, at most what was asked for.
    pub len: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// What a door gets back for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Only for [`Op::BlockStatus`] that is done.
    pub extent: Option<Extent>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, extent: None }
    }
}

/// What a door tells its client about the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// In bytes; a multiple of `sector_size`.
    pub size: u64,
    /// A power of two, 512 to 4096: every request starts and ends on a multiple of it.
    pub sector_size: u32,
    /// Changes are refused.
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::RegionId;

    fn segment(offset: u32, len: u32) -> Segment {
        Segment { region: RegionId::Ring, offset, len }
    }

    #[test]
    fn adjacent_segments_become_one() {
        let mut segments = Segments::one(segment(0, 4096));
        segments.push(segment(4096, 512));
        segments.push(segment(8192, 512));
        assert_eq!(segments.as_slice(), [segment(0, 4608), segment(8192, 512)]);
        assert_eq!(segments.bytes(), 5120);
    }

    #[test]
    fn segments_of_different_regions_stay_apart() {
        let mut segments = Segments::one(segment(0, 512));
        segments.push(Segment { region: RegionId::Arena, offset: 512, len: 512 });
        assert_eq!(segments.as_slice().len(), 2);
    }

    #[test]
    fn eleven_separate_segments_fit() {
        let mut segments = Segments::NONE;
        for index in 0..11 {
            segments.push(segment(index * 8192, 512));
        }
        assert_eq!(segments.as_slice().len(), SEGMENTS_MAX);
    }
}
