//! What becomes of a request that its images or their storage failed: it is tried again, kept until
//! there is space, or answered. The policy is docs/storage.md, "Storage that fails".
//!
//! A flush is never tried again when the storage failed it: the kernel says only once that it lost
//! something, so a second one that succeeds would promise what is not there. The same goes for a
//! write with FUA, whose flush may be what failed. Want of space is told by its write where I/O is
//! direct; out of the page cache it may be its flush that tells of it.

use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;

use super::slots::{COUNT, Place, Slot, SlotIndex};
use super::{DoorIndex, RETRY_INTERVAL, Vbd};
use crate::chain::FlushPart;
use crate::error::DiskError;
use crate::request::{Op, Request};
use crate::status::Status;
use crate::time::Now;

/// The environment's `--retry`.
pub const TRIES_VARIABLE: &str = "TAPDISK_RETRY";

/// The environment's `--no-space`.
pub const NO_SPACE_VARIABLE: &str = "TAPDISK_NO_SPACE";

/// What a request does that finds the storage full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoSpace {
    /// It waits until there is space, however long that takes.
    #[default]
    Wait,
    /// It is answered with the error, as blktap does.
    Fail,
}

impl FromStr for NoSpace {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        match text {
            "wait" => Ok(Self::Wait),
            "fail" => Ok(Self::Fail),
            _ => Err(DiskError::new(
                Errno::EINVAL,
                format!("Found {text:?} where wait or fail was wanted"),
            )),
        }
    }
}

/// How long and how often a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// For how long, whatever it was that failed it.
    pub timeout: Duration,
    /// How often, when the storage failed it.
    pub tries: u32,
    /// Without space.
    pub no_space: NoSpace,
}

impl Default for RetryPolicy {
    /// Two minutes are blktap's. A path of a multipath device takes up to half a minute to fail
    /// over, so a minute is enough; and what never passes should not take a guest two.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(120), tries: 60, no_space: NoSpace::Wait }
    }
}

impl RetryPolicy {
    /// The default, and what the environment says.
    ///
    /// # Errors
    /// EINVAL for what it cannot mean.
    pub fn from_environment() -> Result<Self, DiskError> {
        let mut policy = Self::default();
        if let Some(text) = std::env::var_os(TRIES_VARIABLE) {
            policy.tries = text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                let what = format!("{TRIES_VARIABLE}: found {text:?} where a number was wanted");
                DiskError::new(Errno::EINVAL, what)
            })?;
        }
        if let Some(text) = std::env::var_os(NO_SPACE_VARIABLE) {
            policy.no_space = text.to_string_lossy().parse().map_err(|error: DiskError| {
                DiskError::new(Errno::EINVAL, format!("{NO_SPACE_VARIABLE}: {}", error.what()))
            })?;
        }
        Ok(policy)
    }

    /// The same where writes go through the page cache because somebody wants that: what fails may
    /// be an earlier one, which NFS tells whoever writes next, and once.
    #[must_use]
    pub fn through_page_cache(self) -> Self {
        Self { tries: 0, no_space: NoSpace::Fail, ..self }
    }
}

/// What kind of an error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Something was busy or interrupted: nothing was done.
    Busy,
    /// The storage, or the way to it.
    Storage,
    /// There is no space.
    Space,
    /// One that does not pass.
    Lasting,
}

pub(super) fn cause_of(errno: Errno) -> Cause {
    match errno {
        Errno::EAGAIN | Errno::EBUSY | Errno::EINTR => Cause::Busy,
        // The kernel tells a bad sector (ENODATA) and a reservation of others (EBADE) apart.
        Errno::EIO
        | Errno::ETIMEDOUT
        | Errno::ESTALE
        | Errno::ENOLINK
        | Errno::EREMOTEIO
        | Errno::EHOSTDOWN
        | Errno::EHOSTUNREACH => Cause::Storage,
        Errno::ENOSPC | Errno::EDQUOT => Cause::Space,
        _ => Cause::Lasting,
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    Again,
    Kept,
}

/// The policy of a disk, and what it knows of requests that were tried.
#[derive(Debug)]
pub(super) struct Retries {
    pub(super) policy: RetryPolicy,
    /// The leaf is written by direct I/O, or has no file.
    pub(super) is_direct: bool,
    /// Of each slot: how often its request was tried again, when the number is still its own.
    tries: Box<[(u64, u32); COUNT]>,
    /// Of the requests that wait for space, the one that is out to look for it, by slot and number.
    scout: Option<(SlotIndex, u64)>,
    /// When the next one goes.
    due: Now,
}

impl Retries {
    pub(super) fn new() -> Self {
        let tries = Box::new([(0, 0); COUNT]);
        let policy = RetryPolicy::default();
        Self { policy, is_direct: true, tries, scout: None, due: Now::default() }
    }

    /// A request that was taken `started` has failed at `now`.
    fn judge(
        &mut self,
        (index, sequence): (SlotIndex, u64),
        request: &Request,
        errno: Errno,
        (started, now): (Now, Now),
    ) -> Fate {
        let in_time = now.after(RETRY_INTERVAL).since(started) <= self.policy.timeout;
        match cause_of(errno) {
            Cause::Busy if in_time => Fate::Again,
            Cause::Storage if in_time && request.op != Op::Flush && !request.fua => {
                let known = &mut self.tries[usize::from(index)];
                if known.0 != sequence {
                    *known = (sequence, 0);
                }
                known.1 += 1;
                if known.1 <= self.policy.tries { Fate::Again } else { Fate::Answered }
            }
            Cause::Space if request.op != Op::Flush && (self.is_direct || !request.fua) => {
                match self.policy.no_space {
                    NoSpace::Wait => Fate::Kept,
                    NoSpace::Fail => Fate::Answered,
                }
            }
            _ => Fate::Answered,
        }
    }
}

impl Vbd {
    /// What becomes of a request whose try has failed; it is put there, unless it is answered.
    pub(super) fn put_aside(&mut self, index: SlotIndex, errno: Errno) -> Fate {
        let now = self.now;
        let slot = self.slots.get(index);
        let name = (index, slot.sequence);
        let fate = if slot.progress.flush == FlushPart::Failed {
            Fate::Answered
        } else {
            self.retries.judge(name, &slot.request, errno, (slot.started, now))
        };
        if self.retries.scout == Some(name) && fate != Fate::Answered {
            // It found none.
            self.retries.scout = None;
            self.retries.due = now.after(RETRY_INTERVAL);
        }
        match fate {
            Fate::Answered => {}
            Fate::Again => {
                self.slots.get_mut(index).due = now.after(RETRY_INTERVAL);
                self.slots.move_to(index, Place::Parked);
                self.counters.retried();
            }
            Fate::Kept => {
                if self.slots.count(Place::AwaitingSpace) == 0 && self.retries.scout.is_none() {
                    self.retries.due = now.after(RETRY_INTERVAL);
                }
                self.slots.move_to(index, Place::AwaitingSpace);
                self.counters.retried();
            }
        }
        fate
    }

    /// Ends what of a peer that is gone waits to be tried again; whether changes of it are under
    /// way. A write of it that is tried later than one of whoever came after it would undo that.
    #[cold]
    pub(super) fn abandon(&mut self, door: DoorIndex, peer: u16) -> bool {
        let mut is_under_way = false;
        for index in 0..=SlotIndex::MAX {
            let Slot { request, place, door: its_door, .. } = self.slots.get(index);
            if *its_door != door || request.token.peer != peer {
                continue;
            }
            match place {
                Place::Free | Place::Finished => {}
                Place::Parked | Place::AwaitingSpace => {
                    self.finished(index, Status::Failed(Errno::ESHUTDOWN));
                }
                _ => is_under_way |= request.op.is_change(),
            }
        }
        is_under_way
    }

    /// How many requests wait until the storage has space, the one that looks for it included: the
    /// state of the disk does not flicker while it does.
    #[must_use]
    #[inline]
    pub fn awaiting_space(&self) -> usize {
        self.slots.count(Place::AwaitingSpace) + usize::from(self.is_scout_out())
    }

    /// When one of them goes to look for it.
    pub(super) fn space_due(&self) -> Now {
        if self.slots.count(Place::AwaitingSpace) == 0 || self.chain.is_none() {
            return Now::NEVER;
        }
        match self.retries.scout {
            None => self.retries.due,
            Some(_) if self.is_scout_out() => Now::NEVER,
            Some(_) => self.now,
        }
    }

    /// A scout that waits again is none: [`Vbd::put_aside`].
    fn is_scout_out(&self) -> bool {
        self.retries.scout.is_some_and(|(index, sequence)| {
            let slot = self.slots.get(index);
            slot.sequence == sequence && !matches!(slot.place, Place::Free | Place::Finished)
        })
    }

    /// Lets the oldest request that waits for space look whether there is some; when it came
    /// through, all.
    #[cold]
    pub(super) fn look_for_space(&mut self) {
        if self.is_scout_out() {
            return;
        }
        if self.retries.scout.take().is_some() {
            return self.space_came();
        }
        if self.retries.due <= self.now
            && let Some(index) = self.slots.first(Place::AwaitingSpace)
        {
            self.retries.scout = Some((index, self.slots.get(index).sequence));
            self.begin_again(index);
        }
    }

    /// All requests that wait for space are tried again: there may be some now.
    pub fn space_came(&mut self) {
        self.retries.scout = None;
        for _ in 0..self.slots.count(Place::AwaitingSpace) {
            let index = self.slots.first(Place::AwaitingSpace).expect("it was counted");
            self.begin_again(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_they_say() {
        assert_eq!("wait".parse(), Ok(NoSpace::Wait));
        assert_eq!("fail".parse(), Ok(NoSpace::Fail));
        assert_eq!("".parse::<NoSpace>().map_err(|error| error.errno()), Err(Errno::EINVAL));
    }

    #[test]
    fn a_bad_sector_and_a_full_quota_are_told_apart_from_a_path_that_is_gone() {
        assert_eq!(cause_of(Errno::ENODATA), Cause::Lasting);
        assert_eq!(cause_of(Errno::EDQUOT), Cause::Space);
        assert_eq!(cause_of(Errno::ENOLINK), Cause::Storage);
    }
}
