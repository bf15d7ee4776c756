//! Steps on real files, against the plans' own model in memory.

use proptest::prelude::*;
use vhd::plan::memory::Storage;
use vhd::plan::{Step, Steps};

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vhd-execute-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn steps(of: &[Step]) -> Steps {
    let mut steps = Steps::default();
    of.iter().for_each(|step| steps.push(step.clone()));
    steps
}

const IMAGE: File = File::Image;
const JOURNAL: File = File::Journal;

#[test]
fn files_are_made_and_removed() {
    let folder = Folder::new("names");
    let (image, journal) = (folder.0.join("image"), folder.0.join("journal"));
    let mut files = OpenFiles::with_new_image(&image, Policy::Never).and_new_journal(&journal);
    let mut plan = steps(&[
        Step::Create { file: IMAGE },
        Step::Create { file: JOURNAL },
        Step::Write { file: IMAGE, offset: 1, bytes: vec![7; 2] },
        Step::Barrier,
        Step::Remove { file: JOURNAL },
        Step::Barrier,
    ]);
    assert_eq!(execute(&mut plan, &mut files, &mut Unwatched).unwrap(), End::Done);
    assert_eq!(std::fs::read(&image).unwrap(), [0, 7, 7]);
    assert!(!journal.exists());
    // What is there already is the caller's business.
    let mut files = OpenFiles::with_new_image(&image, Policy::Never);
    let mut plan = steps(&[Step::Create { file: IMAGE }]);
    let failed = execute(&mut plan, &mut files, &mut Unwatched).unwrap_err();
    assert_eq!((failed.error.errno(), failed.path), (17, Some(image)));
}

#[test]
fn an_error_names_the_file_and_the_offset() {
    let folder = Folder::new("error");
    let path = folder.0.join("image");
    std::fs::write(&path, [0; 100]).unwrap();
    let read_only = ImageFile::open(&path).unwrap();
    let mut files = OpenFiles::with_image(read_only, Policy::Never);
    let mut plan = steps(&[Step::Write { file: IMAGE, offset: 4096, bytes: vec![1; 512] }]);
    let failed = execute(&mut plan, &mut files, &mut Unwatched).unwrap_err();
    assert_eq!((failed.error.errno(), failed.error.offset()), (9, Some(4096)));
    assert!(failed.to_string().contains("image"), "{failed}");
}

#[test]
fn an_observer_may_end_it_at_a_milestone() {
    struct Stop;
    impl Observer for Stop {
        fn reached(&mut self, milestone: Milestone) -> bool {
            milestone != Milestone::ResizeEnd
        }
    }
    let folder = Folder::new("stop");
    let path = folder.0.join("image");
    let mut files = OpenFiles::with_new_image(&path, Policy::Never);
    let mut plan = steps(&[
        Step::Reached(Milestone::ResizeBegin),
        Step::Create { file: IMAGE },
        Step::Reached(Milestone::ResizeEnd),
        Step::Remove { file: IMAGE },
    ]);
    let end = execute(&mut plan, &mut files, &mut Stop).unwrap();
    assert_eq!(end, End::Stopped(Milestone::ResizeEnd));
    assert!(path.exists());
}

fn a_step() -> impl Strategy<Value = Step> {
    let place = (0_u64..40, 1_u64..20);
    prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|((at, count), byte)| Step::Write {
            file: IMAGE,
            offset: at * 512,
            bytes: vec![byte; usize::try_from(count * 512).unwrap()],
        }),
        place.clone().prop_map(|(at, count)| Step::Zero {
            file: IMAGE,
            offset: at * 512,
            length: count * 512,
        }),
        (place, 40_u64..60).prop_map(|((at, count), to)| Step::Copy {
            from: IMAGE,
            from_offset: at * 512,
            to: IMAGE,
            to_offset: to * 512,
            length: count.min(40_u64.saturating_sub(at)) * 512,
        }),
        (0_u64..80).prop_map(|length| Step::SetLength { file: IMAGE, length: length * 512 }),
        Just(Step::Barrier),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn files_end_as_the_model_in_memory_does(list in prop::collection::vec(a_step(), 1..20)) {
        // Long enough for every copy.
        let mut all = Vec::new();
        for step in list {
            if let Step::Copy { .. } = step {
                all.push(Step::Write { file: IMAGE, offset: 80 * 512, bytes: vec![0; 512] });
            }
            all.push(step);
        }
        let folder = Folder::new("model");
        let path = folder.0.join("image");
        std::fs::write(&path, []).unwrap();
        let mut model = Storage::default().with(IMAGE, Vec::new());
        model.run(&mut steps(&all)).unwrap();
        let (image, _) = ImageFile::open_for_writing(&path, Policy::Never).unwrap();
        let mut files = OpenFiles::with_image(image, Policy::Never);
        execute(&mut steps(&all), &mut files, &mut Unwatched).unwrap();
        prop_assert_eq!(std::fs::read(&path).unwrap(), model.bytes(IMAGE).unwrap());
    }
}

/// Copies that are written while the next one is read.
struct Apart(Steps);

impl Plan for Apart {
    fn queue(&mut self) -> &mut Steps {
        &mut self.0
    }

    fn advance(&mut self, _: &dyn Files) -> vhd::Result<bool> {
        Ok(false)
    }

    fn copies_are_apart(&self) -> bool {
        true
    }
}

fn copy_of(piece: u64, length: u64) -> Step {
    let (from_offset, to_offset) = (piece * length, (piece ^ 1) * length);
    Step::Copy { from: JOURNAL, from_offset, to: IMAGE, to_offset, length }
}

#[test]
fn what_is_written_behind_is_there_before_anything_else_is_done() {
    let folder = Folder::new("behind");
    let (image, journal) = (folder.0.join("image"), folder.0.join("journal"));
    let length = u64::try_from(BEHIND_BYTES_MIN).unwrap() + 512;
    let size = usize::try_from(length * 10).unwrap();
    let source: Vec<u8> = (0..size).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect();
    std::fs::write(&journal, &source).unwrap();
    std::fs::write(&image, []).unwrap();
    let open = |path| ImageFile::open_for_writing(path, Policy::Never).unwrap().0;
    let mut files = OpenFiles::with_image(open(&image), Policy::Never).and_journal(open(&journal));
    let mut plan: Vec<Step> = (0..10).map(|piece| copy_of(piece, length)).collect();
    // Where the last copy but one went: it must not come after this.
    let over = Step::Write { file: IMAGE, offset: 9 * length, bytes: vec![255; 512] };
    plan.extend([over, Step::Barrier]);
    let end = execute(&mut Apart(steps(&plan)), &mut files, &mut Unwatched);
    assert_eq!(end.unwrap(), End::Done);
    let pieces: Vec<&[u8]> = source.chunks(usize::try_from(length).unwrap()).collect();
    let mut wanted: Vec<u8> = (0..10_usize).flat_map(|piece| pieces[piece ^ 1].to_vec()).collect();
    let start = usize::try_from(9 * length).unwrap();
    wanted[start..start + 512].fill(255);
    assert!(std::fs::read(&image).unwrap() == wanted);
}

#[test]
fn a_failure_of_what_is_written_behind_ends_the_plan_and_says_where() {
    let folder = Folder::new("behind-error");
    let (image, journal) = (folder.0.join("image"), folder.0.join("journal"));
    let length = u64::try_from(BEHIND_BYTES_MIN).unwrap();
    std::fs::write(&journal, vec![1; usize::try_from(2 * length).unwrap()]).unwrap();
    std::fs::write(&image, []).unwrap();
    let open = |path: &Path| ImageFile::open(path).unwrap();
    // The last step, one before another copy, one before a barrier: each is told of all the same.
    let ends = [vec![], vec![copy_of(1, length)], vec![Step::Barrier]];
    for end in ends {
        let read_only = OpenFiles::with_image(open(&image), Policy::Never);
        let mut files = read_only.and_journal(open(&journal));
        let plan: Vec<Step> = [copy_of(0, length)].into_iter().chain(end).collect();
        let failed = execute(&mut Apart(steps(&plan)), &mut files, &mut Unwatched).unwrap_err();
        assert_eq!((failed.error.errno(), failed.error.offset()), (9, Some(length)), "{plan:?}");
        assert_eq!(failed.path.as_deref(), Some(image.as_path()));
    }
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 0);
}

fn coded(coding: Coding, there: u64, sector: u64) -> Step {
    let (from, to, length) = (JOURNAL, IMAGE, 3 * 512);
    let (from_offset, to_offset) = (512, sector * 512);
    Step::Code { coding, from, from_offset, there, to, to_offset, length, sector }
}

#[test]
fn sectors_are_coded_by_their_numbers_with_zeros_for_what_is_not_there() {
    let folder = Folder::new("coded");
    let (image, journal) = (folder.0.join("image"), folder.0.join("journal"));
    let source: Vec<u8> = (0..=255).cycle().take(4 * 512).collect();
    std::fs::write(&journal, &source).unwrap();
    std::fs::write(&image, []).unwrap();
    let open = |path| ImageFile::open_for_writing(path, Policy::Never).unwrap().0;
    let key = Key::new((0..64).collect()).unwrap();
    let files = || OpenFiles::with_image(open(&image), Policy::Never).and_journal(open(&journal));
    let plan = [
        coded(Coding::Encrypt, 700, 0),
        coded(Coding::Decrypt, 1536, 3),
        // Nothing is read: it does not matter that there is nothing.
        Step::Remove { file: JOURNAL },
        coded(Coding::Encrypt, 0, 6),
    ];
    execute(&mut Apart(steps(&plan)), &mut files().and_key(&key), &mut Unwatched).unwrap();
    let mut partly = source[512..][..700].to_vec();
    partly.resize(1536, 0);
    let (mut whole, mut zeros) = (source[512..].to_vec(), vec![0; 1536]);
    let encryption = Encryption::new(&key);
    encryption.encrypt(0, &mut partly);
    encryption.decrypt(3, &mut whole);
    encryption.encrypt(6, &mut zeros);
    assert!(std::fs::read(&image).unwrap() == [partly, whole, zeros].concat());
}

#[test]
fn nothing_is_coded_without_a_key() {
    let folder = Folder::new("no-key");
    let image = folder.0.join("image");
    std::fs::write(&image, []).unwrap();
    let (open, _) = ImageFile::open_for_writing(&image, Policy::Never).unwrap();
    let mut files = OpenFiles::with_image(open, Policy::Never);
    let mut plan = steps(&[coded(Coding::Encrypt, 0, 0)]);
    let failed = execute(&mut plan, &mut files, &mut Unwatched).unwrap_err();
    assert_eq!(failed.error.kind(), &ErrorKind::Encrypted);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 0);
}
