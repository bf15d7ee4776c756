//! Resize of fixed disks where the file or device has room already.

use vhd::footer::Footer;
use vhd::geometry::Geometry;
use vhd::plan::memory::Storage;
use vhd::plan::resize::resize;
use vhd::plan::{File, Files, Step};

use crate::image::fixed;
use crate::law::{self, image, run};

/// Eight sectors of disk, eight of what was there before, the footer.
fn with_room() -> Vec<u8> {
    let mut bytes = fixed(8);
    let footer = bytes.split_off(8 * 512);
    bytes.resize(16 * 512, 0xee);
    bytes.extend(footer);
    bytes
}

#[test]
fn a_fixed_disk_with_room_grows_and_shrinks_in_place() {
    let device = Storage::default().with_device(File::Image, with_room());
    let file = Storage::default().with(File::Image, with_room());
    for (name, start) in [("device", device), ("file", file)] {
        for sectors in [3_u64, 8, 12, 16] {
            let name = &format!("fixed, {name} with room, {sectors} sectors");
            let old = image(&start).unwrap();
            let new = old.resized(sectors * 512);
            let make = |files: &dyn Files| resize(files, sectors * 512);
            let recording = law::record(&start, &make);
            // The kernel refuses to zero no bytes.
            let is_idle = |step: &Step| matches!(step, Step::Zero { length: 0, .. });
            assert!(!recording.steps().iter().any(is_idle), "{name}");
            let end = recording.end();
            assert_eq!(image(&end), Ok(new.clone()), "{name}");
            let bytes = end.bytes(File::Image).unwrap();

            if start.is_device(File::Image) {
                let unused = usize::try_from(sectors.max(8) * 512).unwrap()..16 * 512;
                assert!(bytes[unused].iter().all(|byte| *byte == 0xee), "{name}");
            } else {
                assert_eq!(bytes.len() as u64, sectors * 512 + 512, "{name}");
            }
            let law = |state: &Storage| {
                let now = image(state)?;
                if now == old || now == new { Ok(()) } else { Err("neither old nor new".into()) }
            };
            law::holds_at_every_cut(name, &recording, &law);
            law::holds_after_every_error(name, &start, &make, &law);
        }
    }
}

#[test]
fn the_geometry_follows_the_size() {
    let mut storage = Storage::default().with(File::Image, fixed(8));
    run(&mut storage, |files| resize(files, 300 * 512)).unwrap();
    let footer = storage.bytes(File::Image).unwrap().last_chunk().unwrap();
    let wanted = Geometry { cylinders: 4, heads: 4, sectors: 17 };
    assert_eq!(Footer::parse(footer).unwrap().geometry, wanted);
}

#[test]
fn a_fixed_disk_is_no_larger_than_an_offset_of_a_file_can_be() {
    let mut storage = Storage::default().with(File::Image, fixed(8));
    let error = run(&mut storage, |files| resize(files, 1 << 63)).unwrap_err();
    assert!(matches!(error.kind(), vhd::ErrorKind::TooLarge { .. }), "{error}");
}
