//! From the FIFO to the engine: merge neighbours, stage as many as the engine holds, hand over.

use std::sync::Arc;

use nix::errno::Errno;

use crate::status::Status;

use super::blocking::Worker;
use super::engine::{Request, Submitted, Verb, encode_error};
use super::sys::iovecs::{Iovecs, Span};
use super::table::{Entry, NONE, Phase, State};
use super::{IoOp, Queue};

impl Queue {
    /// Starts what was pushed: once per turn of the loop. What the engine has no place for stays
    /// waiting, in order, and is tried again at the next call.
    ///
    /// `lone`: the caller sees one request at a time. Then a single read or write, with nothing else
    /// in flight, runs here and now and its completion is there for [`Queue::reap`]: one system call
    /// instead of three.
    pub fn submit(&mut self, lone: bool) {
        if lone {
            self.run_lone();
        }
        loop {
            if !self.staged.is_empty() && !self.hand_over() {
                break;
            }
            self.iovecs.start_gathering();
            while !self.waiting.is_empty()
                && self.staged.len() + self.in_kernel < self.config.engine_depth
            {
                self.stage_front();
            }
            if self.staged.is_empty() {
                break;
            }
        }
        self.stats.deferred += self.waiting.len().min(self.fresh) as u64;
        self.fresh = 0;
    }

    /// The step of an I/O that is next.
    pub(super) fn verb(&self, entry: &Entry) -> Verb {
        match (entry.op, entry.phase) {
            (IoOp::Read, _) => Verb::Read,
            (IoOp::Flush, _) | (_, Phase::Sync) => Verb::Sync,
            (IoOp::Write { durable: true }, Phase::Main)
                if !self.files.is_plain_only(entry.file) =>
            {
                Verb::WriteDurable
            }
            (IoOp::Write { .. }, _) => Verb::Write,
            (IoOp::Trim, _) | (IoOp::WriteZeroes { may_punch: true, .. }, Phase::Main) => {
                Verb::Punch
            }
            (IoOp::WriteZeroes { .. }, _) => Verb::Zero,
            (IoOp::Status, _) => Verb::Extent,
        }
    }

    /// Runs a single read or write on this thread; short ones until they are done.
    fn run_lone(&mut self) {
        while self.waiting.len() == 1 && self.in_flight() == 0 {
            let index = self.waiting[0];
            let entry = *self.table.get(index);
            let verb = self.verb(&entry);
            if !verb.has_data() {
                return;
            }
            self.iovecs.start_gathering();
            let span = self.pieces(index, &entry);
            let Some(result) = self.engine.run(&Request {
                key: self.table.key(index),
                verb,
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
            self.waiting.clear();
            self.table.get_mut(index).verb = verb;
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

    /// Takes the oldest one that waits, with those behind it that it can be merged with, to the engine
    /// or the helper thread.
    fn stage_front(&mut self) {
        let head = self.waiting.pop_front().expect("somebody waits");
        let entry = *self.table.get(head);
        let verb = self.verb(&entry);
        if entry.by_worker || !self.engine.takes(verb) {
            self.give_worker(head, verb);
            return;
        }
        let staged = self.table.get_mut(head);
        staged.state = State::Engine;
        staged.verb = verb;
        let (len, span) = if !verb.has_data() {
            (entry.len, Iovecs::own(head, 0))
        } else if let Some(merged) = self.merge(head, &entry, verb) {
            merged
        } else {
            (entry.len - entry.done, self.pieces(head, &entry))
        };
        self.engine.stage(&Request {
            key: self.table.key(head),
            verb,
            file: entry.file,
            fd: self.files.fd(entry.file),
            offset: entry.offset + if verb.has_data() { entry.done } else { 0 },
            len,
            pieces: self.iovecs.get(span),
        });
        self.staged.push_back(head);
    }

    /// Makes one group of the I/O and those behind it in the FIFO that go on where it ends: same file,
    /// same operation, within the bounds. `None` when there is none.
    fn merge(&mut self, head: u32, first: &Entry, verb: Verb) -> Option<(u64, Span)> {
        if first.alone {
            return None;
        }
        let mut last = head;
        let mut len = first.len;
        let mut pieces = usize::from(first.pieces);
        let mut span = None;
        while let Some(&index) = self.waiting.front() {
            let next = self.table.get(index);
            let (next_len, next_pieces) = (next.len, next.pieces);
            if next.offset != first.offset + len
                || next.op != first.op
                || next.file != first.file
                || next.alone
                || len + next_len > self.config.merge_bytes
                || pieces + usize::from(next_pieces) > self.config.merge_iovecs
            {
                break;
            }
            self.waiting.pop_front();
            let span = span.get_or_insert_with(|| {
                let mut span = self.iovecs.open();
                self.iovecs.extend(&mut span, head, first.pieces, 0);
                span
            });
            self.iovecs.extend(span, index, next_pieces, 0);
            self.table.get_mut(last).next = index;
            let member = self.table.get_mut(index);
            member.state = State::Engine;
            member.verb = verb;
            last = index;
            len += next_len;
            pieces += usize::from(next_pieces);
            self.stats.merged += 1;
        }
        let span = span?;
        self.stats.merged += 1;
        Some((len, span))
    }

    /// Gives an operation that would block to the helper thread, which is started for the first one.
    fn give_worker(&mut self, index: u32, verb: Verb) {
        let entry = *self.table.get(index);
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
        let file = Arc::clone(self.files.get(entry.file));
        let given = self.table.get_mut(index);
        given.state = State::Worker;
        given.verb = verb;
        worker.give(self.table.key(index), verb, file, entry.offset, entry.len);
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
                    while let Some(head) = self.staged.pop_front() {
                        self.finish_group(head, Errno::EAGAIN);
                    }
                }
                Some(errno) => {
                    assert!(self.engine.withdraw_first(), "only engines that can refuse one do");
                    let head = self.staged.pop_front().expect("staged is not empty");
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
