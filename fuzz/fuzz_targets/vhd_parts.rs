//! The parts of a VHD behind the footer: never a panic, and what is read survives being written.
#![no_main]

use tapdisk_fuzz as _;
use vhd::bat::{self, Bat};
use vhd::batmap::BatmapHeader;
use vhd::bits;
use vhd::header::{self, HEADER_SIZE, Header};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((selector, bytes)) = input.split_first() else { return };
    match selector % 4 {
        0 => read_header(bytes),
        1 => read_batmap_header(bytes),
        2 => read_table(bytes),
        _ => read_bits(bytes),
    }
});

fn read_header(foreign: &[u8]) {
    let mut bytes = [0; HEADER_SIZE];
    for (byte, foreign) in bytes.iter_mut().zip(foreign) {
        *byte = *foreign;
    }
    for _ in 0..2 {
        let _ = (header::check(&bytes, 1 << 20), header::Fields::of(&bytes));
        if let Ok(parsed) = Header::parse(&bytes) {
            assert_eq!(Header::parse(&parsed.emit()), Ok(parsed));
            let _ = parsed.parent_name.decode();
            for (number, locator) in (0..).zip(&parsed.locators) {
                let _ = (locator.check(), locator.end(), locator.text_size());
                let _ = locator.decode(number, foreign);
            }
        }
        let sum = header::checksum(&bytes);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
    }
}

fn read_batmap_header(foreign: &[u8]) {
    let mut bytes = [0; 512];
    for (byte, foreign) in bytes.iter_mut().zip(foreign) {
        *byte = *foreign;
    }
    if let Ok(parsed) = BatmapHeader::parse(&bytes) {
        assert_eq!(BatmapHeader::parse(&parsed.emit()), Ok(parsed));
        let _ = (parsed.end(), parsed.checksum_of(foreign));
    }
}

fn read_table(bytes: &[u8]) {
    let entries = u32::try_from(bytes.len() / 4).unwrap();
    let table = Bat::parse(bytes, entries).unwrap();
    assert_eq!(Bat::parse(&table.emit(), entries).unwrap(), table);
    assert_eq!(table.emit().len() as u64, bat::size_on_disk(entries));
    assert!(Bat::parse(bytes, entries + 1).is_err());
}

fn read_bits(bytes: &[u8]) {
    let [from, count, map @ ..] = bytes else { return };
    let bits = u32::from(*from)..u32::from(*from) + u32::from(*count) * 16;
    let mut next = bits.start;
    for run in bits::runs(map, bits.clone()) {
        assert_eq!(run.start, next);
        assert!((run.start..run.start + run.count).all(|bit| bits::get(map, bit) == run.is_set));
        next += run.count;
    }
    assert_eq!(next, bits.end);
    let ones = (0..bits.end).filter(|bit| bits::get(map, *bit)).count();
    assert_eq!(bits::count(map, bits.end) as usize, ones);
}
