//! The laws of the footer.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use proptest::prelude::*;

fn dynamic() -> Footer {
    Footer::new(DiskType::Dynamic, 20 << 20, [7; 16], 1000)
}

fn with(change: impl FnOnce(&mut [u8; FOOTER_SIZE])) -> [u8; FOOTER_SIZE] {
    let mut bytes = dynamic().emit();
    change(&mut bytes);
    let sum = checksum(&bytes);
    put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
    bytes
}

fn footers() -> impl Strategy<Value = Footer> {
    let kinds = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];
    let numbers = any::<([u32; 4], [u64; 3], [u8; 4])>();
    (0..3_usize, numbers, any::<(u16, [u8; 16], [u8; 4])>()).prop_map(
        move |(kind, (words, longs, bytes), (cylinders, uuid, creator))| Footer {
            features: words[0],
            data_offset: longs[0],
            timestamp: words[1],
            creator,
            creator_version: words[2],
            creator_host: words[3],
            original_size: longs[1],
            current_size: longs[2],
            geometry: Geometry { cylinders, heads: bytes[0], sectors: bytes[1] },
            disk_type: kinds[kind],
            uuid,
            saved: bytes[2],
            hidden: bytes[3],
        },
    )
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed_as_the_same(footer in footers()) {
        prop_assert_eq!(Footer::parse(&footer.emit()), Ok(footer));
    }

    #[test]
    fn rejects_every_single_changed_byte(at in 0..FOOTER_SIZE, by in 1..=255_u8) {
        let mut bytes = dynamic().emit();
        bytes[at] = bytes[at].wrapping_add(by);
        prop_assert!(Footer::parse(&bytes).is_err());
    }

    #[test]
    fn never_panics_on_foreign_bytes(bytes in proptest::collection::vec(any::<u8>(), FOOTER_SIZE)) {
        let mut bytes: [u8; FOOTER_SIZE] = bytes.try_into().unwrap();
        put(&mut bytes, 0, &COOKIE);
        let sum = checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        let parsed = Footer::parse(&bytes);
        prop_assert_eq!(parsed.is_err(), matches!(parsed, Err(FooterError::Version(_) | FooterError::Type(_))));
        let _ = check(&bytes, 0);
    }

    #[test]
    fn a_geometry_never_names_more_than_there_is(size in 0..3_u64 << 40) {
        let geometry = Geometry::of(size);
        prop_assert!(geometry.total() <= size.div_ceil(512));
        prop_assert!(geometry.heads <= 16);
    }
}

#[test]
fn the_geometry_is_that_of_the_specification() {
    let geometry = |cylinders, heads, sectors| Geometry { cylinders, heads, sectors };
    assert_eq!(Geometry::of(20 << 20), geometry(602, 4, 17));
    assert_eq!(Geometry::of(1 << 30), geometry(2080, 16, 63));
    assert_eq!(Geometry::of(2040 << 30), geometry(65_535, 16, 255));
}

#[test]
fn refuses_a_disk_whose_resize_was_interrupted() {
    let bytes = with(|bytes| put(bytes, 0, &COOKIE_POISONED));
    assert_eq!(Footer::parse(&bytes), Err(FooterError::Poisoned));
}

#[test]
fn takes_the_old_checksum_without_hidden_from_old_versions_only() {
    for (version, is_taken) in [(0x0001_0001_u32, true), (0x0000_0001, true), (0x0001_0003, false)]
    {
        let mut bytes = with(|bytes| put(bytes, 32, &version.to_be_bytes()));
        bytes[HIDDEN_AT] = 1;
        assert_eq!(Footer::parse(&bytes).is_ok(), is_taken, "{version:#x}");
    }
}

#[test]
fn check_names_the_first_complaint() {
    type Change = fn(&mut [u8; FOOTER_SIZE]);
    let table: [(&str, Change); 12] = [
        ("invalid cookie", |bytes| bytes[0] = b'C'),
        ("invalid 'reserved' feature", |bytes| bytes[11] = 0),
        ("invalid extra features", |bytes| bytes[11] = 0x0a),
        ("invalid file format version", |bytes| bytes[13] = 2),
        ("invalid data offset", |bytes| put(bytes, 16, &[0xff; 8])),
        ("creation time in future", |bytes| put(bytes, 24, &[0, 1, 0, 0])),
        ("unsupported tap creator version", |bytes| bytes[33] = 2),
        ("geometry too large", |bytes| bytes[56] = 0xff),
        ("invalid type", |bytes| bytes[63] = 7),
        ("invalid 'hidden' state", |bytes| bytes[HIDDEN_AT] = 2),
        ("invalid 'reserved' bits", |bytes| bytes[511] = 1),
        ("invalid (NULL) uuid", |bytes| put(bytes, 68, &[0; 16])),
    ];
    for (complaint, change) in table {
        assert_eq!(check(&with(change), 2000), Some(complaint));
    }
    assert_eq!(check(&dynamic().emit(), 1000), None);
    let mut bytes = dynamic().emit();
    bytes[300] = 1;
    assert_eq!(check(&bytes, 1000), Some("invalid checksum"));
}
