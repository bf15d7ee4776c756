//! The memory of one disk: an arena for requests, what connections of clients receive into, and,
//! with the kernel's ring, the ring's data pages.
//!
//! A room with `unsafe`. Everybody else names memory by [`Segment`] (region, offset, length); only
//! here is that turned into an address, after one check of the bounds.
//!
//! Invariants:
//! * The arena's mapping stays until the `Memory` is dropped, or for ever when I/O could not be
//!   drained ([`Memory::leak`]): memory handed to the kernel is never unmapped under it. That of the
//!   connections is only touched inside calls of `Memory`.
//! * No `&[u8]` to a region exists outside this file: the kernel, and for the ring another kernel
//!   component, may write there at any time. Bytes are copied in and out.
//!
//! Nothing is allocated after [`Memory::new`] and [`Memory::reserve_connections`].
#![allow(unsafe_code)]

mod buddy;
mod message;

use std::io;
use std::mem::ManuallyDrop;

use memmap2::{Advice, MmapMut, MmapRaw};

use buddy::Buddy;
pub use message::{Incoming, Outgoing, PIECES_MAX};
use message::{Iovecs, NO_IOVECS};

/// Bytes in a page: what direct I/O and the ring work in.
pub const PAGE_SIZE: u32 = 4096;

/// Bytes in a huge page, and what the arena starts at a multiple of.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Whose memory a segment lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionId {
    /// This disk's own memory: buffers of requests from doors that bring none.
    #[default]
    Arena = 0,
    /// The data pages of the kernel's ring.
    Ring = 1,
    /// Where connections receive. Apart from the arena: these stay for as long as the connection
    /// does, and would cut the arena into pieces.
    Connections = 2,
}

const REGIONS: usize = 3;

/// A piece of memory: offsets and lengths cross the layers, pointers do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Whose.
    pub region: RegionId,
    /// From the start of the region, in bytes.
    pub offset: u32,
    /// In bytes.
    pub len: u32,
}

impl Segment {
    /// No memory.
    pub const EMPTY: Self = Self { region: RegionId::Arena, offset: 0, len: 0 };

    /// The part of it that starts `offset` bytes in and is `len` bytes long.
    ///
    /// # Panics
    /// When the part is not inside.
    #[must_use]
    #[inline]
    pub fn part(self, offset: u32, len: u32) -> Self {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.len) {
            no_part(offset, len, self.len);
        }
        Self { region: self.region, offset: self.offset + offset, len }
    }
}

// Apart from what checks: to have the numbers at hand for a message costs every caller.
#[cold]
#[inline(never)]
fn no_part(offset: u32, len: u32, whole: u32) -> ! {
    panic!("part {offset}+{len} of a segment of {whole} bytes");
}

#[cold]
#[inline(never)]
fn no_place(offset: usize, len: usize, whole: usize) -> ! {
    panic!("bytes {offset}+{len} of a segment of {whole} bytes");
}

#[cold]
#[inline(never)]
fn outside(segment: Segment, region: usize) -> ! {
    let Segment { offset, len, .. } = segment;
    panic!("segment {offset}+{len} outside its region of {region} bytes");
}

/// Without bytes while there is none.
#[derive(Clone, Copy)]
struct Region {
    base: *mut u8,
    len: usize,
}

const NO_REGION: Region = Region { base: std::ptr::null_mut(), len: 0 };

/// By [`RegionId`].
type Regions = [Region; REGIONS];

/// The address of a segment.
///
/// # Panics
/// When it is not inside its region: our own error, a door checks what it takes from outside.
#[inline]
fn address(regions: &Regions, segment: Segment) -> *mut u8 {
    let region = regions[segment.region as usize];
    let (offset, len) = (segment.offset as usize, segment.len as usize);
    if offset.checked_add(len).is_none_or(|end| end > region.len) {
        outside(segment, region.len);
    }
    // SAFETY: the offset is inside the mapping, checked above.
    unsafe { region.base.add(offset) }
}

/// The segment as the kernel takes it.
#[inline]
fn iovec(regions: &Regions, segment: Segment) -> libc::iovec {
    libc::iovec { iov_base: address(regions, segment).cast(), iov_len: segment.len as usize }
}

/// All memory that the I/O of one disk touches.
pub struct Memory {
    regions: Regions,
    buddy: Buddy,
    /// Whether nobody has the page behind those of the buddy: see [`Memory::allocate_spare`].
    is_spare_free: bool,
    /// Reused for each call on a socket.
    iovecs: Box<Iovecs>,
    connections: Option<MmapRaw>,
    /// The arena's. `ManuallyDrop` so that it can be left behind.
    mapping: ManuallyDrop<MmapRaw>,
    leaked: bool,
}

// SAFETY: the pointers are into mappings that this value owns (arena, connections) or whose owner
// promised to keep them (ring, see `set_ring`); none is tied to a thread.
unsafe impl Send for Memory {}

impl Memory {
    /// An arena of `bytes` bytes, rounded up to a power of two of pages.
    ///
    /// # Errors
    /// What mmap says, ENOMEM mostly.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_power_of_two().max(PAGE_SIZE as usize);
        let len = bytes + PAGE_SIZE as usize;
        // What is in front of the first multiple is never touched, so it is address space alone.
        let mapping = MmapRaw::from(MmapMut::map_anon(len + HUGE_PAGE_BYTES)?);
        let start = mapping.as_mut_ptr();
        let skipped = start.addr().next_multiple_of(HUGE_PAGE_BYTES) - start.addr();
        // SAFETY: below the size of a huge page, by which the mapping is longer than `len`.
        let base = unsafe { start.add(skipped) };
        let mut regions = [NO_REGION; REGIONS];
        regions[RegionId::Arena as usize] = Region { base, len };
        Ok(Self {
            regions,
            buddy: Buddy::new(bytes / PAGE_SIZE as usize),
            is_spare_free: true,
            iovecs: Box::new(NO_IOVECS),
            connections: None,
            mapping: ManuallyDrop::new(mapping),
            leaked: false,
        })
    }

    /// Makes sure that the region of the connections has `bytes` bytes. What was there may be gone.
    ///
    /// # Errors
    /// What mmap says, ENOMEM mostly.
    pub fn reserve_connections(&mut self, bytes: usize) -> io::Result<()> {
        if self.regions[RegionId::Connections as usize].len < bytes {
            let mapping = MmapRaw::from(MmapMut::map_anon(bytes)?);
            let region = Region { base: mapping.as_mut_ptr(), len: bytes };
            self.regions[RegionId::Connections as usize] = region;
            self.connections = Some(mapping);
        }
        Ok(())
    }

    /// Adds the data pages of the kernel's ring, or takes them away again.
    ///
    /// # Safety
    /// `base` is the start of `len` bytes that stay mapped, readable and writable until this is
    /// called again or the `Memory` is dropped, and no I/O on segments of the ring is under way
    /// then.
    pub unsafe fn set_ring(&mut self, ring: Option<(*mut u8, usize)>) {
        self.regions[RegionId::Ring as usize] =
            ring.map_or(NO_REGION, |(base, len)| Region { base, len });
    }

    /// Asks for huge pages for the arena, from now on, where the kernel has them to spare. Storage
    /// takes a buffer as so many pieces as it has runs of memory: one in a huge page, one for each
    /// 4 KiB otherwise. In exchange the first byte that is touched takes all of its huge page, so
    /// a disk whose data lies elsewhere does not ask.
    pub fn prefer_huge_pages(&self) {
        let arena = self.regions[RegionId::Arena as usize];
        let skipped = arena.base.addr() - self.mapping.as_mut_ptr().addr();
        // Without the spare page at the end, which is not worth another one.
        let len = arena.len - PAGE_SIZE as usize;
        // A kernel without huge pages says EINVAL: then all is as it was.
        let _ = self.mapping.advise_range(Advice::HugePage, skipped, len);
    }

    /// Leaves the arena mapped for ever: for a teardown with I/O that does not come back.
    pub fn leak(&mut self) {
        self.leaked = true;
    }

    /// A buffer of at least `bytes` bytes, page-aligned; `None` when the arena has no such run
    /// left. Its contents are what was there before.
    pub fn allocate(&mut self, bytes: u32) -> Option<Segment> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let page = self.buddy.allocate(pages)?;
        Some(Segment { region: RegionId::Arena, offset: page * PAGE_SIZE, len: bytes })
    }

    /// A buffer of at most a page for an image's own I/O: also when requests have all of the
    /// arena, but then one at a time. They keep theirs until that I/O has ended.
    ///
    /// # Panics
    /// For more than a page.
    pub fn allocate_spare(&mut self, bytes: u32) -> Option<Segment> {
        assert!(bytes <= PAGE_SIZE, "a spare buffer is a page, not {bytes} bytes");
        self.allocate(bytes).or_else(|| {
            let offset = self.buddy.pages() * PAGE_SIZE;
            let spare = Segment { region: RegionId::Arena, offset, len: bytes };
            std::mem::take(&mut self.is_spare_free).then_some(spare)
        })
    }

    /// Gives a buffer back: the very segment that [`Memory::allocate`] gave.
    ///
    /// # Panics
    /// When it is not one.
    pub fn free(&mut self, segment: Segment) {
        assert!(segment.region == RegionId::Arena, "only buffers of the arena are freed");
        assert!(segment.offset.is_multiple_of(PAGE_SIZE), "a buffer starts on a page");
        let page = segment.offset / PAGE_SIZE;
        if page == self.buddy.pages() {
            assert!(!self.is_spare_free, "the spare page is given back once");
            self.is_spare_free = true;
        } else {
            self.buddy.free(page);
        }
    }

    /// Bytes of the arena that are not handed out.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        u64::from(self.buddy.free_pages()) * u64::from(PAGE_SIZE)
    }

    /// The address of a segment: [`address`].
    #[inline]
    fn address(&self, segment: Segment) -> *mut u8 {
        address(&self.regions, segment)
    }

    /// The address of `N` bytes at byte `offset` of a segment.
    #[inline]
    fn place<const N: usize>(&self, segment: Segment, offset: u32) -> *mut u8 {
        let base = self.address(segment);
        let (offset, len) = (offset as usize, segment.len as usize);
        if offset + N > len {
            no_place(offset, N, len);
        }
        // SAFETY: inside the segment, checked above, which is inside its mapping.
        unsafe { base.add(offset) }
    }

    /// The segment as the kernel takes it.
    #[inline]
    pub(crate) fn iovec(&self, segment: Segment) -> libc::iovec {
        iovec(&self.regions, segment)
    }

    /// Fills it with zeros.
    #[inline]
    pub fn zero(&mut self, segment: Segment) {
        let base = self.address(segment);
        // SAFETY: `address` checked that len bytes from base are inside one mapping; writes of
        // bytes have no alignment to keep.
        unsafe { base.write_bytes(0, segment.len as usize) };
    }

    /// Copies bytes into the start of it.
    ///
    /// # Panics
    /// When there are more bytes than it holds.
    #[inline]
    pub fn copy_in(&mut self, segment: Segment, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("segments are below 4 GiB");
        let base = self.address(segment.part(0, len));
        // SAFETY: base is valid for len bytes (`address`), the source is a live slice; a region is
        // never borrowed, so they do not overlap.
        unsafe { base.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies the `N` bytes out that start at byte `offset` of it.
    ///
    /// # Panics
    /// When it has no such bytes.
    #[inline]
    #[must_use]
    pub fn read<const N: usize>(&self, segment: Segment, offset: u32) -> [u8; N] {
        let mut bytes = [0; N];
        let base = self.place::<N>(segment, offset);
        // SAFETY: as in `copy_in`, the other way round.
        unsafe { base.copy_to_nonoverlapping(bytes.as_mut_ptr(), N) };
        bytes
    }

    /// Copies the `N` bytes to byte `offset` of it on.
    ///
    /// # Panics
    /// When it has no such bytes.
    #[inline]
    pub fn write<const N: usize>(&mut self, segment: Segment, offset: u32, bytes: &[u8; N]) {
        let base = self.place::<N>(segment, offset);
        // SAFETY: as in `copy_in`.
        unsafe { base.copy_from_nonoverlapping(bytes.as_ptr(), N) };
    }

    /// Copies bytes out of the start of it.
    ///
    /// # Panics
    /// When more bytes are wanted than it holds.
    #[inline]
    pub fn copy_out(&self, segment: Segment, bytes: &mut [u8]) {
        let len = u32::try_from(bytes.len()).expect("segments are below 4 GiB");
        let base = self.address(segment.part(0, len));
        // SAFETY: as in `copy_in`, the other way round.
        unsafe { base.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Whether all of it is zeros.
    #[must_use]
    pub fn is_zero(&self, segment: Segment) -> bool {
        let mut bytes = [0; 512];
        let mut at = 0;
        while at < segment.len {
            let count = (segment.len - at).min(512);
            let piece = &mut bytes[..count as usize];
            self.copy_out(segment.part(at, count), piece);
            if piece.iter().any(|byte| *byte != 0) {
                return false;
            }
            at += count;
        }
        true
    }

    /// Copies from one segment to another of the same length; they may overlap.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_within(&mut self, source: Segment, target: Segment) {
        assert_eq!(source.len, target.len, "source and target are equally long");
        let from = self.address(source);
        let to = self.address(target);
        // SAFETY: both are valid for len bytes (`address`); `copy` allows overlap.
        unsafe { from.copy_to(to, source.len as usize) };
    }

    /// Something to be received, without room so far.
    pub fn incoming(&mut self) -> Incoming<'_> {
        Incoming::new(self)
    }

    /// Something to be sent, empty so far.
    pub fn outgoing(&mut self) -> Outgoing<'_> {
        Outgoing::new(self)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.mapping) };
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Memory")
            .field("regions", &self.regions.map(|region| region.len))
            .field("free", &self.free_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_and_separate() {
        let mut memory = Memory::new(64 << 10).unwrap();
        let first = memory.allocate(4096).unwrap();
        let second = memory.allocate(10_000).unwrap();
        assert_eq!(memory.address(first) as usize % 4096, 0);
        assert_eq!(memory.address(second) as usize % 4096, 0);
        memory.copy_in(first, &[1; 4096]);
        memory.zero(second);
        let mut bytes = [0; 4096];
        memory.copy_out(first, &mut bytes);
        assert_eq!(bytes, [1; 4096]);
        memory.free(first);
        memory.free(second);
        assert_eq!(memory.free_bytes(), 64 << 10);
    }

    #[test]
    fn one_page_is_left_when_all_is_handed_out() {
        let mut memory = Memory::new(8192).unwrap();
        let taken = [memory.allocate(4096).unwrap(), memory.allocate_spare(512).unwrap()];
        assert_eq!(memory.allocate(1), None);
        let spare = memory.allocate_spare(512).unwrap();
        memory.copy_in(spare, &[7; 512]);
        assert_eq!(memory.allocate_spare(512), None, "one at a time");
        memory.free(spare);
        let spare = memory.allocate_spare(4096).unwrap();
        taken.into_iter().chain([spare]).for_each(|segment| memory.free(segment));
        assert_eq!(memory.free_bytes(), 8192);
    }

    /// Whether the kernel was asked for huge pages where this address is.
    fn is_asked_for_huge_pages(address: usize) -> bool {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        smaps.lines().any(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) =
                range.map(|(start, end)| (number(start), number(end)))
            {
                is_here = (start..end).contains(&address);
            }
            is_here && line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg")
        })
    }

    #[test]
    fn the_arena_can_be_huge_pages_and_is_not_unless_asked() {
        let memory = Memory::new(4 << 20).unwrap();
        let Region { base, len } = memory.regions[RegionId::Arena as usize];
        assert_eq!(len, (4 << 20) + 4096);
        assert!(base.addr().is_multiple_of(HUGE_PAGE_BYTES), "{base:?}");
        let last = base.addr() + len - 4097;
        assert!(!is_asked_for_huge_pages(base.addr()) && !is_asked_for_huge_pages(last));
        memory.prefer_huge_pages();
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("skipped: this kernel has no huge pages");
            return;
        }
        assert!(is_asked_for_huge_pages(base.addr()) && is_asked_for_huge_pages(last));
        assert!(!is_asked_for_huge_pages(last + 1), "not for the spare page");
    }

    #[test]
    fn connections_have_memory_of_their_own() {
        let mut memory = Memory::new(4096).unwrap();
        let all = memory.free_bytes();
        memory.reserve_connections(1 << 20).unwrap();
        assert_eq!(memory.free_bytes(), all);
        let place = Segment { region: RegionId::Connections, offset: (1 << 20) - 8, len: 8 };
        memory.write(place, 2, b"abcd");
        assert_eq!(memory.read::<6>(place, 1), *b"\0abcd\0");
    }

    #[test]
    #[should_panic(expected = "outside its region")]
    fn asserts_on_a_segment_of_a_region_that_is_not_there() {
        let memory = Memory::new(8192).unwrap();
        let _ = memory.iovec(Segment { region: RegionId::Ring, offset: 0, len: 1 });
    }

    #[test]
    #[should_panic(expected = "outside its region")]
    fn asserts_on_a_segment_past_the_region() {
        let memory = Memory::new(8192).unwrap();
        let _ = memory.iovec(Segment { region: RegionId::Arena, offset: 8192 + PAGE_SIZE, len: 1 });
    }

    #[test]
    #[should_panic(expected = "part 1+4096")]
    fn asserts_on_a_part_past_its_segment() {
        let _ = Segment { region: RegionId::Arena, offset: 0, len: 4096 }.part(1, 4096);
    }
}
