//! The simulated engine: files in memory, completions in an order that a seed decides, faults where
//! a test wants them, and a model of what a power cut leaves.
//!
//! It has no clock: accepted I/O stays running until [`Sim::step`] or `run` lets one or all of
//! it end. Each I/O that the engine accepts has a number, from zero on, in the order of acceptance;
//! faults are laid on numbers. A merged I/O has one number, and so has each continuation.
//!
//! What it models of durability: a write is in the file as soon as it has ended, and survives a
//! power cut for certain only when it was durable or a flush ended after it. Sectors of 512 bytes
//! are atomic; everything else about an unflushed write may be torn.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::request::{Extent, ExtentKind};

use super::engine::{Raw, Request, Submitted, Verb, encode_error, encode_extent};
use super::files::FILES_MAX;
use super::sys::iovecs::Piece;
use super::table::Key;
use super::{FileId, QueueConfig};

/// What a power cut does not divide, in bytes.
const SECTOR: usize = 512;

/// The unit in which zeros are told as a hole, in bytes: what file systems do.
const HOLE_UNIT: usize = 4096;

/// What goes wrong with one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and changes nothing.
    Error(Errno),
    /// It ends early, with success, after so many bytes (at most its length).
    Short(u64),
    /// It fails after so many bytes were moved.
    Torn(u64, Errno),
    /// It does not end until [`Sim::release`].
    Stuck,
    /// The kernel refuses it, once: EAGAIN for lack of resources, anything else because of itself.
    Refused(Errno),
}

struct Op {
    number: u64,
    key: Key,
    verb: Verb,
    file: FileId,
    offset: usize,
    len: usize,
    pieces: Vec<Piece>,
}

impl Op {
    fn new(request: &Request<'_>, number: u64) -> Self {
        Self {
            number,
            key: request.key,
            verb: request.verb,
            file: request.file,
            offset: usize::try_from(request.offset).expect("64 bits"),
            len: usize::try_from(request.len).expect("64 bits"),
            pieces: request.pieces.to_vec(),
        }
    }

    /// The first `len` bytes of its memory.
    fn gather(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut rest = &mut bytes[..];
        for piece in &self.pieces {
            let (part, after) = rest.split_at_mut(piece.len().min(rest.len()));
            piece.copy_out(part);
            rest = after;
        }
        bytes
    }

    /// Puts bytes at the start of its memory.
    fn scatter(&self, mut bytes: &[u8]) {
        for piece in &self.pieces {
            let (part, after) = bytes.split_at(piece.len().min(bytes.len()));
            piece.copy_in(part);
            bytes = after;
        }
    }
}

struct Change {
    offset: usize,
    bytes: Vec<u8>,
    durable: bool,
}

impl Change {
    fn apply(&self, contents: &mut Vec<u8>) {
        let end = self.offset + self.bytes.len();
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[self.offset..end].copy_from_slice(&self.bytes);
    }
}

#[derive(Default)]
struct SimFile {
    contents: Vec<u8>,
    /// As of the last flush.
    flushed: Vec<u8>,
    /// What has ended since, in order.
    changes: Vec<Change>,
}

impl SimFile {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.contents);
        self.changes.push(change);
    }

    fn flush(&mut self) {
        for change in self.changes.drain(..) {
            change.apply(&mut self.flushed);
        }
    }
}

/// The engine; see [`super::Queue::sim`].
pub struct Sim {
    random: u64,
    files: Vec<Option<SimFile>>,
    staged: VecDeque<Op>,
    running: Vec<Op>,
    results: Vec<Raw>,
    faults: BTreeMap<u64, Fault>,
    accepted: u64,
    accept_at_most: usize,
}

impl Sim {
    pub(super) fn new(seed: u64, config: &QueueConfig) -> Self {
        Self {
            random: seed,
            files: (0..FILES_MAX).map(|_| None).collect(),
            staged: VecDeque::new(),
            running: Vec::with_capacity(config.capacity),
            results: Vec::with_capacity(config.capacity),
            faults: BTreeMap::new(),
            accepted: 0,
            accept_at_most: usize::MAX,
        }
    }

    /// Lays a fault on the I/O with this number.
    pub fn inject(&mut self, number: u64, fault: Fault) {
        self.faults.insert(number, fault);
    }

    /// How many I/Os were accepted: the number of the next one.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Bounds what one call to submit accepts from now on; `usize::MAX` lifts it.
    ///
    /// # Panics
    /// On zero, which no kernel answers: it says EAGAIN instead, see [`Fault::Refused`].
    pub fn accept_at_most(&mut self, count: usize) {
        assert!(count > 0, "a submit accepts one I/O or says why not");
        self.accept_at_most = count;
    }

    /// Lets one of the running I/Os end, chosen by the seed; false when none can.
    pub fn step(&mut self) -> bool {
        let stuck = |op: &Op| self.faults.get(&op.number) == Some(&Fault::Stuck);
        let able = self.running.iter().filter(|op| !stuck(op)).count() as u64;
        if able == 0 {
            return false;
        }
        let mut skip = self.next_random() % able;
        let stuck = |op: &Op| self.faults.get(&op.number) == Some(&Fault::Stuck);
        let at = self.running.iter().position(|op| {
            let chosen = !stuck(op) && skip == 0;
            skip = skip.saturating_sub(u64::from(!stuck(op)));
            chosen
        });
        let op = self.running.swap_remove(at.expect("one of those that were counted"));
        let result = self.perform(&op);
        self.results.push(Raw { key: op.key, result });
        true
    }

    /// Lets everything end that can.
    pub fn run_all(&mut self) {
        while self.step() {}
    }

    /// Takes all [`Fault::Stuck`] away: those I/Os end like any other.
    pub fn release(&mut self) {
        self.faults.retain(|_, fault| *fault != Fault::Stuck);
    }

    /// How many I/Os run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What a read would find now.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn contents(&self, file: FileId) -> &[u8] {
        &self.file(file).contents
    }

    /// What is certain to be there after a power cut, with the old contents elsewhere.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn durable(&self, file: FileId) -> Vec<u8> {
        let file = self.file(file);
        let mut contents = file.flushed.clone();
        for change in file.changes.iter().filter(|change| change.durable) {
            change.apply(&mut contents);
        }
        contents
    }

    /// One of the states in which a power cut at this moment may leave the file: what is durable is
    /// there; of each other write, ended or still running, all sectors, none or some.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn power_cut(&mut self, file: FileId) -> Vec<u8> {
        let mut random = self.next_random();
        let sim_file = self.file(file);
        let mut contents = sim_file.flushed.clone();
        let running = self.running.iter().filter(|op| op.file == file);
        let running: Vec<_> = running.filter_map(change_of).collect();
        for change in sim_file.changes.iter().chain(&running) {
            let certain =
                change.durable && !running.iter().any(|other| std::ptr::eq(other, change));
            match if certain { 0 } else { scramble(&mut random) % 3 } {
                0 => change.apply(&mut contents),
                1 => {}
                _ => tear(change, &mut contents, &mut random),
            }
        }
        contents
    }

    fn file(&self, file: FileId) -> &SimFile {
        self.files[usize::from(file.0)].as_ref().expect("a file that was added")
    }

    fn next_random(&mut self) -> u64 {
        scramble(&mut self.random)
    }

    pub(super) fn load(&mut self, id: FileId, file: &std::fs::File) {
        let len = file.metadata().expect("an open file has a size").len();
        let mut contents = vec![0; usize::try_from(len).expect("64 bits")];
        file.read_exact_at(&mut contents, 0).expect("the file of a simulation can be read");
        let flushed = contents.clone();
        let loaded = SimFile { contents, flushed, changes: Vec::new() };
        self.files[usize::from(id.0)] = Some(loaded);
    }

    pub(super) fn unload(&mut self, id: FileId) {
        self.files[usize::from(id.0)] = None;
    }

    pub(super) fn stage(&mut self, request: &Request<'_>) {
        self.staged.push_back(Op::new(request, 0));
    }

    pub(super) fn submit(&mut self) -> Submitted {
        let mut count = 0;
        while count < self.accept_at_most && !self.staged.is_empty() {
            if let Some(Fault::Refused(errno)) = self.faults.get(&self.accepted) {
                if count > 0 {
                    break;
                }
                let refused = Some(*errno);
                self.faults.remove(&self.accepted);
                return Submitted { accepted: 0, refused };
            }
            let mut op = self.staged.pop_front().expect("checked above");
            op.number = self.accepted;
            self.accepted += 1;
            self.running.push(op);
            count += 1;
        }
        Submitted { accepted: count, refused: None }
    }

    pub(super) fn withdraw_first(&mut self) -> bool {
        self.staged.pop_front().is_some()
    }

    pub(super) fn withdraw_all(&mut self) -> bool {
        self.staged.clear();
        true
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Raw>) -> u64 {
        out.append(&mut self.results);
        0
    }

    pub(super) fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// `None` when it would not return: the caller goes the other way.
    pub(super) fn run(&mut self, request: &Request<'_>) -> Option<i64> {
        match self.faults.get(&self.accepted) {
            Some(Fault::Stuck | Fault::Refused(_)) => None,
            _ => {
                let op = Op::new(request, self.accepted);
                self.accepted += 1;
                Some(self.perform(&op))
            }
        }
    }

    fn perform(&mut self, op: &Op) -> i64 {
        let len = op.len as u64;
        let (most, errno) = match self.faults.remove(&op.number) {
            None | Some(Fault::Stuck | Fault::Refused(_)) => (len, None),
            Some(Fault::Error(errno)) => (0, Some(errno)),
            Some(Fault::Short(bytes)) => (bytes.min(len), None),
            Some(Fault::Torn(bytes, errno)) => (bytes.min(len), Some(errno)),
        };
        let most = usize::try_from(most).expect("at most the length");
        let file = self.files[usize::from(op.file.0)].as_mut().expect("a file that was added");
        let done = match op.verb {
            Verb::Read => {
                let start = op.offset.min(file.contents.len());
                let end = (op.offset + most).min(file.contents.len());
                op.scatter(&file.contents[start..end.max(start)]);
                end.saturating_sub(start)
            }
            Verb::Write | Verb::WriteDurable => {
                if most > 0 {
                    let durable = op.verb == Verb::WriteDurable && errno.is_none();
                    file.change(Change { offset: op.offset, bytes: op.gather(most), durable });
                }
                most
            }
            Verb::Sync if errno.is_none() => {
                file.flush();
                0
            }
            Verb::Punch | Verb::Zero | Verb::Fill if errno.is_none() => {
                let mut change = change_of(op).expect("it changes the file");
                if op.verb == Verb::Punch {
                    let inside = file.contents.len().saturating_sub(op.offset);
                    change.bytes.truncate(inside);
                }
                file.change(change);
                0
            }
            Verb::Extent => return encode_extent(extent(&file.contents, op)),
            Verb::Sync | Verb::Punch | Verb::Zero | Verb::Fill => 0,
        };
        errno.map_or_else(|| i64::try_from(done).expect("a length"), encode_error)
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sim")
            .field("accepted", &self.accepted)
            .field("running", &self.running.len())
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// What an I/O does to its file.
fn change_of(op: &Op) -> Option<Change> {
    let bytes = match op.verb {
        Verb::Write | Verb::WriteDurable => op.gather(op.len),
        Verb::Punch | Verb::Zero | Verb::Fill => vec![0; op.len],
        Verb::Read | Verb::Sync | Verb::Extent => return None,
    };
    Some(Change { offset: op.offset, bytes, durable: op.verb == Verb::WriteDurable })
}

/// Applies some of the sectors of a change.
fn tear(change: &Change, contents: &mut Vec<u8>, random: &mut u64) {
    let mut at = 0;
    while at < change.bytes.len() {
        let offset = change.offset + at;
        let end = (at + SECTOR - offset % SECTOR).min(change.bytes.len());
        if scramble(random) & 1 == 1 {
            let bytes = change.bytes[at..end].to_vec();
            Change { offset, bytes, durable: false }.apply(contents);
        }
        at = end;
    }
}

/// What the range starts with: runs of zeros in whole units are holes, and so is what is past the
/// end.
fn extent(contents: &[u8], op: &Op) -> Extent {
    let end = op.offset + op.len;
    let is_hole = |at: usize| {
        let start = at - at % HOLE_UNIT;
        let unit = contents.get(start..contents.len().min(start + HOLE_UNIT)).unwrap_or(&[]);
        unit.iter().all(|byte| *byte == 0)
    };
    let first = is_hole(op.offset);
    let mut until = op.offset;
    while until < end && is_hole(until) == first {
        until += HOLE_UNIT - until % HOLE_UNIT;
    }
    let kind = if first { ExtentKind::Hole } else { ExtentKind::Data };
    Extent { len: (until.min(end) - op.offset) as u64, kind }
}

/// The next number of a sequence that its start decides (splitmix64).
fn scramble(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
