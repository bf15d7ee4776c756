//! The short way of most requests: a read or write, without FUA, that is all in one place of one
//! file, where nothing has to be asked before and nothing to be told after. It is one I/O.
//!
//! All else takes the way of [`super`], and these might too: the results are the same.

use super::check::is_plain;
use super::slots::{Place, SlotIndex};
use super::{DoorIndex, Vbd, tag_of};
use crate::chain::Progress;
use crate::queue::{Completion, Io, IoOp};
use crate::request::{Op, Request};
use crate::status::Status;

impl Vbd {
    /// Begins a request, which `fill` makes.
    #[inline(always)]
    pub(super) fn start(&mut self, door: DoorIndex, fill: impl FnOnce(&mut Request)) {
        if !self.is_running() {
            self.busy_since = self.now;
        }
        let Self { slots, chain, queue, memory, counters, info, now, .. } = self;
        let (index, slot) = slots.take(door, *now, fill);
        // Before anything is stored elsewhere: afterwards it would have to be loaded again.
        let (request, tag) = (&slot.request, tag_of(slot.sequence, index));
        let (op, len, segments) = (request.op, request.len, request.segments.as_slice());
        let Some(chain) = chain.as_mut().filter(|chain| chain.has_short_way()) else {
            return self.start_any(index);
        };
        let io_op = match op {
            Op::Read => IoOp::Read,
            Op::Write if !request.fua => IoOp::Write { durable: false },
            _ => return self.start_any(index),
        };
        if !is_plain(request, *info) {
            return self.start_any(index);
        }
        let Some((file, offset, layer)) = chain.short(usize::from(index), request) else {
            return self.start_any(index);
        };
        if !queue.has_room() {
            return self.start_any(index);
        }
        counters.submitted(door, op, len);
        queue.push(memory, &Io { tag, op: io_op, file, offset, len, segments });
        counters.image_hit(layer, op, len);
        slot.is_short = true;
        slot.status = Status::Done;
        slot.progress = Progress { cursor: len, parts: 1, ..Progress::NONE };
    }

    /// Ends the request if this is the end of the one I/O of one of these, all is well, and no
    /// flush waits for it.
    #[inline(always)]
    pub(super) fn end_short(&mut self, index: SlotIndex, completion: &Completion) -> bool {
        let is_end = completion.status == Status::Done
            && self.slots.count(Place::AwaitingWrites) == 0
            && self.slots.finish_short(index);
        if is_end {
            self.progressed();
        }
        is_end
    }
}
