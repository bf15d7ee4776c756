//! From a result to a completion: continue what is short, undo a merge that failed, take the next
//! step of an operation that has several.

use nix::errno::Errno;

use crate::request::Extent;
use crate::status::Status;

use super::engine::{Raw, Verb, decode_extent};
use super::files::Files;
use super::table::{Entry, NONE};
use super::{Completion, IoOp, Queue};

/// The first step of an operation, and whether a sync comes after it.
#[inline]
pub(super) fn first_step(op: IoOp, files: &Files, file: super::FileId) -> (Verb, bool) {
    match op {
        IoOp::Read => (Verb::Read, false),
        IoOp::Write { durable: false } => (Verb::Write, false),
        _ => rare_first_step(op, files, file),
    }
}

#[inline(never)]
fn rare_first_step(op: IoOp, files: &Files, file: super::FileId) -> (Verb, bool) {
    match op {
        IoOp::Read => (Verb::Read, false),
        IoOp::Write { durable: false } => (Verb::Write, false),
        IoOp::Write { durable: true } if files.is_plain_only(file) => (Verb::Write, true),
        IoOp::Write { durable: true } => (Verb::WriteDurable, false),
        IoOp::Flush => (Verb::Sync, false),
        IoOp::Trim { durable } => (Verb::Punch, durable),
        IoOp::WriteZeroes { may_punch: true, durable } => (Verb::Punch, durable),
        IoOp::WriteZeroes { may_punch: false, durable } => (Verb::Zero, durable),
        IoOp::Status => (Verb::Extent, false),
    }
}

impl Queue {
    /// Takes one result in; mostly it is the end of an I/O. Other ends are left in `ready`.
    #[inline(always)]
    pub(super) fn settle(&mut self, raw: Raw) -> Option<Completion> {
        let is_end = |entry: &Entry| entry.next == NONE && is_done(entry, raw.result);
        if let Some(tag) = self.table.end_running(raw.key, is_end) {
            return Some(Completion { tag, status: Status::Done, extent: None });
        }
        self.settle_group(raw.key.index(), raw.result);
        None
    }

    /// Settles an I/O and those merged with it.
    #[inline(never)]
    pub(super) fn settle_group(&mut self, head: u32, result: i64) {
        if self.table.get(head).next == NONE {
            self.settle_one(head, result);
            return;
        }
        // The bytes that are done, from the start of the group on; none when it failed, whatever
        // the error: each part finds its own.
        let mut done = u64::try_from(result).unwrap_or(0);
        let mut undone = NONE;
        let mut index = head;
        while index != NONE {
            let entry = self.table.get_mut(index);
            let next = std::mem::replace(&mut entry.next, NONE);
            if done >= entry.len {
                done -= entry.len;
                let all = i64::try_from(entry.len).expect("push asserts it");
                self.settle_one(index, all);
            } else {
                entry.done = std::mem::take(&mut done);
                // A stack: what is pushed to the front of the FIFO last is first there.
                entry.next = undone;
                undone = index;
            }
            index = next;
        }
        self.stats.undone += u64::from(undone != NONE);
        while undone != NONE {
            let next = std::mem::replace(&mut self.table.get_mut(undone).next, NONE);
            self.again(undone);
            undone = next;
        }
    }

    /// Settles an I/O that ran alone, or was done in a group.
    pub(super) fn settle_one(&mut self, index: u32, result: i64) {
        if is_done(self.table.get(index), result) {
            self.finish(index, Status::Done, None);
        } else {
            self.settle_rest(index, result);
        }
    }

    /// All that is not simply done.
    fn settle_rest(&mut self, index: u32, result: i64) {
        let outcome = u64::try_from(result).map_err(|_| errno_of(result));
        match (self.table.get(index).verb, outcome) {
            (Verb::Read | Verb::Write | Verb::WriteDurable, Ok(bytes)) => {
                self.advance(index, bytes);
            }
            (Verb::Read | Verb::Write | Verb::WriteDurable, Err(errno)) => {
                self.data_failed(index, errno);
            }
            (Verb::Punch | Verb::Zero | Verb::Fill, outcome) => {
                self.allocated(index, outcome.map(|_| ()));
            }
            (Verb::Sync, outcome) => self.synced(index, outcome.map(|_| ())),
            (Verb::Extent, Ok(_)) => {
                self.finish(index, Status::Done, Some(decode_extent(result)));
            }
            (Verb::Extent, Err(errno)) => self.finish(index, Status::Failed(errno), None),
        }
    }

    /// More bytes of a read or write are done.
    fn advance(&mut self, index: u32, bytes: u64) {
        let entry = self.table.get_mut(index);
        let left = entry.len - entry.done;
        if bytes == left {
            // The plain way works on this file; either it was known or the other way did not.
            let file = entry.file;
            self.files.set_plain_only(file);
            self.sync_next(index);
        } else if bytes == 0 || bytes > left {
            // A read: the end of the file, where there should be data; that does not pass. A write
            // that writes nothing and says nothing: not ENOSPC, which is a promise that space would
            // help; the kernel says that itself. More than asked for: nothing to trust.
            let is_end = bytes == 0 && entry.verb == Verb::Read;
            let errno = if is_end { Errno::ENODATA } else { Errno::EIO };
            self.finish(index, Status::Failed(errno), None);
        } else {
            entry.done += bytes;
            self.stats.short += 1;
            self.again(index);
        }
    }

    fn data_failed(&mut self, index: u32, errno: Errno) {
        let entry = self.table.get_mut(index);
        let unknown = matches!(errno, Errno::EINVAL | Errno::EOPNOTSUPP);
        if entry.verb == Verb::WriteDurable && unknown {
            // An old kernel or a file without RWF_DSYNC; or an error of the write, which then shows
            // again without the flag.
            entry.verb = Verb::Write;
            entry.then_sync = true;
            self.again(index);
        } else if errno == Errno::EINVAL && entry.done > 0 {
            // It was well-formed when it started. Direct I/O that stopped inside a sector cannot go
            // on from there: the storage is at fault, not the caller.
            self.finish(index, Status::Failed(Errno::EIO), None);
        } else {
            self.finish(index, Status::Failed(errno), None);
        }
    }

    fn allocated(&mut self, index: u32, outcome: Result<(), Errno>) {
        let entry = self.table.get_mut(index);
        let unknown = matches!(
            outcome,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV)
        );
        match (entry.op, outcome) {
            (_, Ok(())) if entry.then_sync => self.sync_next(index),
            (IoOp::Trim { .. }, Err(_)) if unknown => self.finish(index, Status::Done, None),
            (IoOp::WriteZeroes { .. }, Err(_)) if unknown && entry.verb != Verb::Fill => {
                entry.verb = if entry.verb == Verb::Punch { Verb::Zero } else { Verb::Fill };
                self.again(index);
            }
            (_, outcome) => self.finish(index, outcome.into(), None),
        }
    }

    fn synced(&mut self, index: u32, outcome: Result<(), Errno>) {
        let entry = self.table.get_mut(index);
        let unknown = matches!(outcome, Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS));
        if unknown && !entry.by_worker && self.engine.give_up_sync() {
            entry.by_worker = true;
            self.again(index);
        } else {
            self.finish(index, outcome.into(), None);
        }
    }

    /// What was written is to be made durable.
    fn sync_next(&mut self, index: u32) {
        let entry = self.table.get_mut(index);
        entry.verb = Verb::Sync;
        entry.then_sync = false;
        self.again(index);
    }

    /// Back to the front of the FIFO, for what is left of it; alone from now on. One that was
    /// cancelled ends instead.
    fn again(&mut self, index: u32) {
        let entry = self.table.get_mut(index);
        entry.may_merge = false;
        if entry.cancelled {
            self.finish(index, Status::Failed(Errno::ECANCELED), None);
        } else {
            self.table.push_front(index);
        }
    }

    /// Ends an I/O; its completion is handed out by [`Queue::pop`].
    pub(super) fn finish(&mut self, index: u32, status: Status, extent: Option<Extent>) {
        if status != Status::Done {
            self.stats.failed += 1;
        }
        let tag = self.table.release(index);
        self.ready.push_back(Completion { tag, status, extent });
    }
}

/// Whether it was a read or write, all of it was done, and nothing comes after.
#[inline]
fn is_done(entry: &Entry, result: i64) -> bool {
    let left = entry.len - entry.done;
    result == left.cast_signed() && entry.verb.has_data() && !entry.then_sync
}

fn errno_of(result: i64) -> Errno {
    Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EIO))
}
