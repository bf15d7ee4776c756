//! Power cuts: every state that storage can be left in by a plan that did not end.
//!
//! The model: what was written before a barrier is there. Of what was written since, any part may
//! be there: each 512 byte sector of each write on its own, in any order, also a sector that was
//! written twice with its first content; each new length, also one that a write at the end brings,
//! new name and removed name on its own.
//! A cut in the middle of an epoch leaves nothing that a cut at its end cannot leave, so each epoch
//! is enumerated once. Punched holes may be there or not, like writes.
//!
//! An epoch with few such pieces is enumerated exhaustively, one with more by its edges (every
//! prefix, every piece alone, all but each piece) and by random subsets from a seed.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::memory::{Storage, index};
use super::{File, Step};

/// What the storage writes as a whole or not at all, in bytes.
const SECTOR: u64 = 512;

/// What storage keeps or loses as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Piece {
    /// A sector, or the part of it that was written.
    Bytes {
        file: File,
        offset: u64,
        bytes: Vec<u8>,
    },
    /// As [`Step::PunchHole`], of a sector: never makes a file longer.
    Hole {
        file: File,
        offset: u64,
        length: u64,
    },
    Length {
        file: File,
        length: u64,
    },
    /// The length that a write brings, when nothing shortens the file meanwhile.
    Growth {
        file: File,
        length: u64,
    },
    Name {
        file: File,
    },
    NoName {
        file: File,
    },
}

/// What lies between two barriers.
#[derive(Clone, Debug)]
struct Epoch {
    /// What was durable when it began.
    before: Storage,
    pieces: Vec<Piece>,
}

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Epochs of at most so many pieces are enumerated: 2^n states.
    pub exhaustive_pieces_max: usize,
    /// So many random subsets of each epoch that has more.
    pub samples: u64,
    /// Where their randomness starts.
    pub seed: u64,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Different states that a law was asked about.
    pub states: u64,
    /// Epochs of which every state was.
    pub epochs_exhaustive: u64,
    /// Epochs of which only some were.
    pub epochs_sampled: u64,
}

/// Every step of an operation, with the storage that it began on.
#[derive(Clone, Debug)]
pub struct Recording {
    start: Storage,
    steps: Vec<Step>,
}

impl Recording {
    /// Of steps, in order.
    #[must_use]
    pub fn new(start: Storage, steps: Vec<Step>) -> Self {
        Self { start, steps }
    }

    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What is there when nothing fails.
    #[must_use]
    pub fn end(&self) -> Storage {
        let mut storage = self.start.clone();
        self.steps.iter().for_each(|step| storage.perform(step));
        storage
    }

    /// How many barriers there are.
    #[must_use]
    pub fn barriers(&self) -> usize {
        self.steps.iter().filter(|step| **step == Step::Barrier).count()
    }

    /// The same without its n-th barrier: a law must not hold any more.
    #[must_use]
    pub fn without_barrier(&self, n: usize) -> Self {
        let mut barrier = 0_usize;
        let keep = |step: &&Step| {
            let is_it = **step == Step::Barrier && barrier == n;
            barrier = barrier.saturating_add(usize::from(**step == Step::Barrier));
            !is_it
        };
        Self { start: self.start.clone(), steps: self.steps.iter().filter(keep).cloned().collect() }
    }

    /// Asks a law about every state that a power cut can leave; ends at the first that breaks it.
    ///
    /// # Errors
    /// What the law said, with the epoch and the pieces that were kept.
    pub fn cut_power(
        &self,
        effort: Effort,
        mut law: impl FnMut(&Storage) -> Result<(), String>,
    ) -> Result<Tried, String> {
        let (mut tried, mut seen) = (Tried::default(), HashSet::new());
        for (number, epoch) in self.epochs().iter().enumerate() {
            let count = epoch.pieces.len();
            let mut ask = |kept: &[bool]| {
                let state = epoch.state(kept);
                if !seen.insert(fingerprint(&state)) {
                    return Ok(());
                }
                tried.states = tried.states.saturating_add(1);
                law(&state).map_err(|complaint| {
                    format!("{complaint}\nin epoch {number}, kept:\n{}", epoch.describe(kept))
                })
            };
            if count <= effort.exhaustive_pieces_max {
                every_subset(count, &mut ask)?;
                tried.epochs_exhaustive = tried.epochs_exhaustive.saturating_add(1);
            } else {
                edges(count, &mut ask)?;
                let seed = effort.seed ^ u64::try_from(number).unwrap_or(0);
                samples(count, effort.samples, seed, &mut ask)?;
                tried.epochs_sampled = tried.epochs_sampled.saturating_add(1);
            }
        }
        Ok(tried)
    }

    fn epochs(&self) -> Vec<Epoch> {
        let mut now = self.start.clone();
        let mut epochs = vec![Epoch { before: now.clone(), pieces: Vec::new() }];
        for step in &self.steps {
            let epoch = epochs.last_mut().expect("there is one from the start");
            epoch.pieces.extend(pieces(step, &now));
            now.perform(step);
            if *step == Step::Barrier {
                epochs.push(Epoch { before: now.clone(), pieces: Vec::new() });
            }
        }
        epochs
    }
}

impl Epoch {
    /// What is there when just these pieces reached the storage.
    fn state(&self, kept: &[bool]) -> Storage {
        let mut storage = self.before.clone();
        let files = storage.files_mut();
        // What goes into a file whose name is not there is lost with it.
        for (piece, _) in self.pieces.iter().zip(kept).filter(|(_, kept)| **kept) {
            match piece {
                Piece::Name { file } => drop(files.entry(*file).or_default()),
                Piece::NoName { file } => drop(files.remove(file)),
                Piece::Length { file, length } => {
                    if let Some(bytes) = files.get_mut(file) {
                        bytes.resize(index(*length), 0);
                    }
                }
                Piece::Growth { file, length } => {
                    if let Some(bytes) = files.get_mut(file) {
                        bytes.resize(bytes.len().max(index(*length)), 0);
                    }
                }
                Piece::Bytes { file, offset, bytes } if files.contains_key(file) => {
                    let (file, offset, bytes) = (*file, *offset, bytes.clone());
                    perform_on(files, &Step::Write { file, offset, bytes });
                }
                Piece::Hole { file, offset, length } if files.contains_key(file) => {
                    let (file, offset, length) = (*file, *offset, *length);
                    perform_on(files, &Step::PunchHole { file, offset, length });
                }
                Piece::Bytes { .. } | Piece::Hole { .. } => {}
            }
        }
        storage
    }

    fn describe(&self, kept: &[bool]) -> String {
        let line = |(piece, kept): (&Piece, &bool)| {
            let mark = if *kept { "kept" } else { "lost" };
            match piece {
                Piece::Bytes { file, offset, bytes } => {
                    format!("  {mark} {} bytes of {file:?} at {offset}\n", bytes.len())
                }
                other => format!("  {mark} {other:?}\n"),
            }
        };
        self.pieces.iter().zip(kept).map(line).collect()
    }
}

fn perform_on(files: &mut std::collections::BTreeMap<File, Vec<u8>>, step: &Step) {
    let mut storage = Storage::default();
    std::mem::swap(storage.files_mut(), files);
    storage.perform(step);
    std::mem::swap(storage.files_mut(), files);
}

/// The pieces of a step; `now` is the storage just before it, as programs see it.
fn pieces(step: &Step, now: &Storage) -> Vec<Piece> {
    match step {
        Step::Barrier | Step::Reached(_) => Vec::new(),
        Step::Create { file } => vec![Piece::Name { file: *file }],
        Step::Remove { file } => vec![Piece::NoName { file: *file }],
        Step::SetLength { file, length } => vec![Piece::Length { file: *file, length: *length }],
        Step::PunchHole { file, offset, length } => sectors(*offset, *length)
            .map(|(offset, length)| Piece::Hole { file: *file, offset, length })
            .collect(),
        Step::Write { file, offset, bytes } => write_pieces(*file, *offset, bytes, now),
        Step::Zero { file, offset, length } => {
            write_pieces(*file, *offset, &vec![0; index(*length)], now)
        }
        Step::Copy { to, to_offset, .. } | Step::Code { to, to_offset, .. } => {
            let bytes = now.moved(step).expect("a copy is of bytes that exist");
            write_pieces(*to, *to_offset, &bytes, now)
        }
    }
}

fn write_pieces(file: File, offset: u64, bytes: &[u8], now: &Storage) -> Vec<Piece> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let end = offset.saturating_add(length);
    let is_growing = now.bytes(file).is_some_and(|bytes| bytes.len() < index(end));
    let growth = is_growing.then_some(Piece::Growth { file, length: end });
    let mut rest = bytes;
    let pieces = sectors(offset, length).map(|(offset, length)| {
        let (piece, later) = rest.split_at(index(length));
        rest = later;
        Piece::Bytes { file, offset, bytes: piece.to_vec() }
    });
    growth.into_iter().chain(pieces).collect()
}

/// A range, cut at the boundaries of sectors: offsets and lengths.
fn sectors(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        let next = at.checked_div(SECTOR)?.saturating_add(1).saturating_mul(SECTOR).min(end);
        let piece = (at < end).then(|| (at, next.saturating_sub(at)));
        at = next;
        piece
    })
}

type Ask<'a> = &'a mut dyn FnMut(&[bool]) -> Result<(), String>;

fn every_subset(count: usize, ask: Ask<'_>) -> Result<(), String> {
    for mask in 0..1_u64 << count {
        let kept: Vec<bool> = (0..count).map(|piece| mask >> piece & 1 == 1).collect();
        ask(&kept)?;
    }
    Ok(())
}

/// Every prefix, every piece alone, all but each piece.
fn edges(count: usize, ask: Ask<'_>) -> Result<(), String> {
    for edge in 0..=count {
        let kept = |keep: &dyn Fn(usize) -> bool| (0..count).map(keep).collect::<Vec<bool>>();
        ask(&kept(&|piece| piece < edge))?;
        ask(&kept(&|piece| piece >= edge))?;
        ask(&kept(&|piece| piece == edge))?;
        ask(&kept(&|piece| piece != edge))?;
    }
    Ok(())
}

/// Random subsets, a third of them sparse, a third of them dense.
fn samples(count: usize, samples: u64, seed: u64, ask: Ask<'_>) -> Result<(), String> {
    let mut state = seed;
    for sample in 0..samples {
        let threshold = [32, 128, 224].get(index(sample % 3)).copied().unwrap_or(128);
        let kept: Vec<bool> = (0..count).map(|_| random(&mut state) & 255 < threshold).collect();
        ask(&kept)?;
    }
    Ok(())
}

/// SplitMix64: small, and the same on every machine.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn fingerprint(state: &Storage) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is wrong may panic")]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const IMAGE: File = File::Image;
    const ALL: Effort = Effort { exhaustive_pieces_max: 16, samples: 0, seed: 0 };

    fn write(offset: u64, bytes: Vec<u8>) -> Step {
        Step::Write { file: IMAGE, offset, bytes }
    }

    fn states(steps: Vec<Step>, effort: Effort) -> BTreeSet<Option<Vec<u8>>> {
        let start = Storage::default().with(IMAGE, vec![0; 1024]);
        let mut states = BTreeSet::new();
        let note = |state: &Storage| {
            states.insert(state.bytes(IMAGE).map(<[u8]>::to_vec));
            Ok(())
        };
        Recording::new(start, steps).cut_power(effort, note).unwrap();
        states
    }

    #[test]
    fn sectors_of_one_write_are_kept_or_lost_one_by_one() {
        let states = states(vec![write(0, vec![1; 1024])], ALL);
        let state = |first: u8, second: u8| Some([[first; 512], [second; 512]].concat());
        let wanted = BTreeSet::from([state(0, 0), state(0, 1), state(1, 0), state(1, 1)]);
        assert_eq!(states, wanted);
    }

    #[test]
    fn a_write_after_a_barrier_is_never_there_without_what_is_before_it() {
        let steps = vec![write(0, vec![1]), Step::Barrier, write(512, vec![2])];
        for state in states(steps.clone(), ALL).into_iter().flatten() {
            assert!(state[0] == 1 || state[512] == 0);
        }
        let start = Storage::default().with(IMAGE, vec![0; 1024]);
        let law = |state: &Storage| match state.bytes(IMAGE) {
            Some(bytes) if bytes[512] == 2 && bytes[0] == 0 => Err("order".to_owned()),
            _ => Ok(()),
        };
        let recording = Recording::new(start, steps);
        assert!(recording.cut_power(ALL, law).is_ok());
        assert!(recording.without_barrier(0).cut_power(ALL, law).is_err());
    }

    #[test]
    fn a_sector_that_is_written_twice_may_keep_its_first_content() {
        let states = states(vec![write(0, vec![1; 512]), write(0, vec![2; 512])], ALL);
        let first: BTreeSet<u8> = states.into_iter().flatten().map(|state| state[0]).collect();
        assert_eq!(first, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn lengths_and_names_are_kept_or_lost_like_writes() {
        let cut = Step::SetLength { file: IMAGE, length: 512 };
        let states = states(vec![cut, Step::Barrier, Step::Remove { file: IMAGE }], ALL);
        let lengths: BTreeSet<_> =
            states.iter().map(|state| state.as_ref().map(Vec::len)).collect();
        assert_eq!(lengths, BTreeSet::from([None, Some(512), Some(1024)]));
    }

    #[test]
    fn a_file_that_grew_may_have_lost_what_it_grew_for() {
        let states = states(vec![write(1024, vec![1; 512])], ALL);
        let grown = |last: u8| Some([vec![0; 1024], vec![last; 512]].concat());
        assert_eq!(states, BTreeSet::from([Some(vec![0; 1024]), grown(0), grown(1)]));
    }

    #[test]
    fn a_large_epoch_is_tried_at_its_edges_and_at_random() {
        let effort = Effort { exhaustive_pieces_max: 3, samples: 9, seed: 7 };
        let steps = (0..4).map(|piece| write(piece * 512, vec![1; 512])).collect::<Vec<_>>();
        let tried = Recording::new(Storage::default().with(IMAGE, vec![]), steps)
            .cut_power(effort, |_| Ok(()))
            .unwrap();
        assert_eq!((tried.epochs_exhaustive, tried.epochs_sampled), (0, 1));
        assert!(tried.states >= 11, "{tried:?}");
    }

    #[test]
    fn a_broken_law_says_which_pieces_were_kept() {
        let start = Storage::default().with(IMAGE, vec![0; 512]);
        let recording = Recording::new(start, vec![write(0, vec![1; 512])]);
        let law = |state: &Storage| match state.bytes(IMAGE) {
            Some([1, ..]) => Err("written".to_owned()),
            _ => Ok(()),
        };
        let complaint = recording.cut_power(ALL, law).unwrap_err();
        assert_eq!(complaint, "written\nin epoch 0, kept:\n  kept 512 bytes of Image at 0\n");
    }
}
