//! The disks of the process: their threads, and the commands under way.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use mio::{Poll, Waker};
use nix::errno::Errno;
use tapdisk_control::minor::{self, MarkerLock};

use super::shared::DiskShared;
use super::{Mailbox, ServerConfig};
use crate::disk::life::Life;
use crate::disk::thread::{self, Command, DiskConfig, DiskThread, Envelope, Respond, Wiring};
use crate::disk::{Disk, door_pages};
use crate::error::DiskError;
use crate::memory::Memory;
use crate::process;
use crate::queue::{Queue, QueueConfig};
use crate::statistics::{DiskCounters, DiskPages, StatsDirectory};
use crate::vbd::{ARENA_BYTES, QUEUE_CAPACITY, Vbd};

/// A disk, as the control thread holds it.
pub(super) struct DiskHandle {
    pub(super) shared: Arc<DiskShared>,
    commands: Sender<Envelope>,
    waker: Arc<Waker>,
    /// Nobody else serves this minor while it is held. The thread has it too: where it is left
    /// behind, its last write may still be on its way, and the minor stays taken until it ends.
    _marker: Arc<MarkerLock>,
    /// Its thread hangs in its storage and is not waited for any more, until it answers the forced
    /// close of this ticket.
    abandoned: Option<u64>,
}

/// A command that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) ticket: u64,
    pub(super) minor: u16,
}

/// All of them, in the order in which they were attached.
pub(super) struct Disks {
    disks: Vec<DiskHandle>,
    pending: Vec<Pending>,
    mailbox: Mailbox,
}

impl Disks {
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { disks: Vec::new(), pending: Vec::new(), mailbox }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.disks.len()
    }

    /// What they show, in the order in which they were attached; `tap-ctl list` turns it round.
    pub(super) fn shown(&self) -> impl ExactSizeIterator<Item = &Arc<DiskShared>> {
        self.disks.iter().map(|disk| &disk.shared)
    }

    pub(super) fn find(&self, minor: u16) -> Result<&DiskHandle, DiskError> {
        self.disks.iter().find(|disk| disk.shared.minor == minor).ok_or_else(|| {
            DiskError::new(Errno::ENODEV, format!("Minor {minor} is not attached to this tapdisk"))
        })
    }

    /// Sends a command to a disk's thread; its answer will carry the ticket.
    pub(super) fn send(
        &mut self,
        minor: u16,
        ticket: u64,
        command: Command,
    ) -> Result<(), DiskError> {
        if self.find(minor)?.is_abandoned() {
            return Err(hangs());
        }
        self.send_to_abandoned(minor, ticket, command)
    }

    /// The same, also for one that was given up: it may be only slow.
    pub(super) fn send_to_abandoned(
        &mut self,
        minor: u16,
        ticket: u64,
        command: Command,
    ) -> Result<(), DiskError> {
        let disk = self.find(minor)?;
        disk.post(ticket, command);
        self.pending.push(Pending { ticket, minor });
        Ok(())
    }

    /// The commands of this disk that are under way.
    pub(super) fn pending_of(&self, minor: u16) -> Vec<u64> {
        let pending = self.pending.iter().filter(|pending| pending.minor == minor);
        pending.map(|pending| pending.ticket).collect()
    }

    /// The command of this ticket is answered.
    pub(super) fn answered(&mut self, ticket: u64) -> Option<Pending> {
        let position = self.pending.iter().position(|pending| pending.ticket == ticket)?;
        Some(self.pending.swap_remove(position))
    }

    /// The client of this ticket is gone.
    pub(super) fn cancel(&mut self, ticket: u64) {
        let Some(pending) = self.pending.iter().find(|pending| pending.ticket == ticket) else {
            return;
        };
        if let Ok(disk) = self.find(pending.minor) {
            disk.post(0, Command::Cancel(ticket));
        }
    }

    pub(super) fn dump(&self) {
        self.disks.iter().for_each(|disk| disk.post(0, Command::Dump));
    }

    /// Its thread has not obeyed the forced close of this ticket, because it hangs: the disk is
    /// treated as closed, and left behind at detach.
    pub(super) fn abandon(&mut self, minor: u16, ticket: u64) {
        let disk = self.disks.iter_mut().find(|disk| disk.shared.minor == minor);
        if let Some(disk) = disk {
            disk.abandoned = Some(ticket);
            disk.shared.set_life(Life::Dead);
        }
    }

    /// A command is answered. When it is the forced close that a disk was given up for, its thread
    /// hangs no more and has closed it.
    pub(super) fn heard(&mut self, ticket: u64) {
        let disk = self.disks.iter_mut().find(|disk| disk.abandoned == Some(ticket));
        if let Some(disk) = disk {
            disk.abandoned = None;
        }
    }

    /// Leaves all of them behind, with what is under way.
    pub(super) fn clear(&mut self) {
        self.disks.clear();
        self.pending.clear();
    }

    /// Lets go of a disk. The thread of one that was left behind sees it when it listens again, and
    /// ends.
    pub(super) fn remove(&mut self, minor: u16) {
        for disk in self.disks.extract_if(.., |disk| disk.shared.minor == minor) {
            let DiskHandle { commands, waker, .. } = disk;
            drop(commands);
            // One that has ended needs no waking.
            let _ = waker.wake();
        }
    }

    /// Locks the minor and starts the thread of a disk; the thread answers the ticket when it is
    /// there.
    pub(super) fn attach(
        &mut self,
        minor: u16,
        ticket: u64,
        config: &ServerConfig,
        statistics: Option<&StatsDirectory>,
        log: &slog::Logger,
    ) -> Result<(), DiskError> {
        if self.find(minor).is_ok() {
            return Err(DiskError::new(
                Errno::EEXIST,
                format!("Minor {minor} is attached already"),
            ));
        }
        let marker =
            minor::lock_marker(&config.paths, minor).map_err(|refused| super::refused(&refused))?;
        let marker = Arc::new(marker);
        let mut starter = Starter::new(minor, ticket, config, statistics, log, &self.mailbox)?;
        let (waker, shared) = (Arc::clone(&starter.waker), Arc::clone(&starter.shared));
        starter.marker = Some(Arc::clone(&marker));
        let (commands, receiver) = channel();
        std::thread::Builder::new()
            .name(format!("disk-{minor}"))
            .spawn(move || starter.run(receiver))
            .map_err(|refused| DiskError::io(&refused, "Cannot start the thread of the disk"))?;
        self.disks.push(DiskHandle { shared, commands, waker, _marker: marker, abandoned: None });
        self.pending.push(Pending { ticket, minor });
        Ok(())
    }
}

impl DiskHandle {
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.is_some()
    }

    fn post(&self, ticket: u64, command: Command) {
        // A thread that has ended answers nothing; its detach is under way.
        let _ = self.commands.send(Envelope { ticket, command });
        let _ = self.waker.wake();
    }
}

/// All that the thread of a disk needs, made on the control thread.
struct Starter {
    poll: Poll,
    waker: Arc<Waker>,
    /// A disk with a ring stays on its thread; this is what may travel.
    vbd: Vbd,
    config: DiskConfig,
    shared: Arc<DiskShared>,
    pages: DiskPages,
    marker: Option<Arc<MarkerLock>>,
    mailbox: Mailbox,
    ticket: u64,
    log: slog::Logger,
}

impl Starter {
    fn new(
        minor: u16,
        ticket: u64,
        config: &ServerConfig,
        statistics: Option<&StatsDirectory>,
        log: &slog::Logger,
        mailbox: &Mailbox,
    ) -> Result<Self, DiskError> {
        let poll = Poll::new().map_err(|error| DiskError::io(&error, "Cannot make an epoll"))?;
        let waker = Waker::new(poll.registry(), thread::WAKER)
            .map_err(|error| DiskError::io(&error, "Cannot make a waker"))?;
        let queue_config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
        let queue = Queue::new(config.engine, queue_config).map_err(|error| {
            DiskError::io(&error, format!("Cannot make the I/O queue: {error}"))
        })?;
        let memory = Memory::new(ARENA_BYTES)
            .map_err(|error| DiskError::io(&error, "Cannot get the memory of the disk"))?;
        let counters = DiskCounters::new();
        let ring_path = ring_path(config, minor);
        let shared = DiskShared::new(
            minor,
            config.engine.to_string(),
            ring_path.is_some(),
            counters.reader(),
        );
        let kinds = door_pages(ring_path.is_some());
        let pages = statistics.map_or_else(DiskPages::default, |directory| {
            DiskPages::create(directory, minor, kinds, |error| {
                slog::warn!(log, "No statistics page"; "error" => %error);
            })
        });
        Ok(Self {
            poll,
            waker: Arc::new(waker),
            vbd: Vbd::new(queue, memory, counters),
            config: DiskConfig {
                layers: config.layers.clone(),
                nbd_path: config.paths.nbd_socket(super::own_pid(), minor),
                ring_path,
            },
            shared: Arc::new(shared),
            pages,
            marker: None,
            mailbox: mailbox.clone(),
            ticket,
            log: log.new(slog::o!("minor" => minor)),
        })
    }

    fn run(self, commands: std::sync::mpsc::Receiver<Envelope>) {
        for warning in process::prepare_io_thread() {
            slog::warn!(self.log, "{warning}");
        }
        let mailbox = self.mailbox.clone();
        let respond: Respond = Box::new(move |ticket, result| mailbox.post(ticket, result));
        let wiring =
            Wiring { shared: self.shared, pages: self.pages, commands, respond, log: self.log };
        let disk = Disk::new(self.vbd);
        let started = DiskThread::new(disk, self.poll, self.config, wiring);
        match started {
            Ok(thread) => {
                self.mailbox.post(self.ticket, Ok(()));
                let (ticket, rest) = thread.run();
                // Nothing is on its way to the storage any more. Before the answer: who detaches
                // may free the minor next.
                drop(self.marker);
                if let Some(ticket) = ticket {
                    self.mailbox.post(ticket, Ok(()));
                }
                drop(rest);
            }
            Err(error) => {
                drop(self.marker);
                self.mailbox.post(self.ticket, Err(error));
            }
        }
    }
}

/// What is said of a disk that was given up.
pub(super) fn hangs() -> DiskError {
    let what = "The disk was closed by force while its storage hangs; it can only be detached";
    DiskError::new(Errno::ESHUTDOWN, what)
}

/// The ring device of a minor, when the driver has one: a character device of that name.
fn ring_path(config: &ServerConfig, minor: u16) -> Option<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let path = config.paths.ring_device(u32::from(minor));
    let metadata = std::fs::metadata(&path).ok()?;
    metadata.file_type().is_char_device().then_some(path)
}
