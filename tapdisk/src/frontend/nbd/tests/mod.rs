//! Laws of the door, over real sockets and a mock disk.
//!
//! [`Rig::settle`] is the disk's loop: it sleeps exactly when the real one would, so a wake-up that
//! the door forgets shows as a reply that never comes.

mod ahead;
mod commands;
mod handshakes;
mod hostile;
mod life;
mod oracle;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mio::{Events, Poll};

use super::wire::Features;
use super::*;
use crate::frontend::testing::MockIntake;

const BASE: usize = 128;
pub(super) const DISK_BYTES: usize = 1 << 20;

/// A door, its disk, and the loop between them.
pub(super) struct Rig {
    pub(super) door: NbdDoor,
    pub(super) intake: MockIntake,
    poll: Poll,
    events: Events,
    more: bool,
    /// Requests are answered in the turn in which they are started.
    pub(super) serves: bool,
    free_at_start: u64,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(NbdConfig::default(), 32 << 20)
    }

    pub(super) fn with(config: NbdConfig, memory_bytes: usize) -> Self {
        Self::around(NbdDoor::without_listener(config), memory_bytes)
    }

    pub(super) fn around(mut door: NbdDoor, memory_bytes: usize) -> Self {
        let poll = Poll::new().unwrap();
        door.register(poll.registry(), BASE).unwrap();
        let mut intake = MockIntake::new(DISK_BYTES, memory_bytes);
        let connections_bytes = door.shared.config.connections_bytes();
        intake.memory.reserve_connections(connections_bytes).unwrap();
        let free_at_start = intake.memory.free_bytes();
        let events = Events::with_capacity(64);
        Self { door, intake, poll, events, more: false, serves: true, free_at_start }
    }

    /// A peer that has sent nothing yet.
    pub(super) fn connect(&mut self) -> Peer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.door.add(ours).unwrap();
        Peer::new(theirs)
    }

    /// A peer in the transmission phase.
    pub(super) fn client(&mut self, features: Features) -> Peer {
        let mut peer = self.connect();
        peer.send(&3u32.to_be_bytes());
        if features.structured {
            peer.send(&option(8, &[]));
        }
        if features.allocation {
            peer.send(&option(10, &queries(b"", &[b"base:allocation"])));
        }
        peer.send(&option(7, &[0; 6]));
        self.settle();
        peer.read();
        peer.received.clear();
        peer
    }

    /// Runs the loop until it would sleep.
    pub(super) fn settle(&mut self) {
        self.door.flush(&mut self.intake.memory);
        for _ in 0..100_000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the loop spins: {}", self.describe());
    }

    /// One turn, if the loop would not sleep; whether there was one.
    pub(super) fn turn(&mut self) -> bool {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        let due = self.door.deadline() <= self.intake.now;
        if !self.more && !due && self.events.is_empty() {
            return false;
        }
        for event in &self.events {
            let number = event.token().0 - BASE;
            self.door.ready(number, event.into());
        }
        self.more = self.door.pull(&mut self.intake);
        if self.serves {
            self.intake.finish_all(&mut self.door);
        }
        self.door.flush(&mut self.intake.memory);
        true
    }

    /// Ends one running request and sends the reply.
    pub(super) fn finish(&mut self, index: usize) {
        self.intake.finish(index, &mut self.door);
        self.door.flush(&mut self.intake.memory);
    }

    /// Lets time pass.
    pub(super) fn wait(&mut self, duration: Duration) {
        self.intake.now = self.intake.now.after(duration);
        self.settle();
    }

    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        self.door.describe(&mut text).unwrap();
        text
    }

    /// Bytes of the arena that the door holds for its clients.
    pub(super) fn held(&self) -> u64 {
        self.free_at_start - self.intake.memory.free_bytes() - self.door.shared.kept()
    }

    /// Takes the door down; every buffer must have come back.
    pub(super) fn close(mut self) {
        self.intake.finish_all(&mut self.door);
        self.door.close(self.poll.registry(), &mut self.intake.memory);
        assert_eq!(self.intake.memory.free_bytes(), self.free_at_start, "the door leaks memory");
        assert_eq!(self.door.connected(), 0);
    }
}

/// The other end of a connection.
pub(super) struct Peer {
    pub(super) stream: UnixStream,
    /// What came and was not looked at yet.
    pub(super) received: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, received: Vec::new() }
    }

    /// Sends all of it; panics when the socket is full.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much as goes in; returns how much that was.
    pub(super) fn send_some(&mut self, bytes: &[u8]) -> usize {
        match self.stream.write(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes in what is there; whether the other side is still open.
    pub(super) fn read(&mut self) -> bool {
        match self.stream.read_to_end(&mut self.received) {
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    /// The next bytes, which must be there.
    pub(super) fn take(&mut self, count: usize) -> Vec<u8> {
        self.read();
        assert!(self.received.len() >= count, "{} of {count} bytes", self.received.len());
        self.received.drain(..count).collect()
    }

    /// Nothing more came, and the connection is open.
    pub(super) fn is_silent(&mut self) -> bool {
        self.read() && self.received.is_empty()
    }

    /// The other side is closed; what it sent before may be left.
    pub(super) fn is_closed(&mut self) -> bool {
        !self.read()
    }
}

/// An option with its payload.
pub(super) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The reply to an option.
pub(super) fn option_reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The payload of a meta context option.
pub(super) fn queries(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(name);
    bytes.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        bytes.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        bytes.extend(*query);
    }
    bytes
}

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const WRITE_ZEROES: u16 = 6;
pub(super) const BLOCK_STATUS: u16 = 7;

pub(super) const PLAIN: Features = Features { structured: false, allocation: false };
pub(super) const STRUCTURED: Features = Features { structured: true, allocation: false };
pub(super) const ALLOCATION: Features = Features { structured: true, allocation: true };

/// A request without its payload.
pub(super) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// A write with its payload.
pub(super) fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(WRITE, 0, cookie, offset, u32::try_from(data.len()).unwrap());
    bytes.extend(data);
    bytes
}

/// A simple reply without data.
pub(super) fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut bytes = 0x6744_6698u32.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

/// The one chunk of a structured reply.
pub(super) fn chunk(kind: u16, cookie: u64, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Bytes that tell where they are from.
pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| u8::try_from((index / 512 + index + seed * 37) % 251 + 1).unwrap())
        .collect()
}

/// A rig with a listening door, and what connects to it.
pub(super) fn listening(config: NbdConfig) -> (Rig, impl Fn() -> Peer) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::atomic::{AtomicU32, Ordering};

    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("tapdisk-nbd-test-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let rig = Rig::around(NbdDoor::new(listener, config).unwrap(), 32 << 20);
    (rig, move || Peer::new(UnixStream::connect_addr(&address).unwrap()))
}
