//! The short way of most requests: a read or write, without FUA, that is all in one place of one
//! file, where nothing has to be asked before and nothing to be told after. It is one I/O.
//!
//! All else takes the way of [`super`], and these might too: the results are the same.

use super::check::is_plain;
use super::slots::{Place, Slot, SlotIndex};
use super::{Vbd, tag_of};
use crate::chain::Progress;
use crate::queue::{Completion, Io, IoOp};
use crate::request::Op;
use crate::status::Status;

impl Vbd {
    /// Starts it, if it is one of these.
    #[inline(always)]
    pub(super) fn start_short(&mut self, index: SlotIndex) -> bool {
        let Self { slots, chain, queue, memory, counters, info, .. } = self;
        let slot = slots.get_mut(index);
        let Slot { request, sequence, .. } = slot;
        slot.is_short = false;
        let (Some(chain), false) = (chain, request.fua) else {
            return false;
        };
        let op = match request.op {
            Op::Read => IoOp::Read,
            Op::Write => IoOp::Write { durable: false },
            _ => return false,
        };
        if !is_plain(request, *info) || !queue.has_room() {
            return false;
        }
        let Some((file, offset, layer)) = chain.short(usize::from(index), request) else {
            return false;
        };
        let (tag, len) = (tag_of(*sequence, index), request.len);
        let segments = request.segments.as_slice();
        queue.push(memory, &Io { tag, op, file, offset, len, segments });
        counters.image_hit(layer, request.op, len);
        slot.is_short = true;
        slot.status = Status::Done;
        slot.progress = Progress { cursor: len, parts: 1, ..Progress::NONE };
        true
    }

    /// Whether this is the end of the one I/O of one of these, and all is well.
    #[inline(always)]
    pub(super) fn end_short(&mut self, index: SlotIndex, completion: &Completion) -> bool {
        let slot = self.slots.get_mut(index);
        let is_end = slot.is_short
            && completion.status == Status::Done
            && slot.status == Status::Done
            && slot.place == Place::Running;
        if is_end {
            slot.progress.parts = 0;
        }
        is_end
    }
}
