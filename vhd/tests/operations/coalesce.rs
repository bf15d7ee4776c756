//! Coalesce, into VHDs and raw images.

use vhd::header::BlockSize;
use vhd::plan::coalesce::coalesce;
use vhd::plan::memory::{MakePlan, Storage};
use vhd::plan::{File, Files, Opens, Plan};
use vhd::testing;

use crate::image::{BLOCK, Spec, content, crafted_footer, fixed, keyhash, opens, set_size};
use crate::law::{self, run};
use crate::view::{self, View};

const PARENT: File = File::Ancestor(0);

fn plan(files: &dyn Files) -> vhd::Result<Box<dyn Plan>> {
    Ok(Box::new(coalesce(files, None)?))
}

fn pair(child: &Spec, parent: Vec<u8>) -> Storage {
    Storage::default().with(File::Image, child.clone().child().build()).with(PARENT, parent)
}

/// A child over a raw image: it knows no UUID.
fn over_raw(child: &Spec, raw: Vec<u8>) -> Storage {
    let raw_parent = Some(("./parent.raw".to_owned(), vhd::units::Uuid::NIL));
    let child = Spec { parent: raw_parent, ..child.clone() }.build();
    Storage::default().with(File::Image, child).with(PARENT, raw)
}

fn parent_view(storage: &Storage) -> Result<View, String> {
    let bytes = storage.bytes(PARENT).ok_or("no parent")?;
    if is_vhd(storage) {
        return view::view(bytes, None);
    }
    Ok(View { size: bytes.len() as u64, data: bytes.to_vec() })
}

/// Raw parents here are full of something else.
fn is_vhd(storage: &Storage) -> bool {
    let bytes = storage.bytes(PARENT).unwrap_or_default();
    bytes.starts_with(b"conectix") || bytes[bytes.len() - 512..].starts_with(b"conectix")
}

/// Raw parents are in no key, whatever their child is in.
fn is_keyed(storage: &Storage) -> bool {
    let map = 1536 + 512 + 29;
    storage.bytes(File::Image).and_then(|bytes| bytes.get(map)) == Some(&1)
}

fn child_view(storage: &Storage) -> Result<View, String> {
    let below = parent_view(storage)?;
    view::view(storage.bytes(File::Image).ok_or("no child")?, Some(&below))
}

/// The child never notices; run again, the parent holds what the child does, and is clean.
fn unnoticed(state: &Storage, before: &View) -> Result<(), String> {
    if child_view(state)? != *before {
        return Err("the child noticed".into());
    }
    let mut state = state.clone();
    let key: Opens<'_> = if is_keyed(&state) { Some(&opens) } else { None };
    let again = run(&mut state, |files| Ok(Box::new(coalesce(files, key)?)));
    again.map_err(|error| format!("run again: {error}"))?;
    let after = parent_view(&state)?;
    if after.data[..before.data.len().min(after.data.len())] != before.data[..] {
        return Err("the parent does not hold what the child does".into());
    }
    law::repaired(state.bytes(PARENT).expect("it was read"))
}

#[test]
fn a_coalesce_into_a_vhd_is_unnoticed_at_every_cut() {
    let child = Spec::new(6, &[(4, 0xff), (1, 0x3c), (3, 0x18), (0, 0x80)]);
    let parent = Spec::new(6, &[(5, 0xff), (1, 0x81), (0, 0xff)]).to_be_parent();
    for (name, parent) in [
        ("coalesce", parent.clone()),
        ("coalesce into a differencing parent", parent.clone().child()),
        ("coalesce into a parent with slack", Spec { slack: 3 * BLOCK, ..parent.clone() }),
        ("coalesce into a parent without batmap", Spec { has_batmap: false, ..parent }),
    ] {
        let start = pair(&child, parent.build());
        let before = child_view(&start).unwrap();
        let law = |state: &Storage| unnoticed(state, &before);
        let recording = law::record(&start, &plan);
        law::holds_at_every_cut(name, &recording, &law);
        law::holds_after_every_error(name, &start, &plan, &law);
    }
}

/// A child and a parent that holds rubbish wherever nothing refers to, and the same with a footer
/// of the parent in the last sector that is copied.
fn hostile() -> [Storage; 2] {
    let child = Spec::new(6, &[(4, 0xff), (1, 0x3c)]).child().build();
    let spec = Spec::new(6, &[(5, 0xff), (1, 0x81)]).to_be_parent();
    let mut crafted = child.clone();
    let sector = 15 + 8;
    crafted[sector * 512..][..512].copy_from_slice(&crafted_footer(&spec.build()));
    let mut rubbish = Spec { slack: 2 * BLOCK, ..spec.clone() }.build();
    let (block, end) = ((15 + 1) * 512, rubbish.len() - 512);
    rubbish[block + 512..block + 7 * 512].fill(0xee);
    rubbish[block + 8 * 512..end].fill(0xee);
    let storage = |child, parent| Storage::default().with(File::Image, child).with(PARENT, parent);
    [storage(child, rubbish), storage(crafted, spec.build())]
}

#[test]
fn every_barrier_of_a_coalesce_is_needed() {
    let all = hostile().map(|start| {
        let before = child_view(&start).unwrap();
        let old = parent_view(&start).unwrap();
        // The parent, seen alone, holds what it held or what the child holds.
        let law = law::boxed(move |state: &Storage| {
            unnoticed(state, &before)?;
            let now = parent_view(state)?;
            let sectors = [&now, &old, &before].map(|view| view.data.chunks(512));
            let [now, old, new] = sectors;
            let is_known = |((now, old), new): ((&[u8], &[u8]), &[u8])| now == old || now == new;
            if !now.zip(old).zip(new).all(is_known) {
                return Err("a sector of the parent is neither old nor new".into());
            }
            view::hints(state.bytes(PARENT).expect("it was read"))
        });
        let recording = law::record(&start, &plan);
        law::holds_at_every_cut("coalesce, seen from the parent", &recording, &law);
        (recording, law)
    });
    // With space before it the footer need not move first; the lack of the barrier behind the data
    // shows only where places hold rubbish.
    let idle = all.map(|one| law::idle_barriers(&[one]));
    assert_eq!(idle, [(3, vec![]), (4, vec![1])]);
}

#[test]
fn a_coalesce_counts_what_it_copied() {
    let child = Spec::new(6, &[(4, 0xff), (1, 0x3c), (3, 0)]);
    let mut storage = pair(&child, Spec::new(6, &[]).to_be_parent().build());
    let mut plan = coalesce(&storage, None).unwrap();
    storage.run(&mut plan).unwrap();
    assert_eq!(plan.sectors(), 12);
    assert_eq!((plan.progress().done, plan.progress().total), (6, 6));
}

#[test]
fn a_coalesce_into_a_raw_image_is_unnoticed_at_every_cut() {
    let child = Spec::new(4, &[(2, 0x3f), (1, 0x3c), (3, 0)]);
    let opens: Opens<'_> = Some(&opens);
    for (name, sectors, child, key) in [
        ("coalesce into raw", 32, child.clone(), None),
        ("coalesce into a shorter raw", 9, child.clone(), None),
        ("coalesce, encrypted, into raw", 32, child.clone().encrypted(), opens),
        ("coalesce, encrypted, into a shorter raw", 9, child.encrypted(), opens),
    ] {
        let raw = (0..sectors).flat_map(|sector| content(b'R', 0, sector)).collect();
        let start = over_raw(&child, raw);
        let before = child_view(&start).unwrap();
        let plan = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(coalesce(files, key)?))
        };
        let law = |state: &Storage| {
            // A raw parent that became longer is longer by zeros; the child sees no difference.
            if child_view(state)? != before {
                return Err("the child noticed".into());
            }
            let mut state = state.clone();
            run(&mut state, plan).map_err(|error| error.to_string())?;
            let after = parent_view(&state)?;
            let common = after.data.len().min(before.data.len());
            let rest = &before.data[common..];
            if after.data[..common] != before.data[..common] || rest.iter().any(|byte| *byte != 0) {
                return Err("the parent does not hold what the child does".into());
            }
            Ok(())
        };
        law::holds_at_every_cut(name, &law::record(&start, &plan), &law);
        law::holds_after_every_error(name, &start, &plan, &law);
    }
}

#[test]
fn a_coalesce_into_a_fixed_parent_stays_in_front_of_its_footer() {
    let child = Spec::new(1, &[(0, 0x3c)]);
    let mut parent = fixed(8);
    let at = parent.len() - 512;
    let mut footer = vhd::footer::Footer::parse(parent[at..].try_into().unwrap()).unwrap();
    footer.uuid = crate::image::PARENT_UUID;
    parent[at..].copy_from_slice(&footer.emit());
    let mut storage = pair(&child, parent.clone());
    let before = child_view(&storage).unwrap();
    run(&mut storage, plan).unwrap();
    assert_eq!(parent_view(&storage), Ok(before));
    assert_eq!(storage.bytes(PARENT).unwrap()[at..], parent[at..]);
}

#[test]
fn rejects_data_past_the_end_of_the_parent_before_the_first_write() {
    let child = Spec::new(6, &[(5, 1), (0, 0xff)]);
    let mut storage = pair(&child, Spec::new(5, &[(0, 1)]).to_be_parent().build());
    let before = storage.clone();
    let error = run(&mut storage, plan).unwrap_err();
    let (found, size) = ((5 * 8 + 7) * 512, 5 * BLOCK);
    assert_eq!((error.errno(), error.kind()), (34, &vhd::ErrorKind::PastEnd { found, size }));
    assert_eq!(storage, before);
    let child = Spec::new(6, &[(5, 0), (0, 0xff)]);
    let mut storage = pair(&child, Spec::new(5, &[(0, 1)]).to_be_parent().build());
    assert_eq!(run(&mut storage, plan), Ok(()));
}

/// A run of sectors that begins in front of the parent's end is past it from there on.
#[test]
fn data_up_to_the_end_of_a_parent_that_ends_inside_a_block_is_merged() {
    let size = 5 * BLOCK + 3 * 512;
    let parent = || {
        let mut parent = Spec::new(6, &[(0, 1)]).to_be_parent().build();
        set_size(&mut parent, size);
        parent
    };
    let mut storage = pair(&Spec::new(6, &[(5, 0xe0), (0, 0xff)]), parent());
    let before = child_view(&storage).unwrap();
    assert_eq!(run(&mut storage, plan), Ok(()));
    let after = parent_view(&storage).unwrap();
    assert_eq!(after.data[..], before.data[..usize::try_from(size).unwrap()]);
    let mut storage = pair(&Spec::new(6, &[(5, 0xf0)]), parent());
    let error = run(&mut storage, plan).unwrap_err();
    assert_eq!(error.kind(), &vhd::ErrorKind::PastEnd { found: size, size });
}

#[test]
fn what_a_block_holds_past_the_end_of_its_disk_is_not_merged() {
    let mut child = Spec::new(3, &[(2, 0xff), (0, 0x81)]).child().build();
    set_size(&mut child, 2 * BLOCK + 4 * 512);
    let parent = Spec::new(3, &[(2, 0x03)]).to_be_parent().build();
    let mut storage = Storage::default().with(File::Image, child).with(PARENT, parent);
    let old = parent_view(&storage).unwrap();
    let mut plan = coalesce(&storage, None).unwrap();
    storage.run(&mut plan).unwrap();
    assert_eq!(plan.sectors(), 2 + 4);
    let (end, after) = ((2 * 8 + 4) * 512, parent_view(&storage).unwrap());
    assert_eq!(after.data[end..], old.data[end..]);
}

/// The executor writes a piece while it reads the next one: nothing of that is read again.
#[test]
fn what_is_copied_is_nowhere_read_from_where_it_was_written() {
    let start = pair(&Spec::new(2, &[(0, 0xff)]), Spec::new(2, &[]).to_be_parent().build());
    assert!(coalesce(&start, None).unwrap().copies_are_apart());
    let recording = law::record(&start, &plan);
    for step in recording.steps() {
        if let vhd::plan::Step::Copy { from, to, .. } = step {
            assert_eq!((*from, *to), (File::Image, PARENT));
        }
    }
}

/// Sectors of large blocks go into several small ones, and those of small ones into a large one.
#[test]
fn blocks_of_another_size_are_merged_sector_by_sector_at_every_cut() {
    let spec = |exponent: u32| testing::Spec {
        block_size: BlockSize::new(1 << exponent).unwrap(),
        ..testing::Spec::new(40 * 1024)
    };
    for (name, child, parent) in
        [("coalesce into smaller blocks", 14, 12), ("coalesce into larger blocks", 12, 14)]
    {
        let parent = spec(parent).with(30, 20, b'P').with(0, 3, b'Q');
        // No two sectors are alike: each must come from its own place.
        let own = (5..22).chain([33]).chain(62..73);
        let with = |spec: testing::Spec, sector: u8| spec.with(sector.into(), 1, 100 + sector);
        let child = own.fold(spec(child), with);
        let parent = testing::Spec { uuid: crate::image::PARENT_UUID, ..parent };
        let child =
            testing::Spec { parent: Some((parent.uuid, "./parent.vhd".to_owned())), ..child };
        let start = Storage::default().with(File::Image, child.make()).with(PARENT, parent.make());
        let before = child_view(&start).unwrap();
        let law = |state: &Storage| unnoticed(state, &before);
        law::holds_at_every_cut(name, &law::record(&start, &plan), &law);
        law::holds_after_every_error(name, &start, &plan, &law);
    }
}

#[test]
fn a_new_block_that_gets_all_its_sectors_is_not_zeroed_first() {
    let start = pair(&Spec::new(2, &[(0, 0xff)]), Spec::new(2, &[]).to_be_parent().build());
    let recording = law::record(&start, &plan);
    let is_zero = |step: &vhd::plan::Step| matches!(step, vhd::plan::Step::Zero { .. });
    assert!(!recording.steps().iter().any(is_zero));
}

#[test]
fn the_file_of_a_parent_with_free_space_ends_behind_its_last_block() {
    let parent = Spec { slack: 3 * BLOCK, ..Spec::new(6, &[(5, 0xff)]) }.to_be_parent();
    let mut storage = pair(&Spec::new(6, &[(1, 0x3c)]), parent.build());
    run(&mut storage, plan).unwrap();
    let bytes = storage.bytes(PARENT).unwrap();
    let entry = |block: usize| {
        let word = bytes[1536 + 4 * block..][..4].try_into().unwrap();
        usize::try_from(u32::from_be_bytes(word)).unwrap()
    };
    let last = entry(1).max(entry(5));
    assert_eq!(bytes.len(), (last + 9) * 512 + 512);
}

#[test]
fn rejects_what_is_no_child_of_this_parent() {
    let dynamic = Storage::default().with(File::Image, Spec::new(2, &[]).build());
    assert_eq!(run(&mut dynamic.clone(), plan).unwrap_err().errno(), 22);
    let mut stranger = pair(&Spec::new(2, &[]), Spec::new(2, &[]).build());
    let error = run(&mut stranger, plan).unwrap_err();
    assert!(matches!(error.kind(), vhd::ErrorKind::ParentUuid { .. }), "{error}");
    let mut orphan = Storage::default().with(File::Image, Spec::new(2, &[]).child().build());
    assert_eq!(run(&mut orphan, plan).unwrap_err().errno(), 2);
}

#[test]
fn a_device_without_room_is_refused_before_the_first_write() {
    let child = Spec::new(6, &[(5, 1), (0, 0xff)]);
    let parent = |blocks: u64| {
        let slack = blocks * (BLOCK + 4096);
        Spec { slack, ..Spec::new(6, &[(2, 0xff)]) }.to_be_parent().build()
    };
    let image = child.child().build();
    let storage = |parent: Vec<u8>| {
        Storage::default().with(File::Image, image.clone()).with_device(PARENT, parent)
    };
    let mut small = storage(parent(1));
    let before = small.clone();
    assert_eq!(run(&mut small, plan).unwrap_err().errno(), 28);
    assert_eq!(small, before);
    let mut large = storage(parent(2));
    let wanted = child_view(&large).unwrap();
    run(&mut large, plan).unwrap();
    assert_eq!(parent_view(&large), Ok(wanted));
}

#[test]
fn new_blocks_of_a_dynamic_parent_are_zero_where_nothing_was_copied() {
    let child = Spec::new(6, &[(5, 1)]);
    let mut parent = Spec { slack: 3 * BLOCK, ..Spec::new(6, &[]) }.to_be_parent().build();
    let (start, end) = (3072, parent.len() - 512);
    parent[start..end].fill(0xee);
    let image = child.child().build();
    let mut storage = Storage::default().with(File::Image, image).with_device(PARENT, parent);
    run(&mut storage, plan).unwrap();
    let after = storage.bytes(PARENT).unwrap();
    // QEMU reads all of a block that is in the table.
    assert!(after[4096..4096 + 7 * 512].iter().all(|byte| *byte == 0));
}

#[test]
fn many_blocks_take_many_batches_of_bounded_size() {
    let all: Vec<(u32, u8)> = (0..200).map(|block| (block, 0xff)).collect();
    let start = pair(&Spec::new(200, &all), Spec::new(200, &[]).to_be_parent().build());
    let before = child_view(&start).unwrap();
    let recording = law::record(&start, &plan);
    // The footer, 200 blocks in batches of 64, the end, and the batmap.
    assert_eq!(recording.barriers(), 1 + 3 + 1 + 1 + 1);
    assert_eq!(parent_view(&recording.end()), Ok(before));
}

/// What is in the key goes as it is into a parent that has it: with another nonce only whoever has
/// the key can tell.
#[test]
fn a_coalesce_in_a_key_is_unnoticed_at_every_cut() {
    let child = Spec::new(6, &[(4, 0xff), (1, 0x3c), (3, 0x18), (0, 0x80)]).encrypted();
    let parent = Spec::new(6, &[(5, 0xff), (1, 0x81), (0, 0xff)]).to_be_parent();
    let other_nonce = Spec { keyhash: Some(keyhash(2)), ..parent.clone() };
    let with_key = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
        Ok(Box::new(coalesce(files, Some(&opens))?))
    };
    let make: [(_, _, &MakePlan<'_>); 2] = [
        ("coalesce, encrypted", parent.encrypted(), &plan),
        ("coalesce, encrypted, another nonce", other_nonce, &with_key),
    ];
    for (name, parent, make) in make {
        let start = pair(&child, parent.build());
        let before = child_view(&start).unwrap();
        let law = |state: &Storage| unnoticed(state, &before);
        law::holds_at_every_cut(name, &law::record(&start, make), &law);
        law::holds_after_every_error(name, &start, make, &law);
    }
}

#[test]
fn a_coalesce_leaves_a_parent_in_its_key_or_in_none() {
    let errno = |start: &Storage, key: Opens<'_>| {
        let mut storage = start.clone();
        let done = run(&mut storage, |files| Ok(Box::new(coalesce(files, key)?)));
        assert!(done.is_ok() || storage == *start, "nothing was written");
        done.map_or_else(|error| error.errno(), |()| 0)
    };
    let [ok, eacces, einval] = [0, 13, 22];
    let child = |spec: fn(Spec) -> Spec| spec(Spec::new(2, &[(1, 0x3c)]));
    let parent = |spec: fn(Spec) -> Spec| spec(Spec::new(2, &[(0, 0xff)]).to_be_parent());
    let plain: fn(Spec) -> Spec = |it| it;
    let encrypted: fn(Spec) -> Spec = Spec::encrypted;
    let other: fn(Spec) -> Spec = |it| Spec { keyhash: Some(keyhash(2)), ..it };
    let all = [
        // The child, its parent; the errno without a key, with the key, with another one.
        (plain, plain, [ok, einval, einval]),
        (encrypted, encrypted, [ok, ok, einval]),
        (encrypted, other, [eacces, ok, einval]),
        (encrypted, plain, [einval, einval, einval]),
        (plain, encrypted, [einval, einval, einval]),
    ];
    for (number, (one, other, wanted)) in all.into_iter().enumerate() {
        let start = pair(&child(one), parent(other).build());
        let keys: [Opens<'_>; 3] = [None, Some(&opens), Some(&|_| false)];
        assert_eq!(keys.map(|key| errno(&start, key)), wanted, "{number}");
    }
    // A raw parent is in no key: the child's data are decrypted.
    let start = over_raw(&child(encrypted), vec![1; 16 * 512]);
    assert_eq!(errno(&start, None), eacces);
    assert_eq!(errno(&start, Some(&|_| false)), einval);
    assert_eq!(errno(&start, Some(&opens)), ok);
    assert_eq!(errno(&over_raw(&child(plain), vec![1; 16 * 512]), Some(&opens)), einval);
}
