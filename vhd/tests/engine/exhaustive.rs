//! All sequences of up to three operations that change metadata, on a tiny image; a power cut after
//! every event; every subset of what was not durable then.

use vhd::engine::{FileStep, Rule};
use vhd::testing::{Oracle, Store};

use crate::image::{Shape, effect_of};
use crate::rig::{Ask, Outcome, Rig, check};

/// More sectors that may or may not be lost at once than this would take too long: none of the
/// sequences has so many.
const ATOMS_MAX: usize = 16;

/// What may happen to the disk: it has three blocks of two sectors.
const ASKS: &[Ask] = &[
    Ask::Write { sector: 0, count: 1, fua: false, zeros: false },
    Ask::Write { sector: 1, count: 1, fua: false, zeros: false },
    Ask::Write { sector: 0, count: 2, fua: false, zeros: false },
    Ask::Write { sector: 1, count: 2, fua: true, zeros: false },
    Ask::Write { sector: 2, count: 1, fua: false, zeros: false },
    Ask::Zero { sector: 0, count: 2 },
    Ask::Zero { sector: 1, count: 1 },
    Ask::Trim { sector: 0, count: 2 },
    Ask::Flush,
];

#[derive(Default)]
struct Counts {
    sequences: u64,
    cuts: u64,
    states: u64,
}

/// Cuts the power now in every way.
fn cut(rig: &Rig, counts: &mut Counts) -> Result<(), String> {
    let atoms = rig.store.atoms();
    assert!(atoms <= ATOMS_MAX, "{atoms} sectors may be lost");
    counts.cuts += 1;
    for subset in 0..1_u32 << atoms {
        counts.states += 1;
        let file = rig.store.cut(|atom| subset >> atom & 1 == 1);
        rig.check(&file, false).map_err(|error| format!("{error} (subset {subset:#b})"))?;
    }
    let running = rig.store.kill(|_| true);
    rig.check(running.bytes(), true).map_err(|error| format!("kill: {error}"))?;
    let running = rig.store.kill(|_| false);
    rig.check(running.bytes(), true).map_err(|error| format!("kill: {error}")).map(|_| ())
}

/// The steps of an open or close, with a cut after each.
fn session(
    shape: &Shape,
    store: &mut Store,
    oracle: &Oracle,
    steps: &[FileStep],
    counts: &mut Counts,
) -> Result<(), String> {
    for step in steps {
        match effect_of(step) {
            None => {
                let covered = store.flush_begin();
                store.flush_end(&covered);
            }
            Some(effect) => {
                let write = store.begin(effect);
                store.end(write, |_| true, true);
            }
        }
        counts.cuts += 1;
        for subset in 0..1_u32 << store.atoms() {
            counts.states += 1;
            let file = store.cut(|atom| subset >> atom & 1 == 1);
            check(shape, oracle, &file, false)
                .map_err(|error| format!("{error} (subset {subset:#b} at {step:x?})"))?;
        }
    }
    Ok(())
}

fn run(shape: Shape, asks: &[Ask], at_once: bool, counts: &mut Counts) -> Result<(), String> {
    counts.sequences += 1;
    let store = Store::new(shape.leaf());
    let mut rig = Rig::new(shape, store, Oracle::new(shape.initial()), 1)?;
    for ask in asks {
        rig.ask(*ask)?;
        cut(&rig, counts)?;
        while !at_once && rig.running() > 0 {
            rig.end(0, Outcome::Done)?;
            cut(&rig, counts)?;
        }
    }
    while rig.running() > 0 {
        rig.end(0, Outcome::Done)?;
        cut(&rig, counts)?;
    }
    assert!(rig.is_quiet() && rig.engine.is_idle(), "all was answered: {:?}", rig.engine);
    let steps = shape.closing(&rig.engine);
    let mut store = rig.store.clone();
    session(&shape, &mut store, &rig.oracle, &steps, counts)?;
    // And an open after a kill, without that close.
    let mut store = rig.store.kill(|_| true);
    let steps = shape.opening(store.bytes())?;
    session(&shape, &mut store, &rig.oracle, &steps, counts)
}

fn sequences(len: usize) -> Vec<Vec<Ask>> {
    let mut all = vec![Vec::new()];
    for _ in 0..len {
        let longer = |asks: &Vec<Ask>| {
            ASKS.iter().map(|ask| [asks.as_slice(), &[*ask]].concat()).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape::TINY,
        Shape { parent: true, ..Shape::TINY },
        Shape { device: Some(3), ..Shape::TINY },
    ]
}

/// Runs everything; the first violation, and how many sequences it took.
fn find(without: Option<Rule>, counts: &mut Counts) -> Option<String> {
    for len in 1..=3 {
        for asks in sequences(len) {
            for at_once in [false, true] {
                for shape in shapes() {
                    let shape = Shape { without, ..shape };
                    if let Err(error) = run(shape, &asks, at_once, counts) {
                        return Some(format!("{asks:?} at once {at_once} on {shape:?}: {error}"));
                    }
                }
            }
        }
    }
    None
}

#[test]
fn every_cut_of_every_short_sequence_leaves_what_was_promised() {
    let mut counts = Counts::default();
    let found = find(None, &mut counts);
    let Counts { sequences, cuts, states } = counts;
    println!("{sequences} sequences, {cuts} cut points, {states} states");
    assert_eq!(found, None);
}

#[test]
fn without_an_ordering_rule_some_cut_is_noticed() {
    for rule in [
        Rule::DataBeforeBits,
        Rule::BlockBeforeEntry,
        Rule::EntryBeforeAnswer,
        Rule::DurableBeforeFua,
    ] {
        let mut counts = Counts::default();
        let found = find(Some(rule), &mut counts);
        println!("without {rule:?}: noticed after {} sequences", counts.sequences);
        assert!(found.is_some(), "nothing notices that {rule:?} is not kept");
    }
}
