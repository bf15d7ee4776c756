//! Fill, from a chain.

use vhd::plan::fill::fill;
use vhd::plan::memory::{MakePlan, Storage};
use vhd::plan::{File, Files, Opens, Plan};

use crate::image::{BLOCK, Spec, content, crafted_footer, keyhash, opens};
use crate::law::{self, image, run};
use crate::view::{self, View};

fn plan(files: &dyn Files) -> vhd::Result<Box<dyn Plan>> {
    fill(files, None, None)
}

/// A child, over a child, over a raw image that ends in the middle of a sector. The last sector
/// that comes from the parent could be a footer of the child.
fn chain(in_key: impl Fn(Spec) -> Spec) -> Storage {
    let child = in_key(Spec::new(4, &[(3, 0x0f), (1, 0x3c)]).child()).build();
    let middle = in_key(Spec::new(3, &[(2, 0xf1), (1, 0x81)]).to_be_parent());
    let raw_parent = Some(("./raw".to_owned(), vhd::units::Uuid::NIL));
    let mut raw: Vec<u8> = (0..21).flat_map(|sector| content(b'R', 0, sector)).collect();
    raw.truncate(20 * 512 + 100);
    let mut middle = Spec { parent: raw_parent, ..middle }.build();
    let sector = 15 + 8;
    middle[sector * 512..][..512].copy_from_slice(&crafted_footer(&child));
    Storage::default()
        .with(File::Image, child)
        .with(File::Ancestor(0), middle)
        .with(File::Ancestor(1), raw)
}

fn chain_view(storage: &Storage) -> Result<View, String> {
    let bytes = |file| storage.bytes(file).ok_or("missing");
    let mut raw = bytes(File::Ancestor(1))?.to_vec();
    raw.resize(21 * 512, 0);
    let raw = View { size: 0, data: raw };
    let middle = view::view(bytes(File::Ancestor(0))?, Some(&raw))?;
    view::view(bytes(File::Image)?, Some(&middle))
}

#[test]
fn a_filled_disk_needs_no_parent_and_is_the_same_at_every_cut() {
    needs_no_parent_at_every_cut("fill", &chain(|spec| spec), &plan);
}

/// Zeros and the raw parent's sectors are encrypted, one of which has no end; what is in the key
/// already stays as it is.
#[test]
fn a_filled_disk_in_a_key_needs_no_parent_and_is_the_same_at_every_cut() {
    let plan = |files: &dyn Files| fill(files, None, Some(&opens));
    needs_no_parent_at_every_cut("fill, encrypted", &chain(Spec::encrypted), &plan);
}

fn needs_no_parent_at_every_cut(name: &str, start: &Storage, plan: &MakePlan<'_>) {
    let before = chain_view(start).expect("it opens");
    let law = |state: &Storage| {
        if chain_view(state)? != before {
            return Err("the disk changed".into());
        }
        view::hints(state.bytes(File::Image).expect("it was read"))?;
        let mut state = state.clone();
        run(&mut state, plan).map_err(|error| error.to_string())?;
        if image(&state)? != before {
            return Err("the disk needs its parent".into());
        }
        law::repaired(state.bytes(File::Image).expect("it was read"))
    };
    let recording = law::record(start, plan);
    law::holds_at_every_cut(name, &recording, &law);
    law::holds_after_every_error(name, start, plan, &law);
    let idle = law::barriers_that_nobody_misses(&recording, &law);
    assert_eq!((recording.barriers(), idle), (4, vec![]));
}

#[test]
fn a_range_fills_the_blocks_in_which_it_lies() {
    let mut storage = Storage::default().with(File::Image, Spec::new(5, &[(4, 0x18)]).build());
    let before = image(&storage).unwrap();
    run(&mut storage, |files| fill(files, Some(9..17), None)).unwrap();
    let bytes = storage.bytes(File::Image).unwrap();
    let entry =
        |block: usize| u32::from_be_bytes(bytes[1536 + block * 4..][..4].try_into().unwrap());
    let there: Vec<bool> = (0..5).map(|block| entry(block) != u32::MAX).collect();
    assert_eq!(there, [false, true, true, false, true]);
    assert_eq!(image(&storage), Ok(before));
    assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()));
    run(&mut storage, |files| fill(files, Some(0..u64::MAX), None)).unwrap();
    let length = storage.bytes(File::Image).unwrap().len() as u64;
    assert!(length >= 5 * (BLOCK + 512));
}

#[test]
fn a_fill_counts_blocks_and_reads_nothing_of_what_it_wrote() {
    let start = chain(|spec| spec);
    let mut plan = plan(&start).unwrap();
    assert!(plan.copies_are_apart());
    let progress = |plan: &dyn Plan| (plan.progress().done, plan.progress().total);
    assert_eq!(progress(plan.as_ref()), (0, 4));
    let mut storage = start;
    let recording = storage.run(plan.as_mut()).unwrap();
    assert_eq!(progress(plan.as_ref()), (4, 4));
    for step in recording.steps() {
        if let vhd::plan::Step::Copy { from, .. } = step {
            assert_ne!(*from, File::Image);
        }
    }
}

#[test]
fn a_missing_ancestor_is_named_by_its_error() {
    let mut storage = Storage::default().with(File::Image, Spec::new(4, &[]).child().build());
    assert_eq!(run(&mut storage, plan).unwrap_err().errno(), 2);
}

fn errno(storage: &Storage, opens: Opens<'_>) -> i32 {
    let mut storage = storage.clone();
    run(&mut storage, |files| fill(files, None, opens)).map_or_else(|error| error.errno(), |()| 0)
}

#[test]
fn an_encrypted_disk_is_filled_in_its_key_or_not_at_all() {
    let (plain, encrypted) = (chain(|spec| spec), chain(Spec::encrypted));
    let [eacces, einval] = [13, 22];
    assert_eq!(errno(&encrypted, None), eacces);
    assert_eq!(errno(&encrypted, Some(&|_| false)), einval);
    assert_eq!(errno(&plain, Some(&opens)), einval);
    // The parents may have another nonce, but no other key and not none.
    let parent = |spec: fn(Spec) -> Spec| {
        let parent = spec(Spec::new(3, &[(2, 0xf1)]).to_be_parent()).build();
        encrypted.clone().with(File::Ancestor(0), parent)
    };
    let other_nonce = parent(|spec| Spec { keyhash: Some(keyhash(2)), ..spec });
    assert_eq!(errno(&other_nonce, Some(&opens)), 0);
    assert_eq!(errno(&parent(|spec| spec), Some(&opens)), einval);
    let child = plain.bytes(File::Image).unwrap().to_vec();
    assert_eq!(errno(&encrypted.with(File::Image, child), None), eacces);
}

/// The checksum covers whole sectors of the batmap: of small blocks not the bits of all.
#[test]
fn a_block_whose_bit_the_batmap_does_not_count_is_filled() {
    let mut storage = Storage::default().with(File::Image, Spec::new(4097, &[(7, 0x81)]).build());
    let before = image(&storage).unwrap();
    run(&mut storage, |files| fill(files, Some(4095 * 8..4097 * 8), None)).unwrap();
    assert_eq!(image(&storage), Ok(before));
    assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()));
}

/// The disk had zeros there when the parent was its leaf.
#[test]
fn what_a_table_says_past_the_end_of_its_disk_does_not_come_back() {
    let parent = Spec { entries: 9, ..Spec::new(3, &[(0, 0xff), (3, 0xff)]).to_be_parent() };
    let mut storage = Storage::default()
        .with(File::Image, Spec::new(5, &[(4, 0xff)]).child().build())
        .with(File::Ancestor(0), parent.build());
    run(&mut storage, plan).unwrap();
    let block = usize::try_from(BLOCK).unwrap();
    let data = image(&storage).unwrap().data;
    assert!(data[..block].iter().any(|byte| *byte != 0));
    assert!(data[block..4 * block].iter().all(|byte| *byte == 0));
}
