//! Every I/O fails once, in every way: on the simulated engine a fault is laid on each number in
//! turn, and whatever happens, `Done` is true, a failed part spoils no neighbour, and nothing is
//! lost.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use tapdisk::memory::{Memory, Segment};
use tapdisk::queue::sim::Fault;
use tapdisk::queue::{FileId, Io, IoOp, Queue, QueueConfig, Tag};
use tapdisk::status::Status;

const WRITE: IoOp = IoOp::Write { durable: false };
const DURABLE: IoOp = IoOp::Write { durable: true };
const FILE_SIZE: usize = 32 << 10;

struct Rig {
    queue: Queue,
    memory: Memory,
    file: FileId,
    /// What was pushed, by tag.
    ios: Vec<Pushed>,
    ends: Vec<Option<Status>>,
    /// Tags in the order in which they ended.
    order: Vec<usize>,
}

struct Pushed {
    op: IoOp,
    offset: usize,
    segments: Vec<Segment>,
    bytes: Vec<u8>,
}

fn initial() -> Vec<u8> {
    (0..=250).cycle().take(FILE_SIZE).collect()
}

/// An unlinked file with the initial contents.
fn file() -> Arc<File> {
    let dir = env!("CARGO_TARGET_TMPDIR");
    let flags = nix::fcntl::OFlag::O_TMPFILE | nix::fcntl::OFlag::O_RDWR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let file = File::from(nix::fcntl::open(dir, flags, mode).unwrap());
    file.write_all_at(&initial(), 0).unwrap();
    Arc::new(file)
}

impl Rig {
    fn new(depth: usize, merge_iovecs: usize) -> Self {
        let config = QueueConfig {
            capacity: 64,
            engine_depth: depth,
            merge_iovecs,
            ..QueueConfig::default()
        };
        let mut queue = Queue::simulated(1, config);
        let file = queue.add_file(file()).unwrap();
        let memory = Memory::new(1 << 20).unwrap();
        Self { queue, memory, file, ios: Vec::new(), ends: Vec::new(), order: Vec::new() }
    }

    /// Pushes an I/O in pieces of the given lengths; what it writes is unlike anything else there.
    fn push(&mut self, op: IoOp, offset: usize, pieces: &[u32]) {
        let len: u32 = pieces.iter().sum();
        let mut segments = Vec::new();
        let mut bytes = Vec::new();
        for len in pieces {
            let segment = self.memory.allocate(*len).unwrap();
            let number = u8::try_from(self.ios.len()).unwrap();
            let fill: Vec<u8> = (0..*len).map(|at| (at % 239) as u8 ^ (0x80 | number)).collect();
            if op != IoOp::Read {
                self.memory.copy_in(segment, &fill);
            }
            bytes.extend(fill);
            segments.push(segment);
        }
        let io = Io {
            tag: Tag(self.ios.len() as u64),
            op,
            file: self.file,
            offset: offset as u64,
            len: u64::from(len),
            segments: &segments,
        };
        self.queue.push(&self.memory, &io);
        self.ios.push(Pushed { op, offset, segments, bytes });
        self.ends.push(None);
    }

    /// Pushes an I/O without data.
    fn push_range(&mut self, op: IoOp, offset: u64, len: u64) {
        let tag = Tag(self.ios.len() as u64);
        let io = Io { tag, op, file: self.file, offset, len, segments: &[] };
        self.queue.push(&self.memory, &io);
        self.ios.push(Pushed { op, offset: 0, segments: Vec::new(), bytes: Vec::new() });
        self.ends.push(None);
    }

    fn reap(&mut self) {
        self.queue.reap(|end| {
            let tag = usize::try_from(end.tag.0).unwrap();
            assert!(self.ends[tag].replace(end.status).is_none(), "{tag} ended twice");
            self.order.push(tag);
        });
    }

    /// Turns until nothing moves any more.
    fn run(&mut self, lone: bool) {
        for _ in 0..10_000 {
            self.queue.submit(lone);
            let moved = self.queue.sim().unwrap().step();
            self.reap();
            if !moved && !self.queue.is_ready() {
                return;
            }
        }
        panic!("still moving: {:?}", self.queue);
    }

    fn failed(&self) -> Vec<(usize, Errno)> {
        let ends = self.ends.iter().enumerate();
        ends.filter_map(|(tag, end)| Some((tag, end.unwrap().errno()?))).collect()
    }

    fn found(&self, one: &Pushed) -> Vec<u8> {
        let mut bytes = vec![0; one.bytes.len()];
        let mut rest = &mut bytes[..];
        for segment in &one.segments {
            let (part, after) = rest.split_at_mut(segment.len as usize);
            self.memory.copy_out(*segment, part);
            rest = after;
        }
        bytes
    }

    /// What is done is right; what failed holds old or new bytes; the rest is as it was.
    fn check(&mut self, context: &str) {
        let mut rest = initial();
        let now = self.queue.sim().unwrap().contents(self.file).to_vec();
        let durable = self.queue.sim().unwrap().durable(self.file);
        for (one, end) in self.ios.iter().zip(&self.ends) {
            let range = one.offset..one.offset + one.bytes.len();
            let old = rest[range.clone()].to_vec();
            let new = &now[range.clone()];
            match (one.op, end.unwrap_or_else(|| panic!("{context}: an I/O did not end"))) {
                (IoOp::Read, Status::Done) => {
                    assert!(self.found(one) == old, "{context}: read at {}", one.offset);
                }
                (IoOp::Write { durable: flag }, Status::Done) => {
                    assert!(new == one.bytes, "{context}: write at {}", one.offset);
                    let kept = !flag || durable[range.clone()] == one.bytes;
                    assert!(kept, "{context}: not durable at {}", one.offset);
                }
                (IoOp::Write { .. }, Status::Failed(_)) => {
                    let mut bytes = new.iter().zip(old.iter().zip(&one.bytes));
                    let whole = bytes.all(|(now, (old, new))| now == old || now == new);
                    assert!(whole, "{context}: foreign bytes at {}", one.offset);
                }
                _ => {}
            }
            rest[range.clone()].copy_from_slice(new);
        }
        assert!(rest == now, "{context}: bytes changed that nobody wrote");
        assert!(self.queue.is_idle(), "{context}: {:?}", self.queue);
    }
}

/// Neighbours to merge, loners, pieces, every op with data; none overlaps another.
fn workload(rig: &mut Rig) {
    for at in 0..4 {
        rig.push(WRITE, at * 1024, &[1024]);
    }
    for at in 0..3 {
        rig.push(IoOp::Read, 8192 + at * 1536, &[512, 1000, 24]);
    }
    rig.push(DURABLE, 16_384, &[100, 412]);
    rig.push(DURABLE, 16_896, &[512]);
    rig.push(WRITE, 30_000, &[1, 2, 3]);
    rig.push(IoOp::Read, 20_000, &[4096]);
}

fn faults() -> Vec<Fault> {
    let mut faults = vec![Fault::Stuck];
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::EAGAIN, Errno::EINVAL, Errno::EOPNOTSUPP] {
        faults.extend([Fault::Error(errno), Fault::Torn(700, errno), Fault::Refused(errno)]);
    }
    faults.extend([0, 1, 511, 512, 1024, 1536, 1537, 3072].map(Fault::Short));
    faults
}

#[test]
fn a_fault_at_any_number_is_told_to_its_own_io_alone() {
    for merge_iovecs in [1, 64] {
        for depth in [1, 3, 64] {
            for lone in [false, true] {
                for number in 0..11 {
                    for fault in faults() {
                        let mut rig = Rig::new(depth, merge_iovecs);
                        let context = format!(
                            "merge {merge_iovecs}, depth {depth}, lone {lone}, {fault:?} at {number}"
                        );
                        workload(&mut rig);
                        rig.queue.sim().unwrap().inject(number, fault);
                        rig.run(lone);
                        rig.queue.sim().unwrap().release();
                        rig.run(lone);
                        rig.check(&context);
                        expect(&rig, merge_iovecs, depth, number, fault, &context);
                    }
                }
            }
        }
    }
}

/// Which errors there must be, where that is simple to say.
fn expect(rig: &Rig, merge: usize, depth: usize, number: u64, fault: Fault, context: &str) {
    let failed = rig.failed();
    let number = usize::try_from(number).unwrap();
    match fault {
        Fault::Stuck | Fault::Idle => assert!(failed.is_empty(), "{context}: {failed:?}"),
        Fault::Short(1..) => assert!(failed.is_empty(), "{context}: {failed:?}"),
        // With nothing in flight nobody makes room: all of that submit fail.
        Fault::Refused(Errno::EAGAIN) if number == 0 || depth == 1 => {
            let again = failed.iter().all(|(_, errno)| *errno == Errno::EAGAIN);
            assert!(again && !failed.is_empty() || merge > 1, "{context}: {failed:?}");
        }
        Fault::Refused(Errno::EAGAIN) => assert!(failed.is_empty(), "{context}: {failed:?}"),
        _ if merge > 1 => assert!(failed.len() <= 1, "{context}: {failed:?}"),
        // Without merging the number is the tag; a durable write tries the other way first.
        Fault::Error(errno)
        | Fault::Torn(_, errno)
        | Fault::Partly(_, errno)
        | Fault::Refused(errno) => {
            let unknown = matches!(errno, Errno::EINVAL | Errno::EOPNOTSUPP);
            if rig.ios[number].op == DURABLE && unknown {
                assert!(failed.is_empty(), "{context}: {failed:?}");
            } else {
                assert_eq!(failed, [(number, errno)], "{context}");
            }
        }
        Fault::Short(0) => {
            let is_read = rig.ios[number].op == IoOp::Read;
            let errno = if is_read { Errno::ENODATA } else { Errno::EIO };
            assert_eq!(failed, [(number, errno)], "{context}");
        }
    }
}

#[test]
fn a_short_result_is_continued_from_every_byte() {
    for op in [IoOp::Read, WRITE, DURABLE] {
        for short in 1..1100 {
            let mut rig = Rig::new(8, 1);
            rig.push(op, 777, &[1, 300, 512, 287]);
            rig.queue.sim().unwrap().inject(0, Fault::Short(short));
            // The continuation stops once more, a byte later.
            rig.queue.sim().unwrap().inject(1, Fault::Short(1));
            rig.run(short % 2 == 0);
            assert_eq!(rig.failed(), []);
            rig.check(&format!("{op:?} short at {short}"));
        }
    }
}

#[test]
fn a_merge_that_is_short_at_any_byte_is_undone_and_finished() {
    for op in [IoOp::Read, WRITE, DURABLE] {
        for short in 0..1100 {
            let mut rig = Rig::new(8, 64);
            rig.push(op, 512, &[200, 100]);
            rig.push(op, 812, &[1]);
            rig.push(op, 813, &[400, 399]);
            rig.queue.sim().unwrap().inject(0, Fault::Short(short));
            rig.run(false);
            assert_eq!(rig.failed(), []);
            assert_eq!(rig.queue.stats().undone, 1);
            rig.check(&format!("{op:?} short at {short}"));
        }
    }
}

#[test]
fn a_failed_part_of_a_merge_never_makes_a_neighbour_fail() {
    for bad in 1..=4 {
        let mut rig = Rig::new(1, 64);
        for at in 0..4 {
            rig.push(WRITE, at * 512, &[512]);
        }
        // The merged one, and then the part when it runs alone: they go in order, at depth 1.
        rig.queue.sim().unwrap().inject(0, Fault::Torn(1000, Errno::EIO));
        rig.queue.sim().unwrap().inject(bad, Fault::Error(Errno::ENOSPC));
        rig.run(false);
        assert_eq!(rig.failed(), [(usize::try_from(bad).unwrap() - 1, Errno::ENOSPC)]);
        rig.check("undone");
    }
}

#[test]
fn a_submit_that_takes_a_few_at_a_time_loses_and_reorders_nothing() {
    for most in 1..6 {
        for depth in [1, 2, 64] {
            let mut rig = Rig::new(depth, 1);
            rig.queue.sim().unwrap().accept_at_most(most);
            workload(&mut rig);
            rig.run(false);
            assert_eq!(rig.failed(), []);
            rig.check("partial submit");
            if depth == 1 {
                let in_order: Vec<usize> = (0..rig.ios.len()).collect();
                assert_eq!(rig.order, in_order);
            }
        }
    }
}

#[test]
fn what_is_deferred_goes_in_order_and_before_what_comes_later() {
    let mut rig = Rig::new(2, 1);
    for at in 0..30 {
        rig.push(WRITE, at * 1024, &[512]);
    }
    for turn in 0..40 {
        rig.queue.submit(false);
        rig.queue.sim().unwrap().step();
        rig.reap();
        if turn == 3 {
            rig.push(WRITE, 31 * 1024, &[512]);
        }
    }
    // Two run at a time, and the third starts when one of them ended: the n-th end is at most the
    // n-th after the first.
    for (number, tag) in rig.order.iter().enumerate() {
        assert!(*tag <= number + 1, "{:?}", rig.order);
    }
    assert_eq!(rig.queue.stats().deferred, 29);
    rig.check("deferred");
}

#[test]
fn eagain_with_something_in_flight_waits_for_it() {
    let mut rig = Rig::new(8, 1);
    rig.push(WRITE, 0, &[512]);
    rig.push(WRITE, 4096, &[512]);
    rig.queue.sim().unwrap().inject(1, Fault::Refused(Errno::EAGAIN));
    rig.queue.submit(false);
    assert_eq!(rig.queue.sim().unwrap().accepted(), 1);
    assert_eq!(rig.queue.in_flight(), 2);
    assert!(!rig.queue.is_ready());
    rig.run(false);
    assert_eq!(rig.failed(), []);
}

#[test]
fn cancel_ends_what_the_kernel_does_not_hold_and_continues_nothing() {
    let mut rig = Rig::new(2, 1);
    for at in 0..5 {
        rig.push(WRITE, at * 1024, &[512]);
    }
    rig.queue.sim().unwrap().inject(0, Fault::Stuck);
    rig.queue.sim().unwrap().inject(1, Fault::Short(100));
    rig.queue.submit(false);
    rig.queue.cancel_all();
    rig.reap();
    assert_eq!(rig.order, [2, 3, 4]);
    assert_eq!(rig.queue.in_flight(), 2);
    rig.run(false);
    assert_eq!(rig.order, [2, 3, 4, 1]);
    assert_eq!(rig.queue.in_flight(), 1);
    rig.queue.sim().unwrap().release();
    rig.run(false);
    assert_eq!(rig.ends[0], Some(Status::Done));
    for tag in 1..5 {
        assert_eq!(rig.ends[tag], Some(Status::Failed(Errno::ECANCELED)));
    }
    // It is as good as new.
    rig.push(WRITE, 20_000, &[512]);
    rig.run(false);
    assert_eq!(rig.ends[5], Some(Status::Done));
}

#[test]
fn a_direct_continuation_that_the_kernel_refuses_is_an_io_error() {
    let mut rig = Rig::new(2, 1);
    rig.push(IoOp::Read, 0, &[4096]);
    rig.queue.sim().unwrap().inject(0, Fault::Short(100));
    rig.queue.sim().unwrap().inject(1, Fault::Error(Errno::EINVAL));
    rig.run(false);
    assert_eq!(rig.failed(), [(0, Errno::EIO)]);
}

#[test]
fn a_file_without_the_durable_flag_is_synced_instead_and_remembered() {
    let mut rig = Rig::new(2, 1);
    rig.push(DURABLE, 0, &[512]);
    rig.queue.sim().unwrap().inject(0, Fault::Error(Errno::EOPNOTSUPP));
    rig.run(false);
    // The refused one, the plain one, the sync.
    assert_eq!(rig.queue.sim().unwrap().accepted(), 3);
    rig.push(DURABLE, 512, &[512]);
    rig.run(false);
    assert_eq!(rig.queue.sim().unwrap().accepted(), 5);
    rig.check("plain");
    assert_eq!(rig.failed(), []);
}

#[test]
fn a_sync_that_fails_fails_the_durable_write() {
    let mut rig = Rig::new(2, 1);
    rig.push(DURABLE, 0, &[512]);
    rig.queue.sim().unwrap().inject(0, Fault::Error(Errno::EOPNOTSUPP));
    rig.queue.sim().unwrap().inject(2, Fault::Error(Errno::EIO));
    rig.run(false);
    assert_eq!(rig.failed(), [(0, Errno::EIO)]);
}

#[test]
fn a_file_without_holes_is_trimmed_in_vain_and_zeroed_another_way() {
    let unknown = Fault::Error(Errno::EOPNOTSUPP);
    let run = |op, faults: &[(u64, Fault)]| {
        let mut rig = Rig::new(2, 1);
        rig.push_range(op, 4096, 8192);
        for (number, fault) in faults {
            rig.queue.sim().unwrap().inject(*number, *fault);
        }
        rig.run(false);
        (rig.ends[0].unwrap(), rig.queue.sim().unwrap().accepted())
    };
    let zeroes = |may_punch, durable| IoOp::WriteZeroes { may_punch, durable };
    let failed = Status::Failed(Errno::EOPNOTSUPP);
    let trim = |durable| IoOp::Trim { durable };
    assert_eq!(run(trim(false), &[(0, unknown)]), (Status::Done, 1));
    assert_eq!(run(trim(true), &[(0, unknown)]), (Status::Done, 1));
    let eio = Fault::Error(Errno::EIO);
    assert_eq!(run(trim(false), &[(0, eio)]), (Status::Failed(Errno::EIO), 1));
    // A sync comes after it, and its failure is the trim's.
    assert_eq!(run(trim(true), &[]), (Status::Done, 2));
    assert_eq!(run(trim(true), &[(1, eio)]), (Status::Failed(Errno::EIO), 2));
    assert_eq!(run(zeroes(true, false), &[(0, unknown)]), (Status::Done, 2));
    assert_eq!(run(zeroes(true, true), &[(0, unknown)]), (Status::Done, 3));
    assert_eq!(run(zeroes(true, true), &[(0, unknown), (1, unknown)]), (Status::Done, 4));
    assert_eq!(run(zeroes(false, false), &[(0, unknown)]), (Status::Done, 2));
    assert_eq!(run(zeroes(false, false), &[(0, unknown), (1, unknown)]), (failed, 2));
    assert_eq!(run(zeroes(false, true), &[(1, eio)]), (Status::Failed(Errno::EIO), 2));
}

/// What ends while it is under way may still be in the disk's cache when it has ended.
#[test]
fn a_flush_covers_what_had_ended_when_it_began() {
    for seed in 0..20 {
        let mut rig = Rig::new(8, 1);
        rig.queue = Queue::simulated(seed, QueueConfig::default());
        rig.file = rig.queue.add_file(file()).unwrap();
        rig.push(WRITE, 0, &[512]);
        rig.run(false);
        rig.push(WRITE, 4096, &[512]);
        rig.push_range(IoOp::Flush, 0, 0);
        rig.run(false);
        let durable = rig.queue.sim().unwrap().durable(rig.file);
        assert!(durable[..512] == rig.ios[0].bytes, "seed {seed}");
        assert!(durable[4096..4608] == initial()[4096..4608], "seed {seed}");
    }
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_never_invents_bytes() {
    for seed in 0..200 {
        let mut rig = Rig::new(8, 1);
        rig.queue = Queue::simulated(seed, QueueConfig::default());
        rig.file = rig.queue.add_file(file()).unwrap();
        rig.push(WRITE, 0, &[2048]);
        rig.run(false);
        rig.push_range(IoOp::Flush, 0, 0);
        rig.run(false);
        rig.push(DURABLE, 4096, &[1024]);
        rig.push(WRITE, 8192, &[2048]);
        rig.run(false);
        rig.push(WRITE, 16_384, &[1024]);
        rig.queue.submit(false);
        let file = rig.file;
        let left = rig.queue.sim().unwrap().power_cut(file);
        for (number, one) in rig.ios.iter().enumerate() {
            let range = one.offset..one.offset + one.bytes.len();
            let certain = number < 3;
            let sectors = left[range.clone()].chunks(512);
            let (old, new) = (initial()[range].to_vec(), &one.bytes);
            for (at, sector) in sectors.enumerate() {
                let part = at * 512..at * 512 + sector.len();
                let is_new = *sector == new[part.clone()];
                assert!(is_new || (!certain && *sector == old[part]), "seed {seed}, I/O {number}");
            }
        }
    }
}
