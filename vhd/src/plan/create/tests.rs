//! The laws of making images.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::memory::Storage;
use super::*;
use crate::check::{CheckOptions, check};
use crate::image::{FooterPlace, Image, LoadOptions};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp(1000);
const DYNAMIC: Kind = Kind::Dynamic { metadata_size: None };

fn spec(kind: Kind, size: u64) -> Spec {
    Spec { kind, size, uuid: Uuid([7; 16]), now: NOW }
}

fn parent(path: &str) -> Parent {
    let (uuid, timestamp) = (Uuid([9; 16]), Timestamp(500));
    Parent { uuid, timestamp, path: path.to_owned(), keyhash: None }
}

fn perform(mut storage: Storage, spec: &Spec) -> Result<Storage> {
    let mut plan = create(&storage, spec)?;
    while let Some(step) = plan.next(&storage)? {
        storage.perform(&step);
    }
    Ok(storage)
}

fn made(spec: &Spec) -> Vec<u8> {
    let storage = perform(Storage::default(), spec).unwrap();
    storage.bytes(IMAGE).unwrap().to_vec()
}

fn kinds() -> impl Strategy<Value = Kind> {
    let more = proptest::option::of(0..64_u64);
    let size = |more: Option<u64>| more.map(|more| (64 << 20) + (more << 21));
    prop_oneof![
        Just(Kind::Fixed),
        more.clone().prop_map(move |more| Kind::Dynamic { metadata_size: size(more) }),
        (more, "\\./[a-zß日]{1,200}").prop_map(move |(more, path)| {
            Kind::Differencing { metadata_size: size(more), parent: parent(&path) }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_made_is_sound_and_says_what_was_asked_for(
        kind in kinds(), sectors in 1..4096_u64,
    ) {
        let spec = spec(kind, sectors * 512);
        let file = made(&spec);
        let report = check(&file, CheckOptions::default(), NOW);
        prop_assert!(report.findings.is_empty(), "{:?}", report.findings);
        let image = Image::load(&file, LoadOptions::default()).unwrap();
        prop_assert_eq!(image.footer_place(), FooterPlace::End);
        prop_assert_eq!(image.virtual_size(), spec.size);
        prop_assert_eq!(image.end_of_data().unwrap() + 512, file.len() as u64);
        if let Kind::Differencing { parent, .. } = &spec.kind {
            prop_assert_eq!(image.parent_uuid(), parent.uuid);
            for number in 0..3 {
                let path = image.locator_path(number).unwrap();
                prop_assert_eq!(path.as_deref(), Some(parent.path.as_str()));
            }
            prop_assert_eq!(image.locator_path(3).unwrap(), None);
        }
    }
}

#[test]
fn the_metadata_is_exactly_what_storage_managers_reserve() {
    let metadata_size = Some(2 << 40);
    let file = made(&spec(Kind::Dynamic { metadata_size }, 20 << 20));
    assert_eq!(file.len(), 4_329_472 - 3 * 512);
    let parent = parent("./VG_XenStorage--6f3c-VHD--0a1b");
    let file = made(&spec(Kind::Differencing { metadata_size, parent }, 20 << 20));
    assert_eq!(file.len(), 4_329_472);
}

#[test]
fn a_long_path_takes_more_than_a_sector() {
    let path = format!("./{}/p.vhd", "d".repeat(300));
    let parent = parent(&path);
    let file = made(&spec(Kind::Differencing { metadata_size: None, parent }, 2 << 20));
    let image = Image::load(&file, LoadOptions::default()).unwrap();
    let spaces = image.header().unwrap().locators.map(|locator| locator.space);
    assert_eq!(spaces[..4], [512, 1024, 1024, 0]);
    assert_eq!(image.locator_path(2).unwrap(), Some(path));
}

#[test]
fn refuses_sizes_that_the_format_cannot_hold_and_names_the_limit() {
    let refused =
        |kind, size| perform(Storage::default(), &spec(kind, size)).unwrap_err().to_string();
    let wanted = "Virtual size is 2190433321472 bytes, at most 2190433320960 bytes are possible";
    assert_eq!(refused(DYNAMIC, (2040 << 30) + 512), wanted);
    assert!(refused(DYNAMIC, 0).contains("at least one"));
    assert!(refused(DYNAMIC, 513).contains("whole sectors"));
    let kind = |size| Kind::Dynamic { metadata_size: Some(size) };
    assert!(refused(kind(4 << 20), 8 << 20).contains("wanted at least 8388608 bytes"));
    assert!(refused(kind((2 << 40) + 1), 8 << 20).contains("at most 2199023255552 bytes"));
    assert!(whole_blocks(u64::MAX).is_err());
    assert_eq!(whole_blocks(1), Ok(2 << 20));
}

#[test]
fn takes_the_largest_sizes_that_the_format_holds() {
    let sketch = |kind, size| Sketch::of(&spec(kind, size)).map(|sketch| sketch.end);
    assert!(sketch(DYNAMIC, 2040 << 30).is_ok());
    let metadata_size = Some(METADATA_SIZE_MAX);
    assert!(sketch(Kind::Dynamic { metadata_size }, 8 << 20).is_ok());
}

#[test]
fn a_device_that_the_image_just_fits_is_enough() {
    let spec = spec(DYNAMIC, 4 << 20);
    let length = made(&spec).len();
    let device = |length| Storage::default().with_device(IMAGE, vec![0; length]);
    assert!(perform(device(length), &spec).is_ok());
    let error = perform(device(length - 512), &spec).unwrap_err();
    assert_eq!(error.errno(), errno::ENOSPC);
}

#[test]
fn refuses_a_name_that_does_not_fit() {
    let parent = parent(&format!("./{}", "n".repeat(256)));
    let kind = Kind::Differencing { metadata_size: None, parent };
    let error = perform(Storage::default(), &spec(kind, 2 << 20)).unwrap_err();
    assert_eq!(error.errno(), errno::ENAMETOOLONG);
}

#[test]
fn a_path_is_as_long_as_the_text_of_a_locator_may_be() {
    // In UTF-16 of 64 KiB.
    let longest = format!("./{}pq", "d/".repeat(16_382));
    for (path, is_fine) in [(longest.clone(), true), (format!("{longest}r"), false)] {
        let kind = Kind::Differencing { metadata_size: None, parent: parent(&path) };
        let result = perform(Storage::default(), &spec(kind, 1 << 20));
        assert_eq!(result.is_ok(), is_fine, "{} letters", path.len());
    }
}

#[test]
fn what_says_that_it_is_an_image_comes_last_behind_a_barrier() {
    for kind in [DYNAMIC, Kind::Fixed] {
        let mut storage = Storage::default();
        let mut plan = create(&storage, &spec(kind, 4 << 20)).unwrap();
        let mut barriers = 0;
        while let Some(step) = plan.next(&storage).unwrap() {
            storage.perform(&step);
            barriers += u32::from(step == Step::Barrier);
            let file = storage.bytes(IMAGE).unwrap();
            if barriers == 0 {
                let cookies = file.windows(8).filter(|bytes| {
                    *bytes == crate::footer::COOKIE || *bytes == crate::header::COOKIE
                });
                assert_eq!(cookies.count(), 0);
            }
        }
        assert_eq!(barriers, 2);
    }
}

#[test]
fn takes_the_place_of_what_a_file_holds() {
    let old = made(&spec(DYNAMIC, 100 << 20));
    let wanted = made(&spec(DYNAMIC, 4 << 20));
    let storage = Storage::default().with(IMAGE, [old, vec![0xaa; 100_000]].concat());
    let storage = perform(storage, &spec(DYNAMIC, 4 << 20)).unwrap();
    assert!(storage.bytes(IMAGE) == Some(wanted.as_slice()));
}

#[test]
fn removes_a_file_that_could_not_be_finished_and_no_other() {
    let storage = Storage::default();
    let mut plan = create(&storage, &spec(DYNAMIC, 4 << 20)).unwrap();
    assert_eq!(plan.next(&storage), Ok(Some(Step::Create { file: IMAGE })));
    plan.next(&storage).unwrap();
    let enospc = Error::from(ErrorKind::Io { errno: errno::ENOSPC });
    assert_eq!(plan.failed(enospc.clone()), Ok(()));
    assert_eq!(plan.next(&storage), Ok(Some(Step::Remove { file: IMAGE })));
    assert_eq!(plan.next(&storage), Err(enospc.clone()));
    // What was there before stays.
    let storage = Storage::default().with(IMAGE, vec![0; 512]);
    let mut plan = create(&storage, &spec(DYNAMIC, 4 << 20)).unwrap();
    plan.next(&storage).unwrap();
    assert_eq!(plan.failed(enospc.clone()), Err(enospc));
    // And what somebody else made meanwhile.
    let storage = Storage::default();
    let mut plan = create(&storage, &spec(DYNAMIC, 4 << 20)).unwrap();
    plan.next(&storage).unwrap();
    let exists = Error::from(ErrorKind::Io { errno: errno::EEXIST });
    assert_eq!(plan.failed(exists.clone()), Err(exists));
}
