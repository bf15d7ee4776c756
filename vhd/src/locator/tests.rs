//! The laws of parent locators.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use proptest::prelude::*;

fn locator(platform: Platform) -> Locator {
    Locator { platform, space: 512, length: 42, reserved: 0, offset: 4096 }
}

fn decode(platform: Platform, text: &[u8]) -> Result<String> {
    locator(platform).decode(3, text).expect("a platform that is read")
}

#[test]
fn a_space_below_a_sector_counts_sectors() {
    for (space, bytes) in [(0, 0), (1, 512), (511, 511 * 512), (512, 512), (1024, 1024)] {
        assert_eq!(Locator { space, ..locator(Platform::MacX) }.space_bytes(), bytes);
    }
}

#[test]
fn only_three_platforms_lead_to_a_parent() {
    let read = |code: &[u8; 4]| Platform::from_code(u32::from_be_bytes(*code)).is_read();
    assert!([b"MacX", b"W2ku", b"W2ru"].into_iter().all(read));
    assert!(![b"Mac ", b"Wi2k", b"Wi2r", b"\0\0\0\0", b"what"].into_iter().any(read));
}

#[test]
fn reads_no_more_text_than_there_is_room_and_than_a_path_has() {
    let size = |space, length| Locator { space, length, ..locator(Platform::MacX) }.text_size();
    assert_eq!(size(512, 42), 42);
    assert_eq!(size(512, u32::MAX), 512);
    assert_eq!(size(1, u32::MAX), 512);
    assert_eq!(size(u32::MAX, u32::MAX), TEXT_SIZE_MAX);
}

#[test]
fn decodes_what_other_programs_wrote() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let path = |text: &str| Ok(text.to_owned());
    assert_eq!(decode(Platform::MacX, b"file://./a b%20.vhd"), path("./a b%20.vhd"));
    assert_eq!(decode(Platform::MacX, b"file:///vhds/a\0\xff\xff"), path("/vhds/a"));
    assert_eq!(decode(Platform::W2ru, &utf16(".\\p.vhd")), path("./p.vhd"));
    assert_eq!(decode(Platform::W2ku, &utf16("C:\\d\\p.vhd\0x")), path("/d/p.vhd"));
    assert_eq!(decode(Platform::W2ku, &utf16("c:p.vhd")), path("p.vhd"));
    // A single byte at the end is half a letter.
    assert_eq!(decode(Platform::W2ru, b"a\0b"), path("a"));
    assert_eq!(decode(Platform::W2ru, b""), path(""));
}

#[test]
fn a_path_that_leads_upwards_starts_with_a_dot_for_windows() {
    let path = "../p.vhd";
    assert_eq!(encode(Platform::MacX, path), b"file://../p.vhd");
    let text = encode(Platform::W2ru, path);
    assert_eq!(decode(Platform::W2ru, &text), Ok(String::from("./../p.vhd")));
}

#[test]
fn refuses_text_that_is_not_in_its_encoding() {
    let error = decode(Platform::MacX, b"/vhds/a").unwrap_err();
    assert!(error.to_string().contains("file://"), "{error}");
    assert!(decode(Platform::MacX, b"file://\xff").is_err());
    let error = decode(Platform::W2ru, &[0, 0xdc]).unwrap_err();
    let part = Part::Locator(3);
    assert_eq!(error.kind(), &ErrorKind::Encoding { part, wanted: "UTF-16LE" });
}

#[test]
fn does_not_read_the_text_of_other_platforms() {
    for platform in [Platform::None, Platform::Mac, Platform::Wi2k, Platform::Wi2r] {
        assert_eq!(locator(platform).decode(0, b"file://a"), None);
    }
}

#[test]
fn check_names_the_first_complaint() {
    let complaint = |change: fn(&mut Locator)| {
        let mut changed = locator(Platform::MacX);
        change(&mut changed);
        changed.check()
    };
    assert_eq!(locator(Platform::W2ku).check(), None);
    assert_eq!(Locator::NONE.check(), None);
    assert_eq!(complaint(|it| it.platform = Platform::None), Some("non-zero locator"));
    assert_eq!(complaint(|it| it.platform = Platform::Unknown(1)), Some("invalid platform code"));
    assert_eq!(complaint(|it| it.offset = 0), Some("invalid data offset"));
    assert_eq!(complaint(|it| it.offset += 1), Some("invalid data offset"));
    assert_eq!(complaint(|it| it.space = 0), Some("invalid data space"));
    assert_eq!(complaint(|it| it.length = 0), Some("invalid data length"));
    assert_eq!(complaint(|it| it.length = 512), None);
    assert_eq!(complaint(|it| it.length = 513), Some("invalid size"));
    assert_eq!(complaint(|it| it.reserved = 1), Some("invalid reserved bits"));
}

proptest! {
    #[test]
    fn every_entry_survives_being_written_back(bytes: [u8; LOCATOR_SIZE]) {
        prop_assert_eq!(Locator::parse(&bytes).emit(), bytes);
    }

    #[test]
    fn what_is_encoded_is_decoded_as_the_same(path in "\\./[^\\\\\u{0}]{1,40}") {
        for platform in [Platform::MacX, Platform::W2ku, Platform::W2ru] {
            let text = encode(platform, &path);
            prop_assert_eq!(decode(platform, &text), Ok(path.clone()));
        }
    }

    #[test]
    fn never_panics_on_foreign_text(text: Vec<u8>, code: u32) {
        for platform in [Platform::MacX, Platform::W2ku, Platform::from_code(code)] {
            let _ = locator(platform).decode(0, &text);
        }
    }
}
