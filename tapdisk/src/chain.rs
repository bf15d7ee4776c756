//! The chain of a disk: layers, then images from the leaf to the root.
//!
//! The one loop over runs and images: it turns a request into I/O for the queue.

use crate::error::DiskError;
use crate::image::{Image, ImageInfo, Mapping};
use crate::layer::{Layer, Verdict};
use crate::memory::Memory;
use crate::queue::{Io, IoOp, Queue, Tag};
use crate::request::{Extent, ExtentKind, Op, Request, Segments};
use crate::statistics::DiskCounters;
use crate::status::Status;

/// What a request needs on its way through the chain.
#[derive(Debug)]
pub struct Path<'a> {
    /// Where its I/O goes.
    pub queue: &'a mut Queue,
    /// Where its data is.
    pub memory: &'a mut Memory,
    /// Where it is counted.
    pub counters: &'a mut DiskCounters,
}

/// What [`Chain::advance`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advanced {
    /// How many bytes of the request are mapped now, counted from its start.
    pub cursor: u64,
    /// How many I/Os were given to the queue by this call.
    pub pushed: u32,
    /// For block status: the answer, where no file had to be asked.
    pub extent: Option<Extent>,
}

/// Layers and images of one open disk.
pub struct Chain {
    layers: Vec<Box<dyn Layer>>,
    /// Leaf first, each with its size in bytes.
    images: Vec<(Box<dyn Image>, u64)>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.name()).collect();
        formatter.debug_struct("Chain").field("layers", &layers).finish_non_exhaustive()
    }
}

impl Chain {
    /// A chain of at least one image.
    #[must_use]
    pub fn new(layers: Vec<Box<dyn Layer>>, images: Vec<Box<dyn Image>>) -> Self {
        assert!(!images.is_empty(), "a chain has a leaf");
        let sized = |image: Box<dyn Image>| {
            let size = image.info().size;
            (image, size)
        };
        Self { layers, images: images.into_iter().map(sized).collect() }
    }

    /// The leaf's facts: the disk's.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        self.leaf().info()
    }

    /// The same images under these layers.
    #[must_use]
    pub fn with_layers(self, layers: Vec<Box<dyn Layer>>) -> Self {
        Self { layers, ..self }
    }

    fn leaf(&self) -> &dyn Image {
        self.images.first().expect("a chain has a leaf").0.as_ref()
    }

    /// Asks the layers, top first. A verdict other than `Pass` ends the request here, and those
    /// layers that passed it see its end.
    #[inline]
    pub fn admit(&mut self, slot: usize, request: &Request, memory: &mut Memory) -> Verdict {
        for index in 0..self.layers.len() {
            let verdict = self.layers[index].before(slot, request, memory);
            if let Verdict::Fail(errno) = verdict {
                let status = Status::Failed(errno);
                for layer in self.layers[..index].iter_mut().rev() {
                    layer.after(slot, request, status, memory);
                }
            }
            if verdict != Verdict::Pass {
                return verdict;
            }
        }
        Verdict::Pass
    }

    /// All of a request is done: the layers see it, bottom first.
    #[inline]
    pub fn finish(
        &mut self,
        slot: usize,
        request: &Request,
        status: Status,
        path: &mut Path<'_>,
    ) -> Status {
        if status != Status::Done {
            path.counters.image_failed(0, request.op, request.len);
        }
        let mut status = status;
        for layer in self.layers.iter_mut().rev() {
            status = layer.after(slot, request, status, path.memory);
        }
        status
    }

    /// Maps the request from byte `cursor` on and pushes I/O until it is all mapped or the queue is
    /// full.
    #[inline(always)]
    pub fn advance(
        &mut self,
        tag: Tag,
        request: &Request,
        cursor: u64,
        path: &mut Path<'_>,
    ) -> Advanced {
        if request.op == Op::Flush {
            return self.flush(tag, path);
        }
        let mut state = Advanced { cursor, pushed: 0, extent: None };
        while state.cursor < request.len && path.queue.has_room() {
            let (index, mapping) = self.map(request, state.cursor);
            let from = state.cursor;
            match mapping {
                Mapping::Data { file, offset, len } => {
                    let part;
                    let segments = if from == 0 && len == request.len {
                        request.segments.as_slice()
                    } else {
                        part = part_of(request, from, len);
                        part.as_slice()
                    };
                    let op = io_op(request);
                    path.queue.push(path.memory, &Io { tag, op, file, offset, len, segments });
                    state.pushed += 1;
                    state.cursor += len;
                }
                Mapping::Nowhere { len } | Mapping::Below { len } => {
                    if request.op == Op::BlockStatus {
                        state.extent = Some(Extent { len, kind: ExtentKind::Hole });
                    }
                    if request.op == Op::Read {
                        zero(request, from, len, path.memory);
                    }
                    state.cursor += len;
                }
            }
            path.counters.image_hit(index, request.op, state.cursor - from);
            if request.op == Op::BlockStatus {
                // One extent answers it: the first run's.
                state.cursor = request.len;
            }
        }
        state
    }

    /// The first image, from the leaf, that knows where the rest of the request starts, and where.
    #[inline(always)]
    fn map(&mut self, request: &Request, cursor: u64) -> (usize, Mapping) {
        let (offset, mut len) = (request.offset + cursor, request.len - cursor);
        let last = self.images.len() - 1;
        for (index, (image, size)) in self.images.iter_mut().enumerate() {
            let inside = size.saturating_sub(offset);
            if inside == 0 {
                continue;
            }
            match image.map(request.op, offset, len.min(inside)) {
                Mapping::Below { len: run } if index < last => len = run,
                mapping => return (index, mapping),
            }
        }
        (last, Mapping::Nowhere { len })
    }

    fn flush(&mut self, tag: Tag, path: &mut Path<'_>) -> Advanced {
        let Some(file) = self.leaf().file() else {
            return Advanced { cursor: 0, pushed: 0, extent: None };
        };
        let io = Io { tag, op: IoOp::Flush, file, offset: 0, len: 0, segments: &[] };
        path.queue.push(path.memory, &io);
        Advanced { cursor: 0, pushed: 1, extent: None }
    }

    /// Closes all images, leaf first; goes on after an error and reports the first.
    ///
    /// # Errors
    /// When what was written could not be made durable.
    pub fn close(self, queue: &mut Queue) -> Result<(), DiskError> {
        let results: Vec<_> =
            self.images.into_iter().map(|(image, _)| image.close(queue)).collect();
        results.into_iter().collect()
    }

    /// A person's view, for the debug dump.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        for layer in &self.layers {
            writeln!(out, "  layer {}", layer.name())?;
        }
        for (image, _) in &self.images {
            let ImageInfo { size, sector_size } = image.info();
            writeln!(out, "  image {size} bytes, sectors of {sector_size}")?;
        }
        Ok(())
    }
}

fn io_op(request: &Request) -> IoOp {
    let durable = request.fua;
    match request.op {
        Op::Read => IoOp::Read,
        Op::Write => IoOp::Write { durable },
        Op::Flush => IoOp::Flush,
        Op::Trim => IoOp::Trim { durable },
        Op::WriteZeroes => IoOp::WriteZeroes { may_punch: request.may_punch, durable },
        Op::BlockStatus => IoOp::Status,
    }
}

/// Fills `len` bytes of a read from byte `from` on with zeros.
#[inline(always)]
fn zero(request: &Request, from: u64, len: u64, memory: &mut Memory) {
    if from == 0 && len == request.len {
        for segment in request.segments.as_slice() {
            memory.zero(*segment);
        }
    } else {
        for segment in part_of(request, from, len).as_slice() {
            memory.zero(*segment);
        }
    }
}

/// The memory of `len` bytes of a request from byte `from` on; none of one without data.
fn part_of(request: &Request, from: u64, len: u64) -> Segments {
    if !request.op.has_data() {
        return Segments::NONE;
    }
    let mut part = Segments::NONE;
    let (mut skip, mut left) = (from, len);
    for segment in request.segments.as_slice() {
        let start = skip.min(u64::from(segment.len));
        let take = left.min(u64::from(segment.len) - start);
        skip -= start;
        left -= take;
        if take > 0 {
            let small = |bytes| u32::try_from(bytes).expect("inside one segment");
            part.push(segment.part(small(start), small(take)));
        }
    }
    part
}
