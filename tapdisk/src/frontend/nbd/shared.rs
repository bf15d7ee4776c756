//! What the clients of one door share: its settings, counters, scratch, and the buffers that are
//! out.

use mio::Registry;

use super::{NbdConfig, NbdStats, handshake};
use crate::memory::{Memory, PAGE_SIZE, Segment};
use crate::time::Now;

/// The state beside the clients.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: NbdConfig,
    pub(super) stats: NbdStats,
    /// The time of this turn.
    pub(super) now: Now,
    /// Where connections are registered, and the token of number 0.
    pub(super) registry: Option<(Registry, usize)>,
    pub(super) suspended: bool,
    /// The time of the pause has yet to be forgiven.
    pub(super) resumed: bool,
    /// Whether a client stopped short for want of room, a slot or memory.
    pub(super) blocked: bool,
    /// Whether any of these came back since the last pull began.
    pub(super) released: bool,
    /// A client has more to be sent than went with the last message.
    pub(super) has_more: bool,
    /// Whether it was for want of room.
    pub(super) out_of_room: bool,
    /// Whether a client is to be taken off the list.
    pub(super) has_dead: bool,
    /// Whether changes of clients that are gone may be under way.
    pub(super) leaves_changes: bool,
    /// Whether it was announced that a peer is gone.
    pub(super) may_have_gone: bool,
    /// Whether a client may have a deadline: in transmission none has while nobody waits for
    /// memory.
    pub(super) has_deadlines: bool,
    /// An option's payload while it is looked at.
    pub(super) scratch: Box<[u8]>,
    /// Buffers of requests that are out, of all clients.
    buffers: u32,
    /// Whoever is first in line for memory.
    waiter: Option<Waiter>,
    /// Free pages that are kept, for the next small request: see [`PAGES_KEPT_MAX`].
    pages: Vec<Segment>,
}

/// How many pages are kept. Small requests come in numbers, and taking a page from here and putting
/// it back costs a tenth of splitting and joining runs in the arena. 256 KiB; two clients at depth
/// 32.
const PAGES_KEPT_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Waiter {
    client: u16,
    since: Now,
}

/// The answer to a wish for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    Buffer(Segment),
    /// There will be one when others are given back.
    Wait,
    /// There is none although none is out: no use waiting.
    Never,
}

impl Shared {
    pub(super) fn new(config: NbdConfig) -> Self {
        Self {
            config,
            stats: NbdStats::default(),
            now: Now::default(),
            registry: None,
            suspended: false,
            resumed: false,
            blocked: false,
            released: false,
            has_more: false,
            out_of_room: false,
            has_dead: false,
            leaves_changes: false,
            may_have_gone: false,
            has_deadlines: false,
            scratch: vec![0; handshake::OPTION_BYTES_MAX as usize].into(),
            buffers: 0,
            waiter: None,
            pages: Vec::with_capacity(PAGES_KEPT_MAX),
        }
    }

    /// Requests that were started and not answered, of all clients.
    pub(super) fn running(&self) -> u64 {
        self.stats.requests.wrapping_sub(self.stats.answers)
    }

    /// The same from the pages that are kept; none when it is not for one of these, or somebody
    /// waits.
    #[inline(always)]
    pub(super) fn take_page(&mut self, bytes: u32) -> Option<Segment> {
        if bytes > PAGE_SIZE || self.waiter.is_some() {
            return None;
        }
        let page = self.pages.pop()?;
        // As many as there are pages in the arena at most.
        self.buffers = self.buffers.wrapping_add(1);
        Some(Segment { len: bytes, ..page })
    }

    /// A buffer for a request. Who does not get one is served before everybody else, so that a
    /// large request is not starved by small ones.
    pub(super) fn allocate(&mut self, client: u16, bytes: u32, memory: &mut Memory) -> Grant {
        if let Some(page) = self.take_page(bytes) {
            return Grant::Buffer(page);
        }
        if self.waiter.is_some_and(|waiter| waiter.client != client) {
            return Grant::Wait;
        }
        let buffer = memory.allocate(bytes).or_else(|| {
            self.drop_pages(memory);
            memory.allocate(bytes)
        });
        if buffer.is_none() && self.buffers > 0 {
            self.waiter.get_or_insert(Waiter { client, since: self.now });
            self.has_deadlines = true;
            return Grant::Wait;
        }
        // Everybody else may ask again.
        self.released |= self.waiter.take().is_some();
        match buffer {
            Some(buffer) => {
                self.buffers += 1;
                Grant::Buffer(buffer)
            }
            None => Grant::Never,
        }
    }

    /// How many pages are kept, for whoever is first in line.
    pub(super) fn pages_kept(&self) -> u32 {
        let count = if self.waiter.is_some() { 0 } else { self.pages.len() };
        u32::try_from(count).expect("at most PAGES_KEPT_MAX")
    }

    /// The pages that would be taken next, `len` bytes of each; they may be received into, and
    /// belong to nobody before they are taken.
    #[inline]
    pub(super) fn pages_ahead(
        &self,
        count: u32,
        len: u32,
    ) -> impl ExactSizeIterator<Item = Segment> + '_ {
        let first = self.pages.len() - count as usize;
        self.pages[first..].iter().rev().map(move |page| Segment { len, ..*page })
    }

    /// Takes pages that are kept: the same, in the same order.
    #[inline]
    pub(super) fn take_pages(
        &mut self,
        count: u32,
        len: u32,
    ) -> impl Iterator<Item = Segment> + '_ {
        self.buffers += count;
        let first = self.pages.len() - count as usize;
        self.pages.drain(first..).rev().map(move |page| Segment { len, ..page })
    }

    /// Takes a request's buffer back.
    #[inline]
    pub(super) fn free(&mut self, buffer: Segment, memory: &mut Memory) {
        self.buffers -= 1;
        if buffer.len <= PAGE_SIZE && self.waiter.is_none() && self.pages.len() < PAGES_KEPT_MAX {
            self.pages.push(buffer);
        } else {
            memory.free(buffer);
        }
    }

    /// Gives the pages that are kept back to the arena.
    pub(super) fn drop_pages(&mut self, memory: &mut Memory) {
        self.released |= !self.pages.is_empty();
        for page in self.pages.drain(..) {
            memory.free(page);
        }
    }

    /// Bytes of the pages that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> u64 {
        self.pages.len() as u64 * u64::from(PAGE_SIZE)
    }

    /// A client is gone: it waits no more.
    pub(super) fn forget_waiter(&mut self, client: u16) {
        self.waiter.take_if(|waiter| waiter.client == client);
    }

    /// A pause is over: what did not move in it was not the peers' doing.
    pub(super) fn forgive_pause(&mut self) {
        if std::mem::take(&mut self.resumed)
            && let Some(waiter) = &mut self.waiter
        {
            waiter.since = self.now;
        }
    }

    /// When peers that hold memory and do not move are let go, because somebody needs it.
    pub(super) fn stall_deadline(&self, progress: Now) -> Now {
        self.waiter.filter(|_| !self.suspended).map_or(Now::NEVER, |waiter| {
            progress.max(waiter.since).after(self.config.stall_timeout)
        })
    }

    /// Whether somebody waits for memory.
    pub(super) fn has_waiter(&self) -> bool {
        self.waiter.is_some()
    }
}
