//! The counters of one disk: written by its I/O thread, read by anybody.
//!
//! [`DiskCounters`] is the one writer and is not cloned; its methods take `&mut self`, so that two
//! writers cannot exist. [`CountersReader`] is the other end, for the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::histogram::{AtomicHistogram, Histogram};
use super::page::PageValues;
use crate::request::{Op, SECTOR_SIZE};

/// The most images of one chain that are counted apart.
///
/// 40: the storage manager's longest chain is 30, and the filters of a chain count as images.
pub const LAYERS_MAX: usize = 40;

/// The most doors of one disk: requests are counted by the door that they came through.
pub const DOORS_MAX: usize = 2;

const OPS: usize = 6;

/// What is told apart in the latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// [`Op::Read`].
    Read,
    /// [`Op::Write`].
    Write,
    /// [`Op::Flush`].
    Flush,
    /// Trim, write zeroes, block status: few, and nobody waits for them.
    Other,
}

impl OpClass {
    /// All, in the order of the reports.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Other];

    /// In the reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Other => "other",
        }
    }
}

impl From<Op> for OpClass {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write => Self::Write,
            Op::Flush => Self::Flush,
            Op::Trim | Op::WriteZeroes | Op::BlockStatus => Self::Other,
        }
    }
}

/// A number that one thread raises and others read.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    /// Not a read-modify-write: a locked instruction would buy what the single writer has anyway.
    fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct OpCounters {
    submitted: Counter,
    completed: Counter,
    bytes: Counter,
    ticks_us: Counter,
    errors: Counter,
}

#[derive(Debug, Default)]
struct ImageCounters {
    hits: [Counter; 2],
    fail: [Counter; 2],
}

#[derive(Debug)]
struct Shared {
    doors: [[OpCounters; OPS]; DOORS_MAX],
    retries: Counter,
    latency: [AtomicHistogram; 4],
    images: [ImageCounters; LAYERS_MAX],
}

/// The counters are in the order of the ops.
fn index_of(op: Op) -> usize {
    op as usize
}

/// Reads are the first and writes the second of each pair; other requests move no sectors.
fn direction(op: Op) -> Option<usize> {
    Some(index_of(op)).filter(|index| *index < 2)
}

const _: () = assert!(Op::Read as usize == 0 && Op::Write as usize == 1 && Op::Flush as usize == 2);
const _: () = assert!(Op::BlockStatus as usize == OPS - 1);

fn sectors(bytes: u64) -> u64 {
    bytes / u64::from(SECTOR_SIZE)
}

/// The counting end: one per disk, owned by its I/O thread.
#[derive(Debug)]
pub struct DiskCounters {
    shared: Arc<Shared>,
}

impl DiskCounters {
    /// All zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                doors: Default::default(),
                retries: Counter::default(),
                latency: std::array::from_fn(|_| AtomicHistogram::new()),
                images: std::array::from_fn(|_| ImageCounters::default()),
            }),
        }
    }

    /// The reading end.
    #[must_use]
    pub fn reader(&self) -> CountersReader {
        CountersReader { shared: Arc::clone(&self.shared) }
    }

    /// A request of `bytes` bytes was taken from a door, one below [`DOORS_MAX`].
    #[inline]
    pub fn submitted(&mut self, door: u8, op: Op, bytes: u64) {
        let counters = &self.shared.doors[usize::from(door)][index_of(op)];
        counters.submitted.add(1);
        counters.bytes.add(bytes);
    }

    /// A request was answered, so many microseconds after it was taken; not `ok`: with an error.
    ///
    /// # Panics
    /// When none was outstanding.
    #[inline]
    pub fn completed(&mut self, door: u8, op: Op, ok: bool, elapsed_us: u64) {
        let counters = &self.shared.doors[usize::from(door)][index_of(op)];
        let completed = counters.completed.get() + 1;
        assert!(completed <= counters.submitted.get(), "only what was taken is answered");
        counters.completed.set(completed);
        counters.ticks_us.add(elapsed_us);
        if !ok {
            counters.errors.add(1);
        }
        self.shared.latency[OpClass::from(op) as usize].record(elapsed_us);
    }

    /// A request, or a part of one, is tried again.
    pub fn retried(&mut self) {
        self.shared.retries.add(1);
    }

    /// The image at `layer` (0 is the leaf) served `bytes` bytes of a read or write. Other ops, and
    /// layers from [`LAYERS_MAX`] on, are not counted.
    #[inline]
    pub fn image_hit(&mut self, layer: usize, op: Op, bytes: u64) {
        if let (Some(image), Some(direction)) = (self.shared.images.get(layer), direction(op)) {
            image.hits[direction].add(sectors(bytes));
        }
    }

    /// The image at `layer` failed `bytes` bytes of a read or write.
    pub fn image_failed(&mut self, layer: usize, op: Op, bytes: u64) {
        if let (Some(image), Some(direction)) = (self.shared.images.get(layer), direction(op)) {
            image.fail[direction].add(sectors(bytes));
        }
    }

    /// The chain was opened anew: its images start at zero.
    pub fn reset_images(&mut self) {
        for image in &self.shared.images {
            for counter in image.hits.iter().chain(&image.fail) {
                counter.set(0);
            }
        }
    }

    /// What the page of a door in `/dev/shm` shows: cheap enough for every turn of the loop. That
    /// of the disk shows the sum.
    #[must_use]
    pub fn page_values(&self, door: u8) -> PageValues {
        let ops = &self.shared.doors[usize::from(door)];
        let [read, write] = [&ops[0], &ops[1]];
        PageValues {
            outstanding: outstanding(ops),
            read_submitted: read.submitted.get(),
            read_completed: read.completed.get(),
            read_sectors: sectors(read.bytes.get()),
            read_ticks_us: read.ticks_us.get(),
            write_submitted: write.submitted.get(),
            write_completed: write.completed.get(),
            write_sectors: sectors(write.bytes.get()),
            write_ticks_us: write.ticks_us.get(),
            io_errors: io_errors(ops),
            flags: 0,
        }
    }
}

impl Default for DiskCounters {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn io_errors(&self) -> u64 {
        self.sum(io_errors)
    }

    /// Of all doors.
    fn sum(&self, count: impl Fn(&[OpCounters; OPS]) -> u64) -> u64 {
        self.doors.iter().map(count).fold(0, u64::wrapping_add)
    }
}

/// Answered with an error.
fn io_errors(ops: &[OpCounters; OPS]) -> u64 {
    ops.iter().map(|op| op.errors.get()).fold(0, u64::wrapping_add)
}

/// Taken and not answered. Another thread may see the one before the other.
fn outstanding(ops: &[OpCounters; OPS]) -> u64 {
    let count = |op: &OpCounters| {
        let completed = op.completed.get();
        op.submitted.get().saturating_sub(completed)
    };
    ops.iter().map(count).fold(0, u64::wrapping_add)
}

/// The reading end: may be cloned and sent to any thread.
#[derive(Clone, Debug)]
pub struct CountersReader {
    shared: Arc<Shared>,
}

impl CountersReader {
    /// All counters but those of the images, now.
    #[must_use]
    pub fn load(&self) -> DiskStats {
        let op = |op| {
            let sum =
                |count: fn(&OpCounters) -> u64| self.shared.sum(|ops| count(&ops[index_of(op)]));
            OpStats {
                submitted: sum(|op| op.submitted.get()),
                completed: sum(|op| op.completed.get()),
                bytes: sum(|op| op.bytes.get()),
                ticks_us: sum(|op| op.ticks_us.get()),
                errors: sum(|op| op.errors.get()),
            }
        };
        DiskStats {
            read: op(Op::Read),
            write: op(Op::Write),
            flush: op(Op::Flush),
            trim: op(Op::Trim),
            write_zeroes: op(Op::WriteZeroes),
            block_status: op(Op::BlockStatus),
            outstanding: self.shared.sum(outstanding),
            retries: self.shared.retries.get(),
            io_errors: self.shared.io_errors(),
            latency: std::array::from_fn(|class| self.shared.latency[class].load()),
        }
    }

    /// The counters of the image at `layer` (0 is the leaf); zeros from [`LAYERS_MAX`] on.
    #[must_use]
    pub fn image(&self, layer: usize) -> ImageStats {
        self.shared.images.get(layer).map_or_else(ImageStats::default, |image| ImageStats {
            hits: [image.hits[0].get(), image.hits[1].get()],
            fail: [image.fail[0].get(), image.fail[1].get()],
        })
    }
}

/// The counters of one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Requests taken from the doors.
    pub submitted: u64,
    /// Requests answered, well or not.
    pub completed: u64,
    /// Bytes of the requests taken.
    pub bytes: u64,
    /// The sum of the times from taken to answered, in microseconds.
    pub ticks_us: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

/// The counters of one disk, as plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Reads.
    pub read: OpStats,
    /// Writes.
    pub write: OpStats,
    /// Flushes.
    pub flush: OpStats,
    /// Trims.
    pub trim: OpStats,
    /// Writes of zeros without data.
    pub write_zeroes: OpStats,
    /// Questions for what is stored.
    pub block_status: OpStats,
    /// Requests taken and not yet answered.
    pub outstanding: u64,
    /// How often something was tried again.
    pub retries: u64,
    /// Requests of all kinds answered with an error.
    pub io_errors: u64,
    /// From taken to answered, in the order of [`OpClass::ALL`].
    pub latency: [Histogram; 4],
}

impl DiskStats {
    /// Sectors of 512 bytes that were asked for: read, written.
    #[must_use]
    pub fn sectors(&self) -> [u64; 2] {
        [sectors(self.read.bytes), sectors(self.write.bytes)]
    }
}

/// The counters of one image, in sectors of 512 bytes: read, written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageStats {
    /// Served by this image.
    pub hits: [u64; 2],
    /// Failed in this image.
    pub fail: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In microseconds.
    const MILLISECOND: u64 = 1000;

    #[test]
    fn a_request_is_outstanding_until_it_is_answered() {
        let mut counters = DiskCounters::new();
        counters.submitted(0, Op::Read, 4096);
        counters.submitted(0, Op::Write, 512);
        assert_eq!(counters.reader().load().outstanding, 2);
        counters.completed(0, Op::Write, false, MILLISECOND);
        let stats = counters.reader().load();
        assert_eq!(stats.outstanding, 1);
        assert_eq!((stats.write.completed, stats.write.errors, stats.io_errors), (1, 1, 1));
        assert_eq!(stats.write.ticks_us, 1000);
        assert_eq!(stats.sectors(), [8, 1]);
        assert_eq!(stats.latency[OpClass::Write as usize].count(), 1);
        assert_eq!(stats.latency[OpClass::Read as usize].count(), 0);
    }

    #[test]
    #[should_panic(expected = "only what was taken is answered")]
    fn asserts_on_an_answer_without_a_request() {
        DiskCounters::new().completed(0, Op::Read, true, MILLISECOND);
    }

    #[test]
    fn every_op_is_counted_by_itself() {
        let ops = [Op::Read, Op::Write, Op::Flush, Op::Trim, Op::WriteZeroes, Op::BlockStatus];
        for op in ops {
            let mut counters = DiskCounters::new();
            counters.submitted(0, op, 512);
            let stats = counters.reader().load();
            let submitted = [
                stats.read.submitted,
                stats.write.submitted,
                stats.flush.submitted,
                stats.trim.submitted,
                stats.write_zeroes.submitted,
                stats.block_status.submitted,
            ];
            assert_eq!(submitted, ops.map(|other| u64::from(other == op)));
        }
    }

    #[test]
    fn an_image_past_the_table_is_not_counted_and_reads_as_zero() {
        let mut counters = DiskCounters::new();
        counters.image_hit(LAYERS_MAX - 1, Op::Read, 1024);
        counters.image_failed(LAYERS_MAX - 1, Op::Write, 512);
        counters.image_hit(LAYERS_MAX, Op::Read, 1024);
        counters.image_hit(0, Op::Trim, 1024);
        let reader = counters.reader();
        assert_eq!(reader.image(LAYERS_MAX - 1), ImageStats { hits: [2, 0], fail: [0, 1] });
        assert_eq!(reader.image(LAYERS_MAX), ImageStats::default());
        assert_eq!(reader.image(0), ImageStats::default());
        counters.reset_images();
        assert_eq!(reader.image(LAYERS_MAX - 1), ImageStats::default());
    }

    #[test]
    fn another_thread_reads_what_was_counted() {
        let mut counters = DiskCounters::new();
        let reader = counters.reader();
        counters.submitted(0, Op::Flush, 0);
        counters.retried();
        let stats = std::thread::spawn(move || reader.load()).join().unwrap();
        assert_eq!((stats.flush.submitted, stats.retries), (1, 1));
    }

    #[test]
    fn the_page_shows_reads_and_writes_and_all_errors() {
        let mut counters = DiskCounters::new();
        counters.submitted(0, Op::Read, 1024);
        counters.submitted(0, Op::Trim, 1 << 20);
        counters.completed(0, Op::Trim, false, MILLISECOND);
        let page = counters.page_values(0);
        assert_eq!((page.read_submitted, page.read_sectors, page.outstanding), (1, 2, 1));
        assert_eq!((page.write_sectors, page.io_errors), (0, 1));
    }

    #[test]
    fn a_door_shows_what_came_through_it_and_the_disk_the_sum() {
        let mut counters = DiskCounters::new();
        counters.submitted(0, Op::Read, 1024);
        counters.submitted(1, Op::Read, 512);
        counters.submitted(1, Op::Flush, 0);
        counters.completed(1, Op::Flush, false, MILLISECOND);
        let [ring, nbd] = [0, 1].map(|door| counters.page_values(door));
        assert_eq!((ring.read_sectors, ring.outstanding, ring.io_errors), (2, 1, 0));
        assert_eq!((nbd.read_sectors, nbd.outstanding, nbd.io_errors), (1, 1, 1));
        let sum = ring.plus(&nbd);
        assert_eq!((sum.read_submitted, sum.read_sectors, sum.outstanding), (2, 3, 2));
        let stats = counters.reader().load();
        assert_eq!((stats.read.submitted, stats.outstanding, stats.io_errors), (2, 2, 1));
    }
}
