//! What operations take for a batmap, and what they do to it.

use vhd::batmap::{BatmapHeader, CREATOR_VERSION_MIN};
use vhd::footer::Footer;
use vhd::plan::compact::compact;
use vhd::plan::memory::Storage;
use vhd::plan::repair::{RepairOptions, repair};
use vhd::plan::set::set_marker;
use vhd::plan::{File, Files};
use vhd::units::Uuid;

use crate::image::{Spec, footer_of};
use crate::law::run;
use crate::view;

/// Where the batmap's header and map are, of at most 128 entries.
const HEADER: usize = 2048;
const MAP: usize = 2560;

/// Empty, without a footer at its end: 3072 bytes.
fn empty() -> Vec<u8> {
    let mut bytes = Spec::new(3, &[]).build();
    bytes.truncate(bytes.len() - 512);
    bytes
}

fn has_batmap(file: Vec<u8>) -> bool {
    let mut storage = Storage::default().with(File::Image, file);
    match run(&mut storage, |files| Ok(Box::new(set_marker(files, 7)?))) {
        Ok(()) => true,
        Err(error) => {
            assert!(error.to_string().contains("no batmap"), "{error}");
            false
        }
    }
}

#[test]
fn a_batmap_is_there_since_version_1_1_of_its_creator() {
    for (creator_version, wanted) in
        [(CREATOR_VERSION_MIN - 1, false), (CREATOR_VERSION_MIN, true), (0x0001_0003, true)]
    {
        let mut file = empty();
        let footer = Footer { creator_version, ..footer_of(&file) };
        file[..512].copy_from_slice(&footer.emit());
        assert_eq!(has_batmap(file), wanted, "{creator_version:#x}");
    }
}

#[test]
fn a_batmap_that_says_what_cannot_be_is_none() {
    assert!(has_batmap(empty()));
    let changes: [fn(&mut BatmapHeader); 3] =
        [|it| it.version += 1, |it| it.sectors = 0, |it| it.offset = 0];
    for change in changes {
        let mut file = empty();
        let raw: [u8; 512] = file[HEADER..MAP].try_into().unwrap();
        let mut header = BatmapHeader::parse(&raw).unwrap();
        change(&mut header);
        file[HEADER..MAP].copy_from_slice(&header.emit());
        assert!(!has_batmap(file));
    }
}

/// A repair makes a file whole that ends anywhere in it.
#[test]
fn a_batmap_that_is_cut_off_is_none_and_what_is_left_is_sound() {
    assert!(has_batmap(empty()), "it ends where the file does");
    for length in [HEADER, HEADER + 100, MAP, MAP + 511] {
        let mut file = empty();
        file.truncate(length);
        assert!(!has_batmap(file.clone()), "{length}");
        let mut storage = Storage::default().with(File::Image, file);
        let options = RepairOptions { by_copy: false, new_uuid: Uuid([1; 16]) };
        run(&mut storage, |files| repair(files, options)).unwrap();
        assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()), "{length}");
    }
}

/// More than one page, which is read after a look at the length of the file.
#[test]
fn a_table_may_end_where_its_file_does() {
    let mut file = Spec { has_batmap: false, ..Spec::new(1100, &[]) }.build();
    file.truncate(1536 + 4 * 1100);
    let mut storage = Storage::default().with(File::Image, file);
    let options = RepairOptions { by_copy: false, new_uuid: Uuid([1; 16]) };
    run(&mut storage, |files: &dyn Files| repair(files, options)).unwrap();
    assert_eq!(view::check(storage.bytes(File::Image).unwrap()), Ok(()));
}

#[test]
fn a_block_that_leaves_the_table_leaves_the_batmap_whatever_its_number() {
    for block in [0, 63, 64, 199] {
        let spec = Spec::new(200, &[(block, 0xff), (100, 0x81)]);
        let mut file = spec.build();
        let data = (3072 + 512_usize).next_multiple_of(4096);
        file[data..data + 4096].fill(0);
        let mut storage = Storage::default().with(File::Image, file);
        let mut plan = compact(&storage).unwrap();
        storage.run(&mut plan).unwrap();
        assert_eq!(plan.freed_blocks(), 1, "{block}");
        assert_eq!(view::hints(storage.bytes(File::Image).unwrap()), Ok(()), "{block}");
    }
}
