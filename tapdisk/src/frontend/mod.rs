//! Front doors: where requests come in and answers go out. Open set, one file or folder each.
//!
//! A door speaks its peer's protocol and nothing else. It copies each request out of foreign memory
//! once, checks all of it (a request that reaches [`Intake::start`] is well-formed), and names the
//! memory for its data. It never learns what image serves it.
//!
//! Back-pressure: while [`Intake::has_room`] is false a door leaves requests where they are, in the
//! ring or in the socket.
//!
//! ```text
//!   one turn of the loop:  ready(..)*  pull  [answer]*  flush
//! ```

pub mod blktap;
pub mod nbd;
#[cfg(test)]
pub(crate) mod testing;

use std::io;

use mio::Registry;
use mio::event::Event;

use crate::memory::Memory;
use crate::request::{Answer, DiskInfo, Request};
use crate::time::Now;

/// How many mio tokens one door may use: its own numbers are 0 up to this.
pub const TOKENS_PER_DOOR: usize = 64;

/// What an event says.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// There is something to take, an end included.
    pub readable: bool,
    /// There is room to send.
    pub writable: bool,
    /// The other side sends nothing more: behind what is still to be taken comes an end.
    pub ends: bool,
    /// It takes nothing either: it is gone.
    pub is_gone: bool,
}

impl From<&Event> for Ready {
    fn from(event: &Event) -> Self {
        let (ends, takes_none) = (event.is_read_closed(), event.is_write_closed());
        Self {
            readable: event.is_readable() || ends || event.is_error(),
            writable: event.is_writable() || takes_none || event.is_error(),
            ends,
            is_gone: ends && takes_none,
        }
    }
}

/// What a door sees of its disk while it pulls.
pub trait Intake {
    /// Whether [`Intake::start`] may be called once more.
    fn has_room(&self) -> bool;

    /// Starts a request, which `fill` makes where it stays: see [`Request::set`]. The answer comes
    /// by [`Frontend::answer`], in any order, never from inside this call. Range, alignment to the
    /// disk's sectors and read-only are checked there, once for all doors.
    ///
    /// # Panics
    /// When there is no room.
    fn start(&mut self, fill: impl FnOnce(&mut Request));

    /// The peer of this door that has this number is gone. What of it waits to be tried again ends:
    /// nobody wants it any more, and its next connection, where it asks anew, must not be overtaken
    /// by it. Returns whether changes of it are still under way.
    fn abandon(&mut self, peer: u16) -> bool;

    /// The disk's memory.
    fn memory(&mut self) -> &mut Memory;

    /// The disk.
    fn info(&self) -> DiskInfo;

    /// The time of this turn.
    fn now(&self) -> Now;
}

/// A front door. All calls come from the one I/O thread of the disk.
pub trait Frontend {
    /// Registers what it waits for; token `base + n` is its own number `n`.
    ///
    /// # Errors
    /// What epoll says.
    fn register(&mut self, registry: &Registry, base: usize) -> io::Result<()>;

    /// Something is ready under its own number `number`. Readiness is edge-triggered: the door
    /// remembers it until a call says `WouldBlock` or comes back short.
    fn ready(&mut self, number: usize, ready: Ready);

    /// Takes what has come in and starts it; stops when there is no room or nothing more.
    /// Returns whether it left work behind that no event will announce: then the loop does not
    /// sleep.
    ///
    /// Not for trait objects: what a request passes through is compiled for the one intake that
    /// there is.
    fn pull<I: Intake>(&mut self, intake: &mut I) -> bool
    where
        Self: Sized;

    /// Takes the answer to a request that it started, and with it the request as it was.
    fn answer(&mut self, request: &Request, answer: Answer, memory: &mut Memory);

    /// Sends what has been answered since the last call: one notification for all.
    fn flush(&mut self, memory: &mut Memory);

    /// The next time it wants a turn although nothing is ready; it acts on it in `pull`.
    fn deadline(&self) -> Now;

    /// The disk pauses: no requests are pulled until `resume`, connections stay.
    fn suspend(&mut self);

    /// The disk serves again, perhaps from another image of the same size.
    fn resume(&mut self);

    /// Takes itself down: no new peers, present ones are let go. Called with no request running.
    fn close(&mut self, registry: &Registry, memory: &mut Memory);

    /// A person's view of its state, for the debug dump: a line or a few.
    fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result;
}
