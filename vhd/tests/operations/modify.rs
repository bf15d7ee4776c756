//! Another parent, another physical size, no data.

use vhd::bat::Bat;
use vhd::footer::{DiskType, Footer};
use vhd::header::{BlockSize, Header, ParentName};
use vhd::image::{Image, LoadOptions};
use vhd::locator::{self, Locator, Platform};
use vhd::plan::memory::Storage;
use vhd::plan::modify::{NewParent, modify_parent, modify_size, modify_zero};
use vhd::plan::{File, Files, Plan, Step};
use vhd::units::{BlockIndex, Sector, Timestamp, Uuid};

use crate::image::{BLOCK, PARENT_UUID, Spec, UUID, content};
use crate::law::{self, image, run};
use crate::view;

const NEW: NewParent<'_> = NewParent {
    name: "another.vhd",
    path: "./a/longer/path/to/another.vhd",
    uuid: Uuid([9; 16]),
    timestamp: Timestamp(77),
};

fn reparent(files: &dyn Files) -> vhd::Result<Box<dyn Plan>> {
    Ok(Box::new(modify_parent(files, &NEW)?))
}

/// Name, UUID and what every locator says.
fn parent(storage: &Storage) -> Result<(String, Uuid, Vec<String>), String> {
    let bytes = storage.bytes(File::Image).ok_or("no image")?.to_vec();
    let image = Image::load(&bytes, LoadOptions::default()).map_err(|error| error.to_string())?;
    let header = image.header().ok_or("no header")?;
    let name = header.parent_name.decode().map_err(|error| error.to_string())?;
    let texts = (0..8).map(|number| image.locator_path(number));
    let texts: vhd::Result<Vec<_>> = texts.collect();
    let texts = texts.map_err(|error| error.to_string())?.into_iter().flatten().collect();
    Ok((name, header.parent_uuid, texts))
}

fn at_home(storage: &Storage) -> bool {
    let bytes = storage.bytes(File::Image).expect("it is there");
    let offset = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
    offset(16) == 512 && (0..3).all(|number| offset(512 + 576 + 24 * number + 16) < 8192)
}

#[test]
fn a_disk_has_its_old_or_its_new_parent_at_every_cut() {
    let spec = Spec::new(3, &[(2, 0xff), (0, 0x81)]).child();
    // Locators end at sector 9, the first block starts at 15: there is room for five sectors. With
    // 256 entries more the table takes two sectors more, and there is not.
    let tight = Spec { entries: 300, ..spec.clone() };
    let by_the_end = Storage::default().with(File::Image, tight.build());
    let mut cut_off = by_the_end.clone();
    let steps = law::record(&by_the_end, &reparent).steps().to_vec();
    let barriers = (0..steps.len()).filter(|at| steps[*at] == Step::Barrier);
    let away = barriers.clone().nth(1).expect("both footers refer to free space");
    steps[..away].iter().for_each(|step| cut_off.perform(step));
    let slack = 5 * 512;
    let volume = Spec { slack, ..tight.clone() }.build();
    // Not seen: the footers before the length, since the one at the old end says the same.
    for (name, start, idle) in [
        ("in front", Storage::default().with(File::Image, spec.build()), vec![]),
        ("by way of the end", by_the_end.clone(), vec![3]),
        ("after a cut", cut_off, vec![1, 2]),
        ("on a volume", Storage::default().with_device(File::Image, volume), vec![]),
    ] {
        let name = &format!("modify -p, {name}");
        let (old, data) = (parent(&start).unwrap(), image(&start).unwrap());
        let recording = law::record(&start, &reparent);
        let new = parent(&recording.end()).unwrap();
        assert_eq!(new.2, [NEW.path; 3]);
        assert_eq!((new.0.as_str(), new.1), (NEW.name, NEW.uuid));
        let length = |storage: &Storage| storage.bytes(File::Image).map(<[u8]>::len);
        if !start.is_device(File::Image) {
            assert!(length(&recording.end()) <= length(&by_the_end), "{name}");
        }
        assert!(at_home(&recording.end()));
        let law = |state: &Storage| {
            let now = parent(state)?;
            if now != old && now != new {
                return Err(format!("neither the old nor the new parent: {now:?}"));
            }
            if image(state)? != data {
                return Err("the data changed".into());
            }
            law::repaired(state.bytes(File::Image).expect("it was read"))?;
            let mut state = state.clone();
            run(&mut state, reparent).map_err(|error| error.to_string())?;
            if parent(&state)? != new || image(&state)? != data || !at_home(&state) {
                return Err("running it again did not mend it".into());
            }
            // Some free space before the footer may stay, for the next block.
            if length(&state) > length(&start).map(|length| length + 4096) {
                return Err("space was lost".into());
            }
            view::check(state.bytes(File::Image).expect("it was read"))
        };
        law::holds_at_every_cut(name, &recording, &law);
        law::holds_after_every_error(name, &start, &reparent, &law);
        assert_eq!(law::barriers_that_nobody_misses(&recording, &law), idle, "{name}");
    }
}

#[test]
fn a_device_that_is_full_gets_its_new_parent_in_place() {
    let tight = Spec { entries: 300, ..Spec::new(3, &[(2, 0xff), (0, 0x81)]).child() };
    let mut storage = Storage::default().with_device(File::Image, tight.build());
    let data = image(&storage).unwrap();
    run(&mut storage, reparent).unwrap();
    assert_eq!(parent(&storage).unwrap().2, [NEW.path; 3]);
    assert_eq!(image(&storage), Ok(data));
    assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()));
}

/// A child of three blocks as nobody makes it: the header is behind the data, and its only block at
/// sector `place`.
fn with_header_behind(place: u32) -> Vec<u8> {
    let mut header = Header::new(5632, 3, BlockSize::new(4096).expect("small"));
    header.parent_uuid = PARENT_UUID;
    header.parent_name = ParentName::encode("parent.vhd").expect("small");
    let text = locator::encode(Platform::W2ru, "./parent.vhd");
    let length = u32::try_from(text.len()).expect("small");
    let platform = Platform::W2ru;
    header.locators[0] = Locator { platform, space: 512, length, reserved: 0, offset: 12288 };
    let mut bat = Bat::new(3).expect("small");
    bat.set(BlockIndex(0), Some(Sector(place)));
    let mut footer = Footer::new(DiskType::Differencing, 3 * BLOCK, UUID, Timestamp(9));
    (footer.data_offset, footer.creator) = (11264, *b"some");
    let mut file = vec![0; 18944];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let block = usize::try_from(place).expect("small") * 512;
    put(block, &[0xff]);
    (0..8).for_each(|at| put(block + 512 * (1 + usize::from(at)), &content(b'I', 0, at)));
    put(0, &footer.emit());
    put(5632, &bat.emit());
    put(11264, &header.emit());
    put(12288, &text);
    put(18944 - 512, &footer.emit());
    file
}

#[test]
fn a_header_that_is_elsewhere_comes_home_unless_a_block_is_there() {
    // Blocks over the place of the header, over that of the texts behind the table, over neither.
    for (place, is_home) in [(1, false), (12, false), (26, true)] {
        let start = Storage::default().with(File::Image, with_header_behind(place));
        let data = image(&start).unwrap();
        assert!(data.data.starts_with(&content(b'I', 0, 0)), "{place}");
        let mut storage = start.clone();
        run(&mut storage, reparent).unwrap();
        assert_eq!(image(&storage), Ok(data), "{place}");
        let (name, uuid, texts) = parent(&storage).unwrap();
        assert_eq!((name.as_str(), uuid, texts), (NEW.name, NEW.uuid, vec![NEW.path.to_owned()]));
        let footer = crate::image::footer_of(storage.bytes(File::Image).unwrap());
        assert_eq!(footer.data_offset == 512, is_home, "{place}");
        assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()), "{place}");
    }
}

/// Of a Macintosh: an alias, which nobody here makes.
#[test]
fn a_locator_that_is_not_read_stays_as_it_is() {
    let mut file = Spec::new(3, &[(2, 0xff)]).child().build();
    let mut header = *Image::load(&file, LoadOptions::default()).unwrap().header().unwrap();
    let other = Locator { platform: Platform::Mac, offset: 512, ..header.locators[0] };
    header.locators[1] = Locator { offset: header.locators[1].offset, ..other };
    file[512..1536].copy_from_slice(&header.emit());
    let mut storage = Storage::default().with(File::Image, file);
    run(&mut storage, reparent).unwrap();
    assert_eq!(parent(&storage).unwrap().2, [NEW.path; 2]);
    let bytes = storage.bytes(File::Image).unwrap().to_vec();
    let image = Image::load(&bytes, LoadOptions::default()).unwrap();
    assert_eq!(image.header().unwrap().locators[1], header.locators[1]);
}

#[test]
fn a_path_may_be_as_long_as_its_room() {
    // In UTF-16.
    let path = format!("./{}", "p".repeat(254));
    let longest = NewParent { path: &path, ..NEW };
    let mut storage = Storage::default().with(File::Image, Spec::new(3, &[]).child().build());
    run(&mut storage, |files| Ok(Box::new(modify_parent(files, &longest)?))).unwrap();
    assert_eq!(parent(&storage).unwrap().2, [path.as_str(); 3]);
}

#[test]
fn rejects_a_path_that_does_not_fit_and_a_disk_without_parent() {
    let mut child = Storage::default().with(File::Image, Spec::new(3, &[]).child().build());
    let before = child.clone();
    let long = format!("./{}", "d/".repeat(300));
    let error = run(&mut child, |files| {
        Ok(Box::new(modify_parent(files, &NewParent { path: &long, ..NEW })?))
    });
    assert_eq!(error.unwrap_err().errno(), 36);
    assert_eq!(child, before);
    let mut dynamic = Storage::default().with(File::Image, Spec::new(3, &[]).build());
    assert_eq!(run(&mut dynamic, reparent).unwrap_err().errno(), 22);
}

#[test]
fn the_physical_size_changes_safely() {
    // Not seen: the footers before the length, since the copy at the start says the same.
    for (name, slack, size, idle) in [
        ("modify -s, larger", 0, 65536, vec![]),
        ("modify -s, smaller", 9999 * 512, 65536, vec![0]),
    ] {
        let spec = Spec { slack, ..Spec::new(3, &[(2, 0xff), (0, 0x81)]) };
        let start = Storage::default().with(File::Image, spec.build());
        let data = image(&start).unwrap();
        let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(modify_size(files, size)?))
        };
        let law = |state: &Storage| {
            if image(state)? != data {
                return Err("the data changed".into());
            }
            law::repaired(state.bytes(File::Image).expect("it was read"))
        };
        let recording = law::record(&start, &make);
        assert_eq!(recording.end().bytes(File::Image).unwrap().len() as u64, size);
        law::holds_at_every_cut(name, &recording, &law);
        law::holds_after_every_error(name, &start, &make, &law);
        assert_eq!(law::barriers_that_nobody_misses(&recording, &law), idle, "{name}");
        assert_eq!(view::check(recording.end().bytes(File::Image).unwrap()), Ok(()));
    }
}

#[test]
fn a_footer_that_is_lost_or_a_byte_short_is_written_where_a_good_one_stays() {
    let good = Spec { slack: BLOCK, ..Spec::new(3, &[(2, 0xff), (0, 0x81)]) }.build();
    let size = good.len() as u64;
    let make = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
        Ok(Box::new(modify_size(files, size)?))
    };
    let steps = |file: &[u8]| {
        let start = Storage::default().with(File::Image, file.to_vec());
        let recording = law::record_any(&start, &make);
        assert_eq!(recording.end().bytes(File::Image), Some(good.as_slice()));
        recording.steps().len()
    };
    assert_eq!(steps(&good), 0);
    let mut lost = good.clone();
    lost[good.len() - 512..].fill(0);
    assert!(steps(&lost) > 0);
    assert!(steps(&good[..good.len() - 1]) > 0);
}

#[test]
fn a_volume_gets_its_footer_where_it_will_end() {
    let spec = Spec { slack: 20 * BLOCK, ..Spec::new(3, &[(2, 0xff)]) };
    let mut volume = Storage::default().with_device(File::Image, spec.build());
    let small = |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
        Ok(Box::new(modify_size(files, 32768)?))
    };
    run(&mut volume, small).unwrap();
    let bytes = volume.bytes(File::Image).unwrap();
    assert_eq!(view::check(&bytes[..32768]), Ok(()));
    let resize = |size: u64| {
        let plan = move |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(modify_size(files, size)?))
        };
        run(&mut volume.clone(), plan).map_err(|error| error.errno())
    };
    assert_eq!(resize(4096), Err(22));
    assert_eq!(resize(bytes.len() as u64 + 512), Err(22));
    assert_eq!(resize(bytes.len() as u64), Ok(()));
}

#[test]
fn an_emptied_disk_has_every_block_old_or_empty_at_every_cut() {
    // Two sectors of table; with the batmap the first block follows without a gap.
    let blocks: Vec<(u32, u8)> = [0, 3, 130, 199].map(|block| (block, 0xff)).to_vec();
    let spec = Spec::new(200, &blocks);
    for (name, spec) in [
        ("modify -z", spec.clone()),
        ("modify -z without a batmap", Spec { has_batmap: false, ..spec }),
    ] {
        let start = Storage::default().with(File::Image, spec.build());
        let old = image(&start).unwrap();
        let make =
            |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> { Ok(Box::new(modify_zero(files)?)) };
        let law = |state: &Storage| {
            let now = image(state)?;
            let block = usize::try_from(BLOCK).expect("small");
            for (now, old) in now.data.chunks(block).zip(old.data.chunks(block)) {
                if now != old && now.iter().any(|byte| *byte != 0) {
                    return Err("a block is neither old nor empty".into());
                }
            }
            view::hints(state.bytes(File::Image).expect("it was read"))?;
            law::repaired(state.bytes(File::Image).expect("it was read"))?;
            let mut state = state.clone();
            run(&mut state, make).map_err(|error| error.to_string())?;
            match image(&state)?.data.iter().all(|byte| *byte == 0) {
                true => view::check(state.bytes(File::Image).expect("it was read")),
                false => Err("running it again did not empty it".into()),
            }
        };
        let recording = law::record(&start, &make);
        law::holds_at_every_cut(name, &recording, &law);
        law::holds_after_every_error(name, &start, &make, &law);
        if spec.has_batmap {
            // Not seen: the footer before the length, since the copy at the start says the same.
            assert_eq!(law::barriers_that_nobody_misses(&recording, &law), [2]);
        }
        let after = recording.end();
        let end = if spec.has_batmap { 1536 + 1024 + 1024 } else { 1536 + 1024 };
        assert_eq!(after.bytes(File::Image).unwrap().len(), end + 512);
    }
}

#[test]
fn the_footer_may_be_right_behind_the_data() {
    let spec = Spec { slack: BLOCK, ..Spec::new(3, &[(2, 0xff), (0, 0x81)]) };
    let mut storage = Storage::default().with(File::Image, spec.build());
    let size = storage.bytes(File::Image).unwrap().len() as u64 - BLOCK;
    let resize = |size: u64| {
        move |files: &dyn Files| -> vhd::Result<Box<dyn Plan>> {
            Ok(Box::new(modify_size(files, size)?))
        }
    };
    let error = run(&mut storage.clone(), resize(size - 1)).unwrap_err();
    assert!(matches!(error.kind(), vhd::ErrorKind::TooSmall { limit, .. } if *limit == size));
    run(&mut storage, resize(size)).unwrap();
    let bytes = storage.bytes(File::Image).unwrap();
    assert_eq!((bytes.len() as u64, view::check(bytes)), (size, Ok(())));
}
