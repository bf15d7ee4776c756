//! From a result to a completion: continue what is short, undo a merge that failed, take the next
//! step of an operation that has several.

use nix::errno::Errno;

use crate::request::Extent;
use crate::status::Status;

use super::engine::{Raw, Verb, decode_extent};
use super::table::{NONE, Phase, State};
use super::{Completion, IoOp, Queue};

impl Queue {
    /// Takes one result in.
    pub(super) fn settle(&mut self, raw: Raw) {
        let index = self.table.running(raw.key);
        match self.table.get(index).state {
            State::Worker => self.in_worker -= 1,
            _ => self.in_kernel -= 1,
        }
        self.settle_group(index, raw.result);
    }

    /// Settles an I/O and those merged with it.
    pub(super) fn settle_group(&mut self, head: u32, result: i64) {
        if self.table.get(head).next == NONE {
            self.settle_one(head, result);
            return;
        }
        // The bytes that are done, from the start of the group on; none when it failed, whatever the
        // error: each part finds its own.
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
        let entry = self.table.get(index);
        match entry.verb {
            verb @ (Verb::Read | Verb::Write | Verb::WriteDurable) => match u64::try_from(result) {
                Ok(bytes) => self.advance(index, verb, bytes),
                Err(_) => self.data_failed(index, verb, errno_of(result)),
            },
            verb @ (Verb::Punch | Verb::Zero) => {
                let outcome = if result < 0 { Err(errno_of(result)) } else { Ok(()) };
                self.allocated(index, verb, outcome);
            }
            Verb::Sync => self.synced(index, result),
            Verb::Extent => {
                let extent = decode_extent(result);
                self.finish(index, Status::Done, Some(extent));
            }
        }
    }

    /// More bytes of a read or write are done.
    fn advance(&mut self, index: u32, verb: Verb, bytes: u64) {
        let entry = self.table.get_mut(index);
        let left = entry.len - entry.done;
        if bytes == left {
            let durable = entry.op == (IoOp::Write { durable: true });
            if durable && verb == Verb::Write {
                // The plain way works on this file and the other one did not: remember.
                let file = entry.file;
                entry.phase = Phase::Sync;
                self.files.set_plain_only(file);
                self.again(index);
            } else {
                self.finish(index, Status::Done, None);
            }
        } else if bytes == 0 || bytes > left {
            // A read: the end of the file, where there should be data. A write that writes nothing and
            // says nothing: not ENOSPC, which is a promise that space would help; the kernel says
            // that itself. More than asked for: nothing to trust.
            self.finish(index, Status::Failed(Errno::EIO), None);
        } else {
            entry.done += bytes;
            self.stats.short += 1;
            self.again(index);
        }
    }

    fn data_failed(&mut self, index: u32, verb: Verb, errno: Errno) {
        let entry = self.table.get_mut(index);
        let unknown = matches!(errno, Errno::EINVAL | Errno::EOPNOTSUPP);
        if verb == Verb::WriteDurable && unknown {
            // An old kernel or a file without RWF_DSYNC; or an error of the write, which then shows
            // again without the flag.
            entry.phase = Phase::Second;
            self.again(index);
        } else if errno == Errno::EINVAL && entry.done > 0 {
            // It was well-formed when it started. Direct I/O that stopped inside a sector cannot go
            // on from there: the storage is at fault, not the caller.
            self.finish(index, Status::Failed(Errno::EIO), None);
        } else {
            self.finish(index, Status::Failed(errno), None);
        }
    }

    fn allocated(&mut self, index: u32, verb: Verb, outcome: Result<(), Errno>) {
        let entry = self.table.get_mut(index);
        let unknown = matches!(
            outcome,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV)
        );
        match (entry.op, outcome) {
            (IoOp::WriteZeroes { durable: true, .. }, Ok(())) => {
                entry.phase = Phase::Sync;
                self.again(index);
            }
            (IoOp::WriteZeroes { .. }, Err(_)) if unknown && verb == Verb::Punch => {
                entry.phase = Phase::Second;
                self.again(index);
            }
            // The caller writes zeros then.
            (IoOp::WriteZeroes { .. }, Err(Errno::ENOSYS | Errno::ENODEV)) => {
                self.finish(index, Status::Failed(Errno::EOPNOTSUPP), None);
            }
            (IoOp::Trim, Err(_)) if unknown => self.finish(index, Status::Done, None),
            (_, outcome) => self.finish(index, outcome.into(), None),
        }
    }

    fn synced(&mut self, index: u32, result: i64) {
        if result >= 0 {
            self.finish(index, Status::Done, None);
            return;
        }
        let errno = errno_of(result);
        let unknown = matches!(errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS);
        let entry = self.table.get_mut(index);
        if unknown && !entry.by_worker && self.engine.give_up_sync() {
            entry.by_worker = true;
            self.again(index);
        } else {
            self.finish(index, Status::Failed(errno), None);
        }
    }

    /// Back to the front of the FIFO, for what is left of it; alone from now on. One that was cancelled
    /// ends instead.
    fn again(&mut self, index: u32) {
        let entry = self.table.get_mut(index);
        if entry.cancelled {
            self.finish(index, Status::Failed(Errno::ECANCELED), None);
            return;
        }
        entry.state = State::Waiting;
        entry.alone = true;
        self.waiting.push_front(index);
    }

    /// Ends an I/O.
    pub(super) fn finish(&mut self, index: u32, status: Status, extent: Option<Extent>) {
        let entry = self.table.get(index);
        let (tag, file) = (entry.tag, entry.file);
        self.stats.failed += u64::from(status != Status::Done);
        self.files.end(file);
        self.table.release(index);
        self.ready.push(Completion { tag, status, extent });
    }
}

fn errno_of(result: i64) -> Errno {
    Errno::from_raw(i32::try_from(-result).unwrap_or(libc::EIO))
}
