//! What the storage may have lost of what was answered, and who is told (docs/durability.md, "An
//! fdatasync that fails").
//!
//! The kernel tells of writes that it could not make durable with one fdatasync, and with no later
//! one: it takes their pages for clean. So the first failure counts until the image is opened
//! again; then one FLUSH tells of it, for those who have flushed nothing since. An image with
//! metadata keeps its own account, because its own fdatasyncs may fail, too.

use nix::errno::Errno;

use super::Vbd;
use super::retry::{Cause, cause_of};
use super::slots::SlotIndex;
use crate::chain::Chain;
use crate::error::DiskError;
use crate::request::{Op, Request};
use crate::status::Status;

/// The account of a disk.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// How the storage told of a loss since the image was opened.
    pub(super) of_image: Option<Errno>,
    /// The same of an image that was closed; no FLUSH has told of it.
    untold: Option<Errno>,
    /// What fails a write of this image may be the loss of an earlier one.
    pub(super) is_told_late: bool,
}

/// Whether the answer that it is done promises that something is durable. A question may come with
/// FUA, too.
fn is_promise(request: &Request) -> bool {
    request.op == Op::Flush || request.fua && request.op.is_change()
}

impl Vbd {
    /// Whether the storage may have lost what was answered, and a FLUSH is still to tell of it.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        let of_chain = self.chain.as_ref().and_then(Chain::lost);
        self.loss.of_image.or(self.loss.untold).or(of_chain).is_some()
    }

    /// Another life of the disk begins: who lost something in the last one is gone.
    pub fn forget_loss(&mut self) {
        self.loss = Loss::default();
    }

    /// Closes the chain, if there is one.
    ///
    /// # Errors
    /// When what was written could not be made durable, now or before.
    pub fn close_chain(&mut self) -> Result<(), DiskError> {
        let lost = self.loss.of_image.take();
        let closed = self.take_chain().map_or(Ok(()), |chain| chain.close(&mut self.queue));
        let closed = closed.and(lost.map_or(Ok(()), |errno| {
            let what = "The storage may have lost what was written since the image was opened";
            Err(DiskError::new(errno, what))
        }));
        if let Err(error) = &closed {
            self.loss.untold = Some(error.errno());
        }
        closed
    }

    /// Whether a FLUSH, or a change with FUA, cannot begin: it waits, or it has failed.
    #[inline(never)]
    pub(super) fn cannot_promise(&mut self, index: SlotIndex) -> bool {
        let request = &self.slots.get(index).request;
        let is_flush = request.op == Op::Flush;
        if !is_promise(request) {
            return false;
        }
        if is_flush && self.slots.must_wait(index) {
            return true;
        }
        let untold = if is_flush { self.loss.untold.take() } else { None };
        let Some(errno) = self.loss.of_image.or(untold) else { return false };
        self.finished(index, Status::Failed(errno));
        true
    }

    /// What the end of a try says of what ended before it, and what that makes of it.
    #[cold]
    pub(super) fn account(&mut self, index: SlotIndex, status: Status) -> Status {
        if self.chain.as_ref().is_some_and(Chain::has_metadata) {
            return status;
        }
        let request = &self.slots.get(index).request;
        let is_promise = is_promise(request);
        match status.errno() {
            // It ran beside the one that failed, which may have been told what this one was not.
            None if is_promise => self.loss.of_image.map_or(status, Status::Failed),
            None => status,
            Some(errno) => {
                let is_late = self.loss.is_told_late && request.op.is_change();
                if (is_promise || is_late) && self.may_be_of_others(request.op, errno) {
                    self.loss.of_image.get_or_insert(errno);
                    self.chain.as_mut().expect("a request ran in it").look_at_ends();
                }
                status
            }
        }
    }

    /// Whether an error may be that of an fdatasync, or of a write that ended before.
    fn may_be_of_others(&self, op: Op, errno: Errno) -> bool {
        match cause_of(errno) {
            Cause::Busy => false,
            Cause::Storage => true,
            // Nothing was given up on but the request itself: the disk is closed by force.
            Cause::Lasting if errno == Errno::ECANCELED => false,
            // Direct I/O tells these of the write that asks.
            Cause::Space | Cause::Lasting => op == Op::Flush || !self.retries.is_direct,
        }
    }
}
