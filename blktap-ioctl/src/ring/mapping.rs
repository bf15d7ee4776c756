//! The shared pages, mapped: the one place that touches them.
//!
//! A room with `unsafe`. Contract:
//! * A `Pages` owns one mapping of [`MAP_SIZE`] bytes, readable and writable, until it is dropped;
//!   it is mapped and unmapped as a whole (drivers free the ring twice when it is split).
//! * No reference to the shared bytes leaves this file. Another party writes there at any time, so
//!   control bytes go in and out by atomic loads and stores, each word exactly once, and data by
//!   copies of bytes that nobody interprets here.
//! * Every offset is checked against the mapping before it becomes an address.
//!
//! What the pointer of [`Pages::data_area`] is used for is its user's contract.
#![allow(unsafe_code)]

use std::io;
use std::mem::{ManuallyDrop, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd};
#[cfg(feature = "sim")]
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
#[cfg(feature = "sim")]
use nix::{errno::Errno, sys::mman::munmap};

use crate::abi::{DATA_SIZE, ENTRY_SIZE, MAP_SIZE, PAGE_SIZE, RING_ENTRIES, RingHeader, RingPage};

/// An index that one side publishes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Index {
    /// By the kernel.
    Requests,
    /// By user space.
    Responses,
}

impl Index {
    fn offset(self) -> usize {
        match self {
            Self::Requests => offset_of!(RingHeader, req_prod),
            Self::Responses => offset_of!(RingHeader, rsp_prod),
        }
    }
}

/// The ring's page and the data pages.
#[derive(Debug)]
pub(crate) struct Pages {
    map: ManuallyDrop<MmapRaw>,
    leaked: bool,
}

impl Pages {
    /// Maps all pages of a ring at once, shared.
    pub(crate) fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let map = MmapOptions::new().len(MAP_SIZE).map_raw(fd.as_raw_fd())?;
        Ok(Self { map: ManuallyDrop::new(map), leaked: false })
    }

    /// Leaves the pages mapped for ever: I/O on them is under way and cannot be waited for.
    pub(crate) fn leak(&mut self) {
        self.leaked = true;
    }

    /// Loads an index; what its publisher wrote before is visible afterwards.
    pub(crate) fn index(&self, index: Index) -> u32 {
        self.word32(index.offset()).load(Ordering::Acquire)
    }

    /// Publishes an index, and all that was written before.
    pub(crate) fn set_index(&self, index: Index, value: u32) {
        self.word32(index.offset()).store(value, Ordering::Release);
    }

    /// The message byte.
    pub(crate) fn message(&self) -> u8 {
        let address = self.address(offset_of!(RingHeader, message), 1);
        // SAFETY: inside the mapping (`address` checks), which lives as long as `self`; a byte has
        // no alignment; this process only accesses it atomically.
        unsafe { AtomicU8::from_ptr(address) }.load(Ordering::Relaxed)
    }

    /// Copies out the entry of request `index`, each of its bytes once.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> [u8; ENTRY_SIZE] {
        let words = self.entry_words(index);
        let mut copy = [0; ENTRY_SIZE];
        for (bytes, word) in copy.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        copy
    }

    /// Writes response `index`: 16 bytes as two words.
    pub(crate) fn write_response(&self, index: u32, words: [u64; 2]) {
        for (place, word) in self.entry_words(index).iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// The data pages: where they start, and their size in bytes.
    pub(crate) fn data_area(&self) -> (*mut u8, usize) {
        (self.address(PAGE_SIZE, DATA_SIZE), DATA_SIZE)
    }

    /// Copies bytes out of the data pages.
    ///
    /// # Panics
    /// When they are not inside.
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        let source = self.data_address(offset, bytes.len());
        // SAFETY: `source` has `bytes.len()` bytes inside the mapping (checked), `bytes` as many;
        // they cannot overlap, since no reference to the shared pages exists. Should the other side
        // write at the same time the copy holds a mixture, which nobody interprets here.
        unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies bytes into the data pages.
    ///
    /// # Panics
    /// When they do not fit inside.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        let target = self.data_address(offset, bytes.len());
        // SAFETY: as in `copy_out`, in the other direction; the mapping is writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
    }

    fn data_address(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= DATA_SIZE),
            "{offset}+{len} of {DATA_SIZE} data bytes"
        );
        self.address(PAGE_SIZE + offset, len)
    }

    /// The address of `len` bytes at `offset` of the mapping.
    #[inline]
    fn address(&self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= MAP_SIZE),
            "{offset}+{len} of {MAP_SIZE} mapped bytes"
        );
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4));
        let address = self.address(offset, 4).cast();
        // SAFETY: inside the mapping (`address` checks), which lives as long as `self`; aligned,
        // since the mapping starts on a page; this process only accesses it atomically.
        unsafe { AtomicU32::from_ptr(address) }
    }

    /// The words of an entry.
    #[inline]
    fn entry_words(&self, index: u32) -> &[AtomicU64; ENTRY_SIZE / 8] {
        let offset = offset_of!(RingPage, entries) + (index % RING_ENTRIES) as usize * ENTRY_SIZE;
        let address: *const [AtomicU64; ENTRY_SIZE / 8] = self.address(offset, ENTRY_SIZE).cast();
        // SAFETY: inside the mapping (`address` checks), which lives as long as `self`; aligned,
        // since the mapping starts on a page and entries on multiples of 8 (asserted below); an
        // AtomicU64 is laid out as a u64. Entries are accessed as 64-bit words only, the header
        // (below byte 64) as 32-bit words and one byte; only a hostile simulated kernel mixes them.
        unsafe { &*address }
    }
}

/// What only the simulated kernel, and servers with a fault, do to the pages.
#[cfg(feature = "sim")]
impl Pages {
    /// Maps another number of bytes, and unmaps them.
    pub(crate) fn try_map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
        MmapOptions::new().len(bytes).map_raw(fd.as_raw_fd()).map(drop)
    }

    /// Tries to unmap one page in the middle of the mapping, which drivers refuse.
    pub(crate) fn try_unmap_page(&mut self, page: usize) -> Result<(), Errno> {
        let address =
            NonNull::new(self.address(page * PAGE_SIZE, PAGE_SIZE)).ok_or(Errno::EFAULT)?;
        // SAFETY: the page is inside the mapping (`address` checks), which this owns, and no
        // reference to its bytes exists. Should the call succeed later accesses to the page end the
        // process by a signal, for as long as nothing else is mapped there: a test fails first.
        unsafe { munmap(address.cast(), PAGE_SIZE) }
    }

    /// One word of the ring's page, aligned to 4 bytes.
    pub(crate) fn ring_word(&self, offset: usize) -> u32 {
        assert!(offset < PAGE_SIZE, "{offset} is not in the ring's page");
        self.word32(offset).load(Ordering::Acquire)
    }

    /// Writes the entry of request `index`.
    pub(crate) fn write_entry(&self, index: u32, words: &[u64; ENTRY_SIZE / 8]) {
        for (place, word) in self.entry_words(index).iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
    }

    /// Reads response `index`.
    pub(crate) fn response(&self, index: u32) -> [u64; 2] {
        let [id, tail, ..] = self.entry_words(index);
        [id, tail].map(|word| word.load(Ordering::Relaxed))
    }

    /// Writes one word of the ring's page, aligned to 4 bytes.
    pub(crate) fn write_ring_word(&self, offset: usize, value: u32) {
        assert!(offset < PAGE_SIZE, "{offset} is not in the ring's page");
        self.word32(offset).store(value, Ordering::Relaxed);
    }

    /// Sets the message byte.
    pub(crate) fn set_message(&self, message: u8) {
        let address = self.address(offset_of!(RingHeader, message), 1);
        // SAFETY: as in `message`.
        unsafe { AtomicU8::from_ptr(address) }.store(message, Ordering::Relaxed);
    }

    /// Fills bytes of the data pages.
    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) {
        let target = self.data_address(offset, len);
        // SAFETY: `len` bytes inside the mapping (checked), which is writable; any byte is valid
        // there.
        unsafe { std::ptr::write_bytes(target, value, len) }
    }
}

const _: () =
    assert!(offset_of!(RingPage, entries).is_multiple_of(8) && ENTRY_SIZE.is_multiple_of(8));

impl Drop for Pages {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}
