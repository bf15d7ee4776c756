//! The shared page, its entries, and the data pages behind it.
//!
//! ```text
//!   page 0        ring: indices and message in 64 bytes, then 32 entries of 112 bytes
//!   page 1..353   data: page 1 + id * 11 + segment
//! ```

use super::PAGE_SIZE;

/// Entries of the ring, and requests outstanding at most.
pub const RING_ENTRIES: u32 = 32;
/// Segments of a request at most.
pub const SEGMENTS_MAX: usize = 11;
/// Data pages: one for each segment of each request.
pub const DATA_PAGES: usize = 32 * SEGMENTS_MAX;
/// Bytes of the data pages.
pub const DATA_SIZE: usize = DATA_PAGES * PAGE_SIZE;
/// Bytes of the whole mapping: the ring's page and the data pages.
pub const MAP_SIZE: usize = PAGE_SIZE + DATA_SIZE;
/// The most bytes of one read or write: 44 KiB.
pub const REQUEST_BYTES_MAX: usize = SEGMENTS_MAX * PAGE_SIZE;
/// Bytes of an entry.
pub const ENTRY_SIZE: usize = 112;

/// Fill the segments from the disk.
pub const OP_READ: u8 = 0;
/// Put the segments onto the disk.
pub const OP_WRITE: u8 = 1;
/// dkms: what was answered before is durable when this is answered. No segments.
pub const OP_FLUSH: u8 = 2;
/// dkms: the range is no longer needed. No segments.
pub const OP_TRIM: u8 = 3;

/// Done.
pub const STATUS_OKAY: i16 = 0;
/// Failed. The caller in the kernel sees EIO for every status but 0.
pub const STATUS_ERROR: i16 = -1;
/// Not supported; told from an error by dkms for flush and trim only.
pub const STATUS_UNSUPPORTED: i16 = -2;

/// No message.
pub const MESSAGE_NONE: u8 = 0;
/// 2009, OpenXT: come to rest, close the image, then [`IOCTL_PAUSE`](super::IOCTL_PAUSE).
pub const MESSAGE_PAUSE: u8 = 1;
/// 2009, OpenXT: ask for the name ([`IOCTL_REOPEN`](super::IOCTL_REOPEN)), open it, resume.
pub const MESSAGE_RESUME: u8 = 2;
/// 2009, dkms: the tap is being removed; never taken back.
pub const MESSAGE_CLOSE: u8 = 3;

/// The start of the ring's page: `struct blktap_sring` up to its entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHeader {
    /// Requests that the kernel published, counted from 0, wrapping.
    pub req_prod: u32,
    /// Not used.
    pub req_event: u32,
    /// Responses that user space published, counted from 0, wrapping.
    pub rsp_prod: u32,
    /// Not used.
    pub rsp_event: u32,
    /// `MESSAGE_*`.
    pub message: u8,
    /// Not used.
    pub reserved: [u8; 47],
}
layout!(RingHeader, 64, {
    req_prod @ 0, req_event @ 4, rsp_prod @ 8, rsp_event @ 12, message @ 16, reserved @ 17,
});

/// The ring's page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RingPage {
    /// Indices and message.
    pub header: RingHeader,
    /// Request `n` is in entry `n % 32`, and so is response `n`, at the entry's start.
    pub entries: [RequestEntry; 32],
    /// Not used.
    pub tail: [u8; 448],
}
layout!(RingPage, 4096, { header @ 0, entries @ 64, tail @ 3648 });

/// A piece of a page, in sectors of 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentEntry {
    /// blkif has a grant here.
    pub pad: u32,
    /// The first sector, 0 to 7.
    pub first_sect: u8,
    /// The last sector, included.
    pub last_sect: u8,
    /// Not used.
    pub tail: [u8; 2],
}
layout!(SegmentEntry, 8, { pad @ 0, first_sect @ 4, last_sect @ 5, tail @ 6 });

/// A request: `struct blktap_ring_request`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestEntry {
    /// `OP_*`.
    pub operation: u8,
    /// 1 to 11; 0 for flush and trim.
    pub nr_segments: u8,
    /// Not used.
    pub pad: u16,
    /// Not used.
    pub hole: u32,
    /// The number of its data pages, 0 to 31; the response has the same.
    pub id: u64,
    /// The first sector on the disk, in 512 bytes.
    pub sector_number: u64,
    /// The pieces of the data, for read and write.
    pub segments: [SegmentEntry; SEGMENTS_MAX],
}
layout!(RequestEntry, 112, {
    operation @ 0, nr_segments @ 1, pad @ 2, hole @ 4, id @ 8, sector_number @ 16, segments @ 24,
});

/// A trim of dkms, the other arm of the request's union.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimEntry {
    /// [`OP_TRIM`].
    pub operation: u8,
    /// 0.
    pub nr_segments: u8,
    /// Not used.
    pub pad: u16,
    /// Not used.
    pub hole: u32,
    /// As in [`RequestEntry`].
    pub id: u64,
    /// The first sector on the disk, in 512 bytes.
    pub sector_number: u64,
    /// How many.
    pub nr_sectors: u64,
    /// Not used.
    pub tail: [u8; 80],
}
layout!(TrimEntry, 112, {
    operation @ 0, nr_segments @ 1, pad @ 2, hole @ 4, id @ 8, sector_number @ 16, nr_sectors @ 24,
    tail @ 32,
});

/// A response: `struct blktap_ring_response`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseEntry {
    /// Of the request.
    pub id: u64,
    /// Of the request; another one makes the driver fail the request.
    pub operation: u8,
    /// Zero: no byte of this process leaks through it.
    pub pad: u8,
    /// `STATUS_*`.
    pub status: i16,
    /// Zero.
    pub tail: u32,
}
layout!(ResponseEntry, 16, { id @ 0, operation @ 8, pad @ 9, status @ 10, tail @ 12 });

const _: () = assert!(RING_ENTRIES as usize * ENTRY_SIZE + 64 <= PAGE_SIZE);
const _: () = assert!(size_of::<RequestEntry>() == ENTRY_SIZE && MAP_SIZE == 1_445_888);
