//! The NBD door: serves a disk to clients on a unix socket (docs/nbd.md has the protocol it
//! speaks).
//!
//! ```text
//!   NbdDoor ── accepts, times out, shares turns out ──> Client (one of a fixed table)
//!     client.rs     life of a connection, receive, send      handshake.rs  bytes -> options -> reply
//!     requests.rs   staging buffer -> requests -> replies    wire.rs       bytes -> requests, headers
//!     lookups.rs    block status, extent by extent           outbox.rs     a client's unsent replies
//!     ahead.rs      payload of small writes, in place        transfer.rs   bytes in and out
//! ```
//!
//! Invariants:
//! * No call blocks: every receive and send is non-blocking, and a client that is slow or silent
//!   takes time from nobody. Its share of memory and slots is bounded.
//! * All tables are made by [`NbdDoor::new`], and each place has its part of the memory for
//!   connections; a request adds its data buffer, from the arena. Nothing else is allocated.
//! * A buffer belongs to its request until the answer, also when the client is gone.
//! * At depth one a request costs one receive and one send; at depth `n` a whole turn does.

mod ahead;
mod client;
mod handshake;
mod lookups;
mod outbox;
mod requests;
mod shared;
#[cfg(test)]
mod tests;
mod transfer;
mod wire;

use std::io;
use std::os::unix::net;
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry};

use super::{Frontend, Intake, Ready, TOKENS_PER_DOOR};
use crate::memory::{Memory, PAGE_SIZE};
use crate::request::{Answer, Request};
use crate::time::Now;
use client::{Client, Gone, Phase, Turn};
use shared::Shared;

/// How often all clients have a turn before the loop looks after everything else.
const PASSES_PER_PULL: u32 = 8;
/// Receives, or steps of the handshake, of one client's turn.
const ROUNDS_PER_TURN: u32 = 4;
/// How long a handshake must have been silent before a new client may take its place.
const SILENT_BEFORE_EVICTION: Duration = Duration::from_secs(5);
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The limits of a door. All of them hold for each disk.
#[derive(Clone, Copy, Debug)]
pub struct NbdConfig {
    /// Connections at a time, 1 to 63; a further one is refused.
    pub clients_max: u16,
    /// Requests of one client at a time, 1 to 4096; further ones stay in its socket.
    pub requests_per_client: u16,
    /// Bytes of the buffers of one client's requests; further requests stay in its socket. At least
    /// `payload_bytes_max`.
    pub bytes_per_client: u32,
    /// The longest read or write, in bytes.
    pub payload_bytes_max: u32,
    /// Bytes of memory that a connection receives into; at least 64 KiB.
    pub staging_bytes: u32,
    /// The send buffer that is asked of the kernel for each connection, in bytes.
    pub send_buffer_bytes: usize,
    /// How long a connection may take until its first request. A client in a migration is known to
    /// be silent for 40 s first.
    pub handshake_timeout: Duration,
    /// How long a client may hold memory without sending or receiving a byte while another one
    /// waits for memory, and how long a client that said good-bye may take to read its last
    /// replies.
    pub stall_timeout: Duration,
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self {
            clients_max: 32,
            requests_per_client: 128,
            bytes_per_client: 32 << 20,
            payload_bytes_max: 4 << 20,
            staging_bytes: 128 << 10,
            send_buffer_bytes: 2 << 20,
            handshake_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

impl NbdConfig {
    /// The memory that one connection receives into, in bytes.
    #[must_use]
    pub fn connection_bytes(&self) -> u32 {
        self.staging_bytes.next_multiple_of(PAGE_SIZE)
    }

    /// What a door wants of [`Memory::reserve_connections`].
    #[must_use]
    pub fn connections_bytes(&self) -> usize {
        usize::from(self.clients_max) * self.connection_bytes() as usize
    }

    fn check(&self) {
        let clients_max = u16::try_from(TOKENS_PER_DOOR - 1).expect("a small number");
        assert!((1..=clients_max).contains(&self.clients_max), "{self:?}");
        assert!((1..=4096).contains(&self.requests_per_client), "{self:?}");
        assert!(self.payload_bytes_max >= PAGE_SIZE, "{self:?}");
        assert!(self.bytes_per_client >= self.payload_bytes_max, "{self:?}");
        assert!(self.bytes_per_client <= 1 << 30, "{self:?}");
        assert!((handshake::OPTION_BYTES_MAX..=1 << 20).contains(&self.staging_bytes), "{self:?}");
    }
}

/// What a door has seen, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NbdStats {
    /// Connections that were taken in.
    pub clients: u64,
    /// Requests that were started.
    pub requests: u64,
    /// Answers to them.
    pub answers: u64,
    /// Requests that were answered with an error by the door itself.
    pub refused: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Of these, payload that was copied to where it belongs; the rest was received there.
    pub bytes_copied: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Connections that were turned away or ended by the door, because of what the peer did or did
    /// not do.
    pub faults: u64,
}

/// The NBD server of one disk.
#[derive(Debug)]
pub struct NbdDoor {
    listener: Option<UnixListener>,
    listener_ready: bool,
    /// Until when accepting pauses.
    accept_after: Option<Now>,
    clients: Box<[Client]>,
    /// The places that are not vacant.
    live: Vec<u16>,
    /// Whose turn is first.
    first: usize,
    /// Whether there is work that nothing else announces.
    wake: bool,
    shared: Shared,
}

impl NbdDoor {
    /// A door that listens on a bound socket. Whoever bound it owns its path and unlinks it.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    ///
    /// # Panics
    /// When the configuration is not within its bounds.
    pub fn new(listener: net::UnixListener, config: NbdConfig) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut door = Self::without_listener(config);
        door.listener = Some(UnixListener::from_std(listener));
        door.listener_ready = true;
        Ok(door)
    }

    /// A door for connections that come by [`NbdDoor::add`] only.
    ///
    /// # Panics
    /// When the configuration is not within its bounds.
    #[must_use]
    pub fn without_listener(config: NbdConfig) -> Self {
        config.check();
        Self {
            listener: None,
            listener_ready: false,
            accept_after: None,
            clients: (0..config.clients_max)
                .map(|number| Client::vacant(number, &config))
                .collect(),
            live: Vec::with_capacity(usize::from(config.clients_max)),
            first: 0,
            wake: false,
            shared: Shared::new(config),
        }
    }

    /// Takes in a connected stream socket; the handshake starts with the next turn.
    ///
    /// # Errors
    /// EBUSY when there are as many connections as may be; what fcntl or epoll says.
    pub fn add(&mut self, stream: net::UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let place = self.vacant().ok_or(io::ErrorKind::ResourceBusy)?;
        self.open(place, UnixStream::from_std(stream))
    }

    /// Counters since the door was made.
    #[must_use]
    pub fn stats(&self) -> NbdStats {
        self.shared.stats
    }

    /// Connections now.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.live.len()
    }

    /// Lets all peers go and takes no more, also while requests run: for a disk that does not wait
    /// for its storage. The buffers of what runs come back with the answers.
    pub fn hang_up(&mut self, memory: &mut Memory) {
        if let (Some(mut listener), Some((registry, _))) =
            (self.listener.take(), &self.shared.registry)
        {
            // It is closed next, which takes it out of epoll if this did not.
            let _ = registry.deregister(&mut listener);
        }
        self.listener_ready = false;
        self.accept_after = None;
        for client in &mut self.clients {
            client.die(Gone::Left, &mut self.shared, memory);
        }
        self.bury(memory);
        self.wake = false;
    }

    fn vacant(&self) -> Option<u16> {
        let place = self.clients.iter().find(|client| client.phase == Phase::Vacant)?;
        Some(place.number)
    }

    fn open(&mut self, place: u16, mut stream: UnixStream) -> io::Result<()> {
        if let Some((registry, base)) = &self.shared.registry {
            client::watch(&mut stream, place, registry, *base)?;
        }
        self.clients[usize::from(place)].open(stream);
        self.live.push(place);
        self.shared.has_deadlines = true;
        self.shared.stats.clients += 1;
        self.wake = true;
        Ok(())
    }

    #[inline(never)]
    fn accept(&mut self, memory: &mut Memory) {
        if self.accept_after.is_some_and(|time| time <= self.shared.now) {
            self.accept_after = None;
            self.listener_ready = true;
        }
        // As many as there are places: more in one turn would only push each other out.
        for _ in 0..self.shared.config.clients_max {
            let (true, Some(listener)) = (self.listener_ready, &self.listener) else {
                return;
            };
            // Who came in this very turn may be gone already; the next turn shows. Until then the
            // others wait where they are.
            let is_fresh = |number: &u16| self.clients[usize::from(*number)].phase == Phase::Fresh;
            if self.vacant().is_none() && self.live.iter().any(is_fresh) {
                break;
            }
            match listener.accept() {
                Ok((stream, _)) => self.take_in(stream, memory),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.listener_ready = false;
                }
                // The peer went away before it was taken in, or a signal came.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => {
                    self.listener_ready = false;
                    self.accept_after = Some(self.shared.now.after(ACCEPT_PAUSE));
                }
            }
        }
        self.wake |= self.listener_ready;
    }

    fn take_in(&mut self, stream: UnixStream, memory: &mut Memory) {
        // It may be a client that comes back: then it has to be known that it was gone.
        self.let_gone_go(memory);
        if self.vacant().is_none() {
            self.evict(memory);
        }
        // Without a place, or when epoll fails, the peer sees its connection closed.
        let taken = self.vacant().is_some_and(|place| self.open(place, stream).is_ok());
        if taken {
            memory.prefer_huge_pages();
        } else {
            self.shared.stats.faults += 1;
        }
    }

    /// Lets connections go of which it has not been announced that their peers are gone: a client
    /// that comes back must not be taken for another one.
    fn let_gone_go(&mut self, memory: &mut Memory) {
        for number in &self.live {
            let client = &mut self.clients[usize::from(*number)];
            if client.is_gone() {
                client.die(Gone::Left, &mut self.shared, memory);
            }
        }
        self.bury(memory);
    }

    /// Ends what clients that are gone wanted, as far as it waits or lies in their sockets. All
    /// others are served when the changes of these have ended: one of them may be the same client,
    /// on a new connection or on another that it had, and ask for other changes there.
    #[inline]
    pub fn abandon(&mut self, intake: &mut impl Intake) {
        let Shared { may_have_gone, leaves_changes, has_dead, .. } = self.shared;
        if may_have_gone | leaves_changes | has_dead {
            self.abandon_gone(intake);
        }
    }

    #[inline(never)]
    fn abandon_gone(&mut self, intake: &mut impl Intake) {
        if std::mem::take(&mut self.shared.may_have_gone) {
            for number in &self.live {
                let client = &mut self.clients[usize::from(*number)];
                client.see_whether_gone(&mut self.shared, intake.memory());
            }
        }
        self.shared.leaves_changes = false;
        if !self.shared.has_dead {
            return;
        }
        for number in &self.live {
            if self.clients[usize::from(*number)].phase == Phase::Dead {
                self.shared.leaves_changes |= intake.abandon(*number);
            }
        }
    }

    /// Lets go of the connection that has been silent in its handshake for longest, if long enough.
    fn evict(&mut self, memory: &mut Memory) {
        let silent = self.live.iter().filter_map(|number| {
            let client = &self.clients[usize::from(*number)];
            client.silent_since().map(|since| (since, client.number))
        });
        let Some((since, number)) = silent.min() else {
            return;
        };
        if since.after(SILENT_BEFORE_EVICTION) <= self.shared.now {
            self.clients[usize::from(number)].die(Gone::Fault, &mut self.shared, memory);
            self.bury(memory);
        }
    }

    #[inline(never)]
    fn expire(&mut self, memory: &mut Memory) {
        self.shared.has_deadlines = self.shared.has_waiter();
        for number in &self.live {
            let client = &mut self.clients[usize::from(*number)];
            self.shared.has_deadlines |= client.is_timed();
            if client.deadline(&self.shared) <= self.shared.now {
                client.die(Gone::Fault, &mut self.shared, memory);
            }
        }
    }

    fn first_deadline(&self) -> Now {
        let clients = self.live.iter().map(|number| &self.clients[usize::from(*number)]);
        clients.map(|client| client.deadline(&self.shared)).min().unwrap_or(Now::NEVER)
    }

    /// Takes the dead that nothing runs for any more off the list.
    #[inline]
    fn bury(&mut self, memory: &mut Memory) {
        if self.shared.has_dead {
            self.bury_dead(memory);
        }
    }

    #[inline(never)]
    fn bury_dead(&mut self, memory: &mut Memory) {
        let clients = &mut self.clients;
        self.live.retain(|number| !clients[usize::from(*number)].bury());
        self.shared.has_dead =
            self.live.iter().any(|number| clients[usize::from(*number)].phase == Phase::Dead);
        if self.live.is_empty() {
            self.shared.drop_pages(memory);
        }
    }
}

impl Frontend for NbdDoor {
    fn register(&mut self, registry: &Registry, base: usize) -> io::Result<()> {
        if let Some(listener) = &mut self.listener {
            registry.register(listener, mio::Token(base), Interest::READABLE)?;
        }
        for client in &mut self.clients {
            client.register(registry, base)?;
        }
        self.shared.registry = Some((registry.try_clone()?, base));
        Ok(())
    }

    fn ready(&mut self, number: usize, ready: Ready) {
        match number.checked_sub(1) {
            None => self.listener_ready |= ready.readable,
            // An event for a connection that is gone may reach the next one in its place, which
            // then asks the kernel once too often.
            Some(place) => {
                if let Some(client) = self.clients.get_mut(place) {
                    client.ready(ready);
                    self.shared.may_have_gone |= ready.is_gone;
                }
            }
        }
    }

    fn pull<I: Intake>(&mut self, intake: &mut I) -> bool {
        self.shared.now = intake.now();
        self.shared.blocked = false;
        self.shared.released = false;
        self.shared.out_of_room = false;
        self.wake = false;
        self.shared.forgive_pause();
        if self.listener_ready || self.accept_after.is_some() {
            self.accept(intake.memory());
        }
        if self.shared.has_deadlines {
            self.expire(intake.memory());
        }
        self.abandon(intake);
        let count = self.live.len();
        self.first = if self.first + 1 < count { self.first + 1 } else { 0 };
        let mut more = count > 0;
        for _ in 0..PASSES_PER_PULL {
            if !more {
                break;
            }
            more = false;
            let (later, earlier) = self.live.split_at(self.first);
            for number in earlier.iter().chain(later) {
                let client = &mut self.clients[usize::from(*number)];
                more |= client.turn(&mut self.shared, intake) == Turn::More;
            }
        }
        self.bury(intake.memory());
        // Room that others take up comes back without an answer to this door.
        more || (self.shared.out_of_room && self.shared.running() == 0)
    }

    #[inline]
    fn answer(&mut self, request: &Request, answer: Answer, memory: &mut Memory) {
        let client = &mut self.clients[usize::from(request.token.peer)];
        self.shared.stats.answers = self.shared.stats.answers.wrapping_add(1);
        client.answered(request, answer, &mut self.shared, memory);
    }

    #[inline]
    fn flush(&mut self, memory: &mut Memory) {
        for number in &self.live {
            let client = &mut self.clients[usize::from(*number)];
            if client.has_to_flush() {
                client.flush(&mut self.shared, memory);
            }
        }
        self.wake |= std::mem::take(&mut self.shared.has_more);
        self.bury(memory);
    }

    #[inline]
    fn deadline(&self) -> Now {
        if self.wake || (self.shared.blocked && self.shared.released) {
            return self.shared.now;
        }
        let has_deadlines = self.shared.has_deadlines;
        debug_assert!(has_deadlines || self.first_deadline() == Now::NEVER, "{self:?}");
        let clients = if has_deadlines { self.first_deadline() } else { Now::NEVER };
        clients.min(self.accept_after.unwrap_or(Now::NEVER))
    }

    fn suspend(&mut self) {
        self.shared.suspended = true;
    }

    fn resume(&mut self) {
        self.shared.resumed |= self.shared.suspended;
        self.shared.suspended = false;
        // Requests may wait in a staging buffer, which no event announces.
        self.wake = true;
    }

    fn close(&mut self, _: &Registry, memory: &mut Memory) {
        assert!(self.shared.running() == 0, "a door is closed when nothing is running");
        // Clients hear of all that was done, as far as their sockets take it: there is no turn
        // after this one for what does not go with one message.
        self.wake = true;
        while std::mem::take(&mut self.wake) {
            self.flush(memory);
        }
        self.hang_up(memory);
        self.shared.registry = None;
    }

    fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        let stats = &self.shared.stats;
        writeln!(
            out,
            "nbd: {} connected, {} running{}; since start {stats:?}",
            self.live.len(),
            self.shared.running(),
            if self.shared.suspended { ", suspended" } else { "" },
        )?;
        for number in &self.live {
            self.clients[usize::from(*number)].describe(out)?;
        }
        Ok(())
    }
}
