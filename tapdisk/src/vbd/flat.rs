//! The short way of most requests: a read or write, without FUA, of a disk that is one file and
//! nothing else. It is one I/O; nothing is mapped, asked, or told of its end.
//!
//! All else takes the way of [`super`], and these might too: the results are the same.

use super::check::is_plain;
use super::slots::{Place, Slot, SlotIndex};
use super::{Vbd, tag_of};
use crate::chain::{Chain, FlushPart, Progress};
use crate::queue::{Completion, Io, IoOp};
use crate::request::Op;
use crate::status::Status;

impl Vbd {
    /// Starts it, if it is one of these.
    #[inline(always)]
    pub(super) fn start_flat(&mut self, index: SlotIndex) -> bool {
        let Self { slots, chain, queue, memory, counters, info, .. } = self;
        let slot = slots.get_mut(index);
        let Slot { request, sequence, .. } = slot;
        let (Some(file), false) = (chain.as_ref().and_then(Chain::flat), request.fua) else {
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
        let (tag, offset, len) = (tag_of(*sequence, index), request.offset, request.len);
        let segments = request.segments.as_slice();
        queue.push(memory, &Io { tag, op, file, offset, len, segments });
        counters.image_hit(0, request.op, len);
        slot.status = Status::Done;
        slot.progress = Progress { cursor: len, parts: 1, ..Progress::NONE };
        true
    }

    /// Whether this is the end of the one I/O of one of these, and all is well.
    #[inline(always)]
    pub(super) fn end_flat(&mut self, index: SlotIndex, completion: &Completion) -> bool {
        let is_flat = self.chain.as_ref().is_some_and(|chain| chain.flat().is_some());
        let slot = self.slots.get_mut(index);
        let is_end = is_flat
            && completion.status == Status::Done
            && completion.extent.is_none()
            && slot.status == Status::Done
            && slot.place == Place::Running
            && slot.progress.parts == 1
            && slot.progress.flush == FlushPart::None;
        if is_end {
            slot.progress.parts = 0;
        }
        is_end
    }
}
