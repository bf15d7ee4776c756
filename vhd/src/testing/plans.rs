//! All plans at once, of files that may be anything.

use crate::plan::coalesce::coalesce;
use crate::plan::compact::compact;
use crate::plan::fill::fill;
use crate::plan::memory::{MakePlan, Storage};
use crate::plan::modify::{NewParent, modify_parent, modify_size, modify_zero};
use crate::plan::repair::{RepairOptions, repair};
use crate::plan::resize::{resize, resize_in_table, shrink};
use crate::plan::revert::revert;
use crate::plan::set::{set_hidden, set_keyhash, set_marker};
use crate::plan::{PIECE_BYTES_MAX, Plan, Step};
use crate::units::{Timestamp, Uuid};

/// A plan for a disk of 2 TiB has millions of steps; what is wrong shows early.
const STEPS_MAX: usize = 2000;

/// Makes and goes through every plan without performing it: a place far behind the end would take
/// all memory there is.
///
/// # Panics
/// A step moves more than a piece.
pub fn go_through_all(storage: &Storage, size: u64) {
    let name = NewParent {
        name: "parent.vhd",
        path: "./parent.vhd",
        uuid: Uuid([3; 16]),
        timestamp: Timestamp(1),
    };
    let options = RepairOptions { by_copy: false, new_uuid: Uuid([4; 16]) };
    let boxed = |steps| Box::new(steps) as Box<dyn Plan>;
    let plans: [&MakePlan<'_>; 16] = [
        &|files| Ok(Box::new(coalesce(files, None)?)),
        &|files| Ok(Box::new(coalesce(files, Some(&|_| true))?)),
        &|files| Ok(Box::new(compact(files)?)),
        &|files| fill(files, None, None),
        &|files| fill(files, None, Some(&|_| true)),
        &|files| modify_parent(files, &name).map(boxed),
        &|files| modify_size(files, size).map(boxed),
        &|files| modify_zero(files).map(boxed),
        &|files| repair(files, options),
        &|files| resize(files, size),
        &|files| resize_in_table(files, size).map(boxed),
        &|files| shrink(files, size).map(boxed),
        &|files| set_hidden(files, 1),
        &|files| set_keyhash(files, None).map(boxed),
        &|files| set_marker(files, 1).map(boxed),
        &|files| revert(files),
    ];
    for make in plans {
        let Ok(mut plan) = make(storage) else { continue };
        for _ in 0..STEPS_MAX {
            match plan.next(storage) {
                Ok(Some(Step::Write { bytes, .. })) => {
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    assert!(length <= PIECE_BYTES_MAX);
                }
                Ok(Some(Step::Copy { length, .. })) => assert!(length <= PIECE_BYTES_MAX),
                Ok(Some(Step::Code { there, length, .. })) => {
                    assert!(there <= length && length <= PIECE_BYTES_MAX);
                    assert!(length.is_multiple_of(512), "whole sectors are coded");
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
}
