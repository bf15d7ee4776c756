//! What is asked of every operation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, Once};
use std::time::Duration;

use vhd::plan::crash::{Effort, Recording};
use vhd::plan::memory::{Fault, MakePlan, Storage};
use vhd::plan::repair::{RepairOptions, repair};
use vhd::plan::{File, Files, Plan, Step};

use crate::view::{self, View};

/// Epochs of up to 2^14 states are tried in full.
pub(crate) const EFFORT: Effort = Effort { exhaustive_pieces_max: 14, samples: 16_000, seed: 2026 };

/// For recordings of which only some barrier is missing: enough to notice.
pub(crate) const QUICK: Effort = Effort { exhaustive_pieces_max: 12, samples: 2000, seed: 7 };

pub(crate) type Law<'a> = &'a dyn Fn(&Storage) -> Result<(), String>;

/// A law that owns what it compares with.
pub(crate) type Boxed = Box<dyn Fn(&Storage) -> Result<(), String>>;

pub(crate) fn boxed(law: impl Fn(&Storage) -> Result<(), String> + 'static) -> Boxed {
    Box::new(law)
}

/// Performs an operation from the start to the end.
pub(crate) fn record(start: &Storage, make: &MakePlan<'_>) -> Recording {
    let recording = record_any(start, make);
    let mut steps = recording.steps().iter().filter(|step| !matches!(step, Step::Reached(_)));
    assert_eq!(steps.next_back(), Some(&Step::Barrier), "the result is durable");
    recording
}

/// The same for one that may have nothing to do.
pub(crate) fn record_any(start: &Storage, make: &MakePlan<'_>) -> Recording {
    watch_for_failures();
    let mut plan = make(start).expect("the operation can begin");
    start.clone().run(plan.as_mut()).expect("nothing fails")
}

/// Recordings whose power was cut everywhere in this run, and in how many states.
static TRIED: Mutex<(usize, u64)> = Mutex::new((0, 0));
static MORE: Condvar = Condvar::new();

/// A test has failed: the others wait for nothing.
static FAILED: AtomicBool = AtomicBool::new(false);
static WATCH: Once = Once::new();

/// Whoever waits for the states of all tests is told when one of them fails.
fn watch_for_failures() {
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            FAILED.store(true, Ordering::Relaxed);
            MORE.notify_all();
            before(info);
        }));
    });
}

/// Waits until so many recordings were tried; the states of all of them. `None` when another test
/// has failed, or none came for too long.
pub(crate) fn states_of(recordings: usize) -> Option<u64> {
    watch_for_failures();
    let tried = TRIED.lock().expect("nobody panics with it");
    let patience = Duration::from_secs(120);
    let is_missing =
        |tried: &mut (usize, u64)| tried.0 < recordings && !FAILED.load(Ordering::Relaxed);
    let (tried, _) = MORE.wait_timeout_while(tried, patience, is_missing).expect("as above");
    (tried.0 >= recordings).then_some(tried.1)
}

/// The law holds wherever the power is cut. Prints how much was tried: the last line that it
/// prints has all of it.
pub(crate) fn holds_at_every_cut(name: &str, recording: &Recording, law: Law<'_>) {
    let tried = match recording.cut_power(EFFORT, law) {
        Ok(tried) => tried,
        Err(complaint) => panic!("{name}: {complaint}"),
    };
    let (full, sampled) = (tried.epochs_exhaustive, tried.epochs_sampled);
    let mut all = TRIED.lock().expect("nobody panics with it");
    *all = (all.0 + 1, all.1 + tried.states);
    let (states, sum, count) = (tried.states, all.1, all.0);
    println!(
        "{name}: {states} states, {full} epochs in full, {sampled} sampled; {sum} of {count} so far"
    );
    MORE.notify_all();
}

/// Barriers without which the law still holds. The last one is not tried: it says that the result
/// is durable when the operation ends, and [`record`] sees that it is there.
pub(crate) fn barriers_that_nobody_misses(recording: &Recording, law: Law<'_>) -> Vec<usize> {
    let misses = |n: &usize| recording.without_barrier(*n).cut_power(QUICK, law).is_err();
    (0..recording.barriers() - 1).filter(|n| !misses(n)).collect()
}

/// Each read and each step fails once, with each error: the operation gives that error, and the law
/// holds for what is left.
pub(crate) fn holds_after_every_error(
    name: &str,
    start: &Storage,
    make: &MakePlan<'_>,
    law: Law<'_>,
) {
    let mut count = 0;
    for errno in [5, 28] {
        for after in 0.. {
            let mut storage = start.clone();
            let (has_failed, result) = storage.run_with_fault(Fault { after, errno }, make);
            if !has_failed {
                break;
            }
            count += 1;
            let found = result.err().map(|error| error.errno());
            assert_eq!(found, Some(errno), "{name}: access {after} failed");
            if let Err(complaint) = law(&storage) {
                panic!("{name}: after errno {errno} of access {after}: {complaint}");
            }
        }
    }
    println!("{name}: {count} errors");
}

/// Runs a plan to its end.
pub(crate) fn run(
    storage: &mut Storage,
    make: impl Fn(&dyn Files) -> vhd::Result<Box<dyn Plan>>,
) -> vhd::Result<()> {
    let mut plan = make(storage)?;
    storage.run(plan.as_mut()).map(|_| ())
}

/// The image's view, without a parent.
pub(crate) fn image(storage: &Storage) -> Result<View, String> {
    view::view(storage.bytes(File::Image).ok_or("no image")?, None)
}

/// The same image is clean once it is repaired, and shows the same.
pub(crate) fn repaired(bytes: &[u8]) -> Result<(), String> {
    let mut storage = Storage::default().with(File::Image, bytes.to_vec());
    let before = image(&storage)?;
    let options = RepairOptions { by_copy: false, new_uuid: vhd::units::Uuid([1; 16]) };
    run(&mut storage, |files| repair(files, options))
        .map_err(|error| format!("repair: {error}"))?;
    if image(&storage)? != before {
        return Err("the repair changed what the disk holds".into());
    }
    view::check(storage.bytes(File::Image).expect("it was just repaired"))
}

/// Barriers that none of the laws misses, and how many there are.
pub(crate) fn idle_barriers(all: &[(Recording, Boxed)]) -> (usize, Vec<usize>) {
    let mut idle: Vec<usize> = (0..all[0].0.barriers() - 1).collect();
    for (recording, law) in all {
        let nobody = barriers_that_nobody_misses(recording, law);
        idle.retain(|barrier| nobody.contains(barrier));
    }
    (all[0].0.barriers(), idle)
}
