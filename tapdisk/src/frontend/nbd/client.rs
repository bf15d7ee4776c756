//! One connection: its life, what it receives and what it sends.
//!
//! ```text
//!   Vacant ──> Fresh ──> Handshake ──> Transmission ──> Closing ──> Vacant
//!                            └───────────────────────────^  replies are still sent
//!   any ──> Dead ──> Vacant     the peer is gone: nothing is sent, but what is running is awaited
//! ```
//!
//! What it takes out of the stream in Transmission is in `requests.rs`.

use std::io;
use std::net::Shutdown;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt};

use super::NbdConfig;
use super::ahead::Ahead;
use super::handshake::{Export, Handshake, Reply, Step};
use super::lookups::Lookups;
use super::outbox::Outbox;
use super::shared::Shared;
use super::wire::{Features, RawRequest};
use crate::frontend::{Intake, Ready};
use crate::memory::{Memory, RegionId, Segment};
use crate::time::Now;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No connection.
    Vacant,
    /// It has not had a turn yet.
    Fresh,
    Handshake,
    Transmission,
    /// Nothing more is taken; closes when everything is answered and sent.
    Closing,
    /// The socket is closed; becomes vacant when nothing is running any more.
    Dead,
}

/// How a client's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// An event, an answer or a sent reply will say when to go on.
    Idle,
    /// There is more to do at once.
    More,
}

/// The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The peer left.
    Left,
    /// The peer broke the protocol or a limit.
    Fault,
}

/// A write whose payload is on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    pub(super) raw: RawRequest,
    pub(super) fua: bool,
    pub(super) buffer: Segment,
    pub(super) received: u32,
}

/// Registers a connection. Only for reading: every reply that a peer takes out of the socket would
/// wake the loop otherwise.
pub(super) fn watch(
    stream: &mut UnixStream,
    number: u16,
    registry: &Registry,
    base: usize,
) -> io::Result<()> {
    registry.register(stream, Token(base + 1 + usize::from(number)), Interest::READABLE)
}

/// One place for a connection, with all its tables.
#[derive(Debug)]
pub(super) struct Client {
    /// Its place in the door's table.
    pub(super) number: u16,
    pub(super) phase: Phase,
    pub(super) stream: Option<UnixStream>,
    handshake: Handshake,
    pub(super) features: Features,
    /// Where bytes are received; those from `start` to `end` are not looked at yet.
    pub(super) staging: Segment,
    pub(super) start: u32,
    pub(super) end: u32,
    /// How many bytes of the stream nobody wants.
    pub(super) drain: u32,
    pub(super) partial: Option<Partial>,
    pub(super) ahead: Ahead,
    /// The last write was a large one; likely the next is too.
    pub(super) writes_large: bool,
    pub(super) lookups: Lookups,
    /// Requests that were taken and whose replies are not sent.
    pub(super) owed: u16,
    /// Those of them that were started and not answered.
    pub(super) running: u16,
    /// Bytes of the buffers of its requests.
    pub(super) held: u32,
    pub(super) outbox: Outbox,
    /// Remembered readiness.
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) watches_writable: bool,
    /// The end of what it sends was announced, and is to be found behind that.
    pub(super) ends: bool,
    /// It was announced that it is gone, or who was in its place before it.
    may_be_gone: bool,
    /// Its first turn.
    since: Now,
    /// When it last received or sent something.
    pub(super) progress: Now,
}

impl Client {
    /// A vacant place, with its part of the memory for connections.
    pub(super) fn vacant(number: u16, config: &NbdConfig) -> Self {
        let offset = u32::from(number) * config.connection_bytes();
        let (region, len) = (RegionId::Connections, config.staging_bytes);
        let staging = Segment { region, offset, len };
        Self {
            number,
            phase: Phase::Vacant,
            stream: None,
            handshake: Handshake::new(),
            features: Features::default(),
            staging,
            start: 0,
            end: 0,
            drain: 0,
            partial: None,
            ahead: Ahead::new(),
            writes_large: false,
            lookups: Lookups::new(),
            owed: 0,
            running: 0,
            held: 0,
            outbox: Outbox::new(config.requests_per_client),
            readable: false,
            writable: false,
            watches_writable: false,
            ends: false,
            may_be_gone: false,
            since: Now::default(),
            progress: Now::default(),
        }
    }

    /// Moves a connection in.
    pub(super) fn open(&mut self, stream: UnixStream) {
        assert!(self.phase == Phase::Vacant && self.owed == 0, "place {}", self.number);
        self.phase = Phase::Fresh;
        self.stream = Some(stream);
        self.handshake = Handshake::new();
        self.features = Features::default();
        (self.start, self.end, self.drain, self.held) = (0, 0, 0, 0);
        self.partial = None;
        self.ahead.start_over();
        self.writes_large = false;
        // What came before the registration is not announced.
        self.readable = true;
        self.writable = true;
        self.watches_writable = false;
        (self.ends, self.may_be_gone) = (false, false);
    }

    /// Registers the connection, if there is one.
    pub(super) fn register(&mut self, registry: &Registry, base: usize) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => watch(stream, self.number, registry, base),
            None => Ok(()),
        }
    }

    pub(super) fn ready(&mut self, ready: Ready) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.ends |= ready.ends;
        self.may_be_gone |= ready.is_gone;
    }

    /// What a peer that is gone left in its socket is not begun: it would hear nothing of it, and
    /// may have gone to ask again elsewhere.
    pub(super) fn see_whether_gone(&mut self, shared: &mut Shared, memory: &mut Memory) {
        if std::mem::take(&mut self.may_be_gone) && self.is_gone() {
            self.die(Gone::Left, shared, memory);
        }
    }

    /// Takes what came in.
    pub(super) fn turn(&mut self, shared: &mut Shared, intake: &mut impl Intake) -> Turn {
        let result = match self.phase {
            Phase::Fresh => Ok(self.greet(shared)),
            Phase::Handshake => self.negotiate(shared, intake),
            Phase::Transmission if shared.suspended => Ok(Turn::Idle),
            Phase::Transmission if shared.leaves_changes => {
                shared.blocked = true;
                Ok(Turn::Idle)
            }
            Phase::Transmission => self.take_requests(shared, intake),
            Phase::Closing if !shared.suspended => {
                self.look_further(shared, intake);
                Ok(Turn::Idle)
            }
            _ => Ok(Turn::Idle),
        };
        result.unwrap_or_else(|gone| {
            self.die(gone, shared, intake.memory());
            Turn::Idle
        })
    }

    fn greet(&mut self, shared: &mut Shared) -> Turn {
        self.since = shared.now;
        self.progress = shared.now;
        if let Some(stream) = &self.stream {
            // Large replies leave in fewer pieces. Only a wish: without it they take more turns.
            let bytes = shared.config.send_buffer_bytes;
            if setsockopt(stream, sockopt::SndBufForce, &bytes).is_err() {
                let _ = setsockopt(stream, sockopt::SndBuf, &bytes);
            }
        }
        self.outbox.push_bytes(Reply::greeting().as_slice());
        self.phase = Phase::Handshake;
        Turn::More
    }

    fn negotiate(&mut self, shared: &mut Shared, intake: &mut impl Intake) -> Result<Turn, Gone> {
        let export =
            Export { disk: intake.info(), payload_bytes_max: shared.config.payload_bytes_max };
        // Each round receives, drops or takes one step, and steps are few: see OPTIONS_MAX.
        for _ in 0..super::ROUNDS_PER_TURN {
            let memory = intake.memory();
            self.skip_drain();
            let needs = self.handshake.needs();
            if self.drain > 0 || self.end - self.start < needs {
                if !self.receive(shared, memory)? {
                    return Ok(Turn::Idle);
                }
                continue;
            }
            if !self.outbox.is_empty() {
                // One reply at a time: a peer that does not read does not get to ask.
                shared.blocked = true;
                return Ok(Turn::Idle);
            }
            let input = &mut shared.scratch[..needs as usize];
            memory.copy_out(self.staging.part(self.start, needs), input);
            self.start += needs;
            let mut reply = Reply::new();
            let step = self.handshake.step(input, &export, &mut reply);
            if !reply.as_slice().is_empty() {
                self.outbox.push_bytes(reply.as_slice());
            }
            match step {
                Step::Continue => {}
                Step::Drain(bytes) => self.drain = bytes,
                Step::Transmission(features) => {
                    self.features = features;
                    self.phase = Phase::Transmission;
                    return Ok(Turn::More);
                }
                Step::Close => {
                    self.close_when_answered(shared);
                    return Ok(Turn::Idle);
                }
                Step::Hangup => return Err(Gone::Fault),
            }
        }
        Ok(Turn::More)
    }

    /// Gives a request's buffer back.
    #[inline]
    pub(super) fn give_back(&mut self, buffer: Segment, shared: &mut Shared, memory: &mut Memory) {
        self.held -= buffer.len;
        shared.free(buffer, memory);
    }

    /// Takes nothing more.
    pub(super) fn close_when_answered(&mut self, shared: &mut Shared) {
        self.phase = Phase::Closing;
        shared.has_deadlines = true;
    }

    /// Closes the socket and gives back everything but the buffers of what is running.
    pub(super) fn die(&mut self, gone: Gone, shared: &mut Shared, memory: &mut Memory) {
        if matches!(self.phase, Phase::Vacant | Phase::Dead) {
            return;
        }
        if gone == Gone::Fault {
            shared.stats.faults += 1;
        }
        self.phase = Phase::Dead;
        if let Some(mut stream) = self.stream.take() {
            // Whoever passed this socket in may still have it open: then closing alone would
            // neither take it out of epoll nor tell the peer.
            if let Some((registry, _)) = &shared.registry {
                let _ = registry.deregister(&mut stream);
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
        // What runs keeps its buffer until it is answered.
        let held = &mut self.held;
        let mut give_back = |buffer: Segment| {
            *held -= buffer.len;
            shared.free(buffer, memory);
        };
        if let Some(partial) = self.partial.take() {
            give_back(partial.buffer);
        }
        self.ahead.clear(&mut give_back);
        self.lookups.abandon(&mut give_back);
        self.outbox.clear(&mut give_back);
        self.owed = self.running;
        // Until it is known better.
        shared.leaves_changes |= self.running > 0;
        shared.forget_waiter(self.number);
        shared.has_dead = true;
        shared.released = true;
    }

    /// Becomes vacant when it is dead and nothing is running; whether it did.
    pub(super) fn bury(&mut self) -> bool {
        if self.phase != Phase::Dead || self.running > 0 {
            return false;
        }
        assert!(self.owed == 0 && self.held == 0, "{} has nothing under way", self.number);
        self.phase = Phase::Vacant;
        true
    }

    /// Since when a connection that has not finished its handshake is silent.
    pub(super) fn silent_since(&self) -> Option<Now> {
        (self.phase == Phase::Handshake).then_some(self.progress)
    }

    /// When it wants a turn although nothing is ready.
    pub(super) fn deadline(&self, shared: &Shared) -> Now {
        match self.phase {
            Phase::Vacant | Phase::Fresh | Phase::Dead => Now::NEVER,
            Phase::Handshake => self.since.after(shared.config.handshake_timeout),
            // Its last replies are waited for only so long; what is running is waited for.
            Phase::Closing if self.running > 0 => Now::NEVER,
            Phase::Closing => self.progress.after(shared.config.stall_timeout),
            Phase::Transmission => {
                let holds = self.partial.is_some() || !self.outbox.is_empty();
                if holds { shared.stall_deadline(self.progress) } else { Now::NEVER }
            }
        }
    }

    /// Whether it may come to have a deadline without another change of its phase, or somebody
    /// waiting for memory.
    pub(super) fn is_timed(&self) -> bool {
        matches!(self.phase, Phase::Fresh | Phase::Handshake | Phase::Closing)
    }

    /// A line for the debug dump.
    pub(super) fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        writeln!(
            out,
            "nbd: client {} {:?}: {} requests, {} running, {} bytes held, {} bytes staged{}",
            self.number,
            self.phase,
            self.owed,
            self.running,
            self.held,
            self.end - self.start,
            if self.writable { "" } else { ", waits for the peer to read" },
        )
    }
}
