//! One entry of the ring, copied out, checked, and turned into a request.
//!
//! A parser of foreign bytes: no panic, no unchecked arithmetic, whatever the bytes. It works on a
//! private copy, so what it checks is what is used.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt;

use crate::abi::{
    ENTRY_SIZE, OP_FLUSH, OP_READ, OP_TRIM, OP_WRITE, PAGE_SIZE, RING_ENTRIES, RequestEntry,
    SECTOR_SIZE, SECTORS_PER_PAGE, SEGMENTS_MAX, TrimEntry,
};

/// The number of a request, 0 to 31: names its data pages, and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u8);

impl RequestId {
    /// `None` for a number past 31.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        match u8::try_from(number) {
            Ok(small) if u32::from(small) < RING_ENTRIES => Some(Self(small)),
            _ => None,
        }
    }

    /// 0 to 31.
    #[must_use]
    pub fn index(self) -> u32 {
        u32::from(self.0)
    }

    /// Its bit in a set of requests.
    pub(super) fn bit(self) -> u32 {
        1_u32.wrapping_shl(self.index())
    }

    /// As an index into a table of the requests.
    pub(super) fn slot(self) -> usize {
        usize::from(self.0)
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the segments, all of them: what is left out leaks old kernel memory to the reader.
    Read,
    /// Put the segments onto the disk.
    Write,
    /// What was answered before is durable when this is answered.
    Flush,
    /// The range is no longer needed.
    Trim,
}

impl Op {
    /// The operation of the ABI.
    #[must_use]
    pub fn to_raw(self) -> u8 {
        match self {
            Self::Read => OP_READ,
            Self::Write => OP_WRITE,
            Self::Flush => OP_FLUSH,
            Self::Trim => OP_TRIM,
        }
    }

    /// `None` for a number that no generation defines.
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            OP_READ => Some(Self::Read),
            OP_WRITE => Some(Self::Write),
            OP_FLUSH => Some(Self::Flush),
            OP_TRIM => Some(Self::Trim),
            _ => None,
        }
    }
}

/// A piece of the data area, inside one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// From the start of the data area, in bytes: `4096 * (id * 11 + segment) + 512 * first_sect`.
    pub offset: u32,
    /// In bytes, 512 to 4096.
    pub len: u32,
}

/// A well-formed request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RingRequest {
    /// For the response.
    pub id: RequestId,
    /// What to do.
    pub op: Op,
    /// The first sector, in 512 bytes; 0 for a flush.
    pub sector: u64,
    /// How long, in bytes; the sum of the segments for read and write, 0 for a flush.
    ///
    /// `sector * 512 + bytes` is at most 2^63 - 1; that it is inside the disk is not checked here.
    pub bytes: u64,
    /// First sector in its page, and sectors. Two bytes each: requests are moved about.
    pieces: [(u8, u8); SEGMENTS_MAX],
    count: u8,
}

impl RingRequest {
    /// Where the data is or goes, in order; empty for flush and trim.
    #[inline]
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment> + Clone {
        let id = self.id;
        (0..self.count).zip(&self.pieces).map(move |(number, (first, sectors))| Segment {
            offset: page_offset(id, number).wrapping_add(sector_bytes(*first)),
            len: sector_bytes(*sectors),
        })
    }

    /// The first byte on the disk.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.sector.saturating_mul(u64::from(SECTOR_SIZE))
    }
}

impl fmt::Debug for RingRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RingRequest")
            .field("id", &self.id.0)
            .field("op", &self.op)
            .field("sector", &self.sector)
            .field("bytes", &self.bytes)
            .field("segments", &self.segments().collect::<Vec<_>>())
            .finish()
    }
}

/// What is wrong with an entry that has a usable id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No such operation.
    Operation(u8),
    /// Not 1 to 11 for read and write, not 0 for flush and trim.
    SegmentCount(u8),
    /// A segment that ends before it starts, or past its page.
    SegmentBounds {
        /// Its number.
        segment: u8,
        /// As found.
        first_sect: u8,
        /// As found.
        last_sect: u8,
    },
    /// It ends past 2^63 - 1 bytes.
    Range {
        /// As found, in 512 bytes.
        sector: u64,
    },
    /// A trim of nothing.
    EmptyTrim,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Operation(found) => write!(formatter, "Operation {found}, not 0 to 3"),
            Self::SegmentCount(found) => {
                write!(formatter, "{found} segments, not 1 to 11 for data or 0 without")
            }
            Self::SegmentBounds { segment, first_sect, last_sect } => {
                write!(
                    formatter,
                    "Segment {segment} has sectors {first_sect} to {last_sect} of 0 to 7"
                )
            }
            Self::Range { sector } => write!(formatter, "Sector {sector}, ends past 2^63 bytes"),
            Self::EmptyTrim => formatter.write_str("Trim of 0 sectors, at least 1 wanted"),
        }
    }
}

/// Why an entry is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFault {
    /// The id is past 31: there is nothing to answer.
    Id(u64),
    /// It can be answered, with an error.
    Malformed {
        /// For the response.
        id: RequestId,
        /// For the response; as found.
        operation: u8,
        /// What is wrong.
        reason: Reason,
    },
}

/// Checks the copy of an entry and says what it asks for.
///
/// Pure; the same bytes give the same answer. Fields that the operation does not use are not looked
/// at.
///
/// # Errors
/// The first fault that it finds.
#[inline]
pub fn parse_entry(entry: &[u8; ENTRY_SIZE]) -> Result<RingRequest, EntryFault> {
    let [operation] = field(entry, std::mem::offset_of!(RequestEntry, operation));
    let raw_id = u64::from_ne_bytes(field(entry, std::mem::offset_of!(RequestEntry, id)));
    let id = RequestId::new(raw_id).ok_or(EntryFault::Id(raw_id))?;
    parse_answerable(entry, id, operation).map_err(|reason| EntryFault::Malformed {
        id,
        operation,
        reason,
    })
}

fn parse_answerable(
    entry: &[u8; ENTRY_SIZE],
    id: RequestId,
    operation: u8,
) -> Result<RingRequest, Reason> {
    let op = Op::from_raw(operation).ok_or(Reason::Operation(operation))?;
    let [count] = field(entry, std::mem::offset_of!(RequestEntry, nr_segments));
    let found = u64::from_ne_bytes(field(entry, std::mem::offset_of!(RequestEntry, sector_number)));
    let mut pieces = [(0, 0); SEGMENTS_MAX];
    let (sector, sectors) = match op {
        Op::Read | Op::Write => {
            if count == 0 || usize::from(count) > SEGMENTS_MAX {
                return Err(Reason::SegmentCount(count));
            }
            (found, parse_segments(entry, count, &mut pieces)?)
        }
        Op::Flush | Op::Trim if count != 0 => return Err(Reason::SegmentCount(count)),
        Op::Flush => (0, 0),
        Op::Trim => {
            let offset = std::mem::offset_of!(TrimEntry, nr_sectors);
            let sectors = u64::from_ne_bytes(field(entry, offset));
            if sectors == 0 {
                return Err(Reason::EmptyTrim);
            }
            (found, sectors)
        }
    };
    let bytes = range_bytes(sector, sectors).ok_or(Reason::Range { sector })?;
    Ok(RingRequest { id, op, sector, bytes, pieces, count })
}

/// Fills in the segments; returns the sum of their sectors.
fn parse_segments(
    entry: &[u8; ENTRY_SIZE],
    count: u8,
    pieces: &mut [(u8, u8); SEGMENTS_MAX],
) -> Result<u64, Reason> {
    let (_, raw) = entry.split_at(std::mem::offset_of!(RequestEntry, segments));
    let (raw, _) = raw.as_chunks::<8>();
    let mut sectors = 0_u64;
    for (number, (raw, piece)) in (0..count).zip(raw.iter().zip(pieces)) {
        let [_, _, _, _, first_sect, last_sect, _, _] = *raw;
        if first_sect > last_sect || last_sect >= SECTORS_PER_PAGE {
            return Err(Reason::SegmentBounds { segment: number, first_sect, last_sect });
        }
        let length = last_sect.wrapping_sub(first_sect).wrapping_add(1);
        sectors = sectors.wrapping_add(u64::from(length));
        *piece = (first_sect, length);
    }
    Ok(sectors)
}

/// At most 4096 * 351, far from wrapping: `id` is below 32 and `segment` below 11.
fn page_offset(id: RequestId, segment: u8) -> u32 {
    const PAGES_PER_REQUEST: u32 = 11;
    const _: () = assert!(PAGES_PER_REQUEST as usize == SEGMENTS_MAX && PAGE_SIZE == 4096);
    id.index().wrapping_mul(PAGES_PER_REQUEST).wrapping_add(u32::from(segment)).wrapping_mul(4096)
}

/// At most 4096: a segment has at most 8 sectors.
fn sector_bytes(sectors: u8) -> u32 {
    u32::from(sectors).wrapping_mul(SECTOR_SIZE)
}

fn range_bytes(sector: u64, sectors: u64) -> Option<u64> {
    let bytes = sectors.checked_mul(u64::from(SECTOR_SIZE))?;
    let end = sector.checked_mul(u64::from(SECTOR_SIZE))?.checked_add(bytes)?;
    i64::try_from(end).ok().map(|_| bytes)
}

/// The bytes of a field of the layout.
fn field<const N: usize>(entry: &[u8; ENTRY_SIZE], offset: usize) -> [u8; N] {
    let (_, tail) = entry.split_at(offset);
    tail.first_chunk().copied().expect("the field is inside the layout")
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#[path = "entry_tests.rs"]
mod tests;
