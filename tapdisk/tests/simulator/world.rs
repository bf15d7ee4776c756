//! Several disks of one process, over many lives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tapdisk::time::Now;
use vhd::testing::Random;

use crate::counts::Counts;
use crate::disk::{Disk, Left};
use crate::faults::Mistake;

/// How many lives a process has that starts again after each.
const LIVES: u64 = 8;

/// A folder in memory where there is one: nothing here has to survive.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let path = parent.join(format!("tapdisk-simulator-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for images");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct World {
    random: Random,
    now: Now,
    disks: Vec<Disk>,
    left: Left,
    counts: Counts,
}

impl World {
    fn new(seed: u64, folder: &Folder, mistake: Option<Mistake>) -> Self {
        let mut random = Random(seed);
        let count = 1 + random.below(3);
        let name = |number: u64| folder.0.join(number.to_string());
        let disks = (0..count).map(|at| Disk::new(&mut random, name(at), mistake)).collect();
        let (now, left) = (Now(1_000_000_000), Left::Close);
        Self { random, now, disks, left, counts: Counts::default() }
    }

    /// With the disk's own words in front of what went wrong there.
    fn at(&mut self, index: usize, done: Result<(), String>) -> Result<(), String> {
        done.map_err(|error| format!("disk {index} ({}): {error}", self.disks[index].describe()))
    }

    fn each(
        &mut self,
        mut each: impl FnMut(&mut Disk, &mut Now, &mut Random) -> Result<(), String>,
    ) -> Result<(), String> {
        for index in 0..self.disks.len() {
            let done = each(&mut self.disks[index], &mut self.now, &mut self.random);
            self.at(index, done)?;
        }
        Ok(())
    }

    fn life(&mut self) -> Result<(), String> {
        let left = self.left;
        self.each(|disk, now, random| disk.open(random, *now, left))?;
        let mut is_cut = false;
        for _ in 0..20 + self.random.below(200) {
            self.event()?;
            let promises =
                self.disks.iter_mut().filter_map(|it| it.promised_after_loss().then_some(()));
            is_cut = promises.count() > 0 && self.random.one_in(2);
            if is_cut {
                break;
            }
        }
        self.left = match self.random.below(8) {
            _ if is_cut => Left::Cut,
            0 => Left::Kill,
            1 => Left::Close,
            _ => Left::Cut,
        };
        match self.left {
            Left::Kill => self.counts.kills += 1,
            Left::Cut => self.counts.cuts += 1,
            Left::Close => {}
        }
        let left = self.left;
        self.each(|disk, now, random| match left {
            Left::Close => disk.close(now, random),
            _ => disk.stop(left == Left::Cut),
        })
    }

    /// Something happens to one of the disks.
    fn event(&mut self) -> Result<(), String> {
        self.now.0 += 1 + self.random.below(200_000);
        let index = usize::try_from(self.random.below(self.disks.len() as u64)).expect("few");
        let Self { random, now, disks, .. } = self;
        let disk = &mut disks[index];
        let mut done = Ok(());
        match random.below(40) {
            0..14 => disk.ask_some(random),
            14..34 => disk.end_some(random),
            34..36 => disk.command(random),
            36 => disk.release(),
            37 => {
                // Nothing happens for a while.
                let next = disks.iter_mut().filter_map(Disk::deadline).min();
                *now = (*now).max(next.unwrap_or(*now));
            }
            38 => done = disk.lose_client(random),
            _ => {}
        }
        // Now and then more comes together before the loop looks.
        let is_seen = !random.one_in(4);
        self.at(index, done)?;
        if !is_seen {
            return Ok(());
        }
        let done = self.disks[index].turn(self.now, &mut self.random);
        self.at(index, done)
    }
}

/// The lives of the disks of a seed, until one breaks a promise.
fn run(seed: u64, mistake: Option<Mistake>) -> Result<Counts, String> {
    let folder = Folder::new();
    let mut life = 0;
    let run = || {
        let mut world = World::new(seed, &folder, mistake);
        while life < LIVES {
            world.life()?;
            life += 1;
        }
        let mut counts = world.counts;
        world.disks.iter().for_each(|disk| counts.add(disk.counts));
        Ok(counts)
    };
    let ended = catch_unwind(AssertUnwindSafe(run));
    let ended = ended.unwrap_or_else(|_| Err("an assertion of the daemon failed".to_owned()));
    ended.map_err(|error: String| format!("seed {seed}, life {life}: {error}"))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// `TAPDISK_SIMULATED_PROCESSES=…` for more; `TAPDISK_SEED=…` for one alone.
#[test]
fn no_cut_no_kill_and_no_fault_breaks_a_promise() {
    let count = number("TAPDISK_SIMULATED_PROCESSES").unwrap_or(1_000);
    let seeds = number("TAPDISK_SEED").map_or(0..count, |seed| seed..seed + 1);
    let mut total = Counts::default();
    for seed in seeds.clone() {
        total.add(run(seed, None).unwrap_or_else(|error| panic!("{error}")));
    }
    println!("seeds {seeds:?}: {total:?}");
}

#[test]
fn a_seed_reproduces_its_run() {
    for seed in 0..20 {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

#[test]
fn a_mistake_is_noticed() {
    for mistake in [Mistake::IdleFlush, Mistake::FlushAgain, Mistake::LostWrite] {
        let found = (0..2_000).find(|seed| run(*seed, Some(mistake)).is_err());
        println!("{mistake:?}: noticed by seed {found:?}");
        assert!(found.is_some(), "nothing notices {mistake:?}");
    }
}
