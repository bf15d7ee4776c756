//! Create: a file opens as nothing, or as the whole new disk, perhaps after a repair.

use vhd::check::{CheckOptions, check};
use vhd::image::{Image, LoadOptions};
use vhd::plan::create::{Kind, Parent, Spec, create};
use vhd::plan::memory::Storage;
use vhd::plan::{File, Files, Plan};
use vhd::units::{Timestamp, Uuid};

use crate::law;

const NOW: Timestamp = Timestamp(1000);

fn spec(kind: Kind, size: u64) -> Spec {
    Spec { kind, size, uuid: Uuid([7; 16]), now: NOW }
}

fn kinds() -> [(&'static str, Spec); 3] {
    let parent = Parent {
        uuid: Uuid([9; 16]),
        timestamp: NOW,
        path: String::from("./parent.vhd"),
        keyhash: None,
    };
    let child = Kind::Differencing { metadata_size: None, parent };
    [
        ("fixed", spec(Kind::Fixed, 2048)),
        ("dynamic", spec(Kind::Dynamic { metadata_size: None }, 2 << 20)),
        ("differencing", spec(child, 2 << 20)),
    ]
}

/// What opens is the new disk, empty and sound.
fn is_new_if_anything(state: &Storage, size: u64) -> Result<(), String> {
    let Some(file) = state.bytes(File::Image) else { return Ok(()) };
    let Ok(image) = Image::load(file, LoadOptions::default()) else { return Ok(()) };
    if image.virtual_size() != size {
        return Err(format!("opens with {} bytes", image.virtual_size()));
    }
    if !check(file, CheckOptions::default(), NOW).is_valid() {
        // One of the footers is missing.
        law::repaired(file)?;
    }
    let is_empty = match image.header() {
        Some(_) => image.allocated_count() == Ok(0),
        None => file.iter().take(2048).all(|byte| *byte == 0),
    };
    if is_empty { Ok(()) } else { Err("holds something".into()) }
}

#[test]
fn a_new_file_is_nothing_or_all_of_the_disk_at_every_cut_and_after_every_error() {
    for (name, spec) in kinds() {
        let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(create(files, &spec)?))
        };
        let start = Storage::default();
        let recording = law::record(&start, &make);
        let law = |state: &Storage| is_new_if_anything(state, spec.size);
        law::holds_at_every_cut(&format!("create {name}"), &recording, &law);
        law::holds_after_every_error(&format!("create {name}"), &start, &make, &law);
    }
}

#[test]
fn in_place_of_another_image_a_file_is_that_or_nothing_or_all_of_the_new_one() {
    for (name, spec) in kinds() {
        let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(create(files, &spec)?))
        };
        let old = crate::image::Spec::new(3, &[(2, 0xff), (0, 0x81)]).build();
        let start = Storage::default().with(File::Image, old.clone());
        let recording = law::record(&start, &make);
        let law = |state: &Storage| {
            if state.bytes(File::Image) == Some(old.as_slice()) {
                return Ok(());
            }
            is_new_if_anything(state, spec.size)
        };
        law::holds_at_every_cut(&format!("create {name} over another"), &recording, &law);
        // The first one keeps the old image's footers from the new image's table.
        if name != "fixed" {
            assert_eq!(law::barriers_that_nobody_misses(&recording, &law), [0; 0], "{name}");
        }
    }
}
