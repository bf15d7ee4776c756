//! Offline operations on a foreign image, with a foreign parent and a foreign journal: never a
//! panic, no step larger than a piece, nothing from behind the end of what is there.
#![no_main]

use tapdisk_fuzz as _;
use vhd::plan::File;
use vhd::plan::memory::Storage;
use vhd::testing::go_through_all;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(([first, second, size_low, size_high], files)) = input.split_first_chunk() else {
        return;
    };
    // In units of 128 bytes, so that two bytes reach everywhere.
    let (image, rest) = files.split_at((usize::from(*first) << 7).min(files.len()));
    let (parent, journal) = rest.split_at((usize::from(*second) << 7).min(rest.len()));
    let storage = Storage::default()
        .with(File::Image, image.to_vec())
        .with(File::Ancestor(0), parent.to_vec())
        .with(File::Journal, journal.to_vec());
    let size = u64::from(u16::from_be_bytes([*size_high, *size_low])) << 9;
    go_through_all(&storage, size);
});
