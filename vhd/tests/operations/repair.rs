//! Repair: after whatever a crash of this or another program left.

use vhd::plan::memory::Storage;
use vhd::plan::repair::{RepairOptions, repair};
use vhd::plan::{File, Files, Plan};
use vhd::units::Uuid;

use crate::image::{Spec, UUID, footer_of};
use crate::law::{self, image, run};
use crate::view;

const OPTIONS: RepairOptions = RepairOptions { by_copy: false, new_uuid: Uuid([1; 16]) };

fn plan(files: &dyn Files) -> vhd::Result<Box<dyn Plan>> {
    repair(files, OPTIONS)
}

fn spec() -> Spec {
    Spec::new(3, &[(2, 0xff), (0, 0x81)])
}

/// What can be wrong, and whether the footer at the end is there.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let whole = spec().build();
    let end = whole.len() - 512;
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        bytes
    };
    vec![
        ("no footer at the end", change(&|bytes| bytes.truncate(end))),
        ("half a footer", change(&|bytes| bytes.truncate(end + 100))),
        ("a footer of 511 bytes", change(&|bytes| bytes.truncate(end + 511))),
        ("rubbish behind the footer", change(&|bytes| bytes.extend([0xee; 5000]))),
        ("a damaged copy", change(&|bytes| bytes[100..300].fill(7))),
        (
            "a copy of another state",
            change(&|bytes| {
                let mut footer = footer_of(bytes);
                footer.hidden = 1;
                bytes[..512].copy_from_slice(&footer.emit());
            }),
        ),
        ("a batmap with a wrong checksum", change(&|bytes| bytes[2560] ^= 0x40)),
        ("a batmap that was overwritten", change(&|bytes| bytes[2560..3072].fill(0xff))),
    ]
}

#[test]
fn whatever_is_wrong_is_repaired_and_at_every_cut_repaired_again() {
    for (name, bytes) in damaged() {
        let start = Storage::default().with(File::Image, bytes);
        let old = image(&Storage::default().with(File::Image, spec().build())).unwrap();
        let recording = law::record_any(&start, &plan);
        let law = |state: &Storage| {
            let bytes = state.bytes(File::Image).expect("it is there");
            let mut state = state.clone();
            run(&mut state, plan).map_err(|error| error.to_string())?;
            if image(&state)? != old {
                return Err("the repair changed what the disk holds".into());
            }
            view::check(state.bytes(File::Image).expect("it was just repaired"))?;
            law::repaired(bytes)
        };
        law::holds_at_every_cut(&format!("repair: {name}"), &recording, &|state| {
            if name.contains("511") { law_short(state, &old) } else { law(state) }
        });
        law::holds_after_every_error(name, &start, &plan, &|state| {
            if name.contains("511") { law_short(state, &old) } else { law(state) }
        });
        let after = recording.end();
        assert_eq!(view::check(after.bytes(File::Image).unwrap()), Ok(()), "{name}");
        // Nothing is left to do.
        assert_eq!(law::record_any(&after, &plan).steps(), &[]);
    }
}

/// The independent reader knows no footers of 511 bytes; it has the copy.
fn law_short(state: &Storage, old: &view::View) -> Result<(), String> {
    let mut state = state.clone();
    run(&mut state, plan).map_err(|error| error.to_string())?;
    if image(&state)? != *old {
        return Err("the repair changed what the disk holds".into());
    }
    view::check(state.bytes(File::Image).expect("it was just repaired"))
}

#[test]
fn an_image_without_identity_gets_one() {
    let bytes = Spec { uuid: Uuid::NIL, ..spec() }.build();
    let mut storage = Storage::default().with(File::Image, bytes);
    run(&mut storage, plan).unwrap();
    let bytes = storage.bytes(File::Image).unwrap();
    assert_eq!(bytes[68..84], [1; 16]);
    assert_eq!(bytes[..512], bytes[bytes.len() - 512..]);
    let mut storage = Storage::default().with(File::Image, spec().build());
    run(&mut storage, plan).unwrap();
    assert_eq!(storage.bytes(File::Image).unwrap()[68..84], UUID.0);
}

#[test]
fn the_copy_is_the_truth_when_it_is_asked_for() {
    let (_, bytes) =
        damaged().into_iter().find(|(name, _)| name.contains("another state")).unwrap();
    let mut storage = Storage::default().with(File::Image, bytes);
    let by_copy = RepairOptions { by_copy: true, ..OPTIONS };
    run(&mut storage, |files| repair(files, by_copy)).unwrap();
    let bytes = storage.bytes(File::Image).unwrap();
    assert_eq!((bytes[85], bytes[bytes.len() - 512 + 85]), (1, 1));
}

#[test]
fn rejects_what_only_a_revert_mends() {
    let mut bytes = spec().build();
    let mut footer = footer_of(&bytes);
    footer.is_poisoned = true;
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer.emit());
    let mut storage = Storage::default().with(File::Image, bytes);
    let error = run(&mut storage, plan).unwrap_err();
    assert_eq!(error.kind(), &vhd::ErrorKind::Poisoned);
}

#[test]
fn all_that_can_be_wrong_is_repaired_one_part_after_another() {
    // All at once: another copy, no footer behind the data, a batmap whose checksum is wrong.
    let mut bytes = spec().build();
    let old = image(&Storage::default().with(File::Image, bytes.clone())).unwrap();
    bytes[2560] ^= 0x40;
    let end = bytes.len() - 512;
    bytes[end..].fill(0xee);
    let mut footer = footer_of(&bytes);
    footer.uuid = Uuid::NIL;
    bytes[..512].copy_from_slice(&footer.emit());
    let start = Storage::default().with(File::Image, bytes);
    let recording = law::record(&start, &plan);
    let law = |state: &Storage| {
        if image(state)? != old {
            return Err("the repair changed what the disk holds".into());
        }
        law::repaired(state.bytes(File::Image).expect("it is there"))
    };
    law::holds_at_every_cut("repair: everything", &recording, &law);
    // Nobody misses them: here sectors are whole, old or new. They are for storage that tears one.
    assert_eq!(law::barriers_that_nobody_misses(&recording, &law), [0, 1]);
    assert_eq!(recording.barriers(), 3);
}
