//! What fuzz targets share: an allocator with a limit, the NBD door with a peer.
//!
//! A length that a peer sends must be checked before memory is taken for it. One allocation above
//! [`ALLOCATION_MAX`] is a fault, and the target is aborted with the input that caused it.
//!
//! A room with `unsafe`: `GlobalAlloc` asks for it. Every call goes on to the system's allocator,
//! with the arguments that it came with.
#![allow(unsafe_code)]

pub mod nbd;

use std::alloc::{GlobalAlloc, Layout, System};

/// The largest single allocation, in bytes: 64 MiB. The largest message of any protocol that we
/// speak is 32 MiB (an NBD payload).
pub const ALLOCATION_MAX: usize = 64 << 20;

/// The system's allocator, with the limit.
#[derive(Debug)]
pub struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(bytes: usize) {
    if bytes > ALLOCATION_MAX {
        // No message: formatting one would allocate. libFuzzer prints the trace and saves the
        // input.
        std::process::abort();
    }
}

// SAFETY: every method is the system allocator's own, called with the same arguments; the check
// before it returns or ends the process and never unwinds.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises on `layout` are the ones that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: `pointer` came from System, as all of ours do, with this `layout`; the caller
        // promises so, and that `size` is not 0.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
