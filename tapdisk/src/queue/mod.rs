//! The queue: the one place of the daemon that does file I/O.
//!
//! ```text
//!   push*  ──>  waiting (FIFO)  ──submit──>  engine or helper thread  ──reap──>  completions
//!                   ^   merged where file-contiguous       │
//!                   └── short: go on from there <──────────┤
//!                   └── a merge that failed: parts alone <─┘
//! ```
//!
//! One owner, one thread: a loop turn is `reap`, work, `push` as often as there is room, one
//! `submit`. The engine (Linux AIO, io_uring, plain system calls, a simulation) is chosen when the
//! queue is made; all of them give the same results and the same file contents for the same
//! requests.
//!
//! Invariants:
//! * An I/O is in exactly one place: waiting, in the engine, with the helper thread, or among the
//!   completions that `reap` has not handed out yet. Its key (index and generation) names it there.
//! * What was pushed first is submitted first. Only a continuation goes to the front: it is the
//!   older one.
//! * `Done` means all of it: a short result is continued, an I/O merged with neighbours that failed
//!   is run again alone.
//! * Nothing is allocated after [`Queue::new`], but for the helper thread when it is first needed.
//!
//! What the caller owes:
//! * The memory of an I/O stays mapped, and is not used for anything else, until its completion was
//!   reaped. When a queue with [`Queue::in_flight`] above zero is given up, the memory is left
//!   behind ([`Memory::leak`]).
//! * Order: I/Os in flight at the same time may be done in any order. Who needs one after the other
//!   pushes the second after reaping the first. A flush covers the writes whose completions were
//!   reaped before it was pushed, and no others.
//! * After `submit` the loop sleeps only when [`Queue::is_ready`] is false: some I/Os end inside
//!   `submit`, with no event to tell.

mod blocking;
mod engine;
mod files;
mod settle;
pub mod sim;
mod submit;
mod sys;
mod table;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::memory::{Memory, Segment};
use crate::request::{Extent, SEGMENTS_MAX};
use crate::status::Status;

use blocking::Worker;
use engine::{Engine, Raw};
use files::Files;
use settle::first_step;
use sim::Sim;
use sys::iovecs::Iovecs;
use table::Table;

pub use engine::{EngineKind, UnknownEngine};
pub use files::{FILES_MAX, FileId};

/// The most iovecs of one merged I/O.
///
/// Measured (docs/queue.md): 64 takes five requests of eleven pages together, and a third off the
/// CPU time of reading them; 128 gains nothing beyond the noise. A bound of 8, what the kernel
/// copies without allocating, would merge no two of them.
pub const MERGE_IOVECS_MAX: usize = 64;

/// The most bytes of one merged I/O.
///
/// 1 MiB: about what Linux gives a disk in one request (`max_sectors_kb` is 1,280 by default); a
/// larger one is cut again below us, and its first part would wait for all of it.
pub const MERGE_BYTES_MAX: u64 = 1 << 20;

/// How long a queue that is dropped with I/O in flight waits for it before it leaves it behind.
///
/// One second: its owner has waited already, by its own patience; this is for the last stragglers.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// The caller's name for an I/O; it comes back with the completion, unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Fill the segments from the file. A read past the end of the file fails with ENODATA.
    Read,
    /// Put the segments into the file.
    Write {
        /// The data is on stable storage when it is done.
        durable: bool,
    },
    /// What was written before (see the module) is on stable storage when it is done. Range unused.
    Flush,
    /// The range may lose its contents. Advice: done also where the file cannot do it.
    Trim {
        /// What it changed is on stable storage when it is done.
        durable: bool,
    },
    /// The range, inside the file, reads as zeros afterwards. Where the file cannot do it by itself
    /// (NFS before 4.2, files in memory) the helper thread writes them.
    WriteZeroes {
        /// The range may become a hole.
        may_punch: bool,
        /// The change is on stable storage when it is done.
        durable: bool,
    },
    /// What the start of the range holds, as far as the file system tells.
    Status,
}

impl IoOp {
    /// Whether its segments carry data.
    #[must_use]
    pub fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. })
    }
}

/// One I/O on one file.
#[derive(Clone, Copy, Debug)]
pub struct Io<'a> {
    /// The caller's name for it.
    pub tag: Tag,
    /// What to do.
    pub op: IoOp,
    /// Where.
    pub file: FileId,
    /// The first byte in the file.
    pub offset: u64,
    /// How many bytes: at least one but for a flush; for reads and writes the sum of the segments.
    pub len: u64,
    /// At most [`SEGMENTS_MAX`], in order; empty but for reads and writes.
    pub segments: &'a [Segment],
}

/// The end of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The caller's name for it.
    pub tag: Tag,
    /// How it ended. A write that failed may have changed any part of its range.
    pub status: Status,
    /// Only for [`IoOp::Status`] that is done.
    pub extent: Option<Extent>,
}

/// The sizes of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// I/Os that the queue knows at once: waiting, running, or not reaped yet.
    pub capacity: usize,
    /// I/Os (merged ones count once) that the engine holds at once.
    pub engine_depth: usize,
    /// The most iovecs of a merged I/O; 1 turns merging off.
    pub merge_iovecs: usize,
    /// The most bytes of a merged I/O.
    pub merge_bytes: u64,
}

impl Default for QueueConfig {
    /// 256: 32 ring slots of a disk with eight parts each; more only wait in the device.
    fn default() -> Self {
        Self {
            capacity: 256,
            engine_depth: 256,
            merge_iovecs: MERGE_IOVECS_MAX,
            merge_bytes: MERGE_BYTES_MAX,
        }
    }
}

/// Counters since the queue was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// I/Os taken.
    pub pushed: u64,
    /// I/Os given to the engine; what was merged counts once.
    pub submitted: u64,
    /// I/Os that went as a part of a merged one.
    pub merged: u64,
    /// Merged I/Os that came back failed or short, so that parts were run alone.
    pub undone: u64,
    /// I/Os that the submit after their push left waiting.
    pub deferred: u64,
    /// Results below what was asked for, continued from there.
    pub short: u64,
    /// I/Os that ran on the calling thread, alone.
    pub inline: u64,
    /// I/Os given to the helper thread.
    pub helped: u64,
    /// I/Os that ended with an error.
    pub failed: u64,
    /// System calls to hand over, run, wait for or collect I/O (not those of the helper thread).
    pub system_calls: u64,
}

/// The queue of one disk.
pub struct Queue {
    config: QueueConfig,
    table: Table,
    iovecs: Iovecs,
    files: Files,
    /// Given to the engine, not accepted by the kernel yet; heads of groups, oldest first.
    staged: Vec<u32>,
    /// How many the kernel holds, without those whose results are here; groups count once.
    in_kernel: usize,
    /// How many the helper thread holds, the same way.
    in_worker: usize,
    /// Where the I/O that was pushed last ends, and whether one that waits may go on where the one
    /// before it ends: only then it is looked for.
    last_end: u64,
    has_neighbours: bool,
    /// Of those pushed, those that a submit has seen: tells new deferrals from old ones.
    seen: u64,
    /// Results as the engine gave them; those from `settled` on are not settled yet.
    raw: Vec<Raw>,
    settled: usize,
    /// Ended, not handed out yet.
    ready: VecDeque<Completion>,
    worker: Option<Worker>,
    stats: QueueStats,
    engine: Engine,
    /// Dropped after the engine, which names it by its number.
    event: Arc<EventFd>,
}

impl Queue {
    /// A queue on the given engine.
    ///
    /// # Errors
    /// What the kernel says; the text tells what is missing and what would help. An AIO context
    /// that does not fit into the system's limit is tried with half the depth, down to 32.
    ///
    /// # Panics
    /// When a size is zero or absurd (more than 65,535 I/Os, more than 1,024 iovecs).
    pub fn new(kind: EngineKind, config: QueueConfig) -> io::Result<Self> {
        Self::open(config, |config, event| Engine::open(kind, config, event))
    }

    /// A queue on a simulated engine: the same seed gives the same order of completions.
    ///
    /// # Panics
    /// As [`Queue::new`], and when the process has no file descriptor left.
    #[must_use]
    pub fn simulated(seed: u64, config: QueueConfig) -> Self {
        Self::open(config, |config, _| Ok(Engine::Sim(Box::new(Sim::new(seed, config)))))
            .expect("a simulated queue needs one file descriptor")
    }

    fn open(
        mut config: QueueConfig,
        engine: impl FnOnce(&mut QueueConfig, &EventFd) -> io::Result<Engine>,
    ) -> io::Result<Self> {
        assert!((1..=65_535).contains(&config.capacity), "capacity {}", config.capacity);
        assert!(config.engine_depth > 0, "the engine takes at least one I/O");
        // 1024 is IOV_MAX: what the kernel takes in one call.
        assert!((1..=1024).contains(&config.merge_iovecs), "{} iovecs", config.merge_iovecs);
        config.engine_depth = config.engine_depth.min(config.capacity);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        let engine = engine(&mut config, &event)?;
        Ok(Self {
            table: Table::new(config.capacity),
            iovecs: Iovecs::new(config.capacity),
            files: Files::new(),
            staged: Vec::with_capacity(config.capacity),
            in_kernel: 0,
            in_worker: 0,
            last_end: 0,
            has_neighbours: false,
            seen: 0,
            raw: Vec::with_capacity(config.capacity),
            settled: 0,
            ready: VecDeque::with_capacity(config.capacity),
            worker: None,
            stats: QueueStats::default(),
            event: Arc::new(event),
            engine,
            config,
        })
    }

    /// The simulated engine, to add faults and to let time pass; `None` for a real one.
    pub fn sim(&mut self) -> Option<&mut Sim> {
        match &mut self.engine {
            Engine::Sim(sim) => Some(sim),
            _ => None,
        }
    }

    /// Registers the one event that tells of completions. Nobody needs to read it: every completion
    /// signals anew, and epoll waits for edges.
    ///
    /// With io_uring a wait may also end with EINTR when an I/O ends (the kernel interrupts the
    /// thread to finish it): that is a reason to reap like the event.
    ///
    /// # Errors
    /// What epoll says.
    pub fn register(&mut self, registry: &Registry, token: mio::Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.event.as_raw_fd()), token, Interest::READABLE)
    }

    /// Takes the event out of the loop again.
    ///
    /// # Errors
    /// What epoll says.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.event.as_raw_fd()))
    }

    /// Adds a file; `None` when there are [`FILES_MAX`] already. A simulated queue works on a copy
    /// of its present contents, and puts that back when the file is removed.
    pub fn add_file(&mut self, file: Arc<File>) -> Option<FileId> {
        let id = self.files.add(file)?;
        if let Engine::Sim(sim) = &mut self.engine {
            sim.load(id, self.files.get(id));
        }
        Some(id)
    }

    /// Whether a file's I/O is direct, and none of it is left in the page cache.
    #[must_use]
    pub fn is_direct(&self, id: FileId) -> bool {
        self.files.is_direct(id)
    }

    /// Gives a file up.
    ///
    /// # Panics
    /// When it is not there, or an I/O on it is known to the queue.
    pub fn remove_file(&mut self, id: FileId) {
        let count = self.table.count_of(id);
        assert!(count == 0, "{count} I/Os on a file that is removed");
        if let Engine::Sim(sim) = &mut self.engine {
            sim.unload(id, self.files.get(id));
        }
        self.files.remove(id);
    }

    /// Whether one more I/O can be pushed.
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        self.table.unused() > self.ready.len()
    }

    /// How many more I/Os can be pushed.
    #[must_use]
    #[inline]
    pub fn room(&self) -> usize {
        self.table.unused() - self.ready.len()
    }

    /// Takes an I/O; it starts at the next [`Queue::submit`]. No system call.
    ///
    /// # Panics
    /// When there is no room, or the I/O is malformed: more than [`SEGMENTS_MAX`] segments, a
    /// segment outside its region, a length that is zero or not the sum of the segments, or a range
    /// that ends past the largest offset of a file. A file that is not there is found later, by the
    /// submit.
    #[inline(always)]
    pub fn push(&mut self, memory: &Memory, io: &Io<'_>) {
        assert!(self.has_room(), "push without room");
        assert!(io.segments.len() <= SEGMENTS_MAX, "too many segments");
        assert!(io.len > 0 || io.op == IoOp::Flush, "an I/O of no bytes");
        let end = io.offset.checked_add(io.len).filter(|end| *end <= i64::MAX.cast_unsigned());
        let end = end.expect("an I/O ends below the largest offset");
        self.has_neighbours |= io.offset == self.last_end;
        self.last_end = end;
        let (verb, then_sync) = first_step(io.op, &self.files, io.file);
        let index = self.table.allocate(io, verb, then_sync);
        let bytes = self.iovecs.fill(index, memory, io.segments);
        let wanted = if verb.has_data() { io.len } else { 0 };
        assert!(bytes == wanted, "the segments are as long as the I/O");
        self.stats.pushed = self.stats.pushed.wrapping_add(1);
    }

    /// Hands out what has ended; returns how many. No system call when nothing has.
    ///
    /// Everything is taken out of the engine before the first one is handed out. A continuation of
    /// a short I/O found here starts at the next [`Queue::submit`].
    pub fn reap(&mut self, mut each: impl FnMut(Completion)) -> usize {
        self.collect();
        let mut count = 0;
        while let Some(completion) = self.pop() {
            each(completion);
            count += 1;
        }
        count
    }

    /// The first half of [`Queue::reap`], for somebody who pushes while handling completions: takes
    /// what has ended out of the engine and the helper thread.
    pub fn collect(&mut self) {
        if self.settled == self.raw.len() {
            self.raw.clear();
            self.settled = 0;
        }
        // Where some are left the room is theirs: then it is for the next time.
        if self.settled > 0 {
            return;
        }
        if self.in_kernel > 0 {
            let before = self.raw.len();
            self.stats.system_calls += self.engine.reap(&mut self.raw);
            self.in_kernel -= self.raw.len() - before;
        }
        if self.in_worker > 0
            && let Some(worker) = &self.worker
        {
            let before = self.raw.len();
            worker.reap(&mut self.raw);
            self.in_worker -= self.raw.len() - before;
        }
    }

    /// The second half: one of those that were collected.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Completion> {
        while let Some(raw) = self.raw.get(self.settled) {
            self.settled += 1;
            if let Some(completion) = self.settle(*raw) {
                return Some(completion);
            }
        }
        self.ready.pop_front()
    }

    /// Waits until `at_least` I/Os have ended (merged ones count once), or for `timeout`, or until
    /// a signal. For a busy loop that would rather handle several completions per turn: only useful
    /// with many in flight. `reap` hands them out.
    pub fn wait_batch(&mut self, at_least: usize, timeout: Duration) {
        if self.has_collected() {
            return;
        }
        self.raw.clear();
        self.settled = 0;
        if self.in_kernel > 0 {
            let at_least = at_least.clamp(1, self.in_kernel);
            self.stats.system_calls += 1;
            self.engine.wait(at_least, timeout, &mut self.raw);
            self.in_kernel -= self.raw.len();
        } else if self.in_worker > 0
            && let Some(worker) = &self.worker
        {
            worker.wait(timeout, &mut self.raw);
            self.in_worker -= self.raw.len();
        }
    }

    /// Whether a turn of the loop has something to do here although no event may come: completions
    /// to reap, or I/Os that nothing stands in the way of.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        // What the kernel had no room for is tried again after a completion; what nobody has
        // offered to it yet must not wait for one.
        let can_submit = if self.staged.is_empty() {
            self.table.waiting() > 0 && self.in_kernel < self.config.engine_depth
        } else {
            self.in_kernel == 0
        };
        self.has_collected() || (self.in_kernel > 0 && self.engine.has_results()) || can_submit
    }

    /// Whether [`Queue::pop`] may find something.
    fn has_collected(&self) -> bool {
        !self.ready.is_empty() || self.settled < self.raw.len()
    }

    /// Ends what can be ended, for a close that does not wait: what was not handed to the kernel
    /// completes with ECANCELED; for the rest cancellation is asked for (regular files and disks
    /// mostly do not know it; the helper thread stops between two pieces of a long range), and
    /// nothing of it is continued or run again. The completions are reaped as always;
    /// [`Queue::in_flight`] tells what remains.
    pub fn cancel_all(&mut self) {
        while let Some((index, _)) = self.table.take_front() {
            self.finish(index, Status::Failed(Errno::ECANCELED), None);
        }
        if self.engine.withdraw_all(self.in_kernel) {
            for at in 0..self.staged.len() {
                self.finish_group(self.staged[at], Errno::ECANCELED);
            }
            self.staged.clear();
        }
        self.seen = self.stats.pushed;
        let Self { table, engine, worker, .. } = self;
        table.cancel_running(|key| engine.cancel(key));
        if let Some(worker) = worker {
            worker.cancel();
        }
    }

    /// How many I/Os the engine and the helper thread hold: memory and files of these may be
    /// touched at any time.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.used() - self.table.waiting()
    }

    /// Whether everything that was pushed was reaped.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.table.used() == 0 && self.ready.is_empty()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.stats
    }

    /// Which engine it runs on.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        self.engine.kind()
    }

    /// A person's view of its state, for the debug dump.
    ///
    /// # Errors
    /// What the writer says.
    pub fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        writeln!(
            out,
            "queue: {} engine of depth {}, room for {} of {}; {} waiting, {} staged, \
             {} in the kernel, {} with the helper thread, {} ended; {} files",
            self.engine.kind(),
            self.config.engine_depth,
            self.room(),
            self.config.capacity,
            self.table.waiting(),
            self.staged.len(),
            self.in_kernel,
            self.in_worker,
            self.ready.len(),
            self.files.count(),
        )?;
        writeln!(out, "queue: {:?}", self.stats)
    }
}

impl Drop for Queue {
    /// Waits a little for what is in flight; what does not come back is left behind: the AIO
    /// context is then not destroyed (that would wait for ever), the helper thread not joined. The
    /// caller's memory is the caller's to leak.
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Our own invariants may be broken: touch nothing more.
            self.engine.abandon();
            return;
        }
        self.cancel_all();
        while self.pop().is_some() {}
        // Two rounds: the engine, then the helper thread. A signal may cut one short.
        for _ in 0..2 {
            self.wait_batch(usize::MAX, DROP_PATIENCE);
            self.reap(|_| {});
        }
        if self.in_kernel > 0 {
            self.engine.abandon();
        }
        if let Some(worker) = self.worker.take() {
            worker.stop(self.in_worker == 0);
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        self.describe(&mut text)?;
        formatter.write_str(text.trim_end())
    }
}
