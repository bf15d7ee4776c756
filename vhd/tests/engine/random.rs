//! Long random runs: many requests at once, I/O that ends in any order, fails in part, or stays
//! under way when the power is cut or the process is killed; then an open, in which that may
//! happen again. A seed reproduces its run.

use vhd::engine::{FileStep, Rule};
use vhd::testing::{Oracle, Random, Store};

use crate::image::{Shape, effect_of};
use crate::rig::{Ask, Outcome, Rig, check};

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    cuts: u64,
    kills: u64,
    closes: u64,
}

fn shape_of(random: &mut Random, without: Option<Rule>) -> Shape {
    let blocks = 3 + random.below(6);
    let parent = random.one_in(2);
    Shape {
        block_sectors: [1, 2, 8, 16][random.below(4) as usize],
        blocks,
        parent,
        middle: parent && random.one_in(2),
        device: random.one_in(4).then(|| blocks + random.below(3) - 1),
        without,
        drop_zeros: random.one_in(2),
        bad_copy: false,
    }
}

fn ask_of(random: &mut Random, sectors: u64, can_flush: bool) -> Ask {
    let kind = random.below(20);
    let sector = random.below(sectors);
    let longest = if random.one_in(2) { 3 } else { sectors };
    let mut count = (1 + random.below(longest)).min(sectors - sector);
    let mut first = sector;
    if random.one_in(6) {
        (first, count) = (0, sectors);
    }
    let (sector, fua, zeros) = (first, random.one_in(4), random.one_in(6));
    match kind {
        0..5 => Ask::Read { sector, count },
        5..13 => Ask::Write { sector, count, fua, zeros },
        13..15 => Ask::Zero { sector, count },
        15..18 => Ask::Trim { sector, count },
        _ if can_flush => Ask::Flush,
        _ => Ask::Read { sector, count },
    }
}

/// A disk over many lives.
struct Run {
    random: Random,
    shape: Shape,
    store: Store,
    oracle: Oracle,
    version: u32,
    counts: Counts,
}

/// How a life ended.
enum End {
    Cut,
    Kill,
    Close,
}

impl Run {
    /// Steps of open or close, with a cut or kill at any point; whether there was none.
    fn session(&mut self, steps: &[FileStep]) -> Result<bool, String> {
        for step in steps {
            if self.random.one_in(40) {
                self.cut()?;
                return Ok(false);
            }
            match effect_of(step) {
                None => {
                    let covered = self.store.flush_begin();
                    self.store.flush_end(&covered);
                }
                Some(effect) => {
                    let write = self.store.begin(effect);
                    if self.random.one_in(40) {
                        self.cut()?;
                        return Ok(false);
                    }
                    self.store.end(write, |_| true, true);
                }
            }
        }
        Ok(true)
    }

    fn cut(&mut self) -> Result<(), String> {
        self.counts.cuts += 1;
        let keep = self.random.keep();
        let file = self.store.cut(keep);
        check(&self.shape, &self.oracle, &file, false)?;
        self.store = Store::new(file);
        Ok(())
    }

    fn kill(&mut self) -> Result<(), String> {
        self.counts.kills += 1;
        let keep = self.random.keep();
        self.store = self.store.kill(keep);
        check(&self.shape, &self.oracle, self.store.bytes(), true).map(|_| ())
    }

    fn life(&mut self) -> Result<(), String> {
        loop {
            let steps = self.shape.opening(self.store.bytes())?;
            if self.session(&steps)? {
                break;
            }
        }
        // An fdatasync was among the steps: what is there now stays.
        let values = self.shape.read_all(self.store.bytes())?;
        self.oracle.restart(&values);
        let store = std::mem::replace(&mut self.store, Store::new(Vec::new()));
        let mut rig = Rig::new(self.shape, store, self.oracle.clone(), self.version)?;
        let end = self.serve(&mut rig)?;
        self.counts.requests += rig.answered;
        self.version = rig.version();
        self.store = rig.store;
        self.oracle = rig.oracle;
        match end {
            End::Cut => self.cut(),
            End::Kill => self.kill(),
            End::Close => {
                self.counts.closes += 1;
                // Whoever opens it next starts with what is seen.
                self.store = self.store.kill(|_| true);
                let steps = self.shape.closing(&rig.engine);
                self.session(&steps).map(|_| ())
            }
        }
    }

    fn serve(&mut self, rig: &mut Rig) -> Result<End, String> {
        let (length, fails) = (20 + self.random.below(300), self.random.one_in(3));
        let asks = 1 + self.random.below(4);
        for _ in 0..length {
            if rig.has_slot() && (rig.running() == 0 || self.random.below(5) < asks) {
                let can_flush = !rig.has_changes();
                let ask = ask_of(&mut self.random, self.shape.sectors(), can_flush);
                rig.ask(ask)?;
            } else if rig.running() > 0 {
                self.end_one(rig, fails)?;
            }
        }
        match self.random.below(5) {
            0 => Ok(End::Kill),
            1 => {
                while rig.running() > 0 {
                    self.end_one(rig, false)?;
                }
                if !rig.is_quiet() {
                    return Err(format!("requests hang: {:?}", rig.engine));
                }
                Ok(End::Close)
            }
            _ => Ok(End::Cut),
        }
    }

    fn end_one(&mut self, rig: &mut Rig, fails: bool) -> Result<(), String> {
        let index = self.random.below(rig.running() as u64) as usize;
        let is_failed = fails && self.random.one_in(20);
        let outcome = if is_failed { Outcome::Failed(self.random.next()) } else { Outcome::Done };
        rig.end(index, outcome)
    }
}

/// Lives of the disk of a seed, until one breaks a promise.
fn run(seed: u64, lives: u64, without: Option<Rule>) -> Result<Counts, String> {
    let mut random = Random(seed);
    let shape = Shape { bad_copy: seed.is_multiple_of(5), ..shape_of(&mut random, without) };
    let store = Store::new(shape.leaf());
    let oracle = Oracle::new(shape.initial());
    let mut run = Run { random, shape, store, oracle, version: 10, counts: Counts::default() };
    for life in 0..lives {
        run.life().map_err(|error| format!("seed {seed}, life {life}, {shape:?}: {error}"))?;
    }
    Ok(run.counts)
}

/// The seeds of disks, of ten lives each. `TAPDISK_SIMULATED_DISKS=…` for more, from
/// `TAPDISK_SEED=…` on.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("TAPDISK_SEED").unwrap_or(0);
    first..first + number("TAPDISK_SIMULATED_DISKS").unwrap_or(3_000)
}

#[test]
fn no_cut_and_no_kill_breaks_a_promise() {
    let mut total = Counts::default();
    for seed in seeds() {
        let counts = run(seed, 10, None).unwrap_or_else(|error| panic!("{error}"));
        total.requests += counts.requests;
        total.cuts += counts.cuts;
        total.kills += counts.kills;
        total.closes += counts.closes;
    }
    println!("seeds {:?}: {total:?}", seeds());
}

/// Three blocks of eight sectors, in a file or a device, without a parent.
fn rig_of(device: Option<u64>) -> Rig {
    let shape = Shape { block_sectors: 8, device, ..Shape::TINY };
    let oracle = Oracle::new(shape.initial());
    Rig::new(shape, Store::new(shape.leaf()), oracle, 10).expect("a sound image")
}

fn write(sector: u64, count: u64) -> Ask {
    Ask::Write { sector, count, fua: false, zeros: false }
}

/// All that runs ends well, in its order.
fn quiet(rig: &mut Rig) {
    while rig.running() > 0 {
        rig.end(0, Outcome::Done).expect("what was promised");
    }
}

/// Found by seed 4103: zeros were taken for done where nothing was present yet, while a write under
/// way was about to make present what another one, that failed, had left there.
#[test]
fn zeros_replace_what_a_failed_write_left_under_a_write_under_way() {
    let mut rig = rig_of(Some(3));
    rig.ask(write(0, 1)).unwrap();
    quiet(&mut rig);
    rig.ask(write(1, 1)).unwrap();
    rig.ask(write(1, 1)).unwrap();
    rig.end(0, Outcome::Done).unwrap();
    rig.end(0, Outcome::Failed(u64::MAX)).unwrap();
    assert!(rig.running() > 0, "the first has a turn to wait for");
    rig.ask(Ask::Zero { sector: 1, count: 1 }).unwrap();
    quiet(&mut rig);
    rig.ask(Ask::Read { sector: 1, count: 1 }).unwrap();
    quiet(&mut rig);
    assert!(rig.is_quiet());
}

/// Found by seed 16576: the place of a freed block was punched and taken by another block, which
/// counted on the zeros; then the fdatasync that was to make them durable failed.
#[test]
fn a_block_does_not_count_on_zeros_that_a_failed_flush_may_have_lost() {
    let mut failing = 0;
    loop {
        let mut rig = rig_of(None);
        for ask in [write(0, 24), Ask::Flush] {
            rig.ask(ask).unwrap();
            quiet(&mut rig);
        }
        // Table, batmap, fdatasyncs, holes, bitmaps: one of all that fails, with nothing done.
        let mut ended = 0;
        for ask in [Ask::Trim { sector: 0, count: 24 }, write(0, 1)] {
            rig.ask(ask).unwrap();
            while rig.running() > 0 {
                let is_failing = ended == failing;
                let outcome = if is_failing { Outcome::Failed(0) } else { Outcome::Done };
                rig.end(0, outcome).unwrap();
                ended += 1;
            }
        }
        // Some in the place of another one.
        for sector in [1, 9, 17] {
            rig.ask(write(sector, 1)).unwrap();
            quiet(&mut rig);
        }
        assert!(rig.is_quiet());
        // Whatever of the zeros reached the disk: no other block's bytes.
        for kept in 0..64 {
            rig.check(&rig.store.cut(|atom| atom % 64 == kept || atom > 64), false).unwrap();
        }
        rig.check(&rig.store.cut(|_| true), false).unwrap();
        rig.check(&rig.store.cut(|_| false), false).unwrap();
        if failing >= ended {
            break;
        }
        failing += 1;
    }
    assert!(failing > 8, "{failing}");
}

/// Of a file without a parent: a first write has to wait for no fdatasync.
#[test]
fn a_first_write_in_a_ready_place_needs_one_write_of_the_table() {
    let mut rig = rig_of(None);
    rig.ask(write(0, 1)).unwrap();
    quiet(&mut rig);
    for block in 1..3 {
        rig.ask(write(8 * block, 1)).unwrap();
        assert_eq!(rig.running(), 1, "the data");
        rig.end(0, Outcome::Done).unwrap();
        assert_eq!(rig.running(), 1, "the table");
        rig.end(0, Outcome::Done).unwrap();
        assert!(rig.is_quiet(), "{:?}", rig.engine);
    }
    rig.check(&rig.store.cut(|_| false), false).unwrap();
}

/// Whoever waited hears of it once; the next one tries anew.
#[test]
fn places_that_cannot_be_made_ready_fail_those_who_wait() {
    let mut rig = rig_of(None);
    for _ in 0..2 {
        rig.ask(write(0, 1)).unwrap();
        rig.ask(write(8, 1)).unwrap();
        let answered = rig.answered;
        while rig.running() > 0 {
            rig.end(0, Outcome::Failed(0)).unwrap();
        }
        assert_eq!(rig.answered, answered + 2);
        assert!(rig.is_quiet());
    }
    rig.ask(write(0, 1)).unwrap();
    quiet(&mut rig);
    rig.ask(Ask::Read { sector: 0, count: 1 }).unwrap();
    quiet(&mut rig);
    assert!(rig.is_quiet());
}

/// Found by the simulator of whole disks, seed 3: a close by force in the middle of a turn never
/// came to its end, and the image stayed locked.
#[test]
fn a_shut_down_in_the_middle_of_a_turn_leaves_nothing_under_way() {
    for ended in 1..4 {
        let mut rig = rig_of(None);
        rig.ask(write(0, 1)).unwrap();
        (0..ended).for_each(|_| rig.end(0, Outcome::Done).unwrap());
        assert!(!rig.engine.is_idle());
        rig.engine.shut_down();
        quiet(&mut rig);
        assert!(rig.engine.is_idle(), "{ended} I/Os had ended");
    }
}

/// The last block is freed, and one I/O fails meanwhile, which may be the fdatasync after it: then
/// the entry may be there again, and must not name what a close has cut off.
#[test]
fn a_close_cuts_off_nothing_that_a_lost_entry_names() {
    for failing in 0..8 {
        let mut rig = rig_of(None);
        for ask in [write(0, 24), Ask::Flush] {
            rig.ask(ask).unwrap();
            quiet(&mut rig);
        }
        rig.ask(Ask::Trim { sector: 16, count: 8 }).unwrap();
        for _ in 0..failing {
            if rig.running() > 0 {
                rig.end(0, Outcome::Done).unwrap();
            }
        }
        if rig.running() > 0 {
            rig.end(0, Outcome::Failed(0)).unwrap();
        }
        quiet(&mut rig);
        for step in rig.shape.closing(&rig.engine) {
            match effect_of(&step) {
                None => {
                    let covered = rig.store.flush_begin();
                    rig.store.flush_end(&covered);
                }
                Some(effect) => {
                    let write = rig.store.begin(effect);
                    rig.store.end(write, |_| true, true);
                }
            }
        }
        rig.check(&rig.store.cut(|_| false), false).unwrap();
        rig.check(&rig.store.cut(|_| true), false).unwrap();
    }
}

#[test]
fn without_a_rule_some_seed_is_noticed() {
    for rule in [
        Rule::DataBeforeBits,
        Rule::BlockBeforeEntry,
        Rule::GoneBeforeReuse,
        Rule::EndedBeforeReuse,
        Rule::BatmapBeforeFree,
        Rule::EntryBeforeAnswer,
        Rule::CopyBeforeGrowth,
        Rule::DurableBeforeFua,
        Rule::DurableBeforeFlush,
        Rule::LossBeforeFlush,
    ] {
        let found = (0..20_000).find(|seed| run(*seed, 10, Some(rule)).is_err());
        println!("without {rule:?}: noticed by seed {found:?}");
        assert!(found.is_some(), "nothing notices that {rule:?} is not kept");
    }
}

/// A file system waits for each write behind the end of a file: at the bitmaps of a round it was
/// most of the time of first writes.
#[test]
fn a_file_is_long_enough_before_anything_is_written_to_its_new_places() {
    let mut rig = rig_of(None);
    rig.ask(write(0, 1)).unwrap();
    assert_eq!(rig.running(), 1, "the end footer");
    let length = rig.store.bytes().len();
    rig.end(0, Outcome::Done).unwrap();
    assert!(rig.store.bytes().len() > length);
    assert!(rig.running() > 1, "a bitmap for each place of the round");
    let length = rig.store.bytes().len();
    for ask in [write(1, 3), write(8, 8), write(16, 8)] {
        rig.ask(ask).unwrap();
        quiet(&mut rig);
    }
    assert_eq!(rig.store.bytes().len(), length, "there was room for all blocks of the disk");
}
