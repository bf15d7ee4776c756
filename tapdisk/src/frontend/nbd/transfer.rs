//! The bytes of one connection: what is received and where to, what is sent and from where.
//!
//! Readiness is remembered. A receive or send that comes back short has emptied or filled the
//! socket, and the next one waits for an event.

use std::io;
use std::os::fd::AsFd;

use mio::{Interest, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Client, Gone, Phase};
use super::shared::Shared;
use crate::memory::{Memory, Segment};

/// What is received beyond the end of a large write: some requests without data, or the start of
/// one with. Arbitrary, but small against what it saves copying.
const LARGE_WRITE_STAGING: u32 = 2048;

impl Client {
    /// Drops what nobody wants of the bytes that are here.
    pub(super) fn skip_drain(&mut self) {
        let skipped = self.drain.min(self.end - self.start);
        self.start += skipped;
        self.drain -= skipped;
    }

    /// Receives once: the rest of a payload straight into its buffer, that of small writes in a row
    /// into pages ([`super::ahead`]), all else into the staging buffer. Whether there was anything.
    pub(super) fn receive(
        &mut self,
        shared: &mut Shared,
        memory: &mut Memory,
    ) -> Result<bool, Gone> {
        let (true, Some(stream)) = (self.readable, &self.stream) else {
            return Ok(false);
        };
        if self.start > 0 {
            let left = self.end - self.start;
            if left > 0 {
                memory.copy_within(self.staging.part(self.start, left), self.staging.part(0, left));
            }
            (self.start, self.end) = (0, left);
        }
        let ahead = self.writes_ahead(shared);
        let rest = self.partial.map_or(Segment::EMPTY, |partial| {
            assert!(self.end == 0, "payload in the staging buffer goes first");
            partial.buffer.part(partial.received, partial.buffer.len - partial.received)
        });
        let mut message = memory.incoming();
        if rest.len > 0 {
            message.segment(rest);
        }
        if ahead > 0 {
            self.lay_out(ahead, shared, &mut message);
        } else {
            message.segment(self.staging.part(self.end, self.staging_room()));
        }
        let room = message.bytes();
        let received = match message.receive(stream.as_fd()) {
            Ok(0) => return Err(Gone::Left),
            Ok(received) => u32::try_from(received).expect("segments are below 4 GiB"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(_) => return Err(Gone::Left),
        };
        if (received as usize) < room && !self.ends {
            self.readable = false;
        }
        let payload = received.min(rest.len);
        if let Some(partial) = &mut self.partial {
            partial.received += payload;
        }
        if ahead > 0 {
            self.laid_out(ahead, received - payload, shared);
        } else {
            self.end += received - payload;
        }
        shared.stats.bytes_in += u64::from(received);
        self.progress = shared.now;
        Ok(true)
    }

    /// Whether the peer has closed the connection, whatever of it is not received yet. One that
    /// only sends nothing more waits for replies.
    pub(super) fn is_gone(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        // That it hung up is told unasked.
        let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// How much may be received behind what is in the staging buffer. Behind large writes only a
    /// little: payload that comes with its request is copied from there, the rest of it comes
    /// straight into the request's buffer.
    fn staging_room(&self) -> u32 {
        let room = self.staging.len - self.end;
        if self.writes_large { room.min(LARGE_WRITE_STAGING) } else { room }
    }

    /// Whether [`Client::flush`] has something to do.
    #[inline]
    pub(super) fn has_to_flush(&self) -> bool {
        !self.outbox.is_empty() || self.watches_writable || self.phase == Phase::Closing
    }

    /// Sends of what is queued what one message holds, as far as the socket takes it; closes when
    /// that was the last of it.
    pub(super) fn flush(&mut self, shared: &mut Shared, memory: &mut Memory) {
        let mut result = Ok(());
        if self.writable && !self.outbox.is_empty() {
            result = self.send(shared, memory);
            shared.has_more |= self.writable && !self.outbox.is_empty();
        }
        let done = self.outbox.is_empty();
        if done && self.watches_writable {
            result = result.and(self.watch_writable(false, shared));
        }
        if done && self.phase == Phase::Closing && self.owed == 0 {
            result = Err(Gone::Left);
        }
        if let Err(gone) = result {
            self.die(gone, shared, memory);
        }
    }

    fn send(&mut self, shared: &mut Shared, memory: &mut Memory) -> Result<(), Gone> {
        let Some(stream) = &self.stream else {
            return Err(Gone::Left);
        };
        self.ahead.saw_under_way(self.owed);
        let mut message = memory.outgoing();
        self.outbox.fill(&mut message);
        let bytes = message.bytes();
        let sent = match message.send(stream.as_fd()) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(_) => return Err(Gone::Left),
        };
        let Self { outbox, held, .. } = self;
        let replies = outbox.advance(sent, |buffer| {
            *held -= buffer.len;
            shared.free(buffer, memory);
        });
        self.owed -= replies;
        shared.released |= replies > 0 || self.outbox.is_empty();
        if sent > 0 {
            shared.stats.bytes_out += sent as u64;
            self.progress = shared.now;
        }
        if sent < bytes {
            self.writable = false;
            self.watch_writable(true, shared)?;
        }
        Ok(())
    }

    /// Has room in the socket announced, or not any more.
    fn watch_writable(&mut self, writable: bool, shared: &Shared) -> Result<(), Gone> {
        if self.watches_writable == writable {
            return Ok(());
        }
        self.watches_writable = writable;
        let interest =
            if writable { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let (Some((registry, base)), Some(stream)) = (&shared.registry, &mut self.stream) else {
            return Ok(());
        };
        let token = Token(base + 1 + usize::from(self.number));
        registry.reregister(stream, token, interest).map_err(|_| Gone::Left)
    }
}
