//! The laws of the footer.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use proptest::prelude::*;

fn dynamic() -> Footer {
    Footer::new(DiskType::Dynamic, 20 << 20, Uuid([7; 16]), Timestamp(1000))
}

fn with(change: impl FnOnce(&mut [u8; FOOTER_SIZE])) -> [u8; FOOTER_SIZE] {
    let mut bytes = dynamic().emit();
    change(&mut bytes);
    let sum = checksum(&bytes);
    put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
    bytes
}

fn footers() -> impl Strategy<Value = Footer> {
    let numbers = any::<([u32; 4], [u64; 3], [u8; 4])>();
    (any::<u32>(), numbers, any::<(u16, [u8; 16], [u8; 4])>()).prop_map(
        move |(kind, (words, longs, bytes), (cylinders, uuid, creator))| Footer {
            features: words[0],
            version: !words[0],
            data_offset: longs[0],
            timestamp: Timestamp(words[1]),
            creator,
            creator_version: words[2],
            creator_host: words[3],
            original_size: longs[1],
            current_size: longs[2],
            geometry: Geometry { cylinders, heads: bytes[0], sectors: bytes[1] },
            disk_type: DiskType::from_code(kind % 9),
            uuid: Uuid(uuid),
            saved: bytes[2],
            hidden: bytes[3],
            is_poisoned: longs[0] % 2 == 1,
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
        let parsed = Footer::parse(&bytes).unwrap();
        let is_served = parsed.refuse_unservable().is_ok();
        prop_assert!(!is_served || parsed.version == FORMAT_VERSION);
        let _ = check(&bytes, Timestamp(0));
    }
}

#[test]
fn marks_a_disk_whose_resize_was_interrupted() {
    let bytes = with(|bytes| put(bytes, 0, &COOKIE_POISONED));
    assert_eq!(Footer::parse(&bytes), Ok(Footer { is_poisoned: true, ..dynamic() }));
    assert_eq!(check(&bytes, Timestamp(1000)), Some("invalid cookie"));
}

#[test]
fn refuses_to_serve_what_is_not_understood() {
    let kind = |footer: Footer| footer.refuse_unservable().map_err(|error| error.kind().clone());
    assert_eq!(kind(dynamic()), Ok(()));
    assert_eq!(kind(Footer { is_poisoned: true, ..dynamic() }), Err(ErrorKind::Poisoned));
    let found = 0x0002_0000;
    let wanted = ErrorKind::Version { part: Part::Footer, found };
    assert_eq!(kind(Footer { version: found, ..dynamic() }), Err(wanted));
    let disk_type = DiskType::Other(5);
    assert_eq!(kind(Footer { disk_type, ..dynamic() }), Err(ErrorKind::DiskType(5)));
    let old = Footer { creator_version: 1, ..dynamic() };
    assert_eq!(kind(old), Err(ErrorKind::CreatorVersion(1)));
    assert_eq!(kind(Footer { creator: *b"win ", ..old }), Ok(()));
}

#[test]
fn a_footer_without_its_last_byte_is_the_same() {
    let bytes = dynamic().emit();
    assert_eq!(Footer::parse_short(bytes.first_chunk().unwrap()), Ok(dynamic()));
}

#[test]
fn takes_a_geometry_that_is_rounded_up_to_a_cylinder() {
    // As `qemu-img create -o force_size=on` writes it.
    let size = (20 << 20) + 512;
    let footer = |cylinders| Footer {
        current_size: size,
        geometry: Geometry { cylinders, heads: 4, sectors: 17 },
        ..dynamic()
    };
    assert_eq!(check(&footer(603).emit(), Timestamp(1000)), None);
    assert_eq!(check(&footer(604).emit(), Timestamp(1000)), Some("geometry too large"));
}

#[test]
fn takes_the_largest_geometry_of_other_creators_for_none() {
    // As QEMU 7.2 writes it with force_size, for every size.
    let geometry = Geometry { cylinders: 65_535, heads: 16, sectors: 255 };
    let footer = Footer { current_size: 512, geometry, creator: *b"qem2", ..dynamic() };
    assert_eq!(check(&footer.emit(), Timestamp(1000)), None);
    let ours = Footer { creator: CREATOR, ..footer };
    assert_eq!(check(&ours.emit(), Timestamp(1000)), Some("geometry too large"));
    let geometry = Geometry { cylinders: 65_534, ..geometry };
    let footer = Footer { geometry, ..footer };
    assert_eq!(check(&footer.emit(), Timestamp(1000)), Some("geometry too large"));
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
    let table: [(&str, Change); 14] = [
        ("invalid cookie", |bytes| bytes[0] = b'C'),
        ("invalid 'reserved' feature", |bytes| bytes[11] = 0),
        ("invalid extra features", |bytes| bytes[11] = 0x0a),
        ("invalid file format version", |bytes| bytes[13] = 2),
        ("invalid data offset", |bytes| put(bytes, 16, &[0xff; 8])),
        ("creation time in future", |bytes| put(bytes, 24, &[0, 1, 0, 0])),
        ("unsupported tap creator version", |bytes| bytes[33] = 2),
        ("geometry too large", |bytes| bytes[56] = 0xff),
        ("invalid data offset", |bytes| bytes[63] = 7),
        ("invalid type", |bytes| {
            put(bytes, 16, &[0xff; 8]);
            bytes[63] = 7;
        }),
        ("invalid 'saved' state", |bytes| bytes[84] = 2),
        ("invalid 'hidden' state", |bytes| bytes[HIDDEN_AT] = 2),
        ("invalid 'reserved' bits", |bytes| bytes[511] = 1),
        ("invalid (NULL) uuid", |bytes| put(bytes, 68, &[0; 16])),
    ];
    for (complaint, change) in table {
        assert_eq!(check(&with(change), Timestamp(2000)), Some(complaint));
    }
    assert_eq!(check(&dynamic().emit(), Timestamp(1000)), None);
    // Temporary, saved, hidden, of the latest time that is no future.
    let most = Footer { features: 3, saved: 1, hidden: 1, timestamp: Timestamp(2800), ..dynamic() };
    assert_eq!(check(&most.emit(), Timestamp(1000)), None);
    assert_eq!(check(&most.emit(), Timestamp(999)), Some("creation time in future"));
    let mut bytes = dynamic().emit();
    bytes[300] = 1;
    assert_eq!(check(&bytes, Timestamp(1000)), Some("invalid checksum"));
}
