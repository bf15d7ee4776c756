//! Create: a file opens as nothing, or as the whole new disk, perhaps after a repair.

use vhd::check::{CheckOptions, check};
use vhd::image::{Image, LoadOptions};
use vhd::plan::crash::Recording;
use vhd::plan::create::{Kind, Parent, Spec, create};
use vhd::plan::memory::Storage;
use vhd::plan::{File, Files, Plan};
use vhd::units::{Timestamp, Uuid};
use vhd::{ErrorKind, ReadAt};

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

/// A device of 64 sectors with an image on it that fills it to its end, or with a fixed one.
fn devices() -> [(&'static str, Storage); 3] {
    let spec = crate::image::Spec::new(3, &[(2, 0xff), (0, 0x81)]);
    let slack = 64 * 512 - spec.build().len() as u64;
    let dynamic = crate::image::Spec { slack, ..spec }.build();
    [
        ("over rubbish", vec![0xee; 64 * 512]),
        ("over a dynamic one", dynamic),
        ("over a fixed one", crate::image::fixed(63)),
    ]
    .map(|(name, bytes)| (name, Storage::default().with_device(File::Image, bytes)))
}

#[test]
fn on_a_device_there_is_the_old_image_or_nothing_or_all_of_the_new_one() {
    for (name, spec) in kinds() {
        // Nobody zeroes a device for a fixed disk of its size: what it holds is what was there.
        let is_fixed = matches!(spec.kind, Kind::Fixed);
        let mut all: Vec<(Recording, law::Boxed)> = Vec::new();
        for (over, start) in devices() {
            let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
                Ok(Box::new(create(files, &spec)?))
            };
            let old = law::image(&start).ok();
            let size = spec.size;
            let law = law::boxed(move |state| match law::image(state) {
                Ok(now) if old.as_ref() == Some(&now) => Ok(()),
                Ok(_) if is_fixed => {
                    let bytes = state.bytes(File::Image).expect("a device is always there");
                    let image = Image::load(bytes, LoadOptions::default());
                    let found = image.map_err(|error| error.to_string())?.virtual_size();
                    if found == size { Ok(()) } else { Err(format!("{found} bytes")) }
                }
                _ => is_new_if_anything(state, size),
            });
            let name = format!("create {name} on a device, {over}");
            let recording = law::record(&start, &make);
            law::holds_at_every_cut(&name, &recording, &law);
            law::holds_after_every_error(&name, &start, &make, &law);
            let after = recording.end();
            assert_eq!(after.bytes(File::Image).map(<[u8]>::len), Some(64 * 512), "{name}");
            if !is_fixed {
                crate::view::check(after.bytes(File::Image).unwrap()).unwrap();
            }
            all.push((recording, law));
        }
        // Each way of taking an old image away needs one; a fixed disk has nothing before its
        // footer.
        let idle = if is_fixed { vec![2] } else { vec![] };
        assert_eq!(law::idle_barriers(&all), (4, idle), "{name}");
    }
}

/// A file that is there and cannot be opened.
struct Forbidden;

impl Files for Forbidden {
    fn open(&self, _: File) -> vhd::Result<&dyn ReadAt> {
        Err(ErrorKind::Io { errno: 13 }.into())
    }

    fn is_device(&self, _: File) -> bool {
        false
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_not_one_that_is_missing() {
    let error = create(&Forbidden, &spec(Kind::Fixed, 2048)).err().map(|error| error.errno());
    assert_eq!(error, Some(13));
}
