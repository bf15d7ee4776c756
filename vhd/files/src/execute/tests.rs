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
