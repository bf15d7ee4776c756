//! The closed set of engines, and the words that the queue speaks with them.
//!
//! An engine is given requests (`stage`), hands them to the kernel (`submit`, which tells how many
//! it accepted and why not the next one) and gives results back (`reap`). It knows nothing of
//! merging, continuation or order.

use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::request::{Extent, ExtentKind};

use super::sim::Sim;
use super::sys::aio::Aio;
use super::sys::inline;
use super::sys::iovecs::Piece;
use super::sys::uring::Uring;
use super::table::Key;
use super::{FileId, QueueConfig, blocking};

/// Which engine does the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Linux AIO: the default, on every kernel.
    Aio,
    /// io_uring, where the kernel has it.
    Uring,
    /// Plain system calls on the calling thread.
    Sync,
    /// A simulation in memory.
    Sim,
}

/// The name of an engine that there is not.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownEngine(pub String);

impl std::fmt::Display for UnknownEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Unknown I/O engine '{}': one of aio, io_uring, sync", self.0)
    }
}

impl std::error::Error for UnknownEngine {}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        match name {
            "aio" => Ok(Self::Aio),
            "io_uring" => Ok(Self::Uring),
            "sync" => Ok(Self::Sync),
            _ => Err(UnknownEngine(name.to_owned())),
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Aio => "aio",
            Self::Uring => "io_uring",
            Self::Sync => "sync",
            Self::Sim => "simulated",
        })
    }
}

/// One step of an I/O, as engines know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// preadv
    Read,
    /// pwritev
    Write,
    /// pwritev with `RWF_DSYNC`
    WriteDurable,
    /// fdatasync
    Sync,
    /// fallocate: a hole
    Punch,
    /// fallocate: zeros
    Zero,
    /// pwrite: zeros, where neither of these is there
    Fill,
    /// lseek: data or hole
    Extent,
}

impl Verb {
    #[inline]
    pub(super) fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::WriteDurable)
    }
}

/// What an engine is asked to do.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) key: Key,
    pub(super) verb: Verb,
    pub(super) file: FileId,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) offset: u64,
    /// In bytes; of reads and writes the sum of the pieces.
    pub(super) len: u64,
    /// Live until the engine's `submit` has accepted the request.
    pub(super) pieces: &'a [Piece],
}

/// What came of it: bytes, zero, or a negative errno; for [`Verb::Extent`] see [`encode_extent`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) key: Key,
    pub(super) result: i64,
}

/// An extent as a result: the length above two bits of kind. Lengths are below 2^61: they fit.
pub(super) fn encode_extent(extent: Extent) -> i64 {
    let kind = match extent.kind {
        ExtentKind::Data => 0,
        ExtentKind::Hole => 1,
        ExtentKind::Zero => 2,
    };
    let len = i64::try_from(extent.len).unwrap_or(i64::MAX).min(i64::MAX >> 2);
    len << 2 | kind
}

/// The way back; the value is one that [`encode_extent`] gave.
pub(super) fn decode_extent(result: i64) -> Extent {
    let kind = match result & 3 {
        0 => ExtentKind::Data,
        1 => ExtentKind::Hole,
        _ => ExtentKind::Zero,
    };
    Extent { len: (result >> 2).unsigned_abs(), kind }
}

/// An error as a result.
pub(super) fn encode_error(errno: Errno) -> i64 {
    -i64::from(errno as i32)
}

/// How a `submit` went: how many of the staged ones, from the oldest, the kernel accepted, and what
/// it said to the next one, if it said something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Submitted {
    pub(super) accepted: usize,
    pub(super) refused: Option<Errno>,
}

/// The engines.
pub(super) enum Engine {
    Aio(Aio),
    Uring(Uring),
    Sync(Plain),
    Sim(Box<Sim>),
}

impl Engine {
    pub(super) fn open(
        kind: EngineKind,
        config: &mut QueueConfig,
        event: &EventFd,
    ) -> io::Result<Self> {
        Ok(match kind {
            EngineKind::Aio => {
                let aio = Aio::open(config.capacity, config.engine_depth, event)?;
                config.engine_depth = aio.depth();
                Self::Aio(aio)
            }
            EngineKind::Uring => Self::Uring(Uring::open(config.engine_depth, event)?),
            EngineKind::Sync => Self::Sync(Plain::new(config.engine_depth)),
            EngineKind::Sim => Self::Sim(Box::new(Sim::new(0, config))),
        })
    }

    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Self::Aio(_) => EngineKind::Aio,
            Self::Uring(_) => EngineKind::Uring,
            Self::Sync(_) => EngineKind::Sync,
            Self::Sim(_) => EngineKind::Sim,
        }
    }

    /// Whether it has an own form of the verb; otherwise the helper thread does it.
    #[inline]
    pub(super) fn takes(&self, verb: Verb) -> bool {
        match self {
            Self::Aio(aio) => verb.has_data() || (verb == Verb::Sync && aio.takes_sync()),
            Self::Uring(_) => !matches!(verb, Verb::Extent | Verb::Fill),
            Self::Sync(_) | Self::Sim(_) => true,
        }
    }

    /// The kernel refused a sync as unknown: the helper thread does them from now on. False when
    /// the engine has no such doubt: then it was a real error.
    pub(super) fn give_up_sync(&mut self) -> bool {
        match self {
            Self::Aio(aio) => aio.give_up_sync(),
            _ => false,
        }
    }

    /// Takes the request that `make` makes: each engine looks at what it needs of it.
    #[inline(always)]
    pub(super) fn stage<'a>(&mut self, make: impl Fn() -> Request<'a>) {
        match self {
            Self::Aio(aio) => aio.stage(&make()),
            _ => self.stage_other(&make()),
        }
    }

    #[inline(never)]
    fn stage_other(&mut self, request: &Request<'_>) {
        match self {
            Self::Aio(aio) => aio.stage(request),
            Self::Uring(uring) => uring.stage(request),
            Self::Sync(plain) => plain.stage(request),
            Self::Sim(sim) => sim.stage(request),
        }
    }

    /// Hands over what is staged; one system call.
    pub(super) fn submit(&mut self) -> Submitted {
        match self {
            Self::Aio(aio) => aio.submit(),
            Self::Uring(uring) => uring.submit(),
            Self::Sync(plain) => plain.submit(),
            Self::Sim(sim) => sim.submit(),
        }
    }

    /// Forgets the oldest staged one: the kernel refused it. False when it cannot.
    pub(super) fn withdraw_first(&mut self) -> bool {
        match self {
            Self::Aio(aio) => aio.withdraw_first(),
            Self::Uring(_) => false,
            Self::Sync(plain) => plain.withdraw_first(),
            Self::Sim(sim) => sim.withdraw_first(),
        }
    }

    /// Forgets all staged ones. False when it cannot: io_uring only with nothing in the kernel.
    pub(super) fn withdraw_all(&mut self, in_kernel: usize) -> bool {
        match self {
            Self::Aio(aio) => aio.withdraw_all(),
            Self::Uring(uring) => in_kernel == 0 && uring.withdraw_all(),
            Self::Sync(plain) => plain.withdraw_all(),
            Self::Sim(sim) => sim.withdraw_all(),
        }
    }

    /// Takes out all results; returns how many system calls it took.
    #[inline]
    pub(super) fn reap(&mut self, out: &mut Vec<Raw>) -> u64 {
        match self {
            Self::Aio(aio) => aio.reap(out),
            Self::Uring(uring) => uring.reap(out),
            Self::Sync(plain) => plain.reap(out),
            Self::Sim(sim) => sim.reap(out),
        }
    }

    /// Whether `reap` would find something; `true` also when only a system call could tell.
    pub(super) fn has_results(&self) -> bool {
        match self {
            Self::Aio(aio) => aio.has_results(),
            Self::Uring(uring) => uring.has_results(),
            Self::Sync(plain) => !plain.results.is_empty(),
            Self::Sim(sim) => sim.has_results(),
        }
    }

    /// Waits for results; an engine that must take them out to do so puts them into `out`.
    pub(super) fn wait(&mut self, at_least: usize, timeout: Duration, out: &mut Vec<Raw>) {
        match self {
            Self::Aio(aio) => aio.wait(at_least, timeout, out),
            Self::Uring(uring) => uring.wait(at_least, timeout),
            // Everything has ended when it was submitted; the simulation waits for nobody.
            Self::Sync(_) | Self::Sim(_) => {}
        }
    }

    /// Asks for a running request to be given up; its result comes in any case.
    pub(super) fn cancel(&mut self, key: Key) {
        match self {
            Self::Aio(aio) => aio.cancel(key),
            Self::Uring(uring) => uring.cancel(key),
            Self::Sync(_) | Self::Sim(_) => {}
        }
    }

    /// Does one read or write at once and returns its result; `None`: not this engine or not now.
    pub(super) fn run(&mut self, request: &Request<'_>) -> Option<i64> {
        match self {
            Self::Aio(_) | Self::Uring(_) | Self::Sync(_) => Some(inline::run(request)),
            Self::Sim(sim) => sim.run(request),
        }
    }

    /// Leaves behind what the kernel still uses.
    pub(super) fn abandon(&mut self) {
        match self {
            Self::Aio(aio) => aio.abandon(),
            // Closing the ring waits for nobody.
            Self::Uring(_) | Self::Sync(_) | Self::Sim(_) => {}
        }
    }
}

/// The engine of plain system calls: everything is done by the time it is staged.
pub(super) struct Plain {
    results: Vec<Raw>,
    staged: usize,
}

impl Plain {
    fn new(depth: usize) -> Self {
        Self { results: Vec::with_capacity(depth), staged: 0 }
    }

    fn stage(&mut self, request: &Request<'_>) {
        let result = if request.verb.has_data() {
            inline::run(request)
        } else {
            blocking::run(request.fd, request.verb, request.offset, request.len, || false)
        };
        self.results.push(Raw { key: request.key, result });
        self.staged += 1;
    }

    fn submit(&mut self) -> Submitted {
        Submitted { accepted: std::mem::take(&mut self.staged), refused: None }
    }

    fn withdraw_first(&mut self) -> bool {
        unreachable!("nothing is refused")
    }

    fn withdraw_all(&mut self) -> bool {
        assert!(self.staged == 0, "what was done cannot be withdrawn");
        true
    }

    fn reap(&mut self, out: &mut Vec<Raw>) -> u64 {
        out.append(&mut self.results);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_engines_go_both_ways() {
        for kind in [EngineKind::Aio, EngineKind::Uring, EngineKind::Sync] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let unknown = "uring".parse::<EngineKind>().unwrap_err();
        assert_eq!(unknown.to_string(), "Unknown I/O engine 'uring': one of aio, io_uring, sync");
    }

    #[test]
    fn an_extent_survives_as_a_result() {
        for kind in [ExtentKind::Data, ExtentKind::Hole, ExtentKind::Zero] {
            for len in [1, 512, (1 << 41) - 512, i64::MAX as u64 >> 2] {
                let extent = Extent { len, kind };
                assert_eq!(decode_extent(encode_extent(extent)), extent);
            }
        }
    }
}
