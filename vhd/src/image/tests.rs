//! The laws of loading an image.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::testing::{Creator, End, Spec, put, specs};
use proptest::prelude::*;

fn load(file: &Vec<u8>) -> Result<Image<&Vec<u8>>> {
    Image::load(file, LoadOptions::default())
}

fn two_blocks() -> Spec {
    let mut spec = Spec::new(8 << 20);
    spec.sectors.extend([(5, 1), (3 * 4096, 2)]);
    spec
}

#[test]
fn takes_the_footer_at_the_end_then_a_byte_later_then_at_the_start() {
    let mut file = two_blocks().make();
    assert_eq!(load(&file).unwrap().footer_place(), FooterPlace::End);
    let end = file.len() - 512;
    file[end + 70] ^= 1;
    assert_eq!(load(&file).unwrap().footer_place(), FooterPlace::Start);
    let file = Spec { end: End::ShortFooter, ..two_blocks() }.make();
    assert_eq!(load(&file).unwrap().footer_place(), FooterPlace::EndShort);
    let file = Spec { end: End::Nothing, ..two_blocks() }.make();
    assert_eq!(load(&file).unwrap().footer_place(), FooterPlace::Start);
}

#[test]
fn keeps_the_bytes_of_footer_and_header_as_they_were() {
    let file = two_blocks().make();
    let image = load(&file).unwrap();
    assert_eq!(image.raw_footer().as_slice(), &file[..512]);
    assert_eq!(image.raw_header().unwrap().as_slice(), &file[512..1536]);
}

#[test]
fn looks_at_the_copy_only_when_told_so() {
    let mut file = two_blocks().make();
    put(&mut file, 0, b"x");
    assert!(load(&file).is_ok());
    let options = LoadOptions { footer_copy_only: true, ..LoadOptions::default() };
    let error = Image::load(&file, options).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Cookie { .. }), "{error}");
    assert_eq!(error.offset(), Some(0));
}

#[test]
fn a_guest_cannot_make_a_fixed_image_a_dynamic_one_through_its_first_sector_alone() {
    let mut file = two_blocks().make();
    let footer = Footer::new(DiskType::Fixed, 4096, Uuid([1; 16]), crate::units::Timestamp(0));
    file.extend(footer.emit());
    assert_eq!(load(&file).unwrap().footer().disk_type, DiskType::Fixed);
    // A fixed image has no copy.
    let mut file = vec![0; 4096];
    put(&mut file, 0, &footer.emit());
    let error = load(&file).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Field { field: "type", .. }), "{error}");
}

#[test]
fn tells_an_empty_file_from_one_that_ends_early() {
    for (length, errno) in [(0, 32), (100, 5), (512, 32), (1000, 5)] {
        let mut file = two_blocks().make();
        file.truncate(length);
        assert_eq!(load(&file).unwrap_err().errno(), errno, "{length} bytes");
    }
    // What is looked for last is the copy.
    let error = load(&vec![0; 100]).unwrap_err();
    let wanted = ErrorKind::Truncated { part: Part::FooterCopy, found: 100, wanted: 512 };
    assert_eq!(error.kind(), &wanted);
}

#[test]
fn loads_what_cannot_be_served_for_inspection_only() {
    let footer = Footer { is_poisoned: true, ..two_blocks().footer() };
    let mut file = two_blocks().make();
    put(&mut file, 0, &footer.emit());
    let end = file.len() as u64 - 512;
    put(&mut file, end, &footer.emit());
    assert_eq!(load(&file).unwrap_err().kind(), &ErrorKind::Poisoned);
    let options = LoadOptions { for_inspection: true, ..LoadOptions::default() };
    assert!(Image::load(&file, options).unwrap().footer().is_poisoned);
}

#[test]
fn loads_bitmaps_in_the_old_bit_order_to_be_listed_only() {
    let footer = Footer { creator_version: 1, ..two_blocks().footer() };
    let mut file = two_blocks().make();
    put(&mut file, 0, &footer.emit());
    let end = file.len() as u64 - 512;
    put(&mut file, end, &footer.emit());
    let mut options = LoadOptions { for_inspection: true, ..LoadOptions::default() };
    assert_eq!(Image::load(&file, options).unwrap_err().kind(), &ErrorKind::CreatorVersion(1));
    options.any_bit_order = true;
    assert_eq!(Image::load(&file, options).unwrap().footer().creator_version, 1);
    options.for_inspection = false;
    assert!(Image::load(&file, options).is_err());
}

#[test]
fn a_batmap_that_qemu_has_overwritten_is_none() {
    let mut file = two_blocks().make();
    let image = load(&file).unwrap();
    let with = image.layout().unwrap();
    assert!(image.batmap().unwrap().is_some());
    assert_eq!(with.batmap_header_offset, Some(2048));
    put(&mut file, 2048, &[0; 8]);
    let image = load(&file).unwrap();
    assert!(image.batmap().is_err());
    assert_eq!(image.layout().unwrap().batmap_header_offset, None);
    assert_eq!(image.layout().unwrap().end_of_headers, 2048);
    assert!(!image.is_encrypted().unwrap());
}

#[test]
fn a_batmap_with_another_checksum_is_an_error_but_keeps_its_place() {
    let mut file = two_blocks().make();
    put(&mut file, 2560, &[1]);
    let image = load(&file).unwrap();
    let error = image.batmap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Checksum { part: Part::Batmap, .. }), "{error}");
    assert_eq!(image.layout().unwrap().end_of_headers, 3072);
}

#[test]
fn bounds_the_batmap_of_an_absurd_size() {
    let spec = two_blocks();
    let mut file = spec.make();
    let footer = Footer { current_size: u64::MAX, ..spec.footer() };
    let end = file.len() as u64 - 512;
    put(&mut file, end, &footer.emit());
    let image = load(&file).unwrap();
    let error = image.batmap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { what: "Batmap", .. }), "{error}");
    assert!(matches!(image.bat().unwrap_err().kind(), ErrorKind::BatTooSmall { .. }));
}

#[test]
fn hidden_of_old_creators_is_that_of_the_copy() {
    let old = Footer { creator_version: 0x0001_0001, ..two_blocks().footer() };
    let mut file = two_blocks().make();
    let end = file.len() as u64 - 512;
    put(&mut file, end, &old.emit());
    put(&mut file, 0, &old.emit());
    assert_eq!(load(&file).unwrap().hidden(), Ok(0));
    file[85] = 1;
    assert_eq!(load(&file).unwrap().hidden(), Ok(1));
    assert_eq!(load(&file).unwrap().footer_place(), FooterPlace::End);
}

/// The start of a fixed image belongs to its guest, and a new creator changes both footers.
#[test]
fn hidden_is_that_of_the_footer_where_the_copy_says_nothing() {
    let old = Footer {
        creator_version: 0x0001_0001,
        ..Footer::new(DiskType::Fixed, 1024, Uuid([1; 16]), crate::units::Timestamp(0))
    };
    let mut file = vec![1; 1024];
    file.extend(old.emit());
    assert_eq!(load(&file).unwrap().hidden(), Ok(0));
    let mut file = two_blocks().make();
    put(&mut file, 0, &Footer { hidden: 1, ..two_blocks().footer() }.emit());
    assert_eq!(load(&file).unwrap().hidden(), Ok(0));
}

/// Creators of version 1.1 made images with a batmap and without.
#[test]
fn a_batmap_that_is_not_there_is_an_error_where_there_must_be_one() {
    for (creator_version, wanted) in
        [(batmap::CREATOR_VERSION_MIN, Ok(None)), (0x0001_0003, Err(()))]
    {
        let mut file = two_blocks().make();
        let footer = Footer { creator_version, ..two_blocks().footer() };
        let end = file.len() as u64 - 512;
        put(&mut file, end, &footer.emit());
        put(&mut file, 2048, &[0; 8]);
        assert_eq!(load(&file).unwrap().batmap().map_err(|_| ()), wanted);
    }
}

#[test]
fn a_file_may_end_where_its_table_does() {
    let block_size = BlockSize::new(512).unwrap();
    let (creator, end) = (Creator::Qemu, End::Nothing);
    let file = Spec { creator, end, block_size, ..Spec::new(128 * 512) }.make();
    assert_eq!((file.len(), load(&file).unwrap().file_size()), (2048, 2048));
    assert_eq!(load(&file).unwrap().bat().map(|bat| bat.allocated().count()), Ok(0));
}

/// A file that fails, or grows, after it was loaded.
struct Changing {
    bytes: Vec<u8>,
    length: std::cell::Cell<usize>,
    is_failing: std::cell::Cell<bool>,
}

impl ReadAt for Changing {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if self.is_failing.get() {
            return Err(ErrorKind::Io { errno: 5 }.into());
        }
        self.bytes[..self.length.get()].read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        self.bytes[..self.length.get()].length()
    }
}

fn changing(bytes: Vec<u8>, length: usize) -> Image<Changing> {
    let (length, is_failing) = (std::cell::Cell::new(length), std::cell::Cell::new(false));
    Image::load(Changing { bytes, length, is_failing }, LoadOptions::default()).unwrap()
}

/// Else the data of an encrypted disk would be taken for what its guest wrote.
#[test]
fn storage_that_fails_does_not_say_that_there_is_no_key_and_no_batmap() {
    let file = two_blocks().make();
    let length = file.len();
    let image = changing(file, length);
    assert_eq!(image.is_encrypted(), Ok(false));
    image.source().is_failing.set(true);
    assert_eq!(image.is_encrypted().unwrap_err().errno(), 5);
    assert_eq!(image.layout().unwrap_err().errno(), 5);
}

/// With 16 TiB of disk the batmap has 1 MiB, as many bits as a table may have entries.
#[test]
fn the_largest_batmap_is_read_and_no_larger_one_also_in_a_file_that_has_grown() {
    let spec = Spec::new(8 << 20);
    let limit = u64::from(bat::ENTRIES_MAX / 8);
    let with_size = |current_size: u64, map: usize| {
        let mut file = spec.make();
        let loaded = file.len();
        let footer = Footer { current_size, ..spec.footer() };
        put(&mut file, loaded as u64 - 512, &footer.emit());
        file.resize(2560 + map, 0);
        let mut header = BatmapHeader::new(1536, 4);
        header.sectors = 2050;
        header.checksum = header.checksum_of(&file[2560..]);
        put(&mut file, 2048, &header.emit());
        changing(file, loaded)
    };
    let image = with_size(1 << 44, 1 << 20);
    let error = image.batmap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Truncated { part: Part::Batmap, .. }), "{error}");
    image.source().length.set(image.source().bytes.len());
    assert_eq!(image.batmap().unwrap().unwrap().map.len() as u64, limit);
    let image = with_size((1 << 44) + (512 << 24), (1 << 20) + 512);
    let (what, unit, found) = ("Batmap", "bytes", limit + 512);
    let wanted = ErrorKind::TooLarge { what, found, limit, unit };
    assert_eq!(image.batmap().unwrap_err().kind(), &wanted);
}

#[test]
fn a_fixed_image_has_no_blocks() {
    let mut file = vec![0; 1024];
    let footer = Footer::new(DiskType::Fixed, 1024, Uuid([1; 16]), crate::units::Timestamp(0));
    file.extend(footer.emit());
    let image = load(&file).unwrap();
    assert_eq!(image.end_of_data(), Ok(1024));
    assert!(image.bat().is_err() && image.layout().is_err() && image.block_count().is_err());
    assert_eq!(image.batmap(), Ok(None));
    assert_eq!(image.locator_path(0), Ok(None));
}

#[test]
fn reads_every_locator_that_it_understands() {
    let parent = two_blocks();
    let spec = Spec::child_of(&parent, "Größe 日本.vhd");
    for creator in [Creator::Tap, Creator::Qemu, Creator::Microsoft] {
        let file = Spec { creator, ..spec.clone() }.make();
        let image = load(&file).unwrap();
        for number in 0..3 {
            let path = image.locator_path(number).unwrap();
            assert_eq!(path.as_deref(), Some("./Größe 日本.vhd"), "{creator:?}");
        }
        assert_eq!(image.locator_path(3), Ok(None));
        assert_eq!(image.locator_path(8), Ok(None));
    }
}

/// A full disk of 2040 GiB whose table says that all blocks are at one place; remembers the
/// longest read.
struct Largest(std::cell::Cell<usize>);

impl ReadAt for Largest {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.set(self.0.get().max(buffer.len()));
        let footer = Spec { creator: Creator::Qemu, ..Spec::new(2040 << 30) }.footer();
        buffer.fill(1);
        match offset {
            512 => buffer.copy_from_slice(&Header::new(1536, 1 << 20, BlockSize::DEFAULT).emit()),
            offset if offset < 1536 || buffer.len() == 512 => {
                buffer.copy_from_slice(&footer.emit());
            }
            _ => {}
        }
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        Ok(1 << 41)
    }
}

#[test]
fn the_table_of_the_largest_disk_is_read_in_pieces() {
    let image = Image::load(Largest(std::cell::Cell::new(0)), LoadOptions::default()).unwrap();
    assert_eq!(image.allocated_count(), Ok(1_044_480));
    assert_eq!(image.end_of_data(), Ok((0x0101_0101 + 4097) * 512));
    assert_eq!(image.source().0.get(), TABLE_PIECE);
}

#[test]
fn takes_no_memory_for_a_table_that_the_file_has_no_room_for() {
    let spec = Spec { creator: Creator::Qemu, ..Spec::new(2040 << 30) };
    let mut file = vec![0; 4096];
    put(&mut file, 0, &spec.footer().emit());
    put(&mut file, 512, &Header::new(1536, 1 << 20, BlockSize::DEFAULT).emit());
    let error = load(&file).unwrap().bat().unwrap_err();
    let wanted = ErrorKind::Truncated { part: Part::Bat, found: 2560, wanted: 4_177_920 };
    assert_eq!((error.kind(), error.offset()), (&wanted, Some(1536)));
}

proptest! {
    #[test]
    fn finds_the_blocks_of_images_of_all_creators(spec in specs(1 << 20)) {
        let file = spec.make();
        let image = load(&file).unwrap();
        let size = spec.block_size.bytes();
        let wanted: std::collections::BTreeSet<u64> =
            spec.sectors.keys().map(|sector| sector * 512 / size).collect();
        let bat = image.bat().unwrap();
        let found: Vec<u64> = bat.allocated().map(|(block, _)| block.0.into()).collect();
        prop_assert_eq!(&found, &wanted.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(image.allocated_count().unwrap() as usize, wanted.len());
        for (block, place) in bat.allocated() {
            prop_assert_eq!(image.bat_entry(block).unwrap(), Some(place));
        }
        let past = BlockIndex(image.block_count().unwrap());
        let error = image.bat_entry(past).unwrap_err();
        let is_past_end = matches!(error.kind(), ErrorKind::PastEnd { .. });
        prop_assert!(is_past_end, "{}", error);
        let end = usize::try_from(image.end_of_data().unwrap()).unwrap();
        let footer = match spec.end { End::Footer => 512, End::ShortFooter => 511, End::Nothing => 0 };
        prop_assert_eq!(file.len() - footer, end);
    }

    #[test]
    fn never_panics_on_a_damaged_image(
        spec in specs(1 << 16), damage in proptest::collection::vec((0..4096_usize, any::<u8>()), 1..9),
    ) {
        let mut file = spec.make();
        for (at, byte) in damage {
            let at = at % file.len();
            file[at] = byte;
        }
        let options = LoadOptions { for_inspection: true, ..LoadOptions::default() };
        if let Ok(image) = Image::load(&file, options) {
            let _ = (image.bat(), image.batmap(), image.layout(), image.end_of_data());
            let _ = (image.hidden(), image.is_encrypted());
            for number in 0..8 {
                let _ = image.locator_path(number);
            }
        }
    }
}
