//! Compact.

use vhd::plan::compact::compact;
use vhd::plan::memory::Storage;
use vhd::plan::{File, Files, Plan, Step};

use crate::image::{BLOCK, Spec};
use crate::law::{self, image, run};
use crate::view;

fn plan(files: &dyn Files) -> vhd::Result<Box<dyn Plan>> {
    Ok(Box::new(compact(files)?))
}

/// Blocks 2 and 1 hold nothing but zeros or nothing at all, 4 at the end is all zeros.
fn start() -> Storage {
    let spec = Spec::new(6, &[(2, 0xff), (0, 0x81), (1, 0), (4, 0xff)]);
    let mut bytes = spec.build();
    for first in [7, 55] {
        let data = (first + 1) * 512;
        bytes[data..data + 4096].fill(0);
    }
    Storage::default().with(File::Image, bytes)
}

#[test]
fn a_compacted_disk_is_the_same_at_every_cut() {
    let start = start();
    let old = image(&start).unwrap();
    let law = |state: &Storage| {
        if image(state)? != old {
            return Err("the disk changed".into());
        }
        view::hints(state.bytes(File::Image).expect("it was read"))?;
        law::repaired(state.bytes(File::Image).expect("it was read"))
    };
    let recording = law::record(&start, &plan);
    law::holds_at_every_cut("compact", &recording, &law);
    law::holds_after_every_error("compact", &start, &plan, &law);
    // Not seen: the table before the holes, since what leaves it was zero, and the footers before
    // the length, since the copy at the start says the same.
    assert_eq!(law::barriers_that_nobody_misses(&recording, &law), [1, 2]);
    assert_eq!(recording.barriers(), 4);
    let after = recording.end();
    let bytes = after.bytes(File::Image).unwrap();
    assert_eq!(view::check(bytes), Ok(()));
    // Block 0 is the last one: it starts at sector 23 and takes nine.
    assert_eq!(bytes.len(), (23 + 9 + 1) * 512);
    let holes: Vec<_> = recording
        .steps()
        .iter()
        .filter_map(|step| match step {
            Step::PunchHole { offset, length, .. } => Some((*offset / 512, *length / 512)),
            _ => None,
        })
        .collect();
    assert_eq!(holes, [(39, 9), (7, 9), (55, 9)]);
}

#[test]
fn a_block_of_zeros_over_a_parent_stays() {
    let mut bytes = Spec::new(2, &[(1, 0xff), (0, 0)]).child().build();
    let data = 16 * 512;
    bytes[data..data + 4096].fill(0);
    let mut storage = Storage::default().with(File::Image, bytes);
    let mut plan = compact(&storage).unwrap();
    storage.run(&mut plan).unwrap();
    assert_eq!(plan.freed_blocks(), 1);
    let entry = |block: usize| storage.bytes(File::Image).unwrap()[1536 + 4 * block];
    assert_eq!((entry(0), entry(1)), (0xff, 0));
}

#[test]
fn a_block_that_is_stored_as_zeros_in_a_key_stays() {
    let mut bytes = Spec::new(2, &[(1, 0xff), (0, 0)]).encrypted().build();
    let data = 8 * 512;
    bytes[data..data + 4096].fill(0);
    let mut storage = Storage::default().with(File::Image, bytes);
    let old = image(&storage).unwrap();
    assert!(old.data[4096..].iter().any(|byte| *byte != 0));
    run(&mut storage, plan).unwrap();
    assert_eq!(image(&storage), Ok(old));
}

#[test]
fn space_inside_a_block_is_given_back_in_whole_pages() {
    // Blocks of 2 MiB, of which page 1 and half of page 3 hold data.
    let spec = Spec::new(1, &[]);
    let mut bytes = spec.build();
    bytes.truncate(3072);
    let bits = [0x00_u8, 0xff, 0x00, 0x0f];
    let block = 7 * 512;
    bytes.resize(block + 512 + (2 << 20), 0);
    bytes[block..block + 4].copy_from_slice(&bits);
    bytes[block + 512 + 8 * 512..block + 512 + 16 * 512].fill(5);
    bytes[block + 512 + 28 * 512..block + 512 + 32 * 512].fill(6);
    bytes[1536..1540].copy_from_slice(&7_u32.to_be_bytes());
    let block_size = vhd::header::BlockSize::DEFAULT;
    let header = vhd::header::Header::new(1536, 1, block_size);
    bytes[512..1536].copy_from_slice(&header.emit());
    let mut footer = crate::image::footer_of(&bytes);
    footer.current_size = 2 << 20;
    bytes[..512].copy_from_slice(&footer.emit());
    bytes.extend(footer.emit());
    let start = Storage::default().with(File::Image, bytes);
    let old = image(&start).unwrap();
    let recording = law::record(&start, &plan);
    let holes: Vec<_> = recording
        .steps()
        .iter()
        .filter_map(|step| match step {
            Step::PunchHole { offset, length, .. } => Some(((offset - 4096) / 512, length / 512)),
            _ => None,
        })
        .collect();
    assert_eq!(holes, [(0, 8), (16, 8), (32, 4064)]);
    assert_eq!(image(&recording.end()), Ok(old));
}

#[test]
fn nothing_is_left_to_do_for_a_second_compact() {
    let mut storage = start();
    run(&mut storage, plan).unwrap();
    let again = law::record(&storage, &plan);
    assert_eq!(again.steps(), &[Step::Barrier]);
    assert!(storage.bytes(File::Image).unwrap().len() as u64 > BLOCK);
}

#[test]
fn many_blocks_leave_the_table_in_batches() {
    let all: Vec<(u32, u8)> = (0..200).map(|block| (block, 0)).collect();
    let mut storage = Storage::default().with(File::Image, Spec::new(200, &all).build());
    let mut plan = compact(&storage).unwrap();
    let recording = storage.run(&mut plan).unwrap();
    assert_eq!(plan.freed_blocks(), 200);
    assert_eq!((plan.progress().done, plan.progress().total), (200, 200));
    // The table for each batch of 64, the footers, the length.
    assert_eq!(recording.barriers(), 4 + 2);
}
