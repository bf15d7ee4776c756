//! The law of the queue: on every engine the same requests give the same results and the same file
//! contents as a naive array of bytes.
//!
//! Concurrent I/Os never overlap here: what overlapping ones do is undefined on any disk.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tapdisk::memory::{Memory, Segment};
use tapdisk::queue::{Completion, EngineKind, FileId, Io, IoOp, Queue, QueueConfig, Tag};
use tapdisk::request::{Extent, ExtentKind};
use tapdisk::status::Status;

const FILE_SIZE: u64 = 64 << 10;
const ENGINES: [EngineKind; 4] =
    [EngineKind::Aio, EngineKind::Uring, EngineKind::Sync, EngineKind::Sim];

/// One I/O of a batch: what, how far behind the one before, how long, in how many pieces.
#[derive(Clone, Debug)]
struct Step {
    op: IoOp,
    gap: u64,
    len: u32,
    pieces: u32,
    /// Pushed before its predecessor.
    swapped: bool,
}

#[derive(Clone, Debug)]
struct Setup {
    capacity: usize,
    engine_depth: usize,
    merge_iovecs: usize,
    lone: bool,
    seed: u64,
}

fn ops() -> impl Strategy<Value = IoOp> {
    prop_oneof![
        8 => Just(IoOp::Read),
        8 => Just(IoOp::Write { durable: false }),
        3 => Just(IoOp::Write { durable: true }),
        1 => Just(IoOp::Flush),
        1 => any::<bool>().prop_map(|durable| IoOp::Trim { durable }),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(may_punch, durable)| IoOp::WriteZeroes { may_punch, durable }),
        1 => Just(IoOp::Status),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![5 => Just(0), 1 => 1..5000_u64];
    let len = prop_oneof![Just(512), Just(4096), 1..9000_u32];
    (ops(), gap, len, 1..=11_u32, proptest::bool::weighted(0.1))
        .prop_map(|(op, gap, len, pieces, swapped)| Step { op, gap, len, pieces, swapped })
}

fn setups() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![Just(1), Just(5), Just(64)],
        prop_oneof![Just(1), Just(2), Just(256)],
        prop_oneof![Just(1), Just(8), Just(64)],
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(capacity, engine_depth, merge_iovecs, lone, seed)| Setup {
            capacity,
            engine_depth,
            merge_iovecs,
            lone,
            seed,
        })
}

/// An I/O of a batch with its place and memory.
struct Placed {
    op: IoOp,
    offset: u64,
    len: u64,
    segments: Vec<Segment>,
    /// What is written.
    bytes: Vec<u8>,
}

struct Rig {
    queue: Queue,
    memory: Memory,
    file: Arc<File>,
    id: FileId,
    lone: bool,
    path: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Rig {
    /// `None`, with the reason on stderr, when this machine does not have the engine.
    fn new(kind: EngineKind, setup: &Setup) -> Option<Self> {
        let config = QueueConfig {
            capacity: setup.capacity,
            engine_depth: setup.engine_depth,
            merge_iovecs: setup.merge_iovecs,
            ..QueueConfig::default()
        };
        let mut queue = match kind {
            EngineKind::Sim => Queue::simulated(setup.seed, config),
            _ => match Queue::new(kind, config) {
                Ok(queue) => queue,
                Err(error) if kind == EngineKind::Uring => {
                    eprintln!("skipped: {error}");
                    return None;
                }
                Err(error) => panic!("{kind}: {error}"),
            },
        };
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("queue-law-{}-{number}", std::process::id());
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all_at(&initial(), 0).unwrap();
        let file = Arc::new(file);
        let id = queue.add_file(Arc::clone(&file)).unwrap();
        let memory = Memory::new(1 << 20).unwrap();
        Some(Self { queue, memory, file, id, lone: setup.lone, path })
    }

    fn contents(&mut self) -> Vec<u8> {
        if let Some(sim) = self.queue.sim() {
            return sim.contents(self.id).to_vec();
        }
        let mut bytes = vec![0; usize::try_from(self.file.metadata().unwrap().len()).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn place(&mut self, steps: &[Step], round: u8) -> Vec<Placed> {
        let mut placed: Vec<Placed> = Vec::new();
        let mut end = 0;
        for (number, step) in steps.iter().enumerate() {
            let (offset, len) = (end + step.gap, u64::from(step.len));
            if offset + len > FILE_SIZE {
                break;
            }
            let segments = if step.op.has_data() { self.cut(step) } else { Vec::new() };
            let fill = round.wrapping_mul(31).wrapping_add(u8::try_from(number % 251).unwrap());
            let bytes: Vec<u8> =
                (0..step.len).map(|at| fill.wrapping_add((at % 7) as u8)).collect();
            let (op, len) = if step.op == IoOp::Flush { (step.op, 0) } else { (step.op, len) };
            placed.push(Placed { op, offset, len, segments, bytes });
            end = offset + len;
            if step.swapped && number > 0 {
                placed.swap(number, number - 1);
            }
        }
        for one in &placed {
            let mut rest = &one.bytes[..];
            for segment in &one.segments {
                let (part, after) = rest.split_at(segment.len as usize);
                match one.op {
                    IoOp::Write { .. } => self.memory.copy_in(*segment, part),
                    _ => self.memory.zero(*segment),
                }
                rest = after;
            }
        }
        placed
    }

    /// Memory for a step, in pieces with holes between them.
    fn cut(&mut self, step: &Step) -> Vec<Segment> {
        let pieces = step.pieces.min(step.len);
        let all = self.memory.allocate(step.len + pieces * 16).unwrap();
        let mut segments = Vec::new();
        let mut at = 0;
        for piece in 0..pieces {
            let len = step.len / pieces + u32::from(piece < step.len % pieces);
            segments.push(all.part(at, len));
            at += len + 16;
        }
        segments
    }

    fn free(&mut self, placed: &[Placed]) {
        for first in placed.iter().filter_map(|one| one.segments.first()) {
            self.memory.free(*first);
        }
    }

    /// Runs the batch to its end; the completions in the order of the batch.
    fn run(&mut self, placed: &[Placed]) -> Vec<Completion> {
        let mut ends: Vec<Option<Completion>> = vec![None; placed.len()];
        let mut pushed = 0;
        let mut ended = 0;
        // Each turn moves something or waits for it; far more turns than any batch needs.
        for _ in 0..100_000 {
            while pushed < placed.len() && self.queue.has_room() {
                let one = &placed[pushed];
                let io = Io {
                    tag: Tag(pushed as u64),
                    op: one.op,
                    file: self.id,
                    offset: one.offset,
                    len: one.len,
                    segments: &one.segments,
                };
                self.queue.push(&self.memory, &io);
                pushed += 1;
            }
            self.queue.submit(self.lone);
            if let Some(sim) = self.queue.sim() {
                sim.step();
            } else if !self.queue.is_ready() {
                self.queue.wait_batch(1, Duration::from_secs(10));
            }
            ended += self.queue.reap(|completion| {
                let end = &mut ends[usize::try_from(completion.tag.0).unwrap()];
                assert!(end.replace(completion).is_none(), "{completion:?} twice");
            });
            if ended == placed.len() {
                assert!(self.queue.is_idle() && !self.queue.is_ready());
                assert_eq!(self.queue.in_flight(), 0);
                return ends.into_iter().flatten().collect();
            }
        }
        panic!("{ended} of {} ended: {:?}", placed.len(), self.queue);
    }

    /// The bytes in the memory of a read.
    fn found(&self, one: &Placed) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in &one.segments {
            let start = bytes.len();
            bytes.resize(start + segment.len as usize, 0);
            self.memory.copy_out(*segment, &mut bytes[start..]);
        }
        bytes
    }
}

fn initial() -> Vec<u8> {
    // Data, then a hole's worth of zeros, then data.
    let byte = |at: u64| {
        if (16_384..32_768).contains(&at) { 0 } else { (at % 253) as u8 }
    };
    (0..FILE_SIZE).map(byte).collect()
}

fn range(one: &Placed) -> std::ops::Range<usize> {
    let start = usize::try_from(one.offset).unwrap();
    start..start + usize::try_from(one.len).unwrap()
}

/// Compares an end with the oracle and moves the oracle on.
fn check(rig: &Rig, one: &Placed, end: &Completion, oracle: &mut [u8], now: &[u8]) {
    assert_eq!(end.extent.is_some(), one.op == IoOp::Status && end.status == Status::Done);
    let before = &mut oracle[range(one)];
    match one.op {
        IoOp::Read => {
            assert_eq!(end.status, Status::Done);
            assert!(rig.found(one) == before, "read of {:?}", range(one));
        }
        IoOp::Write { .. } => {
            assert_eq!(end.status, Status::Done);
            before.copy_from_slice(&one.bytes);
        }
        IoOp::Flush => assert_eq!(end.status, Status::Done),
        IoOp::Trim { .. } => {
            assert_eq!(end.status, Status::Done);
            let after = &now[range(one)];
            let kept = after.iter().zip(before.iter()).all(|(now, old)| now == old || *now == 0);
            assert!(kept, "a trim left something else than zeros or old bytes");
            before.copy_from_slice(after);
        }
        IoOp::WriteZeroes { .. } => {
            assert_eq!(end.status, Status::Done);
            before.fill(0);
        }
        IoOp::Status => {
            let Some(Extent { len, kind }) = end.extent else { panic!("{end:?}") };
            assert!((1..=one.len).contains(&len), "{end:?}");
            let zeros = before[..usize::try_from(len).unwrap()].iter().all(|byte| *byte == 0);
            assert!(kind == ExtentKind::Data || zeros, "{kind:?} over data");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_engine_does_what_an_array_of_bytes_does(
        setup in setups(),
        batches in proptest::collection::vec(proptest::collection::vec(steps(), 1..24), 1..6),
    ) {
        for kind in ENGINES {
            let Some(mut rig) = Rig::new(kind, &setup) else { continue };
            let mut oracle = initial();
            for (round, batch) in batches.iter().enumerate() {
                let placed = rig.place(batch, u8::try_from(round).unwrap());
                let ends = rig.run(&placed);
                let now = rig.contents();
                for (one, end) in placed.iter().zip(&ends) {
                    check(&rig, one, end, &mut oracle, &now);
                }
                prop_assert!(now == oracle, "{kind}: contents after round {round}");
                rig.free(&placed);
            }
        }
    }
}
