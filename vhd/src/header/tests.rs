//! The laws of the dynamic header.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::locator::Platform;
use proptest::prelude::*;

fn header() -> Header {
    Header::new(1536, 10, BlockSize::DEFAULT)
}

fn with(change: impl FnOnce(&mut [u8; HEADER_SIZE])) -> [u8; HEADER_SIZE] {
    let mut bytes = header().emit();
    change(&mut bytes);
    let sum = checksum(&bytes);
    put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
    bytes
}

#[test]
fn a_block_size_is_a_power_of_two_from_512_bytes_to_2_mib() {
    for exponent in 0..32 {
        let is_good = (9..=21).contains(&exponent);
        assert_eq!(BlockSize::new(1 << exponent).is_ok(), is_good, "2^{exponent}");
        assert!(BlockSize::new((1 << exponent) | (1 << 8)).is_err());
    }
    assert!(BlockSize::new(0).is_err());
}

#[test]
fn the_bitmap_of_a_block_takes_at_least_a_sector() {
    let sizes = |bytes| {
        let size = BlockSize::new(bytes).unwrap();
        (size.sectors(), size.bitmap_bytes(), size.bitmap_sectors(), size.total_sectors())
    };
    assert_eq!(sizes(1 << 21), (4096, 512, 1, 4097));
    assert_eq!(sizes(1 << 19), (1024, 128, 1, 1025));
    assert_eq!(sizes(512), (1, 1, 1, 2));
}

#[test]
fn check_names_the_first_complaint() {
    type Change = fn(&mut [u8; HEADER_SIZE]);
    let table: [(&str, Change); 8] = [
        ("invalid cookie", |bytes| bytes[0] = b'C'),
        ("invalid header version", |bytes| bytes[24] = 1),
        ("invalid block size", |bytes| bytes[33] = 0x30),
        ("invalid data offset", |bytes| bytes[8] = 0),
        ("invalid table offset", |bytes| bytes[23] = 1),
        ("invalid table offset", |bytes| put(bytes, 16, &[0; 8])),
        ("invalid table offset", |bytes| bytes[22] = 0x10),
        ("invalid reserved bits", |bytes| bytes[1023] = 1),
    ];
    for (complaint, change) in table {
        assert_eq!(check(&with(change), 4096), Some(complaint));
    }
    assert_eq!(check(&header().emit(), 4096), None);
    let mut bytes = header().emit();
    bytes[700] = 1;
    assert_eq!(check(&bytes, 4096), Some("invalid checksum"));
}

#[test]
fn rejects_a_data_offset_and_a_locator_that_are_not_understood() {
    let error = Header::parse(&with(|bytes| bytes[15] = 0)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Field { field: "data offset", .. }), "{error}");
    let error = Header::parse(&with(|bytes| bytes[LOCATORS_AT + 24] = 1)).unwrap_err();
    let wanted = Part::Locator(1);
    assert!(matches!(error.kind(), ErrorKind::Field { part, .. } if *part == wanted), "{error}");
}

#[test]
fn a_table_holds_as_many_blocks_as_it_has_entries() {
    assert_eq!(header().hold(10), Ok(10));
    let wanted = ErrorKind::BatTooSmall { blocks: 11, entries: 10 };
    assert_eq!(header().hold(11), Err(wanted.into()));
    assert!(header().hold(1 << 32).is_err());
}

#[test]
fn names_of_all_scripts_fit_up_to_255_units() {
    for text in ["", "parent.vhd", "Größe 日本語 \u{1f4bf}.vhd", &"x".repeat(255)] {
        assert_eq!(ParentName::encode(text).unwrap().decode().as_deref(), Ok(text));
    }
    let error = ParentName::encode(&"\u{1f4bf}".repeat(128)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NameTooLong { found: 512, limit: 510, .. }));
}

#[test]
fn half_a_surrogate_is_no_name() {
    let mut name = ParentName::EMPTY;
    name.0[..2].copy_from_slice(&[0xd8, 0]);
    assert!(matches!(name.decode().unwrap_err().kind(), ErrorKind::Encoding { .. }));
}

#[test]
fn a_name_is_printed_as_its_text() {
    assert_eq!(format!("{:?}", ParentName::encode("ä.vhd").unwrap()), "Ok(\"ä.vhd\")");
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed_as_the_same(
        offset: u64, words: [u32; 2], exponent in 9..=21_u32, uuid: [u8; 16],
        name in "[\\PC]{0,100}", code in 0..7_usize, locator: (u32, u32, u32, u64),
    ) {
        let mut header = Header::new(offset, words[0], BlockSize::new(1 << exponent).unwrap());
        header.parent_uuid = Uuid(uuid);
        header.parent_timestamp = Timestamp(words[1]);
        header.parent_name = ParentName::encode(&name).unwrap();
        let (space, length, reserved, offset) = locator;
        let codes = [*b"\0\0\0\0", *b"MacX", *b"W2ku", *b"W2ru", *b"Mac ", *b"Wi2r", *b"Wi2k"];
        let platform = Platform::from_code(u32::from_be_bytes(codes[code]));
        header.locators[5] = Locator { platform, space, length, reserved, offset };
        prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
    }

    #[test]
    fn rejects_every_single_changed_byte(at in 0..HEADER_SIZE, by in 1..=255_u8) {
        let mut bytes = header().emit();
        bytes[at] = bytes[at].wrapping_add(by);
        prop_assert!(Header::parse(&bytes).is_err());
    }

    #[test]
    fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), HEADER_SIZE)) {
        let bytes: [u8; HEADER_SIZE] = bytes.try_into().unwrap();
        let bytes = with(|own| {
            own[28..].copy_from_slice(&bytes[28..]);
            own[32..36].copy_from_slice(&(1_u32 << 21).to_be_bytes());
            for locator in own[LOCATORS_AT..RESERVED_AT].chunks_exact_mut(LOCATOR_SIZE) {
                locator[..4].copy_from_slice(b"MacX");
            }
        });
        let parsed = Header::parse(&bytes).unwrap();
        let _ = (parsed.parent_name.decode(), check(&bytes, 4096));
    }
}
