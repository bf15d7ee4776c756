//! Images, parents and journals that somebody has damaged on purpose.

use proptest::prelude::*;
use vhd::plan::coalesce::coalesce;
use vhd::plan::compact::compact;
use vhd::plan::fill::fill;
use vhd::plan::memory::{MakePlan, Storage};
use vhd::plan::modify::{NewParent, modify_parent, modify_size, modify_zero};
use vhd::plan::repair::{RepairOptions, repair};
use vhd::plan::resize::{resize, resize_in_table, shrink};
use vhd::plan::revert::revert;
use vhd::plan::set::{set_hidden, set_keyhash, set_marker};
use vhd::plan::{File, PIECE_BYTES_MAX, Plan, Step};
use vhd::units::{Timestamp, Uuid};

use crate::image::{BLOCK, Spec, fixed};
use crate::law;

/// A whole child with its parent, a fixed disk, and a resize with its journal that was interrupted.
fn storages() -> Vec<Storage> {
    let spec = Spec::new(6, &[(4, 0xff), (1, 0x3c), (0, 0x80)]);
    let pair = Storage::default()
        .with(File::Image, spec.clone().child().build())
        .with(File::Ancestor(0), spec.to_be_parent().build());
    let start = Storage::default().with(File::Image, spec.build());
    let recording = law::record(&start, &|files| resize(files, 300 * BLOCK));
    let steps = recording.steps();
    let is_point = |step: &Step| matches!(step, Step::Reached(_));
    let poisoned = steps.iter().position(is_point).expect("a resize has points with names");
    let mut interrupted = start;
    steps[..poisoned].iter().for_each(|step| interrupted.perform(step));
    vec![pair, Storage::default().with(File::Image, fixed(8)), interrupted]
}

/// A number in the place of another, in a part whose checksum is made right again.
fn damage(bytes: &mut [u8], at: usize, value: u32, repair_checksums: bool) {
    let Some(room) = bytes.get_mut(at..at + 4) else { return };
    room.copy_from_slice(&value.to_be_bytes());
    if !repair_checksums {
        return;
    }
    let end = bytes.len().saturating_sub(512);
    for (start, size, sum_at) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
        if let Some(part) = bytes.get_mut(start..start + size) {
            part[sum_at..sum_at + 4].fill(0);
            let sum = !part.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            part[sum_at..sum_at + 4].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Makes and goes through every plan without performing it: a place far behind the end would take
/// all memory there is.
fn go_through_all(storage: &Storage, size: u64) {
    let name = NewParent {
        name: "parent.vhd",
        path: "./parent.vhd",
        uuid: Uuid([3; 16]),
        timestamp: Timestamp(1),
    };
    let options = RepairOptions { by_copy: false, new_uuid: Uuid([4; 16]) };
    let boxed = |steps| Box::new(steps) as Box<dyn Plan>;
    let plans: [&MakePlan<'_>; 14] = [
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
        &|files| set_keyhash(files, None).map(boxed),
        &|files| set_marker(files, 1).map(boxed),
        &|files| revert(files),
    ];
    for make in plans {
        let Ok(mut plan) = make(storage) else { continue };
        for _ in 0..2000 {
            match plan.next(storage) {
                Ok(Some(Step::Write { bytes, .. })) => {
                    assert!(bytes.len() as u64 <= PIECE_BYTES_MAX);
                }
                Ok(Some(Step::Copy { length, .. })) => assert!(length <= PIECE_BYTES_MAX),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_a_plan_panic_or_a_step_large(
        which in 0..3_usize,
        size in prop_oneof![0..1_u64 << 22, any::<u64>()],
        damages in proptest::collection::vec(
            (
                0..3_u8,
                prop_oneof![0..3072_usize, 0..30_000_usize],
                prop_oneof![0..64_u32, any::<u32>(), Just(u32::MAX), Just(u32::MAX - 1)],
                any::<bool>(),
            ),
            1..4,
        ),
    ) {
        let mut storage = storages()[which].clone();
        for (file, at, value, repair_checksums) in damages {
            let file = [File::Image, File::Ancestor(0), File::Journal][usize::from(file)];
            let Some(bytes) = storage.bytes(file) else { continue };
            let mut bytes = bytes.to_vec();
            damage(&mut bytes, at, value, repair_checksums);
            storage = storage.with(file, bytes);
        }
        go_through_all(&storage, size);
    }
}
