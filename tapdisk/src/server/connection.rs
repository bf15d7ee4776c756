//! One connection on the control socket: one request, its answer, the end. Sans event loop.
//!
//! ```text
//!   Reading --request--> Waiting --answer--> Writing --all sent--> closed
//! ```

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use mio::net::UnixStream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tapdisk_control::message::{DecodeError, Request, RequestBuffer};

use crate::time::Now;

/// A client that has not sent its request after so long is let go (blktap: 10 s).
pub(super) const READ_PATIENCE: Duration = Duration::from_secs(10);

/// A client that has not taken its answer after so long is let go (blktap: 10 s).
pub(super) const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// A client that sends more than so many times 4 KiB at once beyond its request is let go.
const EXCESS_READS_MAX: u32 = 16;

/// What reading came to.
#[derive(Debug)]
pub(super) enum Received {
    /// Not all of it yet.
    Partial,
    /// The request.
    Request(Box<Request>),
    /// No request of ours: to be answered with its error.
    Refused(DecodeError),
    /// The client is gone.
    Gone,
}

#[derive(Debug)]
enum Stage {
    Reading(Box<RequestBuffer>),
    /// For the answer to the command with this ticket.
    Waiting(u64),
    Writing {
        bytes: Vec<u8>,
        sent: usize,
    },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    stage: Stage,
    since: Now,
    cookie: u16,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, now: Now) -> Self {
        Self { stream, stage: Stage::Reading(Box::default()), since: now, cookie: 0 }
    }

    /// The cookie of its request: answers repeat it.
    pub(super) fn cookie(&self) -> u16 {
        self.cookie
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    pub(super) fn since(&self) -> Now {
        self.since
    }

    /// The ticket that it waits for.
    pub(super) fn ticket(&self) -> Option<u64> {
        match self.stage {
            Stage::Waiting(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// When its patience ends; a client that waits for a command waits as long as it likes.
    pub(super) fn deadline(&self) -> Option<Now> {
        match self.stage {
            Stage::Reading(_) => Some(self.since.after(READ_PATIENCE)),
            Stage::Waiting(_) => None,
            Stage::Writing { .. } => Some(self.since.after(WRITE_PATIENCE)),
        }
    }

    /// Reads what has come.
    pub(super) fn receive(&mut self) -> Received {
        let Stage::Reading(buffer) = &mut self.stage else {
            return self.probe();
        };
        loop {
            match self.stream.read(buffer.space()) {
                Ok(0) => return Received::Gone,
                Ok(count) => buffer.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Received::Partial;
                }
                Err(_) => return Received::Gone,
            }
            self.cookie = buffer.cookie().unwrap_or(0);
            match buffer.request() {
                Ok(None) => {}
                Ok(Some(request)) => return Received::Request(Box::new(request)),
                Err(error) => return Received::Refused(error),
            }
        }
    }

    /// Whether a client that waits is still there. What it sends beyond its request is ignored, in
    /// bounds; all of it is taken, because its end is behind it and is announced once.
    fn probe(&mut self) -> Received {
        let mut excess = [0; 4096];
        for _ in 0..EXCESS_READS_MAX {
            match self.stream.read(&mut excess) {
                Ok(0) if self.is_hung_up() => return Received::Gone,
                // It has said all that it will, and waits for the answer.
                Ok(0) => return Received::Partial,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Received::Partial;
                }
                Err(_) => return Received::Gone,
            }
        }
        Received::Gone
    }

    /// Whether the client has closed its end, and not only the half of it that it writes to.
    fn is_hung_up(&self) -> bool {
        let mut poll_fd = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        // Asks and does not wait. What cannot be asked is not there.
        poll(&mut poll_fd, PollTimeout::ZERO).is_err() || poll_fd[0].any() != Some(false)
    }

    /// Its request became the command with this ticket.
    pub(super) fn wait_for(&mut self, ticket: u64) {
        self.stage = Stage::Waiting(ticket);
    }

    /// Its answer; `send` puts it on the wire.
    pub(super) fn answer(&mut self, bytes: Vec<u8>, now: Now) {
        self.stage = Stage::Writing { bytes, sent: 0 };
        self.since = now;
    }

    /// Sends what the socket takes. Returns whether the connection is over.
    pub(super) fn send(&mut self) -> bool {
        let Stage::Writing { bytes, sent } = &mut self.stage else {
            return false;
        };
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(0) => return true,
                Ok(count) => *sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
        true
    }
}
