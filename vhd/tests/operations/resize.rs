//! Resize and revert.

use vhd::footer::Footer;
use vhd::header::Header;
use vhd::image::{Image, LoadOptions};
use vhd::locator::{self, Locator, Platform};
use vhd::plan::journal::{EntryType, JournalHeader, emit_entry};
use vhd::plan::memory::{MakePlan, Storage};
use vhd::plan::resize::{resize, resize_in_table, shrink};
use vhd::plan::revert::revert;
use vhd::plan::set::set_marker;
use vhd::plan::{File, Files, Milestone, Plan, Step};

use crate::image::{BLOCK, PARENT_UUID, Spec, UUID, crafted_footer, fixed, keyhash};
use crate::law::{self, image, run};
use crate::view::{self, View};

fn start(image: Vec<u8>) -> Storage {
    Storage::default().with(File::Image, image)
}

/// With its journal, if there is one, the image is the old or the new one, and clean.
fn old_or_new(state: &Storage, old: &View, new: &View) -> Result<(), String> {
    let mut state = state.clone();
    let journal = state.bytes(File::Journal).map(<[u8]>::to_vec);
    if journal.is_some_and(|journal| journal.starts_with(b"vjournal")) {
        run(&mut state, revert).map_err(|error| format!("revert: {error}"))?;
        if state.bytes(File::Journal).is_some() {
            return Err("the journal is still there".into());
        }
    }
    let now = image(&state)?;
    if now != *old && now != *new {
        return Err("neither old nor new".into());
    }
    view::check(state.bytes(File::Image).expect("it was read"))
}

fn grow(size: u64) -> impl Fn(&dyn Files) -> vhd::Result<Box<dyn Plan>> {
    move |files| resize(files, size)
}

#[test]
fn a_table_that_grows_over_blocks_is_safe_at_every_cut() {
    let spec = Spec::new(3, &[(2, 0xff), (0, 0x81)]);
    for (name, spec) in [
        ("resize -j", spec.clone()),
        ("resize -j of a differencing disk", spec.clone().child()),
        ("resize -j without a batmap", Spec { has_batmap: false, ..spec.clone() }),
        ("resize -j with space before the footer", Spec { slack: 8192, ..spec }),
    ] {
        let start = start(spec.build());
        let old = image(&start).unwrap();
        let new = old.resized(300 * BLOCK);
        let recording = law::record(&start, &grow(300 * BLOCK - 5));
        assert_eq!(image(&recording.end()).unwrap(), new);
        let law = |state: &Storage| old_or_new(state, &old, &new);
        law::holds_at_every_cut(name, &recording, &law);
        law::holds_after_every_error(name, &start, &grow(300 * BLOCK), &law);
    }
}

/// A block that will be moved, whose last sector is what the footer of this image could be; with so
/// much space before the footer.
fn hostile(slack: u64) -> Storage {
    let mut bytes = Spec { slack, ..Spec::new(3, &[(0, 0xff), (2, 0x81)]) }.build();
    let footer = crafted_footer(&bytes);
    let sector = 7 + 8;
    bytes[sector * 512..][..512].copy_from_slice(&footer);
    start(bytes)
}

/// The old footer's place is in front of, behind, or that of the last sector of the moved block.
const SLACKS: [u64; 3] = [0, 8192, 15 * 512];

#[test]
fn every_barrier_of_a_resize_with_journal_is_needed() {
    let all = SLACKS.map(|slack| {
        let start = hostile(slack);
        let old = image(&start).unwrap();
        let new = old.resized(300 * BLOCK);
        let recording = law::record(&start, &grow(300 * BLOCK));
        let law = law::boxed(move |state: &Storage| old_or_new(state, &old, &new));
        law::holds_at_every_cut("resize -j of a hostile guest's disk", &recording, &law);
        (recording, law)
    });
    assert_eq!(law::idle_barriers(&all), (6, vec![]));
}

/// The storage as it is when a resize ends at its n-th step.
fn interrupted(start: &Storage, steps: usize) -> Storage {
    let recording = law::record(start, &grow(300 * BLOCK));
    let mut state = start.clone();
    recording.steps()[..steps].iter().for_each(|step| state.perform(step));
    state
}

#[test]
fn a_revert_is_safe_at_every_cut_wherever_the_resize_ended() {
    let start = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).child().build());
    let old = image(&start).unwrap();
    let new = old.resized(300 * BLOCK);
    let law = |state: &Storage| old_or_new(state, &old, &new);
    let steps = law::record(&start, &grow(300 * BLOCK)).steps().to_vec();
    for (count, step) in (1..).zip(&steps) {
        let state = interrupted(&start, count);
        let journal = state.bytes(File::Journal);
        let is_there = journal.is_some_and(|journal| journal.starts_with(b"vjournal"));
        if !is_there || !matches!(step, Step::Reached(_) | Step::Barrier) {
            continue;
        }
        let recording = law::record(&state, &revert);
        law::holds_at_every_cut(&format!("revert after step {count}"), &recording, &law);
        law::holds_after_every_error("revert", &state, &revert, &law);
    }
}

#[test]
fn every_barrier_of_a_revert_is_needed() {
    let child = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).child().build());
    let starts = SLACKS.map(hostile).into_iter().chain([child]);
    let all: Vec<_> = starts
        .map(|start| {
            let old = image(&start).unwrap();
            let steps = law::record(&start, &grow(300 * BLOCK)).steps().to_vec();
            let is_end = |step: &Step| *step == Step::Reached(Milestone::ResizeEnd);
            let end = steps.iter().position(is_end).unwrap();
            let recording = law::record(&interrupted(&start, end), &revert);
            let law = law::boxed(move |state: &Storage| old_or_new(state, &old, &old));
            law::holds_at_every_cut("revert of a hostile guest's disk", &recording, &law);
            (recording, law)
        })
        .collect();
    assert_eq!(law::idle_barriers(&all), (4, vec![]));
}

#[test]
fn a_finished_resize_is_not_reverted() {
    let start = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).build());
    let recording = law::record(&start, &grow(300 * BLOCK));
    let (mut state, mut journal) = (start, Vec::new());
    for step in recording.steps() {
        state.perform(step);
        let now = state.bytes(File::Journal).filter(|now| now.len() > 512 && now[36..40] != [0; 4]);
        journal = now.map_or(journal, <[u8]>::to_vec);
    }
    let new = image(&state).unwrap();
    let mut state = state.with(File::Journal, journal);
    run(&mut state, revert).unwrap();
    assert_eq!(image(&state), Ok(new));
    assert_eq!(state.bytes(File::Journal), None);
}

#[test]
fn a_poisoned_image_with_an_empty_journal_was_done() {
    let start = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).build());
    let old = image(&start).unwrap();
    let recording = law::record(&start, &grow(300 * BLOCK));
    let is_end = |step: &Step| *step == Step::Reached(Milestone::ResizeEnd);
    let end = recording.steps().iter().position(is_end).unwrap();
    let state = interrupted(&start, end);
    let mut journal = state.bytes(File::Journal).unwrap()[..512].to_vec();
    journal[32..40].fill(0);
    let state = state.with(File::Journal, journal);
    let new = old.resized(300 * BLOCK);
    let recording = law::record(&state, &revert);
    let law = |state: &Storage| old_or_new(state, &new, &new);
    law::holds_at_every_cut("revert with an empty journal", &recording, &law);
}

#[test]
fn rejects_the_journal_of_another_image() {
    let spec = Spec::new(3, &[(2, 0xff), (0, 0x81)]);
    let mine = interrupted(&start(spec.build()), 12);
    let other = Spec { uuid: PARENT_UUID, ..spec };
    let journal = interrupted(&start(other.build()), 12).bytes(File::Journal).unwrap().to_vec();
    let mut state = mine.with(File::Journal, journal);
    let before = state.clone();
    let error = run(&mut state, revert).unwrap_err();
    assert_eq!(error.errno(), 22);
    assert!(error.to_string().contains("UUID"), "{error}");
    assert_eq!(state, before);
}

#[test]
fn rejects_a_journal_with_any_changed_byte_before_the_first_write() {
    let mine = interrupted(&start(Spec::new(3, &[(2, 0xff)]).build()), 12);
    let journal = mine.bytes(File::Journal).unwrap().to_vec();
    for at in 512..journal.len() {
        let mut changed = journal.clone();
        changed[at] ^= 0x40;
        let mut state = mine.clone().with(File::Journal, changed);
        let before = state.clone();
        assert!(run(&mut state, revert).is_err(), "byte {at}");
        assert_eq!(state, before);
    }
}

#[test]
fn a_journal_puts_back_nothing_but_the_old_image_and_its_footers() {
    let image = Spec::new(3, &[(2, 0xff)]).build();
    let end = u64::try_from(image.len()).unwrap() - 512;
    let footer = crate::image::footer_of(&image);
    let whole = footer.emit().to_vec();
    let poisoned = Footer { is_poisoned: true, ..footer }.emit().to_vec();
    let zeros = |count: usize| vec![0; count];
    let all = |offset: u64| zeros(usize::try_from(end - offset).unwrap());
    for (entry, offset, data, is_fine) in [
        (EntryType::Data, 512, all(512), true),
        (EntryType::Data, 511, zeros(1), false),
        (EntryType::Header, 0, zeros(1024), false),
        (EntryType::Data, 513, all(512), false),
        (EntryType::Bat, end, zeros(1), false),
        (EntryType::Batmap, u64::MAX, zeros(512), false),
        (EntryType::Footer, end, whole.clone(), true),
        (EntryType::Footer, end, poisoned.clone(), false),
        (EntryType::Footer, end, zeros(512), false),
        (EntryType::Footer, end, whole[..511].to_vec(), false),
        (EntryType::Footer, end - 512, whole.clone(), false),
        (EntryType::Footer, 0, whole.clone(), false),
        (EntryType::FooterCopy, 0, whole.clone(), true),
        (EntryType::FooterCopy, 0, poisoned, false),
        (EntryType::FooterCopy, 0, zeros(512), false),
        (EntryType::FooterCopy, 512, whole.clone(), false),
        (EntryType::FooterCopy, end, whole, false),
    ] {
        let empty = JournalHeader::empty(UUID, end);
        let header = JournalHeader { metadata_entries: 1, metadata_offset: 512, ..empty };
        let journal = [header.emit().to_vec(), emit_entry(entry, offset, &data)].concat();
        let mut storage = start(image.clone()).with(File::Journal, journal);
        let before = storage.clone();
        let found = run(&mut storage, revert).map_err(|error| error.errno());
        assert_eq!(found, if is_fine { Ok(()) } else { Err(22) }, "{entry:?} at {offset}");
        assert!(is_fine || storage == before, "{entry:?} at {offset}");
    }
}

#[test]
fn a_resize_in_the_table_changes_only_footers_and_never_shows_old_blocks() {
    // Entry 3 is past the end of the disk: a block that a shrink left, or somebody's rubbish.
    let spec = Spec { entries: 9, ..Spec::new(5, &[(0, 0xff), (3, 0xff), (1, 3)]) };
    let mut bytes = spec.build();
    let mut footer = Footer::parse(bytes[..512].try_into().unwrap()).unwrap();
    footer.current_size = 3 * BLOCK;
    let end = bytes.len() - 512;
    bytes[..512].copy_from_slice(&footer.emit());
    bytes[end..].copy_from_slice(&footer.emit());
    let start = start(bytes);
    let old = image(&start).unwrap();
    let new = old.resized(9 * BLOCK);
    let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
        Ok(Box::new(resize_in_table(files, 9 * BLOCK)?))
    };
    let recording = law::record(&start, &make);
    assert_eq!(image(&recording.end()), Ok(new.clone()));
    let law = |state: &Storage| {
        let now = image(state)?;
        if now != old && now != new {
            return Err("neither old nor new".into());
        }
        Ok(())
    };
    law::holds_at_every_cut("resize -f", &recording, &law);
    law::holds_after_every_error("resize -f", &start, &make, &law);
    // Not seen: hints for blocks that are not there.
    assert_eq!(law::barriers_that_nobody_misses(&recording, &law), vec![0]);
    assert_eq!(view::check(recording.end().bytes(File::Image).unwrap()), Ok(()));
}

#[test]
fn a_dynamic_disk_can_be_cut() {
    let start = start(Spec::new(5, &[(0, 0xff), (4, 0xff), (1, 3)]).build());
    let old = image(&start).unwrap();
    let new = old.resized(2 * BLOCK);
    let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
        Ok(Box::new(shrink(files, 2 * BLOCK)?))
    };
    let recording = law::record(&start, &make);
    assert_eq!(image(&recording.end()), Ok(new.clone()));
    // Block 4 is the second one in the file: it goes back whole, with its bitmap.
    let holes: Vec<_> = recording
        .steps()
        .iter()
        .filter_map(|step| match step {
            Step::PunchHole { offset, length, .. } => Some((*offset / 512, *length)),
            _ => None,
        })
        .collect();
    assert_eq!(holes, [(23, 9 * 512)]);
    let law = |state: &Storage| {
        let now = image(state)?;
        if now != old && now != new {
            return Err("neither old nor new".into());
        }
        // What was cut off does not come back when the disk grows again.
        let mut state = state.clone();
        let grown = image(&state)?.resized(5 * BLOCK);
        run(&mut state, |files| resize(files, 5 * BLOCK)).map_err(|error| error.to_string())?;
        if image(&state)? != grown {
            return Err("blocks came back".into());
        }
        view::check(state.bytes(File::Image).unwrap())
    };
    law::holds_at_every_cut("shrink", &recording, &law);
    law::holds_after_every_error("shrink", &start, &make, &law);
    // Not seen: hints for blocks that are not there, holes in blocks that are not there.
    assert_eq!(law::barriers_that_nobody_misses(&recording, &law), vec![0, 2]);
}

#[test]
fn fixed_disks_grow_and_shrink_safely() {
    for (name, sectors) in [("grow", 24), ("grow by one", 9), ("shrink", 3), ("shrink by one", 7)] {
        let start = start(fixed(8));
        let old = image(&start).unwrap();
        let new = old.resized(sectors * 512);
        let recording = law::record(&start, &grow(sectors * 512));
        assert_eq!(image(&recording.end()), Ok(new.clone()));
        let length = recording.end().bytes(File::Image).unwrap().len();
        assert_eq!(length as u64, sectors * 512 + 512);
        let law = |state: &Storage| old_or_new(state, &old, &new);
        law::holds_at_every_cut(&format!("fixed {name}"), &recording, &law);
        law::holds_after_every_error(name, &start, &grow(sectors * 512), &law);
        let idle = law::barriers_that_nobody_misses(&recording, &law);
        assert_eq!(idle, Vec::<usize>::new(), "{name}");
    }
}

#[test]
fn a_device_keeps_its_length_and_its_journal() {
    let image_of = |length: usize| {
        let mut bytes = Spec::new(3, &[(2, 0xff), (0, 0x81)]).build();
        let footer = bytes.split_off(bytes.len() - 512);
        bytes.resize(length - 512, 0xee);
        bytes.extend(footer);
        Storage::default()
            .with_device(File::Image, bytes)
            .with_device(File::Journal, vec![0xdd; 16384])
    };
    let start = image_of(32768);
    let old = image(&start).unwrap();
    let new = old.resized(300 * BLOCK);
    let recording = law::record(&start, &grow(300 * BLOCK));
    assert_eq!(image(&recording.end()), Ok(new.clone()));
    let law = |state: &Storage| {
        let mut state = state.clone();
        match run(&mut state, revert) {
            Err(error) if error.errno() != 22 || state != start => return Err(error.to_string()),
            _ => {}
        }
        let now = image(&state)?;
        if now != old && now != new {
            return Err("neither old nor new".into());
        }
        view::check(state.bytes(File::Image).unwrap())
    };
    let law_or_no_journal = |state: &Storage| {
        let has_journal = state.bytes(File::Journal).unwrap().starts_with(b"vjournal");
        if has_journal { law(state) } else { old_or_new(state, &old, &old) }
    };
    law::holds_at_every_cut("resize -j on a device", &recording, &law_or_no_journal);
    // Room for what is there, not for a block to move to: the block at sector 16 ends at 25.
    let mut full = image_of(26 * 512);
    let before = full.clone();
    let error = run(&mut full, grow(300 * BLOCK)).unwrap_err();
    assert_eq!(error.errno(), 28);
    assert_eq!(full, before);
}

#[test]
fn rejects_sizes_that_cannot_be() {
    let dynamic = start(Spec { entries: 9, ..Spec::new(5, &[(0, 0xff)]) }.build());
    let errno = |result: vhd::Result<()>| result.unwrap_err().errno();
    let fast = |size| {
        run(&mut dynamic.clone(), |files| {
            resize_in_table(files, size).map(|steps| Box::new(steps) as Box<dyn Plan>)
        })
    };
    assert_eq!(errno(fast(10 * BLOCK)), 22);
    assert_eq!(errno(fast(4 * BLOCK)), 22);
    assert_eq!(errno(fast(0)), 22);
    assert_eq!(errno(fast(u64::MAX)), 22);
    assert_eq!(fast(9 * BLOCK), Ok(()));
    assert_eq!(errno(run(&mut dynamic.clone(), grow(4 * BLOCK))), 38);
    assert_eq!(errno(run(&mut dynamic.clone(), grow(0))), 22);
    assert_eq!(errno(run(&mut dynamic.clone(), grow((2040 << 30) + 1))), 22);
    let fixed = start(fixed(8));
    assert_eq!(errno(run(&mut fixed.clone(), grow(0))), 22);
    assert_eq!(errno(run(&mut fixed.clone(), grow(513))), 22);
    assert_eq!(errno(run(&mut fixed.clone(), grow(u64::MAX))), 22);
    let fast = run(&mut fixed.clone(), |files| {
        resize_in_table(files, 4096).map(|steps| Box::new(steps) as Box<dyn Plan>)
    });
    assert_eq!(errno(fast), 22);
}

#[test]
fn a_resize_refuses_a_journal_that_exists_and_leaves_it() {
    let mut state = start(Spec::new(3, &[(2, 0xff)]).build()).with(File::Journal, vec![1, 2]);
    let mut plan = resize(&state, 300 * BLOCK).unwrap();
    let step = plan.next(&state).unwrap().unwrap();
    assert_eq!(step, Step::Create { file: File::Journal });
    let exists = vhd::Error::from(vhd::ErrorKind::Io { errno: 17 });
    assert_eq!(plan.failed(exists.clone()), Err(exists));
    state.perform(&Step::Barrier);
    assert_eq!(state.bytes(File::Journal), Some(&[1, 2][..]));
}

#[test]
fn the_header_of_a_journal_says_where_it_ends() {
    let mut storage = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).build());
    for step in law::record(&storage.clone(), &grow(300 * BLOCK)).steps() {
        storage.perform(step);
        let Some(bytes) = storage.bytes(File::Journal) else { continue };
        let Some(Ok(header)) = bytes.first_chunk().map(JournalHeader::parse) else { continue };
        assert!(header.is_empty() || header.end == bytes.len() as u64);
    }
}

/// It reads again what it has moved, so copies are done one after another.
#[test]
fn copies_of_a_resize_are_not_apart() {
    let start = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).build());
    assert!(!grow(300 * BLOCK)(&start).unwrap().copies_are_apart());
}

#[test]
fn a_disk_may_be_given_the_size_that_it_has() {
    let start = start(Spec::new(3, &[(2, 0xff)]).build());
    let old = image(&start).unwrap();
    let size = 3 * BLOCK;
    let all: [&MakePlan<'_>; 3] = [
        &|files| Ok(Box::new(resize_in_table(files, size)?)),
        &|files| Ok(Box::new(shrink(files, size)?)),
        &|files| resize(files, size),
    ];
    for make in all {
        let mut storage = start.clone();
        run(&mut storage, make).unwrap();
        assert_eq!(storage, start);
        assert_eq!(image(&storage).unwrap(), old);
    }
}

#[test]
fn a_block_right_behind_the_new_metadata_stays() {
    // A table of two sectors ends where the first block starts.
    let start = start(Spec::new(128, &[(0, 0xff), (127, 0x81)]).build());
    let new = image(&start).unwrap().resized(129 * BLOCK);
    let recording = law::record(&start, &grow(129 * BLOCK));
    let moved = |step: &&Step| matches!(step, Step::Copy { to: File::Image, .. });
    assert_eq!(recording.steps().iter().find(moved), None);
    assert_eq!(image(&recording.end()), Ok(new));
}

/// What is in the batmap's header goes along with it: without the hash of its key, an encrypted
/// disk would be served as it is stored.
#[test]
fn a_disk_whose_table_grows_keeps_its_marker_and_its_key() {
    let mut storage = start(Spec::new(3, &[(2, 0xff), (0, 0x81)]).encrypted().build());
    let new = image(&storage).unwrap().resized(300 * BLOCK);
    run(&mut storage, |files| Ok(Box::new(set_marker(files, 77)?))).unwrap();
    run(&mut storage, grow(300 * BLOCK)).unwrap();
    assert_eq!(image(&storage), Ok(new));
    let bytes = storage.bytes(File::Image).unwrap().to_vec();
    let grown = Image::load(&bytes, LoadOptions::default()).unwrap();
    let header = grown.batmap_header().unwrap().unwrap();
    assert_eq!((header.marker, header.keyhash), (77, Some(keyhash(1))));
}

/// The checksum covers a byte for each 16 MiB, whole sectors: at 8208 MiB one more.
#[test]
fn a_batmap_stays_whole_when_its_checksum_covers_more_of_it_and_less() {
    let [small, large] = [8206 << 20, 8208 << 20];
    let spec = vhd::testing::Spec { table_entries: 4200, ..vhd::testing::Spec::new(small) };
    let mut bytes = spec.make();
    // Rubbish behind the bits that the checksum covers.
    let map = Image::load(&bytes, LoadOptions::default()).unwrap().batmap_header().unwrap();
    let behind = usize::try_from(map.unwrap().offset).unwrap() + 512;
    bytes[behind..behind + 13].fill(0xff);
    let mut storage = start(bytes);
    let covered = |storage: &Storage| {
        let bytes = storage.bytes(File::Image).unwrap().to_vec();
        let image = Image::load(&bytes, LoadOptions::default()).unwrap();
        image.batmap().map(|batmap| batmap.unwrap().map.len())
    };
    assert_eq!(covered(&storage), Ok(512));
    run(&mut storage, |files| Ok(Box::new(resize_in_table(files, large)?))).unwrap();
    assert_eq!(covered(&storage), Ok(1024));
    run(&mut storage, |files| Ok(Box::new(shrink(files, small)?))).unwrap();
    assert_eq!(covered(&storage), Ok(512));
}

/// An image of the parts of another creator: header at 4096, table at 8192, blocks behind it.
fn of_microsoft() -> vhd::testing::Spec {
    let creator = vhd::testing::Creator::Microsoft;
    let block_size = vhd::header::BlockSize::new(4096).expect("a power of two");
    let parent = Some((PARENT_UUID, "./parent.vhd".to_owned()));
    let spec = vhd::testing::Spec::new(3 * BLOCK).with(0, 8, 1).with(17, 2, 2);
    vhd::testing::Spec { creator, block_size, parent, ..spec }
}

/// With one more locator, in its last entry.
fn with_locator(mut bytes: Vec<u8>, header_at: usize, locator: Locator) -> Vec<u8> {
    let place = &mut bytes[header_at..header_at + 1024];
    let mut header =
        Header::parse(place[..].first_chunk().expect("a header")).expect("a whole one");
    header.locators[7] = locator;
    place.copy_from_slice(&header.emit());
    bytes
}

fn locators(storage: &Storage) -> [Locator; 8] {
    let bytes = storage.bytes(File::Image).expect("it is there").to_vec();
    let image = Image::load(&bytes, LoadOptions::default()).expect("it was made well");
    image.header().expect("a dynamic one").locators
}

#[test]
fn a_locator_in_front_of_the_table_stays_where_it_is_and_others_go_behind_it() {
    let text = locator::encode(Platform::MacX, "./parent.vhd");
    let length = u32::try_from(text.len()).unwrap();
    let front = Locator { platform: Platform::MacX, space: 512, length, reserved: 0, offset: 6144 };
    let mut bytes = with_locator(of_microsoft().make(), 4096, front);
    bytes[6144..6144 + text.len()].copy_from_slice(&text);
    let mut storage = start(bytes);
    let new = image(&storage).unwrap().resized(300 * BLOCK);
    let before = locators(&storage);
    run(&mut storage, grow(300 * BLOCK)).unwrap();
    assert_eq!(image(&storage), Ok(new));
    let after = locators(&storage);
    assert_eq!(after[7], front);
    // A table of 300 entries has three sectors.
    for (one, other) in before.iter().zip(&after).filter(|(one, _)| one.offset > 8192) {
        assert!(other.offset >= 8192 + 3 * 512 && other.length == one.length, "{other:?}");
    }
    assert_eq!(&storage.bytes(File::Image).unwrap()[6144..][..text.len()], text);
}

#[test]
fn a_header_behind_its_table_is_in_the_way_of_a_table_that_grows() {
    let mut bytes = Spec { slack: 1024, ..Spec::new(3, &[(2, 0xff)]) }.build();
    let end = bytes.len() - 512;
    bytes.copy_within(512..1536, end - 1024);
    let mut footer = Footer::parse(bytes[..512].try_into().unwrap()).unwrap();
    footer.data_offset = u64::try_from(end - 1024).unwrap();
    bytes[..512].copy_from_slice(&footer.emit());
    bytes[end..].copy_from_slice(&footer.emit());
    let mut storage = start(bytes);
    let before = storage.clone();
    let error = run(&mut storage, grow(300 * BLOCK)).unwrap_err();
    assert_eq!(error.errno(), 22);
    assert!(error.to_string().contains("offset of the header"), "{error}");
    assert_eq!(storage, before);
}

#[test]
fn the_largest_text_of_a_locator_is_moved_and_no_larger_one() {
    for (space, is_fine) in [(1 << 16, true), ((1 << 16) + 512, false)] {
        let spec = Spec { slack: u64::from(space), ..Spec::new(3, &[(2, 0xff)]).child() };
        let bytes = spec.build();
        let offset = u64::try_from(bytes.len()).unwrap() - 512 - u64::from(space);
        let large = Locator { platform: Platform::MacX, space, length: 9, reserved: 0, offset };
        let mut bytes = with_locator(bytes, 512, large);
        bytes[usize::try_from(offset).unwrap()..][..9].copy_from_slice(b"file://ab");
        let mut storage = start(bytes);
        let before = storage.clone();
        let result = run(&mut storage, grow(300 * BLOCK));
        assert_eq!(result.is_ok(), is_fine, "{space}: {result:?}");
        if is_fine {
            let moved = usize::try_from(locators(&storage)[7].offset).unwrap();
            assert_eq!(&storage.bytes(File::Image).unwrap()[moved..][..9], b"file://ab");
        } else {
            assert_eq!(storage, before);
        }
    }
}

#[test]
fn a_batmap_in_which_nothing_changes_is_not_written() {
    let start = start(Spec { entries: 9, ..Spec::new(5, &[(0, 0xff)]) }.build());
    for size in [5, 9] {
        let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(resize_in_table(files, size * BLOCK)?))
        };
        let recording = law::record(&start, &make);
        let places = recording.steps().iter().filter_map(|step| match step {
            Step::Write { offset, .. } => Some(*offset),
            _ => None,
        });
        // Footers only.
        assert!(places.into_iter().all(|offset| offset == 0 || offset > 3072), "{size} blocks");
    }
}
