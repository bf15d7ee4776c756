//! The pages, and who may touch them: the requests that the server holds.
//!
//! ```text
//!   free ──take──> held ──answer──> answered ──pushed──> free
//! ```
//!
//! Invariant: the pages are unmapped only when no request is held. A held request may have I/O of
//! the kernel under way on its pages; unmapping them would let that I/O hit whatever comes there
//! next. So when the lease is dropped too early the pages stay mapped for ever.

use super::entry::RequestId;
use super::mapping::Pages;

/// The mapped pages and the state of the 32 requests.
#[derive(Debug)]
pub(super) struct Lease {
    pages: Pages,
    /// A bit for each request that was taken and not answered.
    held: u32,
    /// A bit for each request that was answered, while the driver does not know.
    answered: u32,
    /// The operation of each held request, as found: the response repeats it.
    operations: [u8; 32],
}

impl Lease {
    pub(super) fn new(pages: Pages) -> Self {
        Self { pages, held: 0, answered: 0, operations: [0; 32] }
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// `false` when the kernel has given out the id already.
    #[must_use]
    pub(super) fn take(&mut self, id: RequestId, operation: u8) -> bool {
        if (self.held | self.answered) & id.bit() != 0 {
            return false;
        }
        self.held |= id.bit();
        self.operations[id.slot()] = operation;
        true
    }

    /// Ends the server's hold on the pages of a request; returns its operation.
    pub(super) fn answer(&mut self, id: RequestId) -> u8 {
        assert!(self.held & id.bit() != 0, "request {} is not outstanding", id.index());
        self.held &= !id.bit();
        self.answered |= id.bit();
        self.operations[id.slot()]
    }

    /// The driver has consumed all answers.
    pub(super) fn pushed(&mut self) {
        self.answered = 0;
    }

    /// Taken and not answered.
    pub(super) fn held(&self) -> u32 {
        self.held.count_ones()
    }

    /// Answered, and unknown to the driver.
    pub(super) fn answered(&self) -> u32 {
        self.answered.count_ones()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held != 0 {
            self.pages.leak();
        }
    }
}
