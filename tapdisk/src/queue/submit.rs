//! From the FIFO to the engine: merge neighbours, stage as many as the engine holds, hand over.

use std::sync::Arc;

use nix::errno::Errno;

use crate::status::Status;

use super::blocking::Worker;
use super::engine::{Request, Submitted, Verb, encode_error};
use super::sys::iovecs::{Iovecs, Span};
use super::table::{Entry, NONE, State};
use super::{FileId, Queue};

impl Queue {
    /// Starts what was pushed: once per turn of the loop. What the engine has no place for stays
    /// waiting, in order, and is tried again at the next call.
    ///
    /// `lone`: the caller sees one request at a time. Then a single read or write, with nothing
    /// else in flight, runs here and now and its completion is there for [`Queue::reap`]: one
    /// system call instead of three.
    pub fn submit(&mut self, lone: bool) {
        if lone {
            self.run_lone();
        }
        loop {
            if !self.staged.is_empty() && !self.hand_over() {
                break;
            }
            self.iovecs.start_gathering();
            let most = self.config.engine_depth - self.in_kernel;
            while self.staged.len() < most && self.stage_first() {}
            if self.staged.is_empty() {
                break;
            }
        }
        self.has_neighbours &= self.table.waiting() > 0;
        let fresh = self.stats.pushed - self.seen;
        self.stats.deferred += fresh.min(self.table.waiting() as u64);
        self.seen = self.stats.pushed;
    }

    /// Runs a single read or write on this thread; a short one until it is done.
    fn run_lone(&mut self) {
        while self.table.waiting() == 1
            && self.in_flight() == 0
            && let Some(index) = self.table.front()
        {
            let entry = *self.table.get(index);
            if !entry.verb.has_data() {
                return;
            }
            self.iovecs.start_gathering();
            let span = self.pieces(index, &entry);
            let Some(result) = self.engine.run(&Request {
                key: entry.key,
                verb: entry.verb,
                file: entry.file,
                fd: self.files.fd(entry.file),
                offset: entry.offset + entry.done,
                len: entry.len - entry.done,
                pieces: self.iovecs.get(span),
            }) else {
                return;
            };
            self.stats.system_calls += 1;
            self.stats.inline += u64::from(entry.done == 0);
            let _ = self.table.take_front();
            self.settle_one(index, result);
        }
    }

    /// What is left of the memory of an I/O.
    fn pieces(&mut self, index: u32, entry: &Entry) -> Span {
        if entry.done == 0 {
            return Iovecs::own(index, entry.pieces);
        }
        let mut span = self.iovecs.open();
        self.iovecs.extend(&mut span, index, entry.pieces, entry.done);
        span
    }

    /// Takes the oldest one that waits, with those behind it that it can be merged with, to the
    /// engine or the helper thread. Whether there was one.
    #[inline(always)]
    fn stage_first(&mut self) -> bool {
        let Some((head, entry)) = self.table.take_front() else { return false };
        let Entry { key, verb, file, mut offset, mut len, pieces, may_merge, .. } = *entry;
        let mut span = Iovecs::own(head, pieces);
        if may_merge {
            if self.has_neighbours
                && self.goes_on(verb, file, offset + len, len, span.len()).is_some()
            {
                (len, span) = self.merge(head);
            }
        } else {
            if entry.by_worker || !self.engine.takes(verb) {
                self.give_worker(head);
                return true;
            }
            if entry.done > 0 && verb.has_data() {
                let entry = *entry;
                (offset, len) = (offset + entry.done, len - entry.done);
                span = self.pieces(head, &entry);
            }
        }
        let (fd, pieces) = (self.files.fd(file), self.iovecs.get(span));
        self.engine.stage(|| Request { key, verb, file, fd, offset, len, pieces });
        self.staged.push(head);
        true
    }

    /// The oldest one that waits, if it goes on at `end`, where a group of `len` bytes in `pieces`
    /// pieces ends: same file, same step, within the bounds.
    #[inline]
    fn goes_on(
        &self,
        verb: Verb,
        file: FileId,
        end: u64,
        len: u64,
        pieces: usize,
    ) -> Option<&Entry> {
        let next = self.table.get(self.table.front()?);
        let fits = next.offset == end
            && next.verb == verb
            && next.file == file
            && next.may_merge
            && len + next.len <= self.config.merge_bytes
            && pieces + usize::from(next.pieces) <= self.config.merge_iovecs;
        fits.then_some(next)
    }

    /// Makes one group of an I/O and those at the front of the FIFO that go on where it ends.
    #[inline(never)]
    fn merge(&mut self, head: u32) -> (u64, Span) {
        let Entry { verb, file, offset, mut len, pieces, .. } = *self.table.get(head);
        let mut span = self.iovecs.open();
        self.iovecs.extend(&mut span, head, pieces, 0);
        let mut pieces = usize::from(pieces);
        let mut last = head;
        let mut count = 1;
        while let Some(member) = self.goes_on(verb, file, offset + len, len, pieces) {
            len += member.len;
            pieces += usize::from(member.pieces);
            let (index, _) = self.table.take_front().expect("it is the one that goes on");
            self.iovecs.extend(&mut span, index, self.table.get(index).pieces, 0);
            self.table.get_mut(last).next = index;
            last = index;
            count += 1;
        }
        self.stats.merged += count;
        (len, span)
    }

    /// Gives an operation that would block to the helper thread, which is started for the first
    /// one.
    fn give_worker(&mut self, index: u32) {
        if self.worker.is_none() {
            match Worker::start(self.config.capacity, Arc::clone(&self.event)) {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
                    self.finish(index, Status::Failed(errno), None);
                    return;
                }
            }
        }
        let worker = self.worker.as_ref().expect("started above");
        let entry = self.table.get_mut(index);
        entry.state = State::Worker;
        let file = Arc::clone(self.files.get(entry.file));
        worker.give(entry.key, entry.verb, file, entry.offset, entry.len);
        self.in_worker += 1;
        self.stats.helped += 1;
    }

    /// Hands everything staged to the kernel. Returns whether nothing is staged any more; otherwise
    /// the kernel has no room, and the next submit after a completion tries again.
    fn hand_over(&mut self) -> bool {
        while !self.staged.is_empty() {
            let Submitted { accepted, refused } = self.engine.submit();
            self.stats.system_calls += 1;
            self.stats.submitted += accepted as u64;
            self.in_kernel += accepted;
            self.staged.drain(..accepted);
            match refused {
                None if accepted > 0 => {}
                Some(Errno::EINTR) => {}
                None | Some(Errno::EAGAIN) => {
                    if self.in_kernel > 0 || !self.engine.withdraw_all(0) {
                        return false;
                    }
                    // Nothing will complete and make room: the disk's retry policy decides.
                    for at in 0..self.staged.len() {
                        self.finish_group(self.staged[at], Errno::EAGAIN);
                    }
                    self.staged.clear();
                }
                Some(errno) => {
                    assert!(self.engine.withdraw_first(), "only engines that can refuse one do");
                    let head = self.staged.remove(0);
                    self.settle_group(head, encode_error(errno));
                }
            }
        }
        true
    }

    /// Ends an I/O and those merged with it.
    pub(super) fn finish_group(&mut self, head: u32, errno: Errno) {
        let mut index = head;
        while index != NONE {
            let next = self.table.get(index).next;
            self.finish(index, Status::Failed(errno), None);
            index = next;
        }
    }
}
