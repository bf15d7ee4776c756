//! How many neighbours the queue should merge: sequential requests with different bounds, on a file
//! with direct I/O. docs/queue.md has figures and what follows from them.
//!
//!     cargo run --release -p tapdisk-benches --bin merge_bound -- FILE [MEBIBYTES] [ROUNDS]
//!
//! FILE is created (and removed afterwards). Each line is the median of the rounds, with minimum
//! and maximum of the rate; rounds alternate between the bounds, so that a slow minute hits all of
//! them. 1* is the bound 1 once more: what differs between the two is noise.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tapdisk::memory::{Memory, PAGE_SIZE, Segment};
use tapdisk::queue::{EngineKind, FileId, Io, IoOp, MERGE_BYTES_MAX, Queue, QueueConfig, Tag};
use tapdisk::status::Status;

const BOUNDS: [(&str, usize); 7] =
    [("1", 1), ("8", 8), ("16", 16), ("32", 32), ("64", 64), ("128", 128), ("1*", 1)];
const SIZES: [u32; 3] = [4096, 16_384, 45_056];
/// Requests in flight: the slots of a ring.
const DEPTH: usize = 32;

struct Sample {
    mebibytes_per_second: f64,
    cpu_microseconds_per_mebibyte: f64,
    system_calls_per_request: f64,
}

struct Bench {
    file: Arc<File>,
    bytes: u64,
    kind: EngineKind,
}

impl Bench {
    fn run(&self, op: IoOp, size: u32, bound: usize) -> io::Result<Sample> {
        let config =
            QueueConfig { merge_iovecs: bound, merge_bytes: MERGE_BYTES_MAX, ..Default::default() };
        let mut queue = Queue::new(self.kind, config)?;
        let id = queue.add_file(Arc::clone(&self.file)).expect("the first file");
        let mut memory = Memory::new(4 << 20)?;
        // A segment per page and a page between two: a guest's pages mostly do not go on in memory.
        let mut cut = || {
            let all = memory.allocate(size * 2).expect("4 MiB are enough");
            (0..size / PAGE_SIZE).map(|page| all.part(page * 2 * PAGE_SIZE, PAGE_SIZE)).collect()
        };
        let buffers: Vec<Vec<Segment>> = (0..DEPTH).map(|_| cut()).collect();
        let (start, cpu) = (Instant::now(), cpu_time()?);
        let requests = turn_until_done(&mut queue, &memory, id, &buffers, op, self.bytes);
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_time()?.saturating_sub(cpu).as_secs_f64();
        let mebibytes = self.bytes as f64 / f64::from(1 << 20);
        Ok(Sample {
            mebibytes_per_second: mebibytes / seconds,
            cpu_microseconds_per_mebibyte: cpu * 1e6 / mebibytes,
            system_calls_per_request: queue.stats().system_calls as f64 / requests as f64,
        })
    }
}

/// Keeps all buffers in flight over the file, from its start to its end.
fn turn_until_done(
    queue: &mut Queue,
    memory: &Memory,
    file: FileId,
    buffers: &[Vec<Segment>],
    op: IoOp,
    bytes: u64,
) -> u64 {
    let size = buffers[0].len() as u64 * u64::from(PAGE_SIZE);
    let wanted = bytes / size;
    let mut free: Vec<usize> = (0..buffers.len()).rev().collect();
    let (mut pushed, mut ended) = (0, 0);
    while ended < wanted {
        while pushed < wanted
            && let Some(index) = free.pop()
        {
            let segments = &buffers[index];
            let offset = pushed * size;
            let tag = Tag(index as u64);
            queue.push(memory, &Io { tag, op, file, offset, len: size, segments });
            pushed += 1;
        }
        queue.submit(false);
        if !queue.is_ready() {
            queue.wait_batch(1, Duration::from_secs(60));
        }
        ended += queue.reap(|end| {
            assert_eq!(end.status, Status::Done);
            free.push(usize::try_from(end.tag.0).expect("an index"));
        }) as u64;
    }
    wanted
}

/// What this thread has used of a processor.
fn cpu_time() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    let first = first.ok_or_else(|| io::Error::other("schedstat starts with a number"))?;
    Ok(Duration::from_nanos(first))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(text: Option<String>, default: u64) -> io::Result<u64> {
    text.map_or(Ok(default), |text| text.parse().map_err(io::Error::other))
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or_else(|| io::Error::other("Usage: merge_bound FILE ..."))?;
    let bytes = number(arguments.next(), 256)? << 20;
    let rounds = number(arguments.next(), 5)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let file = Arc::new(options.open(&path)?);
    let result = measure(&file, bytes, rounds);
    std::fs::remove_file(&path)?;
    result
}

fn measure(file: &Arc<File>, bytes: u64, rounds: u64) -> io::Result<()> {
    for kind in [EngineKind::Aio, EngineKind::Uring] {
        let bench = Bench { file: Arc::clone(file), bytes, kind };
        // Allocates the blocks, so that later writes find them.
        bench.run(IoOp::Write { durable: false }, 45_056, 64)?;
        bench.run(IoOp::Write { durable: false }, 4096, 64)?;
        println!("{kind}: op, request, bound: MiB/s (min..max), CPU us/MiB, calls/request");
        for (name, op) in [("read", IoOp::Read), ("write", IoOp::Write { durable: false })] {
            for size in SIZES {
                let mut samples: Vec<Vec<Sample>> = BOUNDS.iter().map(|_| Vec::new()).collect();
                for _ in 0..rounds {
                    for (at, (_, bound)) in BOUNDS.iter().enumerate() {
                        samples[at].push(bench.run(op, size, *bound)?);
                    }
                }
                for ((bound, _), samples) in BOUNDS.iter().zip(&samples) {
                    print_line(name, size, bound, samples);
                }
            }
        }
    }
    Ok(())
}

fn print_line(name: &str, size: u32, bound: &str, samples: &[Sample]) {
    let rates: Vec<f64> = samples.iter().map(|sample| sample.mebibytes_per_second).collect();
    let (low, high) = rates
        .iter()
        .fold((f64::MAX, 0.0_f64), |(low, high), rate| (low.min(*rate), high.max(*rate)));
    let cpu = median(samples.iter().map(|one| one.cpu_microseconds_per_mebibyte).collect());
    let calls = median(samples.iter().map(|one| one.system_calls_per_request).collect());
    let rate = median(rates);
    println!(
        "{name:5} {size:6} {bound:>4}: {rate:6.0} ({low:.0}..{high:.0}), {cpu:5.0}, {calls:.3}"
    );
}
