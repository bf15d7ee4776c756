//! Small writes in a row: their payload is received where it belongs.
//!
//! Direct I/O wants payload aligned, and behind a request of 28 bytes it is not: out of the staging
//! buffer it has to be copied. But a client that writes small pieces goes on writing them. So when
//! the last requests were writes of one length, the next receive is laid out for more of them:
//!
//! ```text
//!   stream     [request][payload][request][payload] ... [request]
//!   goes to     staging   page    staging   page         staging
//! ```
//!
//! Requests lie one behind the other in the staging buffer then, as if their payload were not
//! there. Where the guess was wrong, all of it is moved to where it would have been
//! ([`Client::line_up`]), and nothing is guessed until there is another row.

use super::client::Client;
use super::shared::Shared;
use super::wire::{REQUEST_BYTES, RawRequest};
use crate::memory::{Incoming, Memory, PAGE_SIZE, Segment};
use crate::row::Row;

/// So many writes of one length make a row. Arbitrary: a wrong guess costs a copy of what came.
const ROW_MIN: u32 = 4;

/// The most writes that one receive is laid out for: with the requests, half of what one system
/// call takes.
const WRITES_MAX: u32 = 32;

/// The fewest, if that many are possible: a client may have more requests at a time than before.
const WRITES_MIN: u32 = 2;

/// What is known of a client's row of writes.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Of each write, in bytes.
    len: u32,
    /// How many of them came in a row.
    row: u32,
    /// The most requests that the client has had at a time since the row began. What it has less
    /// than these may come next.
    most: u32,
    /// How many writes came with the last receive that was laid out. The next is laid out for twice
    /// as many and some: the layout of one that does not come costs a tenth of what one that comes
    /// saves, and they come in small numbers from a client that is slower than its disk.
    came: u32,
    /// Bytes of the stream that are laid out: requests in the staging buffer, payload in `pages`.
    laid: u32,
    /// Buffers with the payload, in the order of the stream; the last may be filled in part.
    pages: Row<Segment>,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self { len: 0, row: 0, most: 0, came: 0, laid: 0, pages: Row::new(WRITES_MAX as usize) }
    }

    /// Whether payload lies apart from the requests.
    #[inline]
    pub(super) fn is_laid_out(&self) -> bool {
        self.laid > 0
    }

    /// Takes note of a write of so many bytes.
    #[inline]
    pub(super) fn saw_write(&mut self, len: u32) {
        if len == 0 || len > PAGE_SIZE {
            self.row = 0;
        } else if len == self.len && self.row > 0 {
            self.row = self.row.saturating_add(1);
        } else {
            (self.len, self.row, self.most) = (len, 1, 0);
        }
    }

    /// Takes note of a request that is no write.
    #[inline]
    pub(super) fn saw_other(&mut self) {
        self.row = 0;
    }

    /// Takes note that so many requests are under way.
    #[inline]
    pub(super) fn saw_under_way(&mut self, count: u16) {
        self.most = self.most.max(u32::from(count));
    }

    /// The payload that was received for a write of so many bytes: its buffer, and how much is
    /// there.
    #[inline]
    pub(super) fn take(&mut self, len: u32) -> Option<(Segment, u32)> {
        if self.laid == 0 || len != self.len {
            return None;
        }
        let received = len.min(self.laid - REQUEST_BYTES);
        self.laid -= REQUEST_BYTES + received;
        let page = self.pages.pop().expect("each write that is laid out has a page");
        Some((page, received))
    }

    /// The buffer of a write of so many bytes, if all of its payload was received there.
    #[inline(always)]
    pub(super) fn take_whole(&mut self, len: u32) -> Option<Segment> {
        let laid = self.laid.checked_sub(REQUEST_BYTES + len)?;
        if len != self.len {
            return None;
        }
        self.laid = laid;
        Some(self.pages.pop().expect("each write that is laid out has a page"))
    }

    /// Forgets all; hands the buffers out.
    pub(super) fn clear(&mut self, mut give_back: impl FnMut(Segment)) {
        while let Some(page) = self.pages.pop() {
            give_back(page);
        }
        (self.row, self.laid) = (0, 0);
    }

    /// Another client.
    pub(super) fn start_over(&mut self) {
        assert!(self.laid == 0 && self.pages.is_empty(), "what was received is given back");
        (self.row, self.most) = (0, 0);
    }
}

impl Client {
    /// Takes note of the next request, before it is judged. Afterwards nothing is laid out, unless
    /// it is a write as was expected.
    #[inline]
    pub(super) fn compare(&mut self, raw: &RawRequest, shared: &mut Shared, memory: &mut Memory) {
        let is_write = raw.is_write();
        if self.ahead.is_laid_out() && !(is_write && raw.len == self.ahead.len) {
            self.line_up(shared, memory);
        }
        if is_write {
            self.ahead.saw_write(raw.len);
        } else {
            self.ahead.saw_other();
        }
    }

    /// How many writes to lay the next receive out for: with a request each in front, all of them
    /// fit into the staging buffer, should they have to be lined up there.
    pub(super) fn writes_ahead(&self, shared: &Shared) -> u32 {
        let Ahead { len, row, most, came, .. } = self.ahead;
        if row < ROW_MIN || self.drain > 0 || self.end > 0 {
            return 0;
        }
        let (config, owed) = (&shared.config, u32::from(self.owed));
        let requests = u32::from(config.requests_per_client) - owed;
        let bytes = config.bytes_per_client.saturating_sub(self.held) / len;
        let staging = self.staging.len / (REQUEST_BYTES + len);
        shared
            .pages_kept()
            .min(requests)
            .min(bytes)
            .min(staging)
            .min(most.saturating_sub(owed).min(2 * came).saturating_add(WRITES_MIN).min(WRITES_MAX))
    }

    /// Where they go.
    pub(super) fn lay_out(&self, count: u32, shared: &Shared, message: &mut Incoming<'_>) {
        let len = self.ahead.len;
        let (requests, pages) = (count * REQUEST_BYTES, shared.pages_ahead(count, len));
        message.alternate(self.staging.part(0, requests), REQUEST_BYTES, pages);
        // Of what comes behind these the payload stays in the socket: it would have to be copied.
        // With no more room than for these, all of them would look like a socket that has more.
        message.segment(self.staging.part(requests, REQUEST_BYTES));
    }

    /// So many bytes came into what was laid out for `count` writes.
    pub(super) fn laid_out(&mut self, count: u32, received: u32, shared: &mut Shared) {
        let each = REQUEST_BYTES + self.ahead.len;
        let whole = received.min(count * each);
        let (full, part) = (whole / each, whole % each);
        let is_begun = part > REQUEST_BYTES;
        let (count, len) = (full + u32::from(is_begun), self.ahead.len);
        self.ahead.came = count;
        for page in shared.take_pages(count, len) {
            self.ahead.pages.push(page);
        }
        self.held += count * len;
        self.ahead.laid = full * each + if is_begun { part } else { 0 };
        self.end = full * REQUEST_BYTES + part.min(REQUEST_BYTES) + (received - whole);
    }

    /// Puts the stream together in the staging buffer: something else came than was laid out for.
    #[cold]
    #[inline(never)]
    pub(super) fn line_up(&mut self, shared: &mut Shared, memory: &mut Memory) {
        let (len, laid, start) = (self.ahead.len, self.ahead.laid, self.start);
        let each = REQUEST_BYTES + len;
        let count = laid.div_ceil(each);
        let behind = start + count * REQUEST_BYTES;
        // From the last on: everything moves towards the end, and nothing over what is to move yet.
        let rest = self.end - behind;
        let staging = self.staging;
        memory.copy_within(staging.part(behind, rest), staging.part(start + laid, rest));
        for number in (0..count).rev() {
            let page = self.ahead.pages.as_slice()[number as usize];
            let (from, to) = (start + number * REQUEST_BYTES, start + number * each);
            let filled = len.min(laid - number * each - REQUEST_BYTES);
            let payload = staging.part(to + REQUEST_BYTES, filled);
            memory.copy_within(page.part(0, filled), payload);
            let request = staging.part(from, REQUEST_BYTES);
            memory.copy_within(request, staging.part(to, REQUEST_BYTES));
        }
        self.end = start + laid + rest;
        let held = &mut self.held;
        self.ahead.clear(|page| {
            *held -= page.len;
            shared.free(page, memory);
        });
    }
}
