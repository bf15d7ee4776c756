//! An NBD client of the simulation: it sends what it is told, never waits, and takes what has come.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What a request asks for, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Read { sector: u64, count: u64 },
    Write { sector: u64, count: u64, fua: bool, zeros: bool },
    Zero { sector: u64, count: u64, fua: bool, may_punch: bool },
    Trim { sector: u64, count: u64 },
    Flush,
}

impl Ask {
    /// The sectors that it is about.
    pub(crate) fn range(self) -> (u64, u64) {
        match self {
            Self::Read { sector, count }
            | Self::Write { sector, count, .. }
            | Self::Zero { sector, count, .. }
            | Self::Trim { sector, count } => (sector, count),
            Self::Flush => (0, 0),
        }
    }

    /// It is durable when it is answered.
    pub(crate) fn is_fua(self) -> bool {
        matches!(self, Self::Write { fua: true, .. } | Self::Zero { fua: true, .. })
    }

    /// Command flags and command.
    fn words(self) -> (u16, u16) {
        let fua = u16::from(self.is_fua());
        match self {
            Self::Read { .. } => (0, 0),
            Self::Write { .. } => (fua, 1),
            Self::Flush => (0, 3),
            Self::Trim { .. } => (0, 4),
            Self::Zero { may_punch, .. } => (fua | if may_punch { 0 } else { 2 }, 6),
        }
    }
}

/// A reply: the number of the request, an error or zero, and what was read.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) number: u64,
    pub(crate) error: u32,
    pub(crate) data: Vec<u8>,
}

/// A connection in the transmission phase, or on its way there.
pub(crate) struct Client {
    /// Its name among all that there ever were.
    pub(crate) number: u64,
    socket: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_greeted: bool,
}

impl Client {
    /// Connects and says all that a handshake needs.
    pub(crate) fn connect(path: &Path, number: u64) -> Self {
        let socket = UnixStream::connect(path).expect("the socket of an open disk");
        socket.set_nonblocking(true).expect("a socket");
        let mut hello = Vec::from(3_u32.to_be_bytes());
        hello.extend(b"IHAVEOPT");
        hello.extend([1_u32.to_be_bytes(), 4_u32.to_be_bytes()].concat());
        hello.extend(b"test");
        let mut client =
            Self { number, socket, received: Vec::new(), unsent: hello, is_greeted: false };
        client.send_more();
        client
    }

    /// Sends a request; `payload` is what is written.
    pub(crate) fn send(&mut self, number: u64, ask: Ask, payload: &[u8]) {
        let (flags, command) = ask.words();
        let (sector, count) = ask.range();
        let length = u32::try_from(count * 512).expect("a small disk");
        self.unsent.extend(0x2560_9513_u32.to_be_bytes());
        self.unsent.extend([flags.to_be_bytes(), command.to_be_bytes()].concat());
        self.unsent.extend([number.to_be_bytes(), (sector * 512).to_be_bytes()].concat());
        self.unsent.extend(length.to_be_bytes());
        self.unsent.extend(payload);
    }

    /// Sends as much as the socket takes.
    pub(crate) fn send_more(&mut self) {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                // Full, or the disk is closed: it shows in what is received.
                Err(_) => return,
            }
        }
    }

    /// Takes what has come. `length`: what a request of this number reads.
    pub(crate) fn receive(&mut self, length: impl Fn(u64) -> usize, mut each: impl FnMut(Reply)) {
        let mut buffer = [0; 1 << 16];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut at = 0;
        // Magic, option magic, flags; size, flags and 124 zeros, which are asked not to come.
        if !self.is_greeted && self.received.len() >= 28 {
            (self.is_greeted, at) = (true, 28);
        }
        while self.is_greeted && self.received.len() >= at + 16 {
            let word = |from: usize| {
                let bytes = self.received[at + from..].first_chunk().expect("checked above");
                u32::from_be_bytes(*bytes)
            };
            assert_eq!(word(0), 0x6744_6698, "a simple reply");
            let (error, number) = (word(4), u64::from(word(8)) << 32 | u64::from(word(12)));
            let length = if error == 0 { length(number) } else { 0 };
            let Some(data) = self.received.get(at + 16..at + 16 + length) else { break };
            each(Reply { number, error, data: data.to_vec() });
            at += 16 + length;
        }
        self.received.drain(..at);
    }
}
