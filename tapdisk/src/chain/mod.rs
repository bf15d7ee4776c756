//! The chain of a disk: layers, then images from the leaf to the root.
//!
//! The one loop over runs and images: it turns a request into I/O for the queue.

mod short;

use std::path::PathBuf;

use nix::errno::Errno;

use crate::error::DiskError;
use crate::image::{self, Image, ImageInfo, ImageType, Mapping, Metadata};
use crate::layer::{Layer, Verdict};
use crate::memory::Memory;
use crate::queue::{FileId, Io, IoOp, Queue, Tag};
use crate::request::{Extent, ExtentKind, Op, Request, Segments};
use crate::statistics::DiskCounters;
use crate::status::Status;
use short::ShortWay;

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

/// How far a request is on its way through the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes of the request are mapped, counted from its start.
    pub cursor: u64,
    /// How many I/Os of it the queue has, and changes of metadata that it waits for.
    pub parts: u32,
    /// For block status: the answer.
    pub extent: Option<Extent>,
    /// Why it is not mapped further, if not for want of room in the queue.
    pub stop: Option<Stop>,
    /// What it has to do with a flush.
    pub flush: FlushPart,
}

impl Progress {
    /// Nothing is mapped.
    pub const NONE: Self =
        Self { cursor: 0, parts: 0, extent: None, stop: None, flush: FlushPart::None };
}

/// What keeps a request from being mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The image has to do something first: ask again when it says so.
    Wait,
    /// It cannot be done.
    Fail(Errno),
}

/// A request's flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushPart {
    /// There is none.
    #[default]
    None,
    /// One follows when all else is done: durability was asked for, and there is metadata, too.
    Follows,
    /// The queue has it.
    UnderWay,
    /// It has failed.
    Failed,
}

/// Layers and images of one open disk.
pub struct Chain {
    layers: Vec<Box<dyn Layer>>,
    /// Leaf first, each with its size in bytes.
    images: Vec<(Box<dyn Image>, u64)>,
    short_way: ShortWay,
    /// The leaf has metadata.
    has_metadata: bool,
    /// Its metadata may have something to do.
    is_touched: bool,
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
        let mut images: Vec<_> = images.into_iter().map(sized).collect();
        let has_metadata = images[0].0.metadata().is_some();
        let (short_way, is_touched) = (ShortWay::None, has_metadata);
        Self { layers, images, short_way, has_metadata, is_touched }.find_short_way()
    }

    /// The leaf's facts: the disk's.
    #[must_use]
    pub fn info(&self) -> ImageInfo {
        self.leaf().info()
    }

    /// The file of the leaf, if it has one.
    #[must_use]
    pub fn leaf_file(&self) -> Option<FileId> {
        self.leaf().file()
    }

    /// The same images under these layers.
    #[must_use]
    pub fn with_layers(self, layers: Vec<Box<dyn Layer>>) -> Self {
        Self { layers, ..self }.find_short_way()
    }

    /// How the storage told of a loss since the leaf was opened, where that keeps account of it.
    #[must_use]
    pub fn lost(&self) -> Option<Errno> {
        self.leaf().lost()
    }

    /// Whether several hosts may have the leaf's file system mounted.
    #[must_use]
    pub fn is_shared_storage(&self) -> bool {
        self.leaf().is_shared_storage()
    }

    fn leaf(&self) -> &dyn Image {
        self.images.first().expect("a chain has a leaf").0.as_ref()
    }

    /// Asks the layers, top first. A verdict other than `Pass` ends the request here, and those
    /// layers that passed it see its end.
    #[inline]
    pub fn admit(&mut self, slot: usize, request: &Request, memory: &mut Memory) -> Verdict {
        if self.layers.is_empty() {
            return Verdict::Pass;
        }
        self.ask_layers(slot, request, memory)
    }

    #[inline(never)]
    fn ask_layers(&mut self, slot: usize, request: &Request, memory: &mut Memory) -> Verdict {
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
        if status == Status::Done && self.layers.is_empty() {
            return status;
        }
        self.show_layers(slot, request, status, path)
    }

    #[inline(never)]
    fn show_layers(
        &mut self,
        slot: usize,
        request: &Request,
        mut status: Status,
        path: &mut Path<'_>,
    ) -> Status {
        if status != Status::Done {
            path.counters.image_failed(0, request.op, request.len);
        }
        for layer in self.layers.iter_mut().rev() {
            status = layer.after(slot, request, status, path.memory);
        }
        status
    }

    /// Maps the request from where it is on, and pushes I/O, until it is all mapped or the queue is
    /// full. A flush wants room for one I/O.
    #[inline(always)]
    pub fn advance(
        &mut self,
        slot: usize,
        tag: Tag,
        request: &Request,
        progress: &mut Progress,
        path: &mut Path<'_>,
    ) {
        if request.op == Op::Flush {
            return self.flush(slot, tag, progress, path);
        }
        self.step(slot, tag, request, progress, path);
        // Most requests are one run.
        if progress.cursor < request.len {
            self.step_on(slot, tag, request, progress, path);
        }
    }

    #[inline(never)]
    fn step_on(
        &mut self,
        slot: usize,
        tag: Tag,
        request: &Request,
        progress: &mut Progress,
        path: &mut Path<'_>,
    ) {
        let is_through =
            |progress: &Progress| progress.cursor >= request.len || progress.stop.is_some();
        while !is_through(progress) && path.queue.has_room() {
            self.step(slot, tag, request, progress, path);
        }
    }

    /// Maps one run, and pushes its I/O if it has one.
    #[inline(always)]
    fn step(
        &mut self,
        slot: usize,
        tag: Tag,
        request: &Request,
        progress: &mut Progress,
        path: &mut Path<'_>,
    ) {
        let from = progress.cursor;
        let (mut index, mapping) = self.map(slot, request, from);
        let len = match mapping {
            Mapping::Data { file, offset, len, layer } if !(request.fua && self.has_metadata) => {
                index += layer;
                let segments = request.segments.as_slice();
                let io = Io { tag, op: io_op(request), file, offset, len, segments };
                if len == request.len {
                    path.queue.push(path.memory, &io);
                } else {
                    push_part(request, from, io, path);
                }
                progress.parts += 1;
                len
            }
            Mapping::Nowhere { len } | Mapping::Below { len } => {
                if request.op == Op::Read {
                    zero(request, from, len, path.memory);
                } else if request.op == Op::BlockStatus {
                    progress.extent = Some(Extent { len, kind: ExtentKind::Hole });
                } else if request.fua && self.must_flush() {
                    // That nothing is there may not be durable.
                    progress.flush = FlushPart::Follows;
                }
                len
            }
            _ => match self.step_with_metadata(slot, tag, request, mapping, progress, path) {
                Some(len) => len,
                None => return,
            },
        };
        path.counters.image_hit(index, request.op, len);
        // One extent answers a block status: the first run's.
        progress.cursor += if request.op == Op::BlockStatus { request.len } else { len };
    }

    /// What only an image with metadata answers, or only there is to be done: how many bytes are
    /// mapped, or `None` when it stops here.
    #[cold]
    #[inline(never)]
    fn step_with_metadata(
        &mut self,
        slot: usize,
        tag: Tag,
        request: &Request,
        mut mapping: Mapping,
        progress: &mut Progress,
        path: &mut Path<'_>,
    ) -> Option<u64> {
        self.is_touched = true;
        let from = progress.cursor;
        if let Mapping::Fresh { len } = mapping {
            let part = part_of(request, from, len);
            if part.as_slice().iter().all(|segment| path.memory.is_zero(*segment)) {
                if request.fua && self.must_flush() {
                    progress.flush = FlushPart::Follows;
                }
                return Some(len);
            }
            let (offset, len) = (request.offset + from, request.len - from);
            mapping = self.metadata().store(slot, offset, len);
        }
        let (tag, (file, offset, len)) = match mapping {
            Mapping::Data { file, offset, len, .. } => (tag, (file, offset, len)),
            Mapping::First { file, offset, len, change } => {
                progress.parts += 1;
                (image::first_tag(slot, change), (file, offset, len))
            }
            Mapping::Change { len } => {
                progress.parts += 1;
                if request.fua {
                    progress.flush = FlushPart::Follows;
                }
                return Some(len);
            }
            Mapping::Wait => {
                progress.stop = Some(Stop::Wait);
                return None;
            }
            Mapping::Fail(errno) => {
                progress.stop = Some(Stop::Fail(errno));
                return None;
            }
            other => unreachable!("no answer to a write that has to be stored: {other:?}"),
        };
        let mut op = io_op(request);
        if request.fua {
            // Its failure would be that of an fdatasync, which the image has to hear of.
            op = without_durability(op);
            progress.flush = FlushPart::Follows;
        }
        progress.parts += 1;
        push_part(request, from, Io { tag, op, file, offset, len, segments: &[] }, path);
        Some(len)
    }

    /// The leaf's metadata.
    ///
    /// # Panics
    /// When it has none.
    pub fn metadata(&mut self) -> &mut dyn Metadata {
        self.is_touched = true;
        self.images[0].0.metadata().expect("an image with metadata")
    }

    /// Whether the leaf's metadata may have something to do: it was asked or told something.
    #[must_use]
    #[inline]
    pub fn is_touched(&self) -> bool {
        self.is_touched
    }

    /// It has done what it can until somebody touches it again.
    pub fn settle(&mut self) {
        self.is_touched = false;
    }

    /// Whether the leaf has metadata.
    #[must_use]
    #[inline]
    pub fn has_metadata(&self) -> bool {
        self.has_metadata
    }

    /// The files of its images, leaf first, with their types; none for an image that is its only
    /// file.
    #[must_use]
    pub fn members(&self) -> Vec<(PathBuf, &'static ImageType)> {
        self.images.iter().flat_map(|(image, _)| image.members()).collect()
    }

    /// Whether metadata waits to be durable: then FUA needs a flush even where nothing was written.
    #[cold]
    fn must_flush(&mut self) -> bool {
        self.has_metadata && self.metadata().needs_flush()
    }

    /// The first image, from the leaf, that knows where the rest of the request starts, and where.
    #[inline(always)]
    fn map(&mut self, slot: usize, request: &Request, cursor: u64) -> (usize, Mapping) {
        let (offset, len) = (request.offset + cursor, request.len - cursor);
        // The leaf by itself: nearly always it is the one.
        match self.images.first_mut().filter(|(_, size)| *size >= offset + len) {
            None => self.map_from(0, slot, request.op, (offset, len)),
            Some((image, _)) => match image.map(slot, request.op, offset, len) {
                Mapping::Below { len } => self.map_from(1, slot, request.op, (offset, len)),
                mapping => (0, mapping),
            },
        }
    }

    /// The same from the image `first` on; each may be shorter than those above it.
    #[inline(never)]
    fn map_from(
        &mut self,
        first: usize,
        slot: usize,
        op: Op,
        (offset, mut len): (u64, u64),
    ) -> (usize, Mapping) {
        for (index, (image, size)) in self.images.iter_mut().enumerate().skip(first) {
            let inside = size.saturating_sub(offset);
            if inside == 0 {
                continue;
            }
            match image.map(slot, op, offset, len.min(inside)) {
                Mapping::Below { len: run } => len = run,
                mapping => return (index, mapping),
            }
        }
        (self.images.len() - 1, Mapping::Nowhere { len })
    }

    /// Pushes a flush of the leaf, for the request of this slot.
    #[inline(never)]
    pub fn flush(&mut self, slot: usize, tag: Tag, progress: &mut Progress, path: &mut Path<'_>) {
        let Some(file) = self.leaf().file() else { return };
        let io = Io { tag, op: IoOp::Flush, file, offset: 0, len: 0, segments: &[] };
        path.queue.push(path.memory, &io);
        progress.parts += 1;
        if self.has_metadata {
            progress.flush = FlushPart::UnderWay;
            self.metadata().flush_began(slot);
        }
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
            image.describe(out)?;
        }
        Ok(())
    }
}

/// Pushes I/O for the part of a request that starts at its byte `from`.
#[inline(never)]
fn push_part(request: &Request, from: u64, io: Io<'_>, path: &mut Path<'_>) {
    let part = part_of(request, from, io.len);
    path.queue.push(path.memory, &Io { segments: part.as_slice(), ..io });
}

/// The same, not durable when it has ended.
fn without_durability(op: IoOp) -> IoOp {
    let durable = false;
    match op {
        IoOp::Write { .. } => IoOp::Write { durable },
        IoOp::Trim { .. } => IoOp::Trim { durable },
        IoOp::WriteZeroes { may_punch, .. } => IoOp::WriteZeroes { may_punch, durable },
        IoOp::Read | IoOp::Flush | IoOp::Status => op,
    }
}

#[inline]
fn io_op(request: &Request) -> IoOp {
    match request.op {
        Op::Read => IoOp::Read,
        Op::Write => IoOp::Write { durable: request.fua },
        _ => rare_io_op(request),
    }
}

#[inline(never)]
fn rare_io_op(request: &Request) -> IoOp {
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
#[inline]
fn zero(request: &Request, from: u64, len: u64, memory: &mut Memory) {
    if len < request.len {
        return zero_part(request, from, len, memory);
    }
    for segment in request.segments.as_slice() {
        memory.zero(*segment);
    }
}

#[inline(never)]
fn zero_part(request: &Request, from: u64, len: u64, memory: &mut Memory) {
    for segment in part_of(request, from, len).as_slice() {
        memory.zero(*segment);
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
