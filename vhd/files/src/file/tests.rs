//! The laws of files: bytes go where they were told to, whatever the storage is content with.

use std::fs;

use proptest::prelude::*;

use super::*;

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vhd-file-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn create(&self, name: &str) -> ImageFile {
        ImageFile::create(&self.0.join(name), Policy::Never).unwrap().0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left over is in the temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    SetLength(u64),
    Punch(u64, u64),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let places = || (0..20_000_u64, 0..9000_u64);
    let rounded = |(offset, length): (u64, u64)| (offset & !511, length & !511);
    let change = prop_oneof![
        (0..20_000_u64, proptest::collection::vec(any::<u8>(), 0..9000))
            .prop_map(|(offset, bytes)| Change::Write(offset, bytes)),
        (0..40_u64, any::<u8>(), 1..20_usize)
            .prop_map(|(sector, byte, count)| Change::Write(sector * 512, vec![byte; count * 512])),
        places().prop_map(|(offset, length)| Change::Zero(offset, length)),
        places().prop_map(rounded).prop_map(|(offset, length)| Change::Punch(offset, length)),
        (0..25_000_u64).prop_map(Change::SetLength),
    ];
    proptest::collection::vec(change, 1..12)
}

/// On a file that is extended, zeroed and cut, the simple way.
fn change(model: &mut Vec<u8>, change: &Change) {
    let range = |offset: u64, length: u64| {
        usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
    };
    match change {
        Change::Write(offset, bytes) => {
            let range = range(*offset, bytes.len() as u64);
            if !bytes.is_empty() {
                model.resize(model.len().max(range.end), 0);
                model[range].copy_from_slice(bytes);
            }
        }
        Change::Zero(offset, length) => {
            let range = range(*offset, *length);
            model.resize(model.len().max(range.end), 0);
            model[range].fill(0);
        }
        Change::Punch(offset, length) => {
            let range = range(*offset, *length);
            let end = range.end.min(model.len());
            model.get_mut(range.start..end).unwrap_or_default().fill(0);
        }
        Change::SetLength(length) => model.resize(usize::try_from(*length).unwrap(), 0),
    }
}

fn perform(file: &ImageFile, change: &Change) {
    match change {
        Change::Write(offset, bytes) => file.write_all_at(bytes, *offset).unwrap(),
        Change::Zero(offset, length) => file.zero(*offset, *length).unwrap(),
        Change::Punch(offset, length) if *length > 0 => file.punch_hole(*offset, *length).unwrap(),
        Change::Punch(..) => {}
        Change::SetLength(length) => file.set_length(*length).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn holds_what_was_written_with_direct_io_of_any_alignment_and_without(
        changes in changes(),
        reads in proptest::collection::vec((0..30_000_u64, 0..9000_usize), 1..12),
    ) {
        let directory = Directory::new("any");
        for alignment in [1, 512, 4096] {
            let file = directory.create(&alignment.to_string());
            // Where the storage is content with less, more is right as well.
            file.alignment.set(file.alignment.get().max(alignment));
            let mut model = Vec::new();
            for next in &changes {
                perform(&file, next);
                change(&mut model, next);
                prop_assert_eq!(file.length().unwrap(), model.len() as u64);
            }
            let mut all = vec![0; model.len()];
            file.read_at(0, &mut all).unwrap();
            prop_assert!(all == model);
            for (offset, length) in &reads {
                let mut found = vec![0; *length];
                let mut wanted = vec![0; *length];
                let result = file.read_at(*offset, &mut found);
                prop_assert_eq!(&result, &model.read_at(*offset, &mut wanted));
                prop_assert!(result.is_err() || found == wanted);
            }
        }
    }
}

#[test]
fn a_new_file_is_new() {
    let directory = Directory::new("new");
    directory.create("a");
    let error = ImageFile::create(&directory.0.join("a"), Policy::Never).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
}

#[test]
fn opens_files_and_block_devices_only_and_does_not_wait() {
    let directory = Directory::new("kinds");
    let pipe = directory.0.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(ImageFile::open(&pipe).unwrap_err().errno(), libc::EINVAL);
    assert!(matches!(ImageFile::open(Path::new("/dev/null")), Err(OpenError::Type)));
    assert!(ImageFile::open(&directory.0).is_err());
}

#[test]
fn a_second_writer_is_refused() {
    let directory = Directory::new("lock");
    let path = directory.0.join("a");
    let first = ImageFile::create(&path, Policy::Always).unwrap();
    let error = ImageFile::open_for_writing(&path, Policy::Always).unwrap_err();
    assert_eq!(error.errno(), libc::EAGAIN);
    assert!(ImageFile::open(&path).is_ok());
    drop(first);
    assert!(ImageFile::open_for_writing(&path, Policy::Always).is_ok());
}
