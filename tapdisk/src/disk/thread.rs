//! The thread of a disk: its loop, and the commands of the control thread.
//!
//! Everything that can block on this disk's storage happens here: opening, closing, a system call
//! that hangs. So it holds up this disk and nothing else; the control thread answers for it by its
//! deadline.
//!
//! A command sets a state; the loop's `settle` answers it when the state is reached. The loop never
//! runs inside itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use mio::{Events, Poll, Token as MioToken};

use super::again::Again;
use super::life::Life;
use super::pace::Patience;
use super::{Disk, RING};
use crate::error::DiskError;
use crate::frontend::blktap::BlktapDoor;
use crate::frontend::{Frontend, TOKENS_PER_DOOR};
use crate::image::{ImageSpec, OpenFlags};
use crate::layer::LayerSpec;
use crate::log::RateLimit;
use crate::server::shared::DiskShared;
use crate::statistics::DiskPages;
use crate::time::{Clock, Now};
use crate::vbd::Failure;
use crate::vbd::retry::RetryPolicy;

/// The waker of the control thread's commands.
pub const WAKER: MioToken = MioToken(0);
/// Completions of the queue.
pub const COMPLETIONS: MioToken = MioToken(1);
/// The first token of the first door.
const DOORS: usize = TOKENS_PER_DOOR;

/// How long a close goes on asking the driver to remove a block device that has just been closed by
/// its last user: the driver says busy until that close is through.
pub(super) const REMOVE_PATIENCE: Duration = Duration::from_millis(500);
/// How often it asks.
pub(super) const REMOVE_INTERVAL: Duration = Duration::from_millis(10);

/// A loop that is kept busy looks at its events once in so many turns.
const BUSY_TURNS_MAX: u32 = 32;

/// The numbers that others see are at most so old: nobody can tell, and in a busy loop storing them
/// in every turn would cost each request as much as its check.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);

/// What to open.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// `type:path`.
    pub spec: ImageSpec,
    /// The same as the client wrote it: the disk's name.
    pub name: std::ffi::OsString,
    /// No changes, no direct I/O.
    pub flags: OpenFlags,
    /// What becomes of requests that fail.
    pub retry: RetryPolicy,
}

/// What the control thread asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Open an image and serve it.
    Open(OpenRequest),
    /// Serve again; from another image when one is named.
    Resume(Option<ImageSpec>, std::ffi::OsString),
    /// Finish what runs, close the image, keep the requests at the doors.
    Pause,
    /// Finish what runs and close.
    Close,
    /// Close without waiting for anything.
    ForceClose,
    /// The client that asked for the command of this ticket is gone.
    Cancel(u64),
    /// Log the state.
    Dump,
    /// End the thread; refused while the disk is open.
    Detach,
}

/// A command with the number that its answer carries.
#[derive(Debug)]
pub struct Envelope {
    /// Unique in this process.
    pub ticket: u64,
    /// What is asked.
    pub command: Command,
}

/// How the thread answers: called from its loop, must not block.
pub type Respond = Box<dyn FnMut(u64, Result<(), DiskError>) + Send>;

/// What is the same for all disks of a process.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Layers above every image, for tests.
    pub layers: Vec<LayerSpec>,
    /// Where the NBD socket of this disk is made.
    pub nbd_path: PathBuf,
    /// The ring device of this disk, when the driver has one.
    pub ring_path: Option<PathBuf>,
}

/// What ties the thread of a disk to the rest of the process.
pub struct Wiring {
    /// What it shows.
    pub shared: Arc<DiskShared>,
    /// Where it shows it to other programs.
    pub pages: DiskPages,
    /// What it is asked.
    pub commands: Receiver<Envelope>,
    /// How it answers.
    pub respond: Respond,
    /// Where it logs.
    pub log: slog::Logger,
}

impl std::fmt::Debug for Wiring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Wiring").field("minor", &self.shared.minor).finish_non_exhaustive()
    }
}

/// The loop.
pub struct DiskThread {
    pub(super) disk: Disk,
    pub(super) life: Life,
    pub(super) config: DiskConfig,
    pub(super) wiring: Wiring,
    pub(super) poll: Poll,
    pub(super) clock: Clock,
    /// What was opened, for a resume.
    pub(super) opened: Option<OpenRequest>,
    /// The command whose state is not reached yet.
    pub(super) waiting: Option<u64>,
    /// An image that could not be opened and is tried again.
    pub(super) again: Option<Again>,
    /// While closing with a block device: until when to ask the driver, and when next.
    pub(super) removal: Option<(Now, Now)>,
    pub(super) busy_turns: u32,
    failures: RateLimit,
    /// When numbers were shown last, and whether those of a later turn have yet to be.
    published: Now,
    is_stale: bool,
    /// Requests wait for space, and the log says so.
    is_waiting: bool,
    /// The storage may have lost what was answered, and the log says so.
    has_lost: bool,
    /// The last turn left something to do that no event will announce.
    more: bool,
    /// The control thread has woken this one since its commands were looked at.
    is_called: bool,
    events: Events,
    pub(super) exit: bool,
    /// The ticket of the detach that ends it.
    pub(super) detached: Option<u64>,
}

impl std::fmt::Debug for DiskThread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DiskThread").field("life", &self.life).finish_non_exhaustive()
    }
}

impl DiskThread {
    /// The thread's state; made on the thread itself, because a ring belongs to the thread that
    /// maps it. A disk that comes with a ring (of a simulated driver) keeps it.
    ///
    /// # Errors
    /// When epoll, the queue or the ring cannot be had.
    pub fn new(
        mut disk: Disk,
        poll: Poll,
        config: DiskConfig,
        wiring: Wiring,
    ) -> Result<Self, DiskError> {
        disk.vbd
            .queue()
            .register(poll.registry(), COMPLETIONS)
            .map_err(|error| DiskError::io(&error, "Cannot wait for the queue"))?;
        if let Some(path) = &config.ring_path {
            disk.ring = Some(BlktapDoor::open(path, disk.vbd.memory())?);
        }
        if let Some(door) = &mut disk.ring {
            door.register(poll.registry(), door_base(RING))
                .map_err(|error| DiskError::io(&error, "Cannot wait for the ring"))?;
        }
        Ok(Self {
            disk,
            life: Life::Attached,
            config,
            wiring,
            poll,
            clock: Clock::start(),
            opened: None,
            waiting: None,
            again: None,
            removal: None,
            busy_turns: 0,
            failures: RateLimit::new(),
            published: Now::default(),
            is_stale: true,
            is_waiting: false,
            has_lost: false,
            more: false,
            is_called: false,
            events: Events::with_capacity(128),
            exit: false,
            detached: None,
        })
    }

    /// Runs until detached; returns the ticket of that. When it is answered, nothing of the disk is
    /// left but what is returned with it: the end of a context of Linux AIO takes the kernel 40 ms,
    /// which nobody should wait for.
    pub fn run(mut self) -> (Option<u64>, Disk) {
        while self.turn() {}
        let ticket = self.detached;
        (ticket, self.take_down())
    }

    /// Waits until there is something to do, and does it: the body of the loop, for tests and
    /// measurements that are to see what the daemon does. False when it is detached.
    pub fn turn(&mut self) -> bool {
        let now = self.wait();
        self.go_on(now)
    }

    /// The same at a time that is the caller's, who has waited for it.
    #[cfg(feature = "sim")]
    pub(super) fn turn_at(&mut self, now: Now) -> bool {
        self.clock.simulated = Some(now);
        let polled = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        assert!(polled.is_ok(), "cannot look at the events: {polled:?}");
        self.go_on(now)
    }

    fn go_on(&mut self, now: Now) -> bool {
        self.collect();
        if std::mem::take(&mut self.is_called) {
            self.obey();
        }
        let clock = self.clock;
        let turned = self.disk.turn(now, || clock.now());
        self.more = turned.more;
        if turned.stuck {
            slog::error!(self.wiring.log, "No request has ended for long");
            self.dump();
        }
        self.complain();
        self.settle();
        self.publish(self.disk.vbd.now());
        // With I/O under way its memory and the ring have to stay.
        !self.exit || self.life.is_open()
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Waits for events: not at all when there is more to do, for a batch of completions when many
    /// are under way, else until something happens. Returns the time.
    fn wait(&mut self) -> Now {
        if self.more && self.busy_turns < BUSY_TURNS_MAX {
            self.busy_turns += 1;
            self.events.clear();
            return self.clock.now();
        }
        self.busy_turns = 0;
        let before = self.clock.now();
        if self.is_stale {
            // If it is time by now: a turn for that alone would be one more wait.
            self.publish(before);
        }
        let in_flight = self.disk.vbd.queue().in_flight();
        let timeout = if self.more {
            Some(Duration::ZERO)
        } else if let Some(patience) = self.disk.pace().patience(in_flight) {
            let Patience { completions, timeout } = patience;
            self.disk.vbd.queue().wait_batch(completions, timeout);
            Some(Duration::ZERO)
        } else {
            self.timeout(before)
        };
        if let Err(error) = self.poll.poll(&mut self.events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            slog::error!(self.wiring.log, "Cannot wait for events"; "error" => %error);
        }
        let after = self.clock.now();
        self.disk.pace().waited(after.since(before));
        after
    }

    fn timeout(&mut self, now: Now) -> Option<Duration> {
        self.deadline().if_ever().map(|next| next.since(now))
    }

    /// When there is something to do although nothing happens.
    pub(super) fn deadline(&mut self) -> Now {
        let removal = self.removal.map_or(Now::NEVER, |(_, next)| next);
        let again = self.again.as_ref().map_or(Now::NEVER, Again::next);
        let Disk { vbd, ring, nbd, .. } = &self.disk;
        let ring = ring.as_ref().map_or(Now::NEVER, Frontend::deadline);
        let nbd = nbd.as_ref().map_or(Now::NEVER, Frontend::deadline);
        let publish =
            if self.is_stale { self.published.after(PUBLISH_INTERVAL) } else { Now::NEVER };
        removal.min(again).min(vbd.deadline()).min(ring).min(nbd).min(publish)
    }

    fn collect(&mut self) {
        for event in &self.events {
            let token = event.token();
            self.is_called |= token == WAKER;
            let Some(number) = token.0.checked_sub(DOORS) else { continue };
            let index = u8::try_from(number / TOKENS_PER_DOOR).expect("two doors");
            if let Some(door) = self.disk.door(index) {
                door.ready(number % TOKENS_PER_DOOR, event.into());
            }
        }
    }

    fn obey(&mut self) {
        loop {
            match self.wiring.commands.try_recv() {
                Ok(Envelope { ticket, command }) => self.command(ticket, command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.left_behind(),
            }
        }
    }

    pub(super) fn enter(&mut self, life: Life) {
        self.life = life;
        self.wiring.shared.set_life(life);
    }

    /// Shows the numbers of this turn, unless others have just been shown: then a little later.
    fn publish(&mut self, now: Now) {
        self.is_stale = now < self.published.after(PUBLISH_INTERVAL);
        if self.is_stale {
            return;
        }
        self.published = now;
        self.wiring.pages.publish(self.disk.vbd.counters());
        let Disk { vbd, nbd, ring, .. } = &mut self.disk;
        self.wiring.shared.publish(vbd, nbd.as_ref(), ring.as_ref());
    }

    /// Logs what went wrong in this turn: of a storage that fails everything, some.
    fn complain(&mut self) {
        let log = &self.wiring.log;
        if let Some(fault) = self.disk.ring.as_mut().and_then(BlktapDoor::take_fault) {
            slog::crit!(log, "The ring is not read any more"; "fault" => %fault);
        }
        let is_waiting = self.disk.vbd.awaiting_space() > 0;
        if is_waiting != self.is_waiting {
            self.is_waiting = is_waiting;
            if is_waiting {
                slog::error!(log, "The storage is full: requests wait until it has space");
            } else {
                slog::info!(log, "No request waits for space any more");
            }
        }
        let has_lost = self.disk.vbd.has_lost();
        if has_lost && !self.has_lost {
            slog::error!(
                log,
                "The storage may have lost what was answered: every FLUSH fails until \
                the disk is paused and unpaused, and the first one after that"
            );
        }
        self.has_lost = has_lost;
        if let Some(failure) = self.disk.vbd.take_failure()
            && let Some(suppressed) = self.failures.admit(self.clock.now())
        {
            let Failure { op, offset, len, errno, again } = failure;
            slog::error!(log, "The storage failed a request"; "op" => ?op, "offset" => offset,
                "bytes" => len, "error" => errno.desc(), "again" => again,
                "suppressed" => suppressed);
        }
    }

    /// Logs the state, line by line: one message has a bound that it would go over.
    pub(super) fn dump(&mut self) {
        let mut text = String::new();
        let _ = self.disk.vbd.describe(&mut text);
        for (_, door) in self.disk.doors() {
            let _ = door.describe(&mut text);
        }
        slog::info!(self.wiring.log, "State of the disk: {:?}", self.life);
        for line in text.lines() {
            slog::info!(self.wiring.log, "{line}");
        }
    }

    /// The end of the thread: nothing of the disk is left but its queue and memory, which nobody
    /// sees.
    fn take_down(mut self) -> Disk {
        self.close_doors();
        if let Some(ring) = self.disk.ring.take() {
            ring.unmap(self.poll.registry(), self.disk.vbd.memory());
        }
        assert!(self.disk.vbd.is_drained(), "a disk that is not open has no I/O");
        self.disk
    }
}

pub(super) fn door_base(index: u8) -> usize {
    DOORS + usize::from(index) * TOKENS_PER_DOOR
}
