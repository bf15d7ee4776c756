//! What a disk has to do with the metadata of its image: the image's own I/O, requests that wait
//! for it, and flushes, which it wants to know of.
//!
//! All of this is beside the way of most requests, and not inlined into it.

use super::slots::{Place, SlotIndex};
use super::{Vbd, tag_of};
use crate::chain::{Chain, FlushPart, Path, Stop};
use crate::image::{Metadata, Requests, Special, special_of};
use crate::queue::Completion;
use crate::status::Status;

impl Vbd {
    /// A request is not all mapped.
    #[inline(never)]
    pub(super) fn hold_up(&mut self, index: SlotIndex) {
        let slot = self.slots.get_mut(index);
        match slot.progress.stop {
            None => self.slots.move_to(index, Place::AwaitingRoom),
            Some(Stop::Wait) => self.slots.move_to(index, Place::AwaitingImage),
            Some(Stop::Fail(errno)) => {
                slot.status = slot.status.and(Status::Failed(errno));
                slot.progress.cursor = slot.request.len;
                if slot.progress.parts == 0 {
                    self.leave_chain_further(index);
                }
            }
        }
    }

    #[inline(never)]
    fn leave_chain_further(&mut self, index: SlotIndex) {
        self.leave_chain(index);
    }

    /// An I/O that is the image's business has ended.
    #[cold]
    #[inline(never)]
    pub(super) fn special_completed(&mut self, completion: &Completion) {
        let chain = self.chain.as_mut().expect("an image with I/O is open");
        let metadata = chain.metadata();
        match special_of(completion.tag) {
            Special::Own(number) => metadata.ended(number, completion.status, &mut self.memory),
            Special::First { slot, change } => {
                metadata.wrote(change, completion.status);
                let index = SlotIndex::try_from(slot).expect("the index of a slot");
                self.part_ended(index, completion.status);
            }
        }
    }

    /// Lets the image do what it has to do on its own, and what that makes possible. Before each
    /// submit, and after the last reap of a turn.
    #[inline]
    pub fn work(&mut self) {
        if self.chain.as_ref().is_some_and(Chain::is_touched) {
            self.work_on_metadata();
        }
    }

    #[inline(never)]
    fn work_on_metadata(&mut self) {
        loop {
            while let Some((slot, status)) = self.metadata().take_settled() {
                let index = SlotIndex::try_from(slot).expect("the index of a slot");
                self.part_ended(index, status);
            }
            let requests = self.metadata().wants_requests().then(|| {
                let (newest, oldest) = self.slots.span();
                Requests { newest, oldest }
            });
            let chain = self.chain.as_mut().expect("an image that works is open");
            let metadata = chain.metadata();
            metadata.work(&mut self.queue, &mut self.memory, requests);
            self.is_metadata_idle = metadata.is_idle();
            let is_woken = metadata.take_woken();
            let wants_more = metadata.wants_requests() || metadata.has_steps();
            if !is_woken {
                if !wants_more {
                    chain.settle();
                }
                return;
            }
            // Those that wait again come behind the last of these.
            for _ in 0..self.slots.count(Place::AwaitingImage) {
                let index = self.slots.first(Place::AwaitingImage).expect("it was counted");
                self.slots.move_to(index, Place::Running);
                self.advance_further(index);
            }
        }
    }

    fn metadata(&mut self) -> &mut dyn Metadata {
        self.chain.as_mut().expect("an image that works is open").metadata()
    }

    /// What a flush has to do with the end of a request: one that has ended tells the image, one
    /// that has to follow begins, and the request stays.
    #[cold]
    #[inline(never)]
    pub(super) fn flush_first(&mut self, index: SlotIndex) -> bool {
        let Self { slots, chain: Some(chain), queue, memory, counters, .. } = self else {
            unreachable!("a request runs in a chain");
        };
        let slot = slots.get_mut(index);
        let is_under_way = slot.progress.flush == FlushPart::UnderWay;
        slot.progress.flush = FlushPart::None;
        if is_under_way {
            slot.status = chain.metadata().flush_ended(usize::from(index), slot.status);
            if slot.status != Status::Done {
                slot.progress.flush = FlushPart::Failed;
            }
            return false;
        }
        if slot.status != Status::Done {
            return false;
        }
        if !queue.has_room() {
            slot.progress.flush = FlushPart::Follows;
            slots.move_to(index, Place::AwaitingRoom);
            return true;
        }
        let tag = tag_of(slot.sequence, index);
        let path = &mut Path { queue, memory, counters };
        chain.flush(usize::from(index), tag, &mut slot.progress, path);
        true
    }
}
