//! The control thread: the control socket, the signals, and the disks' threads.
//!
//! It never touches storage and never waits for a disk: a command goes to the disk's thread as a
//! message, with a ticket; its answer comes back by a channel and a waker. `list` and `stats` are
//! answered from what the disks show ([`shared`]). A forced close is answered after
//! 50 ms even when the disk's thread hangs in a system call.

mod commands;
mod connection;
mod disks;
pub mod shared;
mod stats;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use tapdisk_control::Paths;
use tapdisk_control::message::Response;

use crate::error::DiskError;
use crate::layer::LayerSpec;
use crate::log::LogHandle;
use crate::process::{SignalEvent, Signals};
use crate::queue::EngineKind;
use crate::statistics::StatsDirectory;
use crate::time::{Clock, Now};
use crate::vbd::retry::RetryPolicy;
use commands::Kind;
use connection::{Connection, Received};
use disks::Disks;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const SIGNALS: Token = Token(2);
const CONNECTIONS: usize = 3;

/// Connections at once. When all are taken, the one that has been silent longest makes room; blktap
/// has 10, and 10 silent clients close it to everybody.
const CONNECTIONS_MAX: usize = 256;

/// How long accepting pauses when it fails.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A forced close is answered after so long at the latest.
const FORCE_PATIENCE: Duration = Duration::from_millis(50);

/// The detach of a disk that did not obey a forced close is answered after so long at the latest.
/// Storage that is only slow, when it makes the last writes durable, is done by then; and who frees
/// the minor next finds it free.
const DETACH_PATIENCE: Duration = Duration::from_secs(5);

/// How the process serves, from its command line.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where everything is.
    pub paths: Paths,
    /// The queue's engine.
    pub engine: EngineKind,
    /// Layers above every image.
    pub layers: Vec<LayerSpec>,
    /// Which images are locked while they are open for writing.
    pub lock: vhd_files::lock::Policy,
    /// What becomes of requests that fail, of disks that are opened without a time of their own.
    pub retry: RetryPolicy,
}

/// The control thread.
pub struct Server {
    config: ServerConfig,
    poll: Poll,
    listener: UnixListener,
    socket_path: PathBuf,
    connections: Vec<Option<Connection>>,
    disks: Disks,
    replies: Receiver<Reply>,
    next_ticket: u64,
    /// What each command's connection is to be told.
    kinds: Vec<(u64, Kind)>,
    /// Commands that are answered even if their disk does not.
    bounded: Vec<Bounded>,
    statistics: Option<StatsDirectory>,
    signals: Signals,
    clock: Clock,
    logs: LogHandle,
    log: slog::Logger,
    /// The last disk is gone, or a signal asked for the end: leave when all is said.
    leaving: bool,
    /// A signal asked for the end.
    asked_to_leave: bool,
    /// When a disk could not be closed at the end: when to try again.
    leave_again: Option<Now>,
    /// When accepting failed, for want of descriptors mostly: when to try again.
    accept_again: Option<Now>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("socket", &self.socket_path).finish_non_exhaustive()
    }
}

/// A command that is answered at a certain time, whatever its disk does: a forced close, or the
/// detach of a disk that did not obey one.
#[derive(Clone, Copy, Debug)]
struct Bounded {
    ticket: u64,
    minor: u16,
    kind: Kind,
    until: Now,
}

/// The answer of a disk's thread to a command.
#[derive(Debug)]
struct Reply {
    ticket: u64,
    result: Result<(), DiskError>,
}

/// How a disk's thread reaches the control thread.
#[derive(Clone)]
struct Mailbox {
    sender: Sender<Reply>,
    waker: Arc<Waker>,
}

impl Mailbox {
    fn post(&self, ticket: u64, result: Result<(), DiskError>) {
        // The control thread ends only with the process.
        let _ = self.sender.send(Reply { ticket, result });
        let _ = self.waker.wake();
    }
}

/// This process, as paths and messages name it.
fn own_pid() -> i32 {
    i32::try_from(std::process::id()).expect("pids are positive ints")
}

/// An error of the control library as one of ours.
fn refused(error: &tapdisk_control::ControlError) -> DiskError {
    DiskError::new(Errno::from_raw(error.errno()), error.to_string())
}

impl Server {
    /// Makes the control socket.
    ///
    /// # Errors
    /// When the run directory or the socket cannot be made.
    pub fn bind(
        config: ServerConfig,
        mut signals: Signals,
        logs: LogHandle,
        log: slog::Logger,
    ) -> Result<Self, DiskError> {
        let error = |error: io::Error, what| DiskError::io(&error, what);
        config.paths.create_run_dir().map_err(|error| refused(&error))?;
        let pid = own_pid();
        let socket_path = config.paths.control_socket(pid);
        // Left over from a process that had our pid.
        let _ = std::fs::remove_file(&socket_path);
        let mut listener = UnixListener::bind(&socket_path)
            .map_err(|refused| error(refused, "Cannot make the control socket").at(&socket_path))?;
        let poll = Poll::new().map_err(|refused| error(refused, "Cannot make an epoll"))?;
        let registry = poll.registry();
        registry
            .register(&mut listener, LISTENER, Interest::READABLE)
            .and_then(|()| registry.register(&mut signals, SIGNALS, Interest::READABLE))
            .map_err(|refused| error(refused, "Cannot wait for clients"))?;
        let waker =
            Waker::new(registry, WAKER).map_err(|refused| error(refused, "Cannot make a waker"))?;
        let (sender, replies) = channel();
        let mailbox = Mailbox { sender, waker: Arc::new(waker) };
        let pages = config.paths.statistics_dir(pid);
        let shm = pages.parent().unwrap_or(&pages);
        let statistics = StatsDirectory::create(shm, std::process::id())
            .inspect_err(|refused| slog::warn!(log, "No statistics pages"; "error" => %refused))
            .ok();
        Ok(Self {
            disks: Disks::new(mailbox),
            config,
            poll,
            listener,
            socket_path,
            connections: (0..CONNECTIONS_MAX).map(|_| None).collect(),
            replies,
            next_ticket: 1,
            kinds: Vec::new(),
            bounded: Vec::new(),
            statistics,
            signals,
            clock: Clock::start(),
            logs,
            log,
            leaving: false,
            asked_to_leave: false,
            leave_again: None,
            accept_again: None,
        })
    }

    /// Where clients find it.
    #[must_use]
    pub fn socket_path(&self) -> &std::path::Path {
        &self.socket_path
    }

    /// Ends without serving anybody.
    pub fn give_up(self) {
        let _ = std::fs::remove_file(&self.socket_path);
    }

    /// Serves until the last disk is detached, or a signal ends it.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(128);
        while !self.is_over() {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                slog::crit!(self.log, "Cannot wait for events"; "error" => %error);
                break;
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    SIGNALS => self.signals(),
                    Token(token) => self.serve(token - CONNECTIONS),
                }
            }
            self.collect_replies();
            self.keep_time();
        }
        slog::info!(self.log, "Leaving");
        let _ = std::fs::remove_file(&self.socket_path);
        // Where a thread was left behind its page is still there, and nobody writes it any more.
        let _ = std::fs::remove_dir_all(self.config.paths.statistics_dir(own_pid()));
    }

    fn is_over(&self) -> bool {
        // Who has not asked yet is not waited for: the end answers him.
        let mut connections = self.connections.iter().flatten();
        self.leaving && self.disks.is_empty() && connections.all(Connection::is_reading)
    }

    fn timeout(&self) -> Option<Duration> {
        let now = self.clock.now();
        let connections = self.connections.iter().flatten().filter_map(Connection::deadline);
        let bounded = self.bounded.iter().map(|command| command.until);
        let again = self.leave_again.into_iter().chain(self.accept_again);
        connections.chain(bounded).chain(again).min().map(|next| next.since(now))
    }

    fn accept(&mut self) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    slog::warn!(self.log, "Cannot accept a client"; "error" => %error);
                    // Who waits there already will not be announced again.
                    self.accept_again = Some(self.clock.now().after(ACCEPT_PAUSE));
                    return;
                }
            };
            let Some(index) = self.free_connection() else {
                // All of them wait for commands of their own: this one is told so by the end.
                continue;
            };
            let token = Token(CONNECTIONS + index);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().register(&mut stream, token, interest) {
                slog::warn!(self.log, "Cannot wait for a client"; "error" => %error);
                continue;
            }
            self.connections[index] = Some(Connection::new(stream, self.clock.now()));
            self.serve(index);
        }
    }

    /// A place for a new connection: free, or that of the client that has been silent longest.
    fn free_connection(&mut self) -> Option<usize> {
        if let Some(index) = self.connections.iter().position(Option::is_none) {
            return Some(index);
        }
        let silent = self.connections.iter().enumerate().filter_map(|(index, connection)| {
            connection
                .as_ref()
                .filter(|connection| connection.is_reading())
                .map(|c| (c.since(), index))
        });
        let (_, index) = silent.min()?;
        self.drop_connection(index);
        Some(index)
    }

    fn drop_connection(&mut self, index: usize) {
        if let Some(mut connection) = self.connections[index].take() {
            let _ = self.poll.registry().deregister(&mut connection.stream);
        }
    }

    /// Something is ready on a connection.
    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        match connection.receive() {
            Received::Partial => {}
            Received::Request(request) => {
                self.obey(index, *request);
                // A client that went with its last byte will not be announced again.
                self.watch(index);
            }
            Received::Refused(error) => {
                let response = Response::Error {
                    errno: error.errno() as i32,
                    message: error.to_string().into(),
                };
                self.answer(index, &[response], &[]);
            }
            Received::Gone => return self.gone(index),
        }
        self.send(index);
    }

    /// Looks whether the client of a command that has just begun is still there.
    fn watch(&mut self, index: usize) {
        let waiting = self.connections[index].as_mut().filter(|waiting| waiting.ticket().is_some());
        if waiting.is_some_and(|waiting| matches!(waiting.receive(), Received::Gone)) {
            self.gone(index);
        }
    }

    /// A client is gone: nobody waits for its command.
    fn gone(&mut self, index: usize) {
        if let Some(ticket) = self.connections[index].as_ref().and_then(Connection::ticket) {
            self.disks.cancel(ticket);
        }
        self.drop_connection(index);
    }

    fn send(&mut self, index: usize) {
        if self.connections[index].as_mut().is_some_and(Connection::send) {
            self.drop_connection(index);
        }
    }

    /// Answers a connection: messages, and bytes that follow them.
    fn answer(&mut self, index: usize, responses: &[Response], payload: &[u8]) {
        let now = self.clock.now();
        let Some(connection) = self.connections[index].as_mut() else { return };
        let mut bytes = Vec::new();
        for response in responses {
            match response.encode(connection.cookie()) {
                Ok(message) => bytes.extend_from_slice(&message),
                Err(error) => {
                    slog::error!(self.log, "An answer does not fit"; "error" => %error);
                    let errno = error.errno() as i32;
                    let failed = Response::Error { errno, message: std::ffi::OsString::new() };
                    bytes.extend_from_slice(&failed.encode(connection.cookie()).expect("no text"));
                }
            }
        }
        bytes.extend_from_slice(payload);
        connection.answer(bytes, now);
        self.send(index);
    }

    fn collect_replies(&mut self) {
        while let Ok(Reply { ticket, result }) = self.replies.try_recv() {
            self.disks.heard(ticket);
            self.finish(ticket, result);
        }
    }

    fn keep_time(&mut self) {
        let now = self.clock.now();
        for index in 0..self.connections.len() {
            let late = self.connections[index].as_ref().and_then(Connection::deadline);
            if late.is_some_and(|deadline| deadline <= now) {
                self.drop_connection(index);
            }
        }
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            self.accept();
        }
        if self.leave_again.is_some_and(|again| again <= now) {
            self.leave_again = None;
            self.leave();
        }
        while let Some(position) = self.bounded.iter().position(|command| command.until <= now) {
            self.give_up_on(self.bounded[position]);
        }
    }

    /// A second signal does not wait for storage that may hang: everything is left behind. Returns
    /// whether this is one.
    fn hurried(&mut self) -> bool {
        if self.asked_to_leave {
            slog::error!(self.log, "Asked again: leaving disks behind"; "disks" => self.disks.len());
            for disk in self.disks.shown() {
                let _ = std::fs::remove_file(self.config.paths.nbd_socket(own_pid(), disk.minor));
            }
            self.disks.clear();
            (0..self.connections.len()).for_each(|index| self.drop_connection(index));
        }
        self.asked_to_leave
    }

    fn signals(&mut self) {
        loop {
            let received = match self.signals.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return,
                Err(error) => {
                    slog::error!(self.log, "Cannot receive signals"; "error" => %error);
                    return;
                }
            };
            slog::info!(self.log, "Signal"; "event" => ?received.event, "from" => received.pid);
            match received.event {
                SignalEvent::Interrupt | SignalEvent::Terminate => {
                    if self.hurried() {
                        return;
                    }
                    self.asked_to_leave = true;
                    self.leaving = true;
                    self.leave();
                }
                SignalEvent::Dump => self.disks.dump(),
                SignalEvent::ReopenLog => self.logs.reopen(),
                // A loop that has much to do does not sleep anyway.
                SignalEvent::Poll => {}
            }
        }
    }
}
