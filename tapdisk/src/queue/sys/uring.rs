//! io_uring, probed at run time.
//!
//! A room with `unsafe`: see [`super`] for the contract. What is specific here:
//! * The kernel copies an entry and its iovecs when it takes it off the submission ring (feature
//!   `SUBMIT_STABLE`, wanted by `open`); until then the pieces stay, see `Queue::submit`.
//! * An entry on the submission ring cannot be taken back: to withdraw, the ring is closed and a
//!   new one opened, only with nothing in the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::super::engine::{Raw, Request, Submitted, Verb};
use super::super::table::Key;
use super::iovecs::Piece;

/// The user data of cancellations: no key, for its index is beyond every table.
const CANCELLATION: u64 = u64::MAX;

const OPERATIONS: [(u8, &str); 7] = [
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// One ring.
pub(in crate::queue) struct Uring {
    /// `None` after a withdrawal until one can be opened again.
    ring: Option<IoUring>,
    depth: u32,
    /// The queue's, which outlives the ring.
    event: RawFd,
    /// Entries on the submission ring that `stage` put there.
    staged: usize,
    /// Cancellations on the submission ring, before the staged ones.
    cancels: usize,
}

impl Uring {
    /// A ring for `depth` requests.
    pub(in crate::queue) fn open(depth: usize, event: &EventFd) -> io::Result<Self> {
        let depth = u32::try_from(depth).expect("checked by the queue");
        let event = event.as_raw_fd();
        Ok(Self { ring: Some(open_ring(depth, event)?), depth, event, staged: 0, cancels: 0 })
    }

    pub(in crate::queue) fn stage(&mut self, request: &Request<'_>) {
        self.staged += 1;
        let entry = entry(request);
        // Without a ring: `submit` opens one or says EAGAIN, which withdraws everything.
        if self.ring.is_none() {
            self.ring = open_ring(self.depth, self.event).ok();
        }
        if let Some(ring) = &mut self.ring {
            // SAFETY: the pieces are valid until the kernel has taken the entry and the memory
            // until the request has ended (contract).
            let pushed = unsafe { ring.submission().push(&entry) };
            pushed.expect("the ring has a place for each request of the depth");
        }
    }

    pub(in crate::queue) fn submit(&mut self) -> Submitted {
        let result = match &self.ring {
            Some(ring) => ring.submit(),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        match result {
            Ok(taken) => {
                let cancels = taken.min(self.cancels);
                self.cancels -= cancels;
                self.staged -= taken - cancels;
                Submitted { accepted: taken - cancels, refused: None }
            }
            // There is no error that means one entry: those come as completions. What is left (no
            // memory, no room for completions) is a matter of time.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                Submitted { accepted: 0, refused: Some(Errno::EINTR) }
            }
            Err(_) => Submitted { accepted: 0, refused: Some(Errno::EAGAIN) },
        }
    }

    /// Only with nothing in the kernel: see the module.
    pub(in crate::queue) fn withdraw_all(&mut self) -> bool {
        if self.staged > 0 {
            self.ring = None;
            self.staged = 0;
            self.cancels = 0;
        }
        true
    }

    pub(in crate::queue) fn reap(&mut self, out: &mut Vec<Raw>) -> u64 {
        if let Some(ring) = &mut self.ring {
            let done = ring.completion().filter(|done| done.user_data() != CANCELLATION);
            out.extend(
                done.map(|done| Raw {
                    key: Key(done.user_data()),
                    result: i64::from(done.result()),
                }),
            );
        }
        0
    }

    pub(in crate::queue) fn has_results(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| {
            // SAFETY: no other view of it exists: `reap` takes `&mut self`, and a queue is not
            // `Sync`.
            let completions = unsafe { ring.completion_shared() };
            !completions.is_empty()
        })
    }

    /// An error (time is up, a signal) is as good as a return.
    pub(in crate::queue) fn wait(&self, at_least: usize, timeout: Duration) {
        let Some(ring) = &self.ring else { return };
        let time = Timespec::from(timeout);
        let arguments = SubmitArgs::new().timespec(&time);
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        let at_least = u32::try_from(at_least).unwrap_or(u32::MAX).min(self.depth);
        // SAFETY: nothing is submitted; the argument is of the kind that EXT_ARG announces, with
        // its own size, and lives as long as the call.
        let _ = unsafe { ring.submitter().enter(0, at_least, flags, Some(&arguments)) };
    }

    /// Best effort: what a device has got it will finish.
    pub(in crate::queue) fn cancel(&mut self, key: Key) {
        if self.staged > 0 {
            return;
        }
        let entry = opcode::AsyncCancel::new(key.0).build().user_data(CANCELLATION);
        let Some(ring) = &mut self.ring else { return };
        // SAFETY: the entry names no memory.
        let pushed = unsafe { ring.submission().push(&entry) };
        if pushed.is_ok() {
            self.cancels += 1;
            self.cancels -= ring.submit().unwrap_or(0).min(self.cancels);
        }
    }
}

fn entry(request: &Request<'_>) -> squeue::Entry {
    let fd = Fd(request.fd.as_raw_fd());
    let pieces = request.pieces;
    // `Piece` is laid out as an iovec.
    let iovecs: *const libc::iovec = pieces.as_ptr().cast();
    let count = u32::try_from(pieces.len()).expect("far below IOV_MAX");
    // A piece is a part of segments below 4 GiB; gathered ones are bounded by the merge.
    let len = |piece: &Piece| u32::try_from(piece.len()).unwrap_or(u32::MAX);
    let offset = request.offset;
    let entry = match (request.verb, pieces) {
        (Verb::Read, [one]) => {
            opcode::Read::new(fd, one.address(), len(one)).offset(offset).build()
        }
        (Verb::Read, _) => opcode::Readv::new(fd, iovecs, count).offset(offset).build(),
        (Verb::Write | Verb::WriteDurable, [one]) => {
            let flags = durable(request.verb);
            opcode::Write::new(fd, one.address(), len(one)).offset(offset).rw_flags(flags).build()
        }
        (Verb::Write | Verb::WriteDurable, _) => {
            let flags = durable(request.verb);
            opcode::Writev::new(fd, iovecs, count).offset(offset).rw_flags(flags).build()
        }
        (Verb::Sync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        (Verb::Punch, _) => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            opcode::Fallocate::new(fd, request.len).offset(offset).mode(mode).build()
        }
        (Verb::Zero, _) => {
            let mode = libc::FALLOC_FL_ZERO_RANGE;
            opcode::Fallocate::new(fd, request.len).offset(offset).mode(mode).build()
        }
        (verb @ (Verb::Extent | Verb::Fill), _) => {
            unreachable!("{verb:?} is the helper thread's")
        }
    };
    entry.user_data(request.key.0)
}

fn durable(verb: Verb) -> i32 {
    if verb == Verb::WriteDurable { libc::RWF_DSYNC } else { 0 }
}

fn open_ring(depth: u32, event: RawFd) -> io::Result<IoUring> {
    let missing = |what: String| io::Error::new(io::ErrorKind::Unsupported, what);
    let ring = IoUring::new(depth).map_err(|error| {
        let hint = "off (/proc/sys/kernel/io_uring_disabled), filtered, or older than Linux 5.11";
        io::Error::new(error.kind(), format!("No io_uring: {error}; it may be {hint}"))
    })?;
    if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_ext_arg() {
        let what = "This kernel's io_uring lacks EXT_ARG or SUBMIT_STABLE; Linux 5.11 has both";
        return Err(missing(what.to_owned()));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if let Some((_, name)) = OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code)) {
        return Err(missing(format!("This kernel's io_uring lacks the operation {name}")));
    }
    ring.submitter().register_eventfd(event)?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::queue::FileId;
    use crate::queue::sys::iovecs::Iovecs;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_withdrawn_never_runs_and_the_next_one_does() {
        let event = EventFd::new().unwrap();
        let mut uring = match Uring::open(2, &event) {
            Ok(uring) => uring,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        };
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let mut memory = Memory::new(4096).unwrap();
        let segment = memory.allocate(512).unwrap();
        let mut iovecs = Iovecs::new(1);
        iovecs.fill(0, &memory, &[segment]);
        let request = |number| Request {
            key: Key(number),
            verb: Verb::Read,
            file: FileId::NOBODY,
            fd: file.as_fd(),
            offset: 0,
            len: 512,
            pieces: iovecs.get(Iovecs::own(0, 1)),
        };
        uring.stage(&request(1));
        uring.stage(&request(2));
        assert!(uring.withdraw_all());
        uring.stage(&request(3));
        assert_eq!(uring.submit().accepted, 1);
        uring.wait(1, Duration::from_secs(20));
        let mut out = Vec::new();
        uring.reap(&mut out);
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].key, out[0].result), (Key(3), 512));
    }

    #[test]
    fn a_cancellation_is_no_result() {
        let event = EventFd::new().unwrap();
        let Ok(mut uring) = Uring::open(2, &event) else { return };
        uring.cancel(Key(5));
        uring.wait(1, Duration::from_secs(20));
        let mut out = Vec::new();
        uring.reap(&mut out);
        assert!(out.is_empty());
        assert!(!uring.has_results());
    }
}
