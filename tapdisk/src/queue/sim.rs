//! The simulated engine: files in memory, completions in an order that a seed decides, faults where
//! a test wants them, and a model of what a power cut leaves.
//!
//! It has no clock: accepted I/O stays running until [`Sim::step`] or `run` lets one or all of
//! it end. Each I/O that the engine accepts has a number, from zero on, in the order of acceptance;
//! faults are laid on numbers. A merged I/O has one number, and so has each continuation.
//!
//! A file is a [`Store`] of the `vhd` crate, which says what is durable: what a durable write
//! wrote, and what had ended when a flush *began* that ended without an error.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use vhd::testing::{Effect, Random, Store};

use crate::request::{Extent, ExtentKind};

use super::engine::{Raw, Request, Submitted, Verb, encode_error, encode_extent};
use super::files::FILES_MAX;
use super::sys::iovecs::Piece;
use super::table::Key;
use super::{FileId, QueueConfig};

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
    /// It fails; of the sectors that it writes those are written whose bit is set, the first by
    /// the lowest of each 64.
    Partly(u64, Errno),
    /// It ends with success, and nothing was done: storage that lies.
    Idle,
    /// It does not end until [`Sim::release`].
    Stuck,
    /// The kernel refuses it, once: EAGAIN for lack of resources, anything else because of itself.
    Refused(Errno),
}

/// An I/O that the engine has, for who decides how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// Its own.
    pub number: u64,
    /// In bytes.
    pub len: u64,
    /// It reads.
    pub is_read: bool,
    /// It is an fdatasync.
    pub is_sync: bool,
    /// It reads or writes, and may come back short.
    pub has_data: bool,
}

struct Op {
    number: u64,
    key: Key,
    verb: Verb,
    file: FileId,
    offset: usize,
    len: usize,
    pieces: Vec<Piece>,
    /// The write that it is.
    write: Option<u64>,
    /// What a sync covers.
    covers: Vec<u64>,
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
            write: None,
            covers: Vec::new(),
        }
    }

    /// What is in its memory.
    fn gather(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
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

struct SimFile {
    store: Store,
    /// It was written since it was loaded.
    is_changed: bool,
}

impl SimFile {
    /// An I/O begins.
    fn begin(&mut self, op: &mut Op) {
        let effect = match op.verb {
            Verb::Write | Verb::WriteDurable => op.gather(),
            Verb::Zero | Verb::Fill => vec![0; op.len],
            // A hole changes nothing behind the end.
            Verb::Punch => vec![0; op.len.min(self.store.bytes().len().saturating_sub(op.offset))],
            Verb::Sync => return op.covers = self.store.flush_begin(),
            Verb::Read | Verb::Extent => return,
        };
        self.is_changed = true;
        op.write = Some(self.store.begin(Effect::Bytes(op.offset, effect)));
    }

    /// A write has ended.
    fn end(&mut self, id: u64, verb: Verb, most: usize, fault: Option<Fault>) {
        match fault {
            Some(Fault::Error(_) | Fault::Idle) => return self.store.end(id, |_| false, false),
            Some(Fault::Partly(bits, _)) => {
                return self.store.end(id, |at| bits >> (at % 64) & 1 == 1, false);
            }
            Some(Fault::Short(_) | Fault::Torn(..)) if verb.has_data() => {
                self.store.shorten(id, most);
            }
            _ => {}
        }
        self.store.end(id, |_| true, true);
        if verb == Verb::WriteDurable && !matches!(fault, Some(Fault::Torn(..))) {
            self.store.durable_end(id);
        }
    }
}

/// The engine; see [`super::Queue::sim`].
pub struct Sim {
    random: Random,
    files: Vec<Option<SimFile>>,
    staged: VecDeque<Op>,
    running: Vec<Op>,
    results: Vec<Raw>,
    faults: BTreeMap<u64, Fault>,
    accepted: u64,
    accept_at_most: usize,
    /// What an earlier life left of a file, by its number in the file system.
    left: BTreeMap<u64, Store>,
}

impl Sim {
    pub(super) fn new(seed: u64, config: &QueueConfig) -> Self {
        Self {
            random: Random(seed),
            files: (0..FILES_MAX).map(|_| None).collect(),
            staged: VecDeque::new(),
            running: Vec::with_capacity(config.capacity),
            results: Vec::with_capacity(config.capacity),
            faults: BTreeMap::new(),
            accepted: 0,
            accept_at_most: usize::MAX,
            left: BTreeMap::new(),
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
        let is_stuck = |op: &&Op| self.faults.get(&op.number) == Some(&Fault::Stuck);
        let able: Vec<u64> =
            self.running.iter().filter(|op| !is_stuck(op)).map(|op| op.number).collect();
        if able.is_empty() {
            return false;
        }
        let chosen = usize_of(self.random.below(able.len() as u64));
        self.end(able[chosen]);
        true
    }

    /// Lets one of the running I/Os end.
    ///
    /// # Panics
    /// When none has this number.
    pub fn end(&mut self, number: u64) {
        let at = self.running.iter().position(|op| op.number == number);
        let op = self.running.swap_remove(at.expect("an I/O that runs"));
        let result = self.perform(&op);
        self.results.push(Raw { key: op.key, result });
    }

    /// What runs.
    pub fn under_way(&self) -> impl Iterator<Item = UnderWay> + '_ {
        self.running.iter().map(|op| UnderWay {
            number: op.number,
            len: op.len as u64,
            is_read: op.verb == Verb::Read,
            is_sync: op.verb == Verb::Sync,
            has_data: op.verb.has_data(),
        })
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
        self.file(file).store.bytes()
    }

    /// What is certain to be there after a power cut, with the old contents elsewhere.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn durable(&self, file: FileId) -> Vec<u8> {
        self.file(file).store.cut(|_| false)
    }

    /// One of the states in which a power cut at this moment may leave the file: what is durable is
    /// there; of each other write, ended or still running, all sectors, none or some.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn power_cut(&mut self, file: FileId) -> Vec<u8> {
        let keep = self.random.keep();
        self.file(file).store.cut(keep)
    }

    /// What the end of the process leaves of the file: of what still runs all sectors, none or
    /// some; nothing more is durable than was.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn kill(&mut self, file: FileId) -> Store {
        let keep = self.random.keep();
        self.file(file).store.kill(keep)
    }

    /// The next life of a file that [`Sim::kill`] left: that with this number in its file system,
    /// when it is added with the same contents.
    pub fn leave(&mut self, inode: u64, store: Store) {
        self.left.insert(inode, store);
    }

    fn file(&self, file: FileId) -> &SimFile {
        self.files[usize::from(file.0)].as_ref().expect("a file that was added")
    }

    pub(super) fn load(&mut self, id: FileId, file: &File) {
        let metadata = file.metadata().expect("an open file has a size");
        let mut contents = vec![0; usize::try_from(metadata.len()).expect("64 bits")];
        let cached = open_cached(file, false);
        cached.read_exact_at(&mut contents, 0).expect("the file of a simulation can be read");
        let left = self.left.remove(&metadata.ino()).filter(|store| store.bytes() == contents);
        let store = left.unwrap_or_else(|| Store::new(contents));
        self.files[usize::from(id.0)] = Some(SimFile { store, is_changed: false });
    }

    /// Puts the contents back where they came from.
    pub(super) fn unload(&mut self, id: FileId, file: &File) {
        let loaded = self.files[usize::from(id.0)].take().expect("a file that was added");
        if loaded.is_changed {
            let bytes = loaded.store.bytes();
            let written = open_cached(file, true).write_all_at(bytes, 0);
            written.expect("the file of a simulation can be written");
        }
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
            self.begin(&mut op);
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
                let mut op = Op::new(request, self.accepted);
                self.accepted += 1;
                self.begin(&mut op);
                Some(self.perform(&op))
            }
        }
    }

    fn begin(&mut self, op: &mut Op) {
        let file = self.files[usize::from(op.file.0)].as_mut().expect("a file that was added");
        file.begin(op);
    }

    fn perform(&mut self, op: &Op) -> i64 {
        let fault = self.faults.remove(&op.number);
        let (most, errno) = match fault {
            None | Some(Fault::Stuck | Fault::Refused(_) | Fault::Idle) => (op.len, None),
            Some(Fault::Error(errno) | Fault::Partly(_, errno)) => (0, Some(errno)),
            Some(Fault::Short(bytes)) => (usize_of(bytes).min(op.len), None),
            Some(Fault::Torn(bytes, errno)) => (usize_of(bytes).min(op.len), Some(errno)),
        };
        let file = self.files[usize::from(op.file.0)].as_mut().expect("a file that was added");
        if let Some(id) = op.write {
            file.end(id, op.verb, most, fault);
        }
        let done = match op.verb {
            Verb::Read => {
                let contents = file.store.bytes();
                let start = op.offset.min(contents.len());
                let end = (op.offset + most).min(contents.len());
                op.scatter(&contents[start..end.max(start)]);
                end.saturating_sub(start)
            }
            Verb::Write | Verb::WriteDurable => most,
            Verb::Sync => {
                let is_begun = !matches!(errno, Some(Errno::EAGAIN | Errno::EBUSY | Errno::EINTR));
                if errno.is_some() && is_begun {
                    file.store.flush_failed(&op.covers);
                } else if is_begun && fault != Some(Fault::Idle) {
                    file.store.flush_end(&op.covers);
                }
                0
            }
            Verb::Extent if errno.is_none() => {
                return encode_extent(extent(file.store.bytes(), op));
            }
            Verb::Punch | Verb::Zero | Verb::Fill | Verb::Extent => 0,
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

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The same file through the page cache, where memory need not be aligned.
fn open_cached(file: &File, is_written: bool) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let opened = OpenOptions::new().read(true).write(is_written).open(path);
    opened.expect("the file of a simulation can be opened again")
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
