//! Offline operations on a foreign image, with a foreign parent and a foreign journal: never a
//! panic, no step larger than a piece, nothing from behind the end of what is there.
#![no_main]

use tapdisk_fuzz as _;
use vhd::plan::coalesce::coalesce;
use vhd::plan::compact::compact;
use vhd::plan::fill::fill;
use vhd::plan::memory::{MakePlan, Storage};
use vhd::plan::modify::{NewParent, modify_parent, modify_size, modify_zero};
use vhd::plan::repair::{RepairOptions, repair};
use vhd::plan::resize::{resize, resize_in_table, shrink};
use vhd::plan::revert::revert;
use vhd::plan::set::{set_hidden, set_marker};
use vhd::plan::{File, PIECE_BYTES_MAX, Plan, Step};
use vhd::units::{Timestamp, Uuid};

/// A plan for a disk of 2 TiB has millions; what is wrong shows early.
const STEPS_MAX: usize = 2000;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(([first, second, size_low, size_high], files)) = input.split_first_chunk() else {
        return;
    };
    // In units of 128 bytes, so that two bytes reach everywhere.
    let (image, rest) = files.split_at((usize::from(*first) << 7).min(files.len()));
    let (parent, journal) = rest.split_at((usize::from(*second) << 7).min(rest.len()));
    let storage = Storage::default()
        .with(File::Image, image.to_vec())
        .with(File::Ancestor(0), parent.to_vec())
        .with(File::Journal, journal.to_vec());
    let size = u64::from(u16::from_be_bytes([*size_high, *size_low])) << 9;
    let name = NewParent {
        name: "parent.vhd",
        path: "./parent.vhd",
        uuid: Uuid([3; 16]),
        timestamp: Timestamp(1),
    };
    let options = RepairOptions { by_copy: false, new_uuid: Uuid([4; 16]) };
    let boxed = |steps| Box::new(steps) as Box<dyn Plan>;
    let plans: [&MakePlan<'_>; 13] = [
        &|files| Ok(Box::new(coalesce(files)?)),
        &|files| Ok(Box::new(compact(files)?)),
        &|files| fill(files, None),
        &|files| modify_parent(files, &name).map(boxed),
        &|files| modify_size(files, size).map(boxed),
        &|files| modify_zero(files).map(boxed),
        &|files| repair(files, options),
        &|files| resize(files, size),
        &|files| resize_in_table(files, size).map(boxed),
        &|files| shrink(files, size).map(boxed),
        &|files| set_hidden(files, 1),
        &|files| set_marker(files, 1).map(boxed),
        &|files| revert(files),
    ];
    for make in plans {
        let Ok(mut plan) = make(&storage) else { continue };
        // Nothing is performed: a place far behind the end would take all memory there is.
        for _ in 0..STEPS_MAX {
            match plan.next(&storage) {
                Ok(Some(Step::Write { bytes, .. })) => {
                    assert!(bytes.len() as u64 <= PIECE_BYTES_MAX);
                }
                Ok(Some(Step::Copy { length, .. })) => assert!(length <= PIECE_BYTES_MAX),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
});
