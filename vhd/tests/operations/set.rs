//! The fields hidden, marker and key hash.

use vhd::batmap::KeyHash;
use vhd::plan::memory::{Fault, Storage};
use vhd::plan::set::{set_hidden, set_keyhash, set_marker};
use vhd::plan::{File, Files, Plan};

use crate::image::{Spec, fixed};
use crate::law::{self, image, run};

fn dynamic() -> Storage {
    Storage::default().with(File::Image, Spec::new(3, &[(2, 0xff), (0, 0x81)]).build())
}

fn hide(value: u8) -> impl Fn(&dyn Files) -> vhd::Result<Box<dyn Plan>> {
    move |files| set_hidden(files, value)
}

fn hidden(storage: &Storage) -> [u8; 2] {
    let bytes = storage.bytes(File::Image).expect("it is there");
    [bytes[85], bytes[bytes.len() - 512 + 85]]
}

#[test]
fn hiding_is_safe_at_every_cut() {
    for start in [dynamic(), Storage::default().with(File::Image, fixed(8))] {
        let old = image(&start).unwrap();
        let law = |state: &Storage| {
            if image(state)? != old {
                return Err("the data changed".into());
            }
            law::repaired(state.bytes(File::Image).expect("it is there"))
        };
        let recording = law::record(&start, &hide(1));
        law::holds_at_every_cut("set hidden", &recording, &law);
        // Both footers together, whole either way: there is no barrier to go without.
        assert_eq!(recording.barriers(), 1);
        law::holds_after_every_error("set hidden", &start, &hide(0), &law);
        let mut storage = start.clone();
        run(&mut storage, hide(200)).unwrap();
        assert_eq!(hidden(&storage)[1], 200);
        assert_eq!(image(&storage).unwrap(), old);
    }
}

#[test]
fn a_full_storage_can_still_hide_but_not_show() {
    let steps = 3;
    let attempt = |value: u8, after: u64| {
        let mut storage = dynamic();
        let (has_failed, result) = storage.run_with_fault(Fault { after, errno: 28 }, &hide(value));
        (has_failed, result.map_err(|error| error.errno()), hidden(&storage))
    };
    let reads = (0..).find(|after| attempt(1, *after).1.is_ok()).unwrap();
    // What fails at `reads` is the footer at the end: the copy was written before it.
    assert_eq!(attempt(1, reads), (true, Ok(()), [1, 0]));
    assert_eq!(attempt(1, reads - 1), (true, Err(28), [0, 0]));
    assert_eq!(attempt(0, reads).1, Err(28));
    assert_eq!(attempt(1, reads + 1).1, Err(28), "the barrier");
    assert!(!attempt(1, reads + steps).0);
    let mut fixed = Storage::default().with(File::Image, fixed(8));
    let mut results = (0..).map(|after| fixed.run_with_fault(Fault { after, errno: 28 }, &hide(1)));
    let succeeded = results.find(|(_, result)| result.is_ok());
    assert_eq!(succeeded.map(|(has_failed, _)| has_failed), Some(false), "there is no copy");
}

#[test]
fn marker_and_key_hash_are_one_sector() {
    let keyhash = KeyHash { nonce: [1; 32], hash: [2; 32] };
    let mut storage = Storage::default().with(File::Image, Spec::new(3, &[]).build());
    let recording =
        law::record(&storage, &|files| Ok(Box::new(set_marker(files, 255)?) as Box<dyn Plan>));
    assert_eq!(recording.steps().len(), 2);
    storage = recording.end();
    run(&mut storage, |files| Ok(Box::new(set_keyhash(files, Some(keyhash))?))).unwrap();
    let header = storage.bytes(File::Image).unwrap()[2048..2560].try_into().unwrap();
    let header = vhd::batmap::BatmapHeader::parse(&header).unwrap();
    assert_eq!((header.marker, header.keyhash), (255, Some(keyhash)));
    law::repaired(storage.bytes(File::Image).unwrap()).unwrap();
}

#[test]
fn rejects_a_marker_without_a_batmap_and_a_key_for_data() {
    let bytes = Spec { has_batmap: false, ..Spec::new(3, &[]) }.build();
    let mut plain = Storage::default().with(File::Image, bytes);
    let error = run(&mut plain, |files| Ok(Box::new(set_marker(files, 1)?))).unwrap_err();
    assert!(error.to_string().contains("no batmap"), "{error}");
    let error = run(&mut dynamic(), |files| Ok(Box::new(set_keyhash(files, None)?))).unwrap_err();
    assert!(error.to_string().contains("holds data"), "{error}");
}

#[test]
fn a_device_that_lost_its_footer_gets_it_back_at_its_end() {
    let mut bytes = Spec::new(3, &[(2, 0xff)]).build();
    bytes.truncate(bytes.len() - 512);
    bytes.resize(32768, 0xee);
    let mut storage = Storage::default().with_device(File::Image, bytes);
    run(&mut storage, hide(1)).unwrap();
    assert_eq!(hidden(&storage), [1, 1]);
    let bytes = storage.bytes(File::Image).unwrap();
    assert!(bytes[7 * 512 + 9 * 512..32768 - 512].iter().all(|byte| *byte == 0xee));
}

#[test]
fn a_file_that_lost_its_footer_gets_it_back_behind_its_data() {
    let mut before = Spec::new(3, &[(2, 0xff)]).build();
    before.truncate(before.len() - 512);
    let mut storage = Storage::default().with(File::Image, before.clone());
    run(&mut storage, hide(1)).unwrap();
    assert_eq!(hidden(&storage), [1, 1]);
    let after = storage.bytes(File::Image).unwrap();
    assert_eq!(after.len(), before.len() + 512);
    assert_eq!(after[512..before.len()], before[512..], "nothing but the copy was written to");
}

#[test]
fn what_looks_like_a_batmap_in_the_image_of_another_creator_is_none() {
    let mut bytes = Spec::new(3, &[(2, 0xff)]).build();
    let mut footer = crate::image::footer_of(&bytes);
    footer.creator = *b"qemu";
    let end = bytes.len() - 512;
    bytes[..512].copy_from_slice(&footer.emit());
    bytes[end..].copy_from_slice(&footer.emit());
    let mut storage = Storage::default().with(File::Image, bytes);
    let error = run(&mut storage, |files| Ok(Box::new(set_marker(files, 7)?))).unwrap_err();
    assert_eq!(error.errno(), 38);
}
