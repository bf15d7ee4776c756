//! A disk on the calling thread, turn by turn: for tests and measurements that are to see exactly
//! what the daemon does, on a thread that they can watch.
//!
//! The loop, its queue, memory, counters and statistics page are those of production; only the
//! control thread is missing. Its commands are given by [`Rig::open`] and [`Rig::close`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::{Poll, Waker};

use super::Disk;
use super::life::Life;
use super::thread::{Command, DiskConfig, DiskThread, Envelope, OpenRequest, WAKER, Wiring};
use crate::error::DiskError;
use crate::frontend::blktap::BlktapDoor;
use crate::image::{ImageSpec, OpenFlags};
use crate::memory::Memory;
use crate::queue::{EngineKind, Queue, QueueConfig};
use crate::server::shared::DiskShared;
use crate::statistics::{DiskCounters, DiskPages, StatsDirectory};
use crate::time::Now;
use crate::vbd::retry::RetryPolicy;
use crate::vbd::{ARENA_BYTES, QUEUE_CAPACITY, Vbd};

/// The loop of a disk, held by the hand.
#[derive(Debug)]
pub struct Rig {
    thread: DiskThread,
    commands: Sender<Envelope>,
    /// Of the last command.
    ticket: u64,
    answers: Receiver<Result<(), DiskError>>,
    waker: Waker,
    nbd_path: PathBuf,
    /// Removes its pages when it goes.
    _statistics: StatsDirectory,
}

impl Rig {
    /// A disk without an image; `ring` is that of a simulated driver. The folder takes its NBD
    /// socket and its statistics.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(
        folder: &Path,
        engine: EngineKind,
        ring: Option<blktap_ioctl::Ring>,
    ) -> Result<Self, DiskError> {
        let config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
        let queue = Queue::new(engine, config)
            .map_err(|error| DiskError::io(&error, "Cannot make a queue"))?;
        Self::on(queue, folder, ring)
    }

    /// The same on a queue that is there already: a simulated one.
    ///
    /// # Errors
    /// What the system says.
    pub fn on(
        queue: Queue,
        folder: &Path,
        ring: Option<blktap_ioctl::Ring>,
    ) -> Result<Self, DiskError> {
        let io = |error: std::io::Error| DiskError::io(&error, "Cannot make a disk");
        let poll = Poll::new().map_err(io)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(io)?;
        let mut memory = Memory::new(ARENA_BYTES).map_err(io)?;
        let ring = ring.map(|ring| BlktapDoor::new(ring, &mut memory)).transpose().map_err(io)?;
        let counters = DiskCounters::new();
        let statistics = StatsDirectory::create(folder, std::process::id()).map_err(io)?;
        let mut failed = Ok(());
        let kinds = super::door_pages(ring.is_some());
        let pages = DiskPages::create(&statistics, 0, kinds, |error| failed = Err(error));
        failed.map_err(io)?;
        let shared =
            DiskShared::new(0, queue.kind().to_string(), ring.is_some(), counters.reader());
        let (commands, receiver) = channel();
        let (answer, answers) = channel();
        let wiring = Wiring {
            shared: Arc::new(shared),
            pages,
            commands: receiver,
            respond: Box::new(move |_, result| answer.send(result).expect("the rig listens")),
            log: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let mut disk = Disk::new(Vbd::new(queue, memory, counters));
        disk.ring = ring;
        let nbd_path = folder.join("nbd");
        let config = DiskConfig { layers: Vec::new(), nbd_path: nbd_path.clone(), ring_path: None };
        let thread = DiskThread::new(disk, poll, config, wiring)?;
        Ok(Self { thread, commands, ticket: 0, answers, waker, nbd_path, _statistics: statistics })
    }

    /// Opens `type:path` and serves it.
    ///
    /// # Errors
    /// Those of the command.
    pub fn open(&mut self, image: &str) -> Result<(), DiskError> {
        let name = OsStr::new(image);
        self.command(Command::Open(OpenRequest {
            spec: ImageSpec::parse(name)?,
            name: name.to_owned(),
            flags: OpenFlags::default(),
            retry: RetryPolicy::default(),
        }))
    }

    /// Ends what runs and closes.
    ///
    /// # Errors
    /// Those of the command.
    pub fn close(&mut self) -> Result<(), DiskError> {
        self.command(Command::Close)
    }

    fn command(&mut self, command: Command) -> Result<(), DiskError> {
        self.send(command);
        loop {
            self.turn();
            if let Some(result) = self.answer() {
                return result;
            }
        }
    }

    /// Sends a command that the next turn obeys.
    pub fn send(&mut self, command: Command) {
        self.ticket += 1;
        self.post(Envelope { ticket: self.ticket, command });
    }

    /// Lets the command that was sent last wait no longer.
    pub fn cancel(&mut self) {
        self.post(Envelope { ticket: 0, command: Command::Cancel(self.ticket) });
    }

    fn post(&self, envelope: Envelope) {
        self.commands.send(envelope).expect("the loop is this rig's");
        self.waker.wake().expect("an eventfd takes one more");
    }

    /// The answer to a command, when there is one.
    pub fn answer(&mut self) -> Option<Result<(), DiskError>> {
        self.answers.try_recv().ok()
    }

    /// One turn at a time that is the caller's. It does not sleep.
    pub fn turn_at(&mut self, now: Now) {
        self.thread.turn_at(now);
    }

    /// When a turn is due although nothing happens.
    pub fn deadline(&mut self) -> Option<Now> {
        self.thread.deadline().if_ever()
    }

    /// The queue, to let simulated I/O end.
    pub fn queue(&mut self) -> &mut Queue {
        self.thread.disk.vbd.queue()
    }

    /// Its state as `tap-ctl list` shows it.
    #[must_use]
    pub fn disk_shown(&self) -> u32 {
        let shared = &self.thread.wiring.shared;
        shared.life().bits() | shared.gauges().state_bits()
    }

    /// Its state in its life.
    #[must_use]
    pub fn life(&self) -> Life {
        self.thread.life
    }

    /// One turn; it sleeps when nothing is there to do, as that of the daemon.
    pub fn turn(&mut self) {
        self.thread.turn();
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        self.thread.disk()
    }

    /// Where NBD clients connect while it is open.
    #[must_use]
    pub fn nbd_path(&self) -> &Path {
        &self.nbd_path
    }
}
