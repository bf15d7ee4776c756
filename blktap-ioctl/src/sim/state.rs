//! The simulated driver's state, and what the ring's poll method and RESPOND do to it.

use nix::errno::Errno;

use super::disk::Disk;
use super::legacy::Pause;
use super::queue::{BlockQueue, BlockRequest, Outcome, Tag};
use super::{POISON_FRESH, POISON_LOST, SimOptions};
use crate::abi::{
    ENTRY_SIZE, PAGE_SIZE, RING_ENTRIES, SECTOR_SIZE, SEGMENTS_MAX, STATUS_OKAY, STATUS_UNSUPPORTED,
};
use crate::ring::{Index, Op, Pages};

/// The ring's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Opened,
    Mapped,
    Closed,
}

/// All of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: SimOptions,
    /// The kernel's own mapping of the same pages.
    pub(super) pages: Pages,
    file: File,
    pub(super) disk: Option<Disk>,
    pub(super) openers: u32,
    /// The last close was not reported yet.
    pub(super) is_close_news: bool,
    pub(super) pause: Pause,
    req_prod: u32,
    rsp_cons: u32,
    slots: [Tag; RING_ENTRIES as usize],
    /// A bit for each slot in use.
    pending: u32,
    pub(super) queue: BlockQueue,
    /// Responses to no request, and more than can be.
    pub(super) violations: u64,
    pub(super) is_ring_signalled: bool,
    pub(super) is_done_signalled: bool,
}

impl State {
    pub(super) fn new(options: SimOptions, pages: Pages) -> Self {
        Self {
            options,
            pages,
            file: File::Opened,
            disk: None,
            openers: 0,
            is_close_news: false,
            pause: Pause::default(),
            req_prod: 0,
            rsp_cons: 0,
            slots: [0; RING_ENTRIES as usize],
            pending: 0,
            queue: BlockQueue::new(options.queue_depth, options.copy_data),
            violations: 0,
            is_ring_signalled: false,
            is_done_signalled: false,
        }
    }

    pub(super) fn check_mapped(&self) -> Result<(), Errno> {
        if self.file == File::Mapped { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Requests in the ring.
    pub(super) fn pending(&self) -> u32 {
        self.pending.count_ones()
    }

    pub(super) fn mapped(&mut self) {
        assert!(self.file == File::Opened, "a ring that is {:?} was mapped", self.file);
        self.file = File::Mapped;
        self.req_prod = self.options.first_index;
        self.rsp_cons = self.options.first_index;
        for offset in (0..PAGE_SIZE).step_by(4) {
            self.pages.write_ring_word(offset, 0);
        }
        // Both events: as in every fresh ring of Xen's, and used by nobody.
        self.pages.write_ring_word(4, 1);
        self.pages.write_ring_word(12, 1);
        self.pages.set_index(Index::Requests, self.req_prod);
        self.pages.set_index(Index::Responses, self.rsp_cons);
    }

    pub(super) fn unmapped(&mut self) {
        self.file = File::Opened;
        self.fail_pending();
    }

    /// The server is gone, and with it the disk.
    pub(super) fn closed(&mut self) {
        self.file = File::Closed;
        self.disk = None;
        self.fail_pending();
        while let Some(tag) = self.queue.pop_waiting() {
            self.queue.finish(tag, Err(Errno::EIO));
        }
    }

    fn fail_pending(&mut self) {
        while self.pending != 0 {
            let slot = self.pending.trailing_zeros();
            self.pending &= !(1 << slot);
            self.queue.finish(self.slots[slot as usize], Err(Errno::EIO));
        }
    }

    /// Returns whether there is news for the server.
    pub(super) fn poll(&mut self) -> bool {
        assert!(self.file == File::Mapped, "drivers crash when a ring is polled without a mapping");
        let published = self.publish();
        let closed = std::mem::take(&mut self.is_close_news);
        published || closed || self.pages.message() != 0
    }

    /// Moves requests into free slots; returns whether there were any.
    fn publish(&mut self) -> bool {
        let before = self.req_prod;
        while self.pending != u32::MAX && !self.pause.is_stopped() {
            let Some(tag) = self.queue.pop_waiting() else {
                break;
            };
            let id = (!self.pending).trailing_zeros();
            let request = self.queue.request(tag);
            self.fill_pages(id as usize, tag, &request);
            self.pages.write_entry(self.req_prod, &request.entry(id));
            self.slots[id as usize] = tag;
            self.pending |= 1 << id;
            self.req_prod = self.req_prod.wrapping_add(1);
        }
        if self.req_prod == before {
            return false;
        }
        self.pages.set_index(Index::Requests, self.req_prod);
        true
    }

    /// An entry as it is, under the kernel's index; no request stands behind it.
    pub(super) fn publish_raw(&mut self, entry: &[u64; ENTRY_SIZE / 8]) {
        self.pages.write_entry(self.req_prod, entry);
        self.req_prod = self.req_prod.wrapping_add(1);
        self.pages.set_index(Index::Requests, self.req_prod);
    }

    fn fill_pages(&mut self, slot: usize, tag: Tag, request: &BlockRequest) {
        self.poison(slot, request, POISON_FRESH);
        if request.op == Op::Write && self.options.copy_data {
            let mut rest = &self.queue.buffer(tag)[..];
            for (page, segment) in request.segments.as_slice().iter().enumerate() {
                let (here, after) = rest.split_at(segment.bytes());
                self.pages.copy_in(data_offset(slot, page, segment.first), here);
                rest = after;
            }
        }
    }

    fn poison(&self, slot: usize, request: &BlockRequest, value: u8) {
        let count = request.segments.as_slice().len();
        if self.options.poison && count != 0 {
            self.pages.fill(data_offset(slot, 0, 0), count * PAGE_SIZE, value);
        }
    }

    /// Takes the published responses; returns whether there were any.
    pub(super) fn consume(&mut self) -> bool {
        let count = self.pages.index(Index::Responses).wrapping_sub(self.rsp_cons);
        if count > RING_ENTRIES {
            self.violations += 1;
            return false;
        }
        for _ in 0..count {
            let [id, tail] = self.pages.response(self.rsp_cons);
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
            let [operation, _, low, high, ..] = tail.to_ne_bytes();
            self.complete(id, operation, i16::from_ne_bytes([low, high]));
        }
        self.announce_pause();
        count != 0
    }

    fn complete(&mut self, id: u64, operation: u8, status: i16) {
        let bit = u32::try_from(id).ok().and_then(|id| 1_u32.checked_shl(id)).unwrap_or(0);
        if self.pending & bit == 0 {
            self.violations += 1;
            return;
        }
        self.pending &= !bit;
        let slot = bit.trailing_zeros() as usize;
        let tag = self.slots[slot];
        let request = self.queue.request(tag);
        let outcome: Outcome = match status {
            _ if operation != request.op.to_raw() => Err(Errno::EIO),
            STATUS_OKAY => Ok(()),
            // dkms tells it from an error for what is optional there.
            STATUS_UNSUPPORTED if matches!(request.op, Op::Flush | Op::Trim) => {
                Err(Errno::EOPNOTSUPP)
            }
            _ => Err(Errno::EIO),
        };
        if outcome.is_ok() && request.op == Op::Read && self.options.copy_data {
            let mut rest = &mut self.queue.buffer(tag)[..];
            for (page, segment) in request.segments.as_slice().iter().enumerate() {
                let (here, after) = rest.split_at_mut(segment.bytes());
                self.pages.copy_out(data_offset(slot, page, segment.first), here);
                rest = after;
            }
        }
        self.poison(slot, &request, POISON_LOST);
        self.queue.finish(tag, outcome);
    }
}

fn data_offset(slot: usize, page: usize, first_sector: u8) -> usize {
    (slot * SEGMENTS_MAX + page) * PAGE_SIZE + usize::from(first_sector) * SECTOR_SIZE as usize
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
