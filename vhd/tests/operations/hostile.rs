//! Images, parents and journals that somebody has damaged on purpose.

use proptest::prelude::*;
use vhd::error::ErrorKind;
use vhd::plan::memory::Storage;
use vhd::plan::modify::modify_zero;
use vhd::plan::resize::resize;
use vhd::plan::{File, Step};
use vhd::testing::{go_through_all, mend};

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
    if repair_checksums {
        mend(bytes);
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

/// Otherwise what an operation writes into a block would say where the blocks are.
#[test]
fn refuses_blocks_that_lie_over_metadata() {
    let spec = Spec::new(6, &[(4, 0xff)]);
    let sound = spec.build();
    // The table, its batmap and the header; the entry of block 4.
    for place in [1_u32, 2, 3, 4, 5] {
        let mut file = sound.clone();
        file[1536 + 16..][..4].copy_from_slice(&place.to_be_bytes());
        let storage = Storage::default().with(File::Image, file);
        let error = modify_zero(&storage).expect_err("a block over metadata");
        assert!(matches!(error.kind(), ErrorKind::Overlap { .. }), "sector {place}: {error}");
    }
    assert!(modify_zero(&Storage::default().with(File::Image, sound)).is_ok());
}

/// A disk that was made smaller leaves them.
#[test]
fn an_entry_past_the_end_of_the_disk_means_nothing() {
    let mut file = Spec { entries: 9, ..Spec::new(6, &[(4, 0xff)]) }.build();
    file[1536 + 6 * 4..][..4].copy_from_slice(&1_u32.to_be_bytes());
    let storage = Storage::default().with(File::Image, file);
    assert!(modify_zero(&storage).is_ok());
}
