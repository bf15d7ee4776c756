//! A VHD's footer: never a panic, and what is served survives being written back.
#![no_main]

use tapdisk_fuzz as _;
use vhd::footer::{self, FOOTER_SIZE, Footer};
use vhd::units::Timestamp;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut bytes = [0; FOOTER_SIZE];
    for (byte, foreign) in bytes.iter_mut().zip(input) {
        *byte = *foreign;
    }
    // As it is, and once more with the checksum that lets it through to the checks behind.
    for _ in 0..2 {
        let _ = footer::check(&bytes, Timestamp(0));
        if let Ok(parsed) = Footer::parse(&bytes) {
            assert_eq!(Footer::parse(&parsed.emit()), Ok(parsed));
        }
        let sum = footer::checksum(&bytes);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
    }
});
