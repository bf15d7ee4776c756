//! A virtual block device: slots, retries, order of flushes, drain. Single owner, no lock.
//!
//! Doors start requests through [`Vbd::intake`]; the chain maps them; the queue runs them; the loop
//! fetches their ends with [`Vbd::answers`]. The lifecycle (open, pause, close) is the loop's
//! business: here it is only whether there is a chain, and whether requests are drained.
//!
//! Invariants:
//! * A request that was started is answered exactly once.
//! * A flush begins when no write that came before it is unanswered.
//! * Only parked requests, those that wait for space, and flushes behind them survive a pause; they
//!   go on in the next chain.

mod check;
mod intake;
mod loss;
mod metadata;
pub mod retry;
mod short;
mod slots;

use std::time::Duration;

use nix::errno::Errno;

use crate::chain::{Chain, FlushPart, Path, Progress};
use crate::image::TAG_SPECIAL;
use crate::layer::Verdict;
use crate::memory::Memory;
use crate::queue::{Completion, Queue, Tag};
use crate::request::{Answer, DiskInfo, Op, Request};
use crate::statistics::DiskCounters;
use crate::status::Status;
use crate::time::Now;
pub use intake::VbdIntake;
use loss::Loss;
use retry::{Fate, Retries, RetryPolicy};
use slots::{Place, Slot, SlotIndex, Slots};

/// Requests in flight of one disk: the ring's 32 and those of the NBD clients.
pub const SLOTS: u16 = 256;
const _: () = assert!(SLOTS as usize == slots::COUNT);

/// I/Os that the queue of one disk holds: one for each slot, and some for requests in several runs.
pub const QUEUE_CAPACITY: usize = 512;

/// The memory of a disk for requests of doors that bring none: four of the largest size, or four
/// thousand of a page. Pages that are never touched cost nothing: a disk with one client stays in
/// the few that are used again and again.
pub const ARENA_BYTES: usize = 16 << 20;

/// How long a request that failed for a passing reason waits before it is tried again.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// With requests running and none ending for so long, the state is logged, once.
pub const WATCHDOG: Duration = Duration::from_secs(10);

/// Number of a door of the disk.
pub type DoorIndex = u8;

/// A request that the images or their storage failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it asked for.
    pub op: Op,
    /// Of its range, in bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
    /// Why.
    pub errno: Errno,
    /// It is tried again, and nobody has seen it.
    pub again: bool,
}

/// One disk's requests.
pub struct Vbd {
    slots: Slots,
    chain: Option<Chain>,
    info: DiskInfo,
    queue: Queue,
    memory: Memory,
    counters: DiskCounters,
    retries: Retries,
    now: Now,
    last_end: Now,
    /// Since when there is a request that runs.
    busy_since: Now,
    watchdog_barked: bool,
    /// The image has nothing under way of its own.
    is_metadata_idle: bool,
    /// The first since it was asked for.
    failure: Option<Failure>,
    loss: Loss,
}

impl std::fmt::Debug for Vbd {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Vbd").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Vbd {
    /// A disk without an image.
    #[must_use]
    pub fn new(queue: Queue, memory: Memory, counters: DiskCounters) -> Self {
        Self {
            slots: Slots::new(),
            chain: None,
            info: DiskInfo { size: 0, sector_size: 512, read_only: true },
            queue,
            memory,
            counters,
            retries: Retries::new(),
            now: Now::default(),
            last_end: Now::default(),
            busy_since: Now::default(),
            watchdog_barked: false,
            loss: Loss::default(),
            is_metadata_idle: true,
            failure: None,
        }
    }

    /// Puts a chain in; requests that were parked go on in it.
    ///
    /// # Panics
    /// When there is one already.
    pub fn insert_chain(&mut self, chain: Chain, read_only: bool, policy: RetryPolicy) {
        assert!(self.chain.is_none(), "a disk has one chain");
        let image = chain.info();
        self.info = DiskInfo { size: image.size, sector_size: image.sector_size, read_only };
        self.retries.policy = policy;
        self.retries.is_direct = chain.leaf_file().is_none_or(|file| self.queue.is_direct(file));
        self.loss.is_told_late = chain.is_shared_storage() && !self.retries.is_direct;
        self.chain = Some(chain);
        self.is_metadata_idle = true;
        self.counters.reset_images();
        self.space_came();
        self.begin_flushes();
    }

    /// Takes the chain out; only when drained.
    ///
    /// # Panics
    /// When requests are in it.
    pub fn take_chain(&mut self) -> Option<Chain> {
        assert!(self.is_drained(), "requests are in the chain");
        self.chain.take()
    }

    /// The chain, while there is one.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// The disk as its doors see it.
    #[must_use]
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// The queue: to open images, to wait for it.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// The disk's memory.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The first failure since this was asked last; for the log, which is not told of each.
    pub fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// The time of this turn.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
    }

    /// It, as it was set last.
    #[must_use]
    pub fn now(&self) -> Now {
        self.now
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &DiskCounters {
        &self.counters
    }

    /// What a door starts its requests through.
    pub fn intake(&mut self, door: DoorIndex) -> VbdIntake<'_> {
        VbdIntake { vbd: self, door }
    }

    /// No request is in the chain or the queue; parked ones and flushes behind them may be there.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let is_still = !self.is_running() && self.slots.count(Place::Finished) == 0;
        is_still && self.queue.is_idle() && self.is_metadata_idle
    }

    /// Requests are in the chain or the queue, or held on their way.
    #[inline]
    fn is_running(&self) -> bool {
        self.slots.count(Place::Running) > 0 || self.is_held_up()
    }

    /// Requests have begun that have no I/O in the queue.
    #[inline]
    fn is_held_up(&self) -> bool {
        let count = |place| self.slots.count(place);
        count(Place::AwaitingRoom) + count(Place::AwaitingImage) + count(Place::Held) > 0
    }

    /// Requests that are not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        usize::from(SLOTS) - self.slots.count(Place::Free)
    }

    /// Begins a request that does not go the short way.
    #[inline(never)]
    fn start_any(&mut self, index: SlotIndex) {
        let Slot { request, door, .. } = self.slots.get(index);
        self.counters.submitted(*door, request.op, request.len);
        match check::check(&self.slots.get(index).request, self.info) {
            Ok(()) => self.begin(index),
            Err(errno) => self.finished(index, Status::Failed(errno)),
        }
    }

    /// Begins a request that is running, for the first time or again. Always inlined, as what it
    /// calls: a request goes this way once, and entering and leaving functions was a fifth of it.
    #[inline(always)]
    fn begin(&mut self, index: SlotIndex) {
        let slot = self.slots.get_mut(index);
        slot.is_short = false;
        slot.status = Status::Done;
        slot.progress = Progress::default();
        if (slot.request.op == Op::Flush || slot.request.fua) && self.cannot_promise(index) {
            return;
        }
        let slot = self.slots.get_mut(index);
        let Some(chain) = &mut self.chain else {
            return self.finished(index, Status::Failed(Errno::ESHUTDOWN));
        };
        match chain.admit(usize::from(index), &slot.request, &mut self.memory) {
            Verdict::Pass => self.advance(index),
            Verdict::Fail(errno) => self.ended(index, Status::Failed(errno)),
            Verdict::Hold => self.slots.move_to(index, Place::Held),
        }
    }

    /// Begins a request that has waited.
    #[inline(never)]
    fn begin_again(&mut self, index: SlotIndex) {
        if !self.is_running() {
            self.busy_since = self.now;
        }
        self.slots.move_to(index, Place::Running);
        self.begin(index);
    }

    /// Maps more of a request, as far as the queue has room.
    #[inline(always)]
    fn advance(&mut self, index: SlotIndex) {
        let Self { slots, chain: Some(chain), queue, memory, counters, .. } = self else {
            unreachable!("a request runs in a chain");
        };
        let slot = slots.get_mut(index);
        let (tag, request) = (tag_of(slot.sequence, index), &slot.request);
        if !queue.has_room() {
            return slots.move_to(index, Place::AwaitingRoom);
        }
        let path = &mut Path { queue, memory, counters };
        chain.advance(usize::from(index), tag, request, &mut slot.progress, path);
        if slot.progress.cursor < request.len {
            self.hold_up(index);
        } else if slot.progress.parts == 0 {
            self.leave_chain(index);
        }
    }

    /// One I/O has ended.
    #[inline(always)]
    fn completed(&mut self, completion: &Completion) {
        if completion.tag.0 >= TAG_SPECIAL {
            return self.special_completed(completion);
        }
        let [index, ..] = completion.tag.0.to_le_bytes();
        let slot = self.slots.get_mut(index);
        assert!(
            completion.tag == tag_of(slot.sequence, index) && slot.progress.parts > 0,
            "a completion belongs to a request that runs"
        );
        if self.end_short(index, completion) {
            return;
        }
        let slot = self.slots.get_mut(index);
        if completion.extent.is_some() && slot.progress.extent.is_none() {
            slot.progress.extent = completion.extent;
        }
        self.part_ended_further(index, completion.status);
    }

    #[inline(never)]
    fn part_ended_further(&mut self, index: SlotIndex, status: Status) {
        self.part_ended(index, status);
    }

    /// An I/O of a request, or a change of metadata that it waits for, has ended.
    #[inline(always)]
    fn part_ended(&mut self, index: SlotIndex, status: Status) {
        let slot = self.slots.get_mut(index);
        slot.progress.parts -= 1;
        slot.status = slot.status.and(status);
        if slot.progress.parts == 0 && slot.place == Place::Running {
            self.leave_chain(index);
        }
    }

    /// All of a request is through the images.
    #[inline(always)]
    fn leave_chain(&mut self, index: SlotIndex) {
        let slot = self.slots.get_mut(index);
        if slot.progress.flush != FlushPart::None && self.flush_first(index) {
            return;
        }
        let Self { slots, chain: Some(chain), queue, memory, counters, .. } = self else {
            unreachable!("a request runs in a chain");
        };
        let slot = slots.get_mut(index);
        let mut path = Path { queue, memory, counters };
        let status = chain.finish(usize::from(index), &slot.request, slot.status, &mut path);
        if status == Status::Done && self.loss.of_image.is_none() {
            self.finished(index, status);
        } else {
            self.ended(index, status);
        }
    }

    /// A try has ended: another one later, or the end.
    #[cold]
    fn ended(&mut self, index: SlotIndex, status: Status) {
        let counted = self.account(index, status);
        let Some(errno) = status.errno() else { return self.finished(index, counted) };
        let Request { op, offset, len, .. } = self.slots.get(index).request;
        let again = self.put_aside(index, errno) != Fate::Answered;
        self.failure.get_or_insert(Failure { op, offset, len, errno, again });
        if !again {
            self.finished(index, status);
        }
    }

    /// A request has ended.
    #[inline(always)]
    fn finished(&mut self, index: SlotIndex, status: Status) {
        self.slots.get_mut(index).status = status;
        self.slots.finish(index);
        self.progressed();
        if self.slots.count(Place::AwaitingWrites) > 0 {
            self.begin_flushes();
        }
    }

    /// The storage is alive.
    #[inline(always)]
    fn progressed(&mut self) {
        self.last_end = self.now;
        self.watchdog_barked = false;
    }

    /// Begins the flushes that wait for nothing any more, oldest first.
    fn begin_flushes(&mut self) {
        while self.chain.is_some()
            && let Some(index) = self.slots.due_flush()
        {
            self.begin_again(index);
        }
    }

    /// Takes what the queue has finished; returns how many I/Os.
    pub fn reap(&mut self) -> usize {
        let mut count = 0;
        self.queue.collect();
        while let Some(completion) = self.queue.pop() {
            self.completed(&completion);
            count += 1;
        }
        while self.queue.has_room()
            && let Some(index) = self.slots.first(Place::AwaitingRoom)
        {
            self.slots.move_to(index, Place::Running);
            self.advance_further(index);
        }
        count
    }

    /// Maps more of a request that found the queue full.
    #[inline(never)]
    fn advance_further(&mut self, index: SlotIndex) {
        let slot = self.slots.get_mut(index);
        slot.progress.stop = None;
        if slot.progress.flush == FlushPart::Follows && slot.progress.cursor >= slot.request.len {
            // It is all mapped and done: its flush found no room.
            return self.leave_chain(index);
        }
        self.advance(index);
    }

    /// Hands every request that has ended to `deliver`, with the door that it came from, and frees
    /// it.
    pub fn answers(
        &mut self,
        mut deliver: impl FnMut(DoorIndex, &Request, Answer, &mut Memory),
    ) -> usize {
        let Self { slots, counters, memory, now, .. } = self;
        slots.free_finished(|slot| {
            let answer = Answer { status: slot.status, extent: slot.progress.extent };
            let elapsed_us = now.microseconds_since(slot.started);
            let is_done = slot.status == Status::Done;
            counters.completed(slot.door, slot.request.op, is_done, elapsed_us);
            deliver(slot.door, &slot.request, answer, memory);
        })
    }

    /// When there is something to do although nothing comes in: a retry, or the watchdog.
    #[must_use]
    pub fn deadline(&self) -> Now {
        // Parked requests all wait equally long, so the first is the earliest.
        let retry = self.slots.first(Place::Parked).filter(|_| self.chain.is_some());
        let retry = retry.map_or(Now::NEVER, |index| self.slots.get(index).due);
        let is_watched = !self.watchdog_barked && !self.is_drained();
        let watchdog = if is_watched { self.last_progress().after(WATCHDOG) } else { Now::NEVER };
        retry.min(self.space_due()).min(watchdog)
    }

    fn last_progress(&self) -> Now {
        self.last_end.max(self.busy_since)
    }

    /// Begins what is due; returns whether the watchdog barks: requests run and none has ended for
    /// [`WATCHDOG`].
    pub fn maintain(&mut self) -> bool {
        while self.chain.is_some()
            && let Some(index) = self.slots.first(Place::Parked)
            && self.slots.get(index).due <= self.now
        {
            self.begin_again(index);
        }
        if self.awaiting_space() > 0 && self.chain.is_some() {
            self.look_for_space();
        }
        let stuck = self.now >= self.last_progress().after(WATCHDOG) && !self.is_drained();
        let barks = stuck && !self.watchdog_barked;
        self.watchdog_barked |= stuck;
        barks
    }

    /// Ends by force every request that no I/O is under way for, and asks the queue to cancel the
    /// rest.
    pub fn shut_down(&mut self) {
        for place in [Place::Held, Place::AwaitingWrites, Place::Parked, Place::AwaitingSpace] {
            while let Some(index) = self.slots.first(place) {
                self.finished(index, Status::Failed(Errno::ESHUTDOWN));
            }
        }
        while let Some(index) =
            self.slots.first(Place::AwaitingRoom).or_else(|| self.slots.first(Place::AwaitingImage))
        {
            let slot = self.slots.get_mut(index);
            slot.status = slot.status.and(Status::Failed(Errno::ESHUTDOWN));
            slot.progress.cursor = slot.request.len;
            let (parts, status) = (slot.progress.parts, slot.status);
            if parts == 0 {
                self.finished(index, status);
            } else {
                self.slots.move_to(index, Place::Running);
            }
        }
        self.queue.cancel_all();
        if let Some(chain) = self.chain.as_mut().filter(|chain| chain.has_metadata()) {
            chain.metadata().shut_down();
        }
    }

    /// A person's view, for the debug dump.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        writeln!(out, "disk {:?}, outstanding {}", self.info, self.outstanding())?;
        if let Some(chain) = &self.chain {
            chain.describe(out)?;
        }
        for (place, name) in [
            (Place::Running, "running"),
            (Place::AwaitingRoom, "awaiting room"),
            (Place::AwaitingImage, "awaiting image"),
            (Place::AwaitingWrites, "awaiting writes"),
            (Place::Parked, "parked"),
            (Place::AwaitingSpace, "awaiting space"),
            (Place::Held, "held"),
        ] {
            for slot in self.slots.at(place) {
                let Request { op, offset, len, .. } = slot.request;
                let age = self.now.since(slot.started).as_millis();
                let parts = slot.progress.parts;
                writeln!(out, "  {name}: {op:?} {offset}+{len}, {parts} I/Os, {age} ms old")?;
            }
        }
        self.queue.describe(out)
    }
}

/// The name of a request's I/Os: its slot, in the lowest byte, and which use of it. Repeats after
/// 2^56 requests.
#[inline]
fn tag_of(sequence: u64, index: SlotIndex) -> Tag {
    Tag(sequence << SlotIndex::BITS | u64::from(index))
}

#[cfg(test)]
mod tests;
