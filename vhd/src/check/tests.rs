//! The laws of checking.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::path::Path;

use super::*;
use crate::bat;
use crate::error::errno;
use crate::footer::DiskType;
use crate::gate::Gate;
use crate::image::{Image, LoadOptions};
use crate::testing::{Creator, End, MemoryHost, Spec, put, specs};
use crate::units::{BlockIndex, Sector, Timestamp, Uuid};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(2000);

fn checked(file: &Vec<u8>, options: CheckOptions) -> Vec<String> {
    check(file, options, NOW).findings.iter().map(ToString::to_string).collect()
}

fn findings(file: &Vec<u8>) -> Vec<String> {
    checked(file, CheckOptions::default())
}

/// Four blocks of 2 MiB, three of them there: 0, 1 and 3.
fn three_blocks() -> Spec {
    let mut spec = Spec::new(8 << 20);
    spec.sectors.extend([(5, 1), (4096, 2), (3 * 4096 + 4095, 3)]);
    spec
}

fn with_entry(block: u64, place: u32) -> Vec<u8> {
    let mut file = three_blocks().make();
    put(&mut file, 1536 + block * 4, &place.to_be_bytes());
    file
}

#[test]
fn a_parent_may_be_a_little_younger_than_now() {
    let parent = Spec::new(8 << 20);
    for (seconds, is_fine) in [(1800, true), (1801, false)] {
        let mut file = Spec::child_of(&parent, "p.vhd").make();
        put(&mut file, 512 + 56, &(NOW.0 + seconds).to_be_bytes());
        let sum = crate::header::checksum(file[512..1536].first_chunk().unwrap());
        put(&mut file, 512 + 36, &sum.to_be_bytes());
        let found = findings(&file);
        assert_eq!(found.is_empty(), is_fine, "{found:?}");
    }
}

proptest! {
    #[test]
    fn what_is_made_well_is_valid(spec in specs(1 << 20)) {
        let file = spec.make();
        let options = CheckOptions {
            ignore_end_footer: spec.end == End::Nothing,
            read_data: true,
            ..CheckOptions::default()
        };
        let report = check(&file, options, NOW);
        prop_assert!(report.is_valid(), "{:?}", report.findings);
        let image = Image::load(&file, LoadOptions::default()).unwrap();
        let stats = stats(&image, &[]).unwrap();
        if spec.creator != Creator::Qemu {
            prop_assert_eq!(stats.written, spec.sectors.len() as u64);
        }
        prop_assert_eq!(stats.not_in_ancestors, stats.written);
    }

    #[test]
    fn overlaps_are_those_that_comparing_all_pairs_finds(
        places in proptest::collection::btree_map(0..64_u32, 7..1200_u32, 0..40),
    ) {
        let mut spec = Spec::new(64 << 14);
        spec.block_size = crate::header::BlockSize::new(1 << 14).unwrap();
        let mut file = spec.make();
        for (block, place) in &places {
            put(&mut file, 1536 + u64::from(*block) * 4, &place.to_be_bytes());
        }
        file.resize(1300 * 512, 0);
        file.extend(spec.footer().emit());
        let mut wanted = None;
        for (block, place) in &places {
            let over = places.iter().find(|(other, there)| {
                *other > block && place.abs_diff(**there) < 33
            });
            if let Some((other, there)) = over {
                wanted = Some((*block, *place, *other, *there));
                break;
            }
        }
        let report = check(&file, CheckOptions::default(), NOW);
        let found = report.findings.iter().find_map(|finding| match finding.kind() {
            FindingKind::OverBlock { block, place, other, other_place } =>
                Some((block.0, place.0, other.0, other_place.0)),
            _ => None,
        });
        prop_assert_eq!(found, wanted);
        let options = CheckOptions { ignore_overlap: true, ..CheckOptions::default() };
        prop_assert!(check(&file, options, NOW).is_valid());
    }

    #[test]
    fn never_panics_on_a_damaged_image(
        spec in specs(1 << 16), damage in proptest::collection::vec((0..4096_usize, any::<u8>()), 1..9),
        read_data: bool, ignore_end_footer: bool,
    ) {
        let mut file = spec.make();
        for (at, byte) in damage {
            let at = at % file.len();
            file[at] = byte;
        }
        let options = CheckOptions { read_data, ignore_end_footer, ..CheckOptions::default() };
        let report = check(&file, options, NOW);
        prop_assert_eq!(report.is_valid(), report.errno() == 0);
    }
}

#[test]
fn names_what_is_wrong_with_a_footer() {
    let mut file = three_blocks().make();
    let end = file.len() - 512;
    file[end + 100] = 1;
    assert_eq!(findings(&file), ["primary footer invalid: invalid checksum"]);
    let options = CheckOptions { ignore_end_footer: true, ..CheckOptions::default() };
    assert!(check(&file, options, NOW).is_valid());
    file[100] = 1;
    assert!(checked(&file, options).contains(&"backup footer invalid: invalid checksum".into()));
    let mut file = three_blocks().make();
    let hidden = Footer { hidden: 1, ..three_blocks().footer() };
    put(&mut file, 0, &hidden.emit());
    assert_eq!(findings(&file), ["primary and backup footers do not match"]);
    assert_eq!(checked(&file, options), [""; 0]);
}

#[test]
fn takes_footers_for_the_same_where_an_old_program_hid_the_disk_in_the_copy() {
    let old = Footer { creator_version: 0x0001_0001, ..three_blocks().footer() };
    let mut file = three_blocks().make();
    let end = file.len() as u64 - 512;
    put(&mut file, 0, &old.emit());
    put(&mut file, end, &old.emit());
    file[85] = 1;
    assert_eq!(findings(&file), [""; 0]);
    put(&mut file, 0, &Footer { saved: 1, ..old }.emit());
    assert_eq!(findings(&file), ["primary and backup footers do not match"]);
}

#[test]
fn names_what_is_not_read_at_all() {
    let mut header = Header::new(1536, 4, crate::header::BlockSize::DEFAULT);
    header.locators[0].platform = crate::locator::Platform::Unknown(1);
    let mut file = three_blocks().make();
    put(&mut file, 512, &header.emit());
    assert_eq!(findings(&file), ["error opening: -22"]);
    let old = Footer { creator_version: 1, ..three_blocks().footer() };
    let end = file.len() as u64 - 512;
    put(&mut file, 0, &old.emit());
    put(&mut file, end, &old.emit());
    assert_eq!(findings(&file), ["error opening: -22"]);
}

#[test]
fn times_in_the_future_are_a_fault_unless_ignored() {
    // Made at 1000: half an hour is no future.
    let file = three_blocks().make();
    assert!(check(&file, CheckOptions::default(), Timestamp(0)).is_valid());
    let mut file = three_blocks().make();
    let late = Footer { timestamp: Timestamp(5000), ..three_blocks().footer() };
    let end = file.len() as u64 - 512;
    put(&mut file, 0, &late.emit());
    put(&mut file, end, &late.emit());
    assert_eq!(findings(&file), ["primary footer invalid: creation time in future"]);
    let options = CheckOptions { ignore_times: true, ..CheckOptions::default() };
    assert_eq!(checked(&file, options), [""; 0]);
}

#[test]
fn names_what_a_file_that_ends_early_lacks() {
    for (length, text, errno) in [
        (0, "error calculating end of file: -22", 22),
        (100, "error reading primary footer: -22", 22),
        (511, "error reading backup footer: -5", 5),
        (512, "error reading header: -5", 5),
        (1500, "error reading primary footer: -22", 22),
        (4096, "primary footer invalid: invalid cookie", 22),
    ] {
        let mut file = three_blocks().make();
        file.truncate(length);
        let report = check(&file, CheckOptions::default(), NOW);
        let first = report.invalid().unwrap();
        assert_eq!((first.to_string().as_str(), report.errno()), (text, errno), "{length}");
    }
}

#[test]
fn names_blocks_that_are_where_they_cannot_be() {
    for (place, wanted) in [
        (0, "block 0 (offset 0x7) clobbers block 2 (offset 0x0)"),
        (7, "block 0 (offset 0x7) clobbers block 2 (offset 0x7)"),
        (0x807, "block 0 (offset 0x7) clobbers block 2 (offset 0x807)"),
        (0x4000, "block 2 (offset 0x4000) clobbers footer"),
        (0xffff_fffe, "block 2 (offset 0xfffffffe) clobbers footer"),
    ] {
        assert_eq!(findings(&with_entry(2, place))[0], wanted);
    }
    let options = CheckOptions { ignore_overlap: true, ..CheckOptions::default() };
    let found = checked(&with_entry(2, 5), options);
    assert_eq!(found, ["block 2 (offset 0x5) clobbers headers"]);
    assert_eq!(checked(&with_entry(2, 7), options), [""; 0]);
}

#[test]
fn programs_know_a_finding_by_its_code_and_its_block() {
    let options = CheckOptions { ignore_overlap: true, ..CheckOptions::default() };
    let report = check(with_entry(2, 5), options, NOW);
    let finding = report.invalid().unwrap();
    let wanted = ("block-over-headers", Some(BlockIndex(2)), errno::EINVAL);
    assert_eq!((finding.code(), finding.block(), finding.errno()), wanted);
    let report = check(vec![0_u8; 512], options, NOW);
    let finding = report.invalid().unwrap();
    assert_eq!((finding.code(), finding.block()), ("end-footer", None));
}

#[test]
fn counts_overlaps_that_are_too_many_to_list() {
    let mut spec = Spec::new(1000 << 9);
    spec.block_size = crate::header::BlockSize::new(512).unwrap();
    spec.sectors.insert(0, 1);
    let mut file = spec.make();
    for block in 1..1000 {
        let first = file[1536..1540].to_vec();
        put(&mut file, 1536 + block * 4, &first);
    }
    let found = findings(&file);
    assert!(found[0].starts_with("block 0 (offset "), "{found:?}");
    assert!(found[0].contains(" clobbers block 1 (offset "), "{found:?}");
    assert_eq!(found[1..], ["998 more blocks clobber each other"]);
}

/// Of blocks over the headers sixteen are named, however many there are.
#[test]
fn names_no_more_than_sixteen_blocks_that_are_where_they_cannot_be() {
    let block_size = crate::header::BlockSize::new(4096).unwrap();
    let mut file = Spec { block_size, ..Spec::new(20 * 4096) }.make();
    for block in 0..20_u64 {
        put(&mut file, 1536 + block * 4, &1_u32.to_be_bytes());
    }
    let options = CheckOptions { ignore_overlap: true, ..CheckOptions::default() };
    let found = checked(&file, options);
    let named = found.iter().filter(|finding| finding.contains("clobbers headers"));
    assert_eq!((named.count(), found.len()), (16, 16), "{found:?}");
}

#[test]
fn a_block_may_end_where_a_file_without_a_footer_does() {
    let file = Spec { end: End::Nothing, ..three_blocks() }.make();
    let options = CheckOptions { ignore_end_footer: true, ..CheckOptions::default() };
    assert!(check(&file, options, NOW).is_valid());
    let mut cut = file.clone();
    cut.truncate(file.len() - 512);
    let found = check(&cut, options, NOW);
    let text = found.invalid().unwrap().to_string();
    assert_eq!(text, "block 3 (offset 0x2017) clobbers footer");
}

#[test]
fn finds_data_in_any_byte_of_a_sector_that_is_not_there() {
    let options = CheckOptions { read_data: true, ..CheckOptions::default() };
    for byte in [0, 1, 511] {
        let mut file = three_blocks().make();
        // Block 0 is at sector 7, its data at 8.
        put(&mut file, 8 * 512 + 9 * 512 + byte, &[1]);
        assert_eq!(
            checked(&file, options),
            ["sector 0x9 of block 0x0 has data where bitmap is clear"]
        );
        assert_eq!(findings(&file), [""; 0]);
    }
    // Two bytes that are the same.
    let mut file = three_blocks().make();
    put(&mut file, 8 * 512 + 9 * 512, &[7, 7]);
    assert_eq!(checked(&file, options).len(), 1);
}

/// Of the other one nothing counts, neither of a copy nor of what the guest wrote last.
#[test]
fn blocks_are_those_of_the_footer_that_was_checked() {
    let options = CheckOptions { ignore_end_footer: true, ..CheckOptions::default() };
    let larger = Footer { current_size: u64::MAX, ..three_blocks().footer() };
    let mut file = three_blocks().make();
    put(&mut file, 0, &larger.emit());
    assert_eq!(checked(&file, options), [""; 0]);
    let mut file = three_blocks().make();
    let end = file.len() as u64 - 512;
    put(&mut file, end, &Footer { uuid: Uuid::NIL, ..larger }.emit());
    assert_eq!(checked(&file, options), ["primary footer invalid: invalid (NULL) uuid"]);
}

#[test]
fn names_what_is_wrong_with_a_batmap() {
    let batmap = |change: &dyn Fn(&mut crate::batmap::BatmapHeader, &mut [u8])| {
        let mut file = three_blocks().make();
        let raw: [u8; 512] = file[2048..2560].try_into().unwrap();
        let mut header = crate::batmap::BatmapHeader::parse(&raw).unwrap();
        change(&mut header, &mut file[2560..3072]);
        header.checksum = header.checksum_of(&file[2560..3072]);
        put(&mut file, 2048, &header.emit());
        findings(&file)
    };
    assert_eq!(batmap(&|_, _| {}), [""; 0]);
    assert_eq!(batmap(&|_, map| map[0] = 0x20), ["batmap shows unallocated block 2 full"]);
    assert_eq!(batmap(&|header, _| header.sectors = 0), ["error calculating end of metadata: -22"]);
    let far = batmap(&|header, _| header.sectors = 1 << 20);
    assert_eq!(far[0], "block 0 (offset 0x7) clobbers headers");
    let mut file = three_blocks().make();
    file[2560] = 0x80;
    let report = check(&file, CheckOptions::default(), NOW);
    assert_eq!(report.findings[0].to_string(), "error calculating end of metadata: -22");
    let cause = report.findings[0].cause().unwrap().to_string();
    assert!(cause.starts_with("Batmap has checksum"), "{cause}");
}

#[test]
fn a_block_that_the_batmap_says_is_full_must_be() {
    let mut file = three_blocks().make();
    let raw: [u8; 512] = file[2048..2560].try_into().unwrap();
    let mut header = crate::batmap::BatmapHeader::parse(&raw).unwrap();
    file[2560] = 0x40;
    header.checksum = header.checksum_of(&file[2560..3072]);
    put(&mut file, 2048, &header.emit());
    assert_eq!(findings(&file), [""; 0]);
    let options = CheckOptions { read_data: true, ..CheckOptions::default() };
    assert_eq!(checked(&file, options), ["batmap shows block 1 full where its bitmap is not"]);
}

#[test]
fn a_dynamic_image_says_nothing_of_a_parent() {
    let base = Header::new(1536, 4, crate::header::BlockSize::DEFAULT);
    let named = crate::header::ParentName::encode("x").unwrap();
    let locator = crate::locator::Locator { space: 1, ..crate::locator::Locator::NONE };
    let mut located = base;
    located.locators[7] = locator;
    for (header, wanted) in [
        (Header { parent_name: named, ..base }, "invalid non-null parent name"),
        (located, "invalid non-null parent locators"),
        (Header { parent_uuid: Uuid([1; 16]), ..base }, "invalid non-null parent uuid"),
        (Header { parent_timestamp: Timestamp(1), ..base }, "invalid non-zero parent timestamp"),
    ] {
        let mut file = three_blocks().make();
        put(&mut file, 512, &header.emit());
        assert_eq!(findings(&file), [format!("differencing header is invalid: {wanted}")]);
    }
}

fn chain_of(child: &Spec, parent: Vec<u8>) -> Vec<String> {
    let host = MemoryHost::default()
        .with("/vhds/child.vhd", child.make())
        .with("/vhds/parent.vhd", parent)
        .with("/etc/parent.vhd", vec![0; 512]);
    let path = Path::new("/vhds/child.vhd");
    let gate = Gate::of_child(&host, path).unwrap();
    let checked = check_chain(&host, path, &gate, CheckOptions::default(), true, NOW).unwrap();
    let lines = checked.iter().flat_map(|one| {
        let texts = one.report.findings.iter().filter(|finding| !finding.is_note());
        let texts: Vec<String> = texts.map(ToString::to_string).collect();
        if texts.is_empty() { vec![format!("{} is valid", one.path.display())] } else { texts }
    });
    lines.collect()
}

#[test]
fn follows_the_locators_to_the_parent() {
    let parent = three_blocks();
    let child = Spec::child_of(&parent, "parent.vhd");
    let found = chain_of(&child, parent.make());
    assert_eq!(found, ["/vhds/child.vhd is valid", "/vhds/parent.vhd is valid"]);
    let other = Spec { uuid: Uuid([9; 16]), ..parent.clone() };
    assert_eq!(
        chain_of(&child, other.make()),
        ["invalid parent /vhds/parent.vhd: invalid parent uuid"]
    );
    let found = chain_of(&child, vec![0; 512]);
    assert_eq!(found, ["invalid parent /vhds/parent.vhd: error opening parent"]);
    let gone = Spec::child_of(&parent, "gone.vhd");
    assert_eq!(chain_of(&gone, parent.make()), ["error resolving ./gone.vhd: -2"]);
    let outside = Spec::child_of(&parent, "../etc/parent.vhd");
    assert_eq!(chain_of(&outside, parent.make()), ["error resolving ./../etc/parent.vhd: -13"]);
    let myself = Spec { uuid: Uuid([9; 16]), ..Spec::child_of(&parent, "child.vhd") };
    let myself = Spec { parent: Some((Uuid([9; 16]), "./child.vhd".into())), ..myself };
    let found = chain_of(&myself, parent.make());
    assert_eq!(found, ["invalid parent /vhds/child.vhd: error opening parent"]);
}

#[test]
fn names_what_is_wrong_with_locators() {
    let parent = three_blocks();
    let child = Spec::child_of(&parent, "parent.vhd");
    let found = |change: &dyn Fn(&mut Header)| {
        let mut file = child.make();
        let raw = file[512..1536].try_into().unwrap();
        let mut header = Header::parse(&raw).unwrap();
        change(&mut header);
        put(&mut file, 512, &header.emit());
        let host = MemoryHost::default()
            .with("/vhds/child.vhd", file)
            .with("/vhds/parent.vhd", parent.make());
        let (path, gate) = (Path::new("/vhds/child.vhd"), Gate::everywhere());
        let all = check_chain(&host, path, &gate, CheckOptions::default(), false, NOW).unwrap();
        all[0].report.invalid().map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(found(&|_| {}), "");
    assert_eq!(
        found(&|header| header.locators[0].length = 0),
        "invalid parent locator 0: invalid data length"
    );
    assert_eq!(
        found(&|header| header.locators[1].platform = header.locators[0].platform),
        "duplicate platform code in locator 1: 0x4d616358"
    );
    assert_eq!(
        found(&|header| header.parent_name = crate::header::ParentName::encode("x.vhd").unwrap()),
        "parent locator 0 name (parent.vhd) does not match header name (x.vhd)"
    );
    let none = [crate::locator::Locator::NONE; 8];
    assert_eq!(found(&|header| header.locators = none), "could not find parent parent.vhd");
    assert_eq!(found(&|header| header.locators[0] = none[0]), "");
    assert_eq!(
        found(&|header| header.parent_name = crate::header::ParentName::EMPTY),
        "differencing header is invalid: invalid parent name"
    );
}

#[test]
fn counts_what_is_new_to_parent_and_ancestors() {
    let make = |sectors: &[u64]| {
        let mut spec = Spec::new(8 << 20);
        spec.sectors.extend(sectors.iter().map(|sector| (*sector, 1)));
        spec.make()
    };
    let files = [make(&[1, 2, 3, 9000]), make(&[1, 4]), make(&[2, 9000])];
    let images: Vec<_> =
        files.iter().map(|file| Image::load(file, LoadOptions::default()).unwrap()).collect();
    let stats = stats(&images[0], &[&images[1], &images[2]]).unwrap();
    let wanted = Stats { allocated: 8192, written: 4, not_in_parent: 3, not_in_ancestors: 1 };
    assert_eq!(stats, wanted);
}

#[test]
fn a_fixed_image_is_valid_by_its_footer_alone() {
    let mut file = vec![0; 1 << 20];
    let footer = Footer::new(DiskType::Fixed, 1 << 20, Uuid([1; 16]), Timestamp(0));
    file.extend(footer.emit());
    assert_eq!(findings(&file), [""; 0]);
    file.truncate(1 << 20);
    put(&mut file, 0, &footer.emit());
    let options = CheckOptions { ignore_end_footer: true, ..CheckOptions::default() };
    assert_eq!(check(&file, options, NOW).errno(), errno::EINVAL);
}

/// A file of any length of which a few pieces are not zero, and the time to read it does not
/// matter.
struct Sparse {
    length: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl crate::ReadAt for Sparse {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> crate::Result<()> {
        assert!(offset + buffer.len() as u64 <= self.length, "past the end");
        buffer.fill(0);
        for (start, bytes) in &self.pieces {
            for (at, byte) in (*start..).zip(bytes) {
                if let Some(index) = at.checked_sub(offset)
                    && let Some(to) = buffer.get_mut(usize::try_from(index).unwrap())
                {
                    *to = *byte;
                }
            }
        }
        Ok(())
    }

    fn length(&self) -> crate::Result<u64> {
        Ok(self.length)
    }
}

#[test]
fn a_full_disk_of_many_blocks_is_checked_without_reading_their_bitmaps() {
    let blocks = 4096_u32;
    let size = u64::from(blocks) << 21;
    let spec = Spec { creator: Creator::Qemu, ..Spec::new(size) };
    let mut placement = crate::layout::Placement::new(spec.block_size, 1 << 20);
    let mut bat = bat::Bat::new(blocks).unwrap();
    for block in (0..blocks).rev() {
        bat.set(BlockIndex(block), Some(placement.allocate().unwrap()));
    }
    let header = Header::new(1536, blocks, spec.block_size);
    let end = placement.end_of_data();
    let mut pieces = vec![
        (0, spec.footer().emit().to_vec()),
        (512, header.emit().to_vec()),
        (1536, bat.emit()),
        (end, spec.footer().emit().to_vec()),
    ];
    let length = end + 512;
    let report = check(Sparse { length, pieces: pieces.clone() }, CheckOptions::default(), NOW);
    assert_eq!(report.findings, []);
    bat.set(BlockIndex(7), bat.get(BlockIndex(9)).map(|place| Sector(place.0 + 4096)));
    pieces[2].1 = bat.emit();
    let report = check(Sparse { length, pieces }, CheckOptions::default(), NOW);
    assert!(
        report.findings[0].to_string().starts_with("block 7 (offset "),
        "{:?}",
        report.findings
    );
}

/// 8,388,608 entries: of blocks of 512 bytes, a disk of 4 GiB.
#[test]
fn the_largest_table_is_checked_and_no_larger_one() {
    for (blocks, is_fine) in [(bat::ENTRIES_MAX, true), (bat::ENTRIES_MAX + 1, false)] {
        let block_size = crate::header::BlockSize::new(512).unwrap();
        let spec = Spec { creator: Creator::Qemu, block_size, ..Spec::new(1 << 20) };
        let mut file = spec.make();
        file.truncate(1536);
        let mut footer = spec.footer();
        footer.current_size = u64::from(blocks) * 512;
        let header = crate::header::Header::new(1536, blocks, block_size);
        put(&mut file, 0, &footer.emit());
        put(&mut file, 512, &header.emit());
        file.resize(1536 + usize::try_from(bat::size_on_disk(blocks)).unwrap(), 0xff);
        file.extend(footer.emit());
        let found = findings(&file);
        assert_eq!(found.is_empty(), is_fine, "{found:?}");
    }
}
