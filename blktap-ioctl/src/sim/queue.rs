//! The block layer's requests: a fixed table of tags, each with a buffer for its data.

use std::collections::VecDeque;

use nix::errno::Errno;

use crate::abi::{ENTRY_SIZE, REQUEST_BYTES_MAX, SECTOR_SIZE, SECTORS_PER_PAGE, SEGMENTS_MAX};
use crate::ring::Op;

/// A piece of a page, in sectors of 512 bytes, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimSegment {
    /// 0 to 7.
    pub first: u8,
    /// `first` to 7.
    pub last: u8,
}

impl SimSegment {
    /// A whole page.
    pub const PAGE: Self = Self { first: 0, last: SECTORS_PER_PAGE - 1 };

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::from(self.last - self.first + 1) * SECTOR_SIZE as usize
    }
}

/// The segments of a request, at most 11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    items: [SimSegment; SEGMENTS_MAX],
    count: u8,
}

impl Segments {
    /// As given.
    ///
    /// # Panics
    /// With more than 11, or one that is not inside its page: the block layer makes no such thing.
    /// For entries that no block layer makes there is [`Hostile`](super::Hostile).
    #[must_use]
    pub fn new(items: &[SimSegment]) -> Self {
        let mut segments = Self::default();
        for item in items {
            segments.push(*item);
        }
        segments
    }

    /// Those of an aligned buffer: whole pages, the last one perhaps in part.
    ///
    /// # Panics
    /// When `bytes` is 0, more than 44 KiB, or no multiple of 512.
    #[must_use]
    pub fn plain(bytes: usize) -> Self {
        let sector = SECTOR_SIZE as usize;
        assert!(bytes != 0 && bytes.is_multiple_of(sector) && bytes <= REQUEST_BYTES_MAX);
        let mut sectors = bytes / sector;
        let mut segments = Self::default();
        while sectors > 0 {
            let here = sectors.min(usize::from(SECTORS_PER_PAGE));
            let last = u8::try_from(here - 1).expect("a page has 8 sectors");
            segments.push(SimSegment { first: 0, last });
            sectors -= here;
        }
        segments
    }

    fn push(&mut self, item: SimSegment) {
        assert!(usize::from(self.count) < SEGMENTS_MAX, "a request has at most 11 segments");
        assert!(item.first <= item.last && item.last < SECTORS_PER_PAGE, "{item:?} of a page");
        self.items[usize::from(self.count)] = item;
        self.count += 1;
    }

    /// In order.
    #[must_use]
    pub fn as_slice(&self) -> &[SimSegment] {
        &self.items[..usize::from(self.count)]
    }

    /// Their sum.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.as_slice().iter().map(|segment| segment.bytes()).sum()
    }
}

/// A request of the block layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRequest {
    pub(super) cookie: u64,
    pub(super) op: Op,
    pub(super) sector: u64,
    /// For a trim.
    pub(super) sectors: u64,
    pub(super) segments: Segments,
}

impl BlockRequest {
    const NONE: Self = Self {
        cookie: 0,
        op: Op::Flush,
        sector: 0,
        sectors: 0,
        segments: Segments { items: [SimSegment { first: 0, last: 0 }; SEGMENTS_MAX], count: 0 },
    };

    /// Its entry in the ring.
    pub(super) fn entry(&self, id: u32) -> [u64; ENTRY_SIZE / 8] {
        let mut words = [0; ENTRY_SIZE / 8];
        let count = self.segments.count;
        words[0] = u64::from_ne_bytes([self.op.to_raw(), count, 0, 0, 0, 0, 0, 0]);
        words[1] = u64::from(id);
        words[2] = self.sector;
        for (word, segment) in words[3..].iter_mut().zip(self.segments.as_slice()) {
            *word = u64::from_ne_bytes([0, 0, 0, 0, segment.first, segment.last, 0, 0]);
        }
        if self.op == Op::Trim {
            words[3] = self.sectors;
        }
        words
    }
}

/// The number of a request in the block layer.
pub(super) type Tag = u16;

/// How a request ended for its caller.
pub type Outcome = Result<(), Errno>;

/// All requests of the block layer.
#[derive(Debug)]
pub(super) struct BlockQueue {
    requests: Box<[BlockRequest]>,
    /// 44 KiB each.
    buffers: Box<[Box<[u8]>]>,
    free: Vec<Tag>,
    /// Not in the ring yet.
    waiting: VecDeque<Tag>,
    done: VecDeque<(Tag, Outcome)>,
}

impl BlockQueue {
    pub(super) fn new(depth: Tag, has_data: bool) -> Self {
        assert!(depth > 0, "a queue of depth 0 takes no request");
        let bytes = if has_data { REQUEST_BYTES_MAX } else { 0 };
        Self {
            requests: vec![BlockRequest::NONE; usize::from(depth)].into(),
            buffers: (0..depth).map(|_| vec![0; bytes].into()).collect(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(usize::from(depth)),
            done: VecDeque::with_capacity(usize::from(depth)),
        }
    }

    /// Queues a request; `data` are the bytes of a write.
    pub(super) fn push(&mut self, request: BlockRequest, data: &[u8]) -> Result<(), Errno> {
        let tag = self.free.pop().ok_or(Errno::EAGAIN)?;
        self.requests[usize::from(tag)] = request;
        if let Some(target) = self.buffers[usize::from(tag)].get_mut(..data.len()) {
            target.copy_from_slice(data);
        }
        self.waiting.push_back(tag);
        Ok(())
    }

    pub(super) fn pop_waiting(&mut self) -> Option<Tag> {
        self.waiting.pop_front()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn request(&self, tag: Tag) -> BlockRequest {
        self.requests[usize::from(tag)]
    }

    /// The data of a request; empty when data is not simulated.
    pub(super) fn buffer(&mut self, tag: Tag) -> &mut Box<[u8]> {
        &mut self.buffers[usize::from(tag)]
    }

    pub(super) fn finish(&mut self, tag: Tag, outcome: Outcome) {
        self.done.push_back((tag, outcome));
    }

    pub(super) fn pop_done(&mut self) -> Option<(Tag, Outcome)> {
        self.done.pop_front()
    }

    pub(super) fn done_count(&self) -> usize {
        self.done.len()
    }

    pub(super) fn release(&mut self, tag: Tag) {
        self.free.push(tag);
    }

    /// Requests whose caller has not seen their end.
    pub(super) fn in_use(&self) -> usize {
        self.requests.len() - self.free.len()
    }
}
