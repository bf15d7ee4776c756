//! The real engines against real files: errors of the kernel, the end of the file, direct I/O,
//! events, the helper thread.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tapdisk::memory::{Memory, PAGE_SIZE, Segment};
use tapdisk::queue::{Completion, EngineKind, FileId, Io, IoOp, Queue, QueueConfig, Tag};
use tapdisk::request::{Extent, ExtentKind};
use tapdisk::status::Status;

const ENGINES: [EngineKind; 3] = [EngineKind::Aio, EngineKind::Uring, EngineKind::Sync];
const WRITE: IoOp = IoOp::Write { durable: false };
const LONG: Duration = Duration::from_secs(20);

/// The engines that this machine has, each with a queue; says which it skips and why.
fn queues() -> Vec<Queue> {
    let config = QueueConfig { capacity: 64, engine_depth: 32, ..QueueConfig::default() };
    let open = |kind| match Queue::new(kind, config) {
        Ok(queue) => Some(queue),
        Err(error) if kind == EngineKind::Uring => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{kind}: {error}"),
    };
    ENGINES.into_iter().filter_map(open).collect()
}

/// A file without a name, of 16 pages, each filled with its number from one on.
fn file(flags: OFlag) -> Arc<File> {
    let dir = env!("CARGO_TARGET_TMPDIR");
    let mode = Mode::from_bits_truncate(0o600);
    let file = nix::fcntl::open(dir, OFlag::O_TMPFILE | OFlag::O_RDWR | flags, mode).unwrap();
    let file = File::from(file);
    let mut pages = Memory::new(1).unwrap();
    let page = pages.allocate(PAGE_SIZE).unwrap();
    let mut queue = Queue::new(EngineKind::Sync, QueueConfig::default()).unwrap();
    let file = Arc::new(file);
    let id = queue.add_file(Arc::clone(&file)).unwrap();
    for number in 1..=16 {
        pages.copy_in(page, &[number; PAGE_SIZE as usize]);
        let offset = u64::from(number - 1) * u64::from(PAGE_SIZE);
        push(&mut queue, &pages, 0, WRITE, id, offset, &[page]);
        queue.submit(true);
        assert_eq!(queue.reap(|end| assert_eq!(end.status, Status::Done)), 1);
    }
    file
}

fn push(
    queue: &mut Queue,
    memory: &Memory,
    tag: u64,
    op: IoOp,
    file: FileId,
    offset: u64,
    segments: &[Segment],
) {
    let len = segments.iter().map(|segment| u64::from(segment.len)).sum();
    let len = if op.has_data() || op == IoOp::Flush { len } else { u64::from(PAGE_SIZE) * 2 };
    queue.push(memory, &Io { tag: Tag(tag), op, file, offset, len, segments });
}

/// Runs to the end; completions by tag.
fn run(queue: &mut Queue, count: usize) -> Vec<Completion> {
    let mut ends = Vec::new();
    for _ in 0..10_000 {
        queue.submit(false);
        if !queue.is_ready() {
            queue.wait_batch(1, LONG);
        }
        queue.reap(|end| ends.push(end));
        if ends.len() == count {
            ends.sort_by_key(|end| end.tag);
            return ends;
        }
    }
    panic!("{} of {count} ended: {queue:?}", ends.len());
}

#[test]
fn a_read_past_the_end_fails_and_its_merged_neighbour_does_not() {
    for mut queue in queues() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let id = queue.add_file(file(OFlag::empty())).unwrap();
        for (tag, page) in (14..20).enumerate() {
            let segment = memory.allocate(PAGE_SIZE).unwrap();
            push(&mut queue, &memory, tag as u64, IoOp::Read, id, page * 4096, &[segment]);
        }
        // Half inside, half outside.
        let segment = memory.allocate(PAGE_SIZE).unwrap();
        push(&mut queue, &memory, 6, IoOp::Read, id, 16 * 4096 - 100, &[segment]);
        let ends = run(&mut queue, 7);
        for (tag, end) in ends.iter().enumerate() {
            let wanted = if tag < 2 { Status::Done } else { Status::Failed(Errno::ENODATA) };
            assert_eq!(end.status, wanted, "{} I/O {tag}", queue.kind());
        }
        assert_eq!(queue.stats().merged, 6);
    }
}

#[test]
fn an_io_that_the_kernel_refuses_does_not_spoil_the_others() {
    for mut queue in queues() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let good = queue.add_file(file(OFlag::empty())).unwrap();
        let path = format!("{}/queue-engines-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        let write_only = Arc::new(File::create(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let bad = queue.add_file(write_only).unwrap();
        for tag in 0..12 {
            let segment = memory.allocate(PAGE_SIZE).unwrap();
            // Pairs of neighbours that merge: good, bad, good, ...
            let file = if tag / 2 % 2 == 1 { bad } else { good };
            push(&mut queue, &memory, tag, IoOp::Read, file, tag * 4096, &[segment]);
        }
        for (tag, end) in run(&mut queue, 12).iter().enumerate() {
            let is_bad = tag / 2 % 2 == 1;
            let wanted = if is_bad { Status::Failed(Errno::EBADF) } else { Status::Done };
            assert_eq!(end.status, wanted, "{} I/O {tag}", queue.kind());
        }
        queue.remove_file(bad);
        queue.remove_file(good);
    }
}

#[test]
fn direct_io_goes_from_pages_to_file_and_back() {
    for lone in [false, true] {
        for mut queue in queues() {
            let mut memory = Memory::new(1 << 20).unwrap();
            let direct = file(OFlag::O_DIRECT);
            let id = queue.add_file(Arc::clone(&direct)).unwrap();
            let durable = IoOp::Write { durable: true };
            for round in 0..8 {
                let segment = memory.allocate(PAGE_SIZE * 2).unwrap();
                memory.copy_in(segment, &[100 + round; 8192]);
                let pages = [segment.part(4096, 4096), segment.part(0, 4096)];
                let op = if round % 2 == 0 { WRITE } else { durable };
                let offset = u64::from(round) * 8192;
                push(&mut queue, &memory, 0, op, id, offset, &pages);
                queue.submit(lone);
                assert_eq!(run(&mut queue, 1)[0].status, Status::Done);
                memory.zero(segment);
                push(&mut queue, &memory, 1, IoOp::Read, id, offset, &pages);
                queue.submit(lone);
                assert_eq!(run(&mut queue, 1)[0].status, Status::Done);
                let mut bytes = [0; 8192];
                memory.copy_out(segment, &mut bytes);
                assert_eq!(bytes, [100 + round; 8192]);
                memory.free(segment);
            }
            assert_eq!(queue.stats().inline, if lone { 16 } else { 0 });
            assert!(queue.kind() == EngineKind::Sync || queue.stats().system_calls >= 16);
        }
    }
}

#[test]
fn every_completion_signals_anew_though_nobody_reads_the_event() {
    for mut queue in queues() {
        if queue.kind() == EngineKind::Sync {
            continue;
        }
        let mut poll = Poll::new().unwrap();
        queue.register(poll.registry(), Token(7)).unwrap();
        let mut events = Events::with_capacity(8);
        let mut memory = Memory::new(1 << 20).unwrap();
        let id = queue.add_file(file(OFlag::O_DIRECT)).unwrap();
        let segment = memory.allocate(PAGE_SIZE).unwrap();
        // The last ones go through the helper thread on Linux AIO.
        let ops = [
            IoOp::Read,
            WRITE,
            IoOp::Flush,
            IoOp::Read,
            IoOp::Trim { durable: false },
            IoOp::Status,
        ];
        for (tag, op) in ops.into_iter().enumerate() {
            let segments = [segment];
            let segments = if op.has_data() { &segments[..] } else { &[] };
            push(&mut queue, &memory, tag as u64, op, id, 0, segments);
            queue.submit(false);
            let mut ended = 0;
            for _ in 0..1000 {
                ended += queue.reap(|end| assert_eq!(end.status, Status::Done, "{op:?}"));
                if ended == 1 {
                    break;
                }
                match poll.poll(&mut events, Some(LONG)) {
                    // io_uring ends a wait like this when it completes: a reason to look, too.
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    result => result.unwrap(),
                }
                assert!(events.iter().all(|event| event.token() == Token(7)));
                assert!(!events.is_empty(), "{}: no event for {op:?}", queue.kind());
            }
            assert_eq!(ended, 1);
            // What the completion signalled may still be pending: the next wait must not find it.
            let _ = poll.poll(&mut events, Some(Duration::ZERO));
        }
        queue.deregister(poll.registry()).unwrap();
    }
}

#[test]
fn wait_batch_brings_as_many_as_were_asked_for() {
    for mut queue in queues() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let id = queue.add_file(file(OFlag::O_DIRECT)).unwrap();
        for tag in 0..8 {
            let segment = memory.allocate(PAGE_SIZE).unwrap();
            // Every other page: nothing to merge.
            push(&mut queue, &memory, tag, IoOp::Read, id, tag * 8192, &[segment]);
        }
        queue.submit(false);
        queue.wait_batch(8, LONG);
        assert!(queue.is_ready());
        assert_eq!(queue.reap(|end| assert_eq!(end.status, Status::Done)), 8);
        assert!(queue.is_idle() && !queue.is_ready());
    }
}

#[test]
fn zeros_holes_and_extents_of_a_file_are_told() {
    for mut queue in queues() {
        let memory = Memory::new(1 << 16).unwrap();
        let plain = file(OFlag::empty());
        let id = queue.add_file(Arc::clone(&plain)).unwrap();
        push(&mut queue, &memory, 0, IoOp::Trim { durable: false }, id, 0, &[]);
        let zeroes = IoOp::WriteZeroes { may_punch: true, durable: true };
        push(&mut queue, &memory, 1, zeroes, id, 8192, &[]);
        let zeroes = IoOp::WriteZeroes { may_punch: false, durable: false };
        push(&mut queue, &memory, 2, zeroes, id, 32_768, &[]);
        let ends = run(&mut queue, 3);
        assert!(ends.iter().all(|end| end.status == Status::Done), "{ends:?}");
        let mut bytes = [1; 16_384];
        plain.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 16_384]);
        plain.read_exact_at(&mut bytes[..8192], 32_768).unwrap();
        assert_eq!(bytes, [0; 16_384]);

        // A hole, then data; and past the end.
        let asked = [(0, 12_288), (12_288, 4096 * 3), (16_384, 4096), (1 << 20, 512)];
        for (tag, (offset, len)) in asked.into_iter().enumerate() {
            let tag = Tag(tag as u64);
            let op = IoOp::Status;
            queue.push(&memory, &Io { tag, op, file: id, offset, len, segments: &[] });
        }
        let ends = run(&mut queue, 4);
        let extent = |kind, len| Some(Extent { kind, len });
        assert_eq!(ends[0].extent, extent(ExtentKind::Hole, 12_288));
        assert_eq!(ends[1].extent, extent(ExtentKind::Hole, 4096));
        assert_eq!(ends[2].extent, extent(ExtentKind::Data, 4096));
        assert_eq!(ends[3].extent, extent(ExtentKind::Hole, 512));
    }
}

/// As on NFS before 4.2: a file in memory has no zeros that are not written.
#[test]
fn zeros_are_written_where_the_file_has_no_other_way() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    for mut queue in queues() {
        let memory = Memory::new(1 << 16).unwrap();
        let plain = Arc::new(File::from(memfd_create(c"zeros", MFdFlags::empty()).unwrap()));
        plain.write_all_at(&vec![7; 3 << 20], 0).unwrap();
        let id = queue.add_file(Arc::clone(&plain)).unwrap();
        let op = IoOp::WriteZeroes { may_punch: false, durable: true };
        let (offset, len) = (512, (2 << 20) + 512);
        queue.push(&memory, &Io { tag: Tag(1), op, file: id, offset, len, segments: &[] });
        let ends = run(&mut queue, 1);
        assert_eq!(ends[0].status, Status::Done, "{}", queue.kind());
        let mut bytes = vec![1; 3 << 20];
        plain.read_exact_at(&mut bytes, 0).unwrap();
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!(zeros as u64, len);
        assert!(bytes[..512].iter().all(|byte| *byte == 7));
    }
}

#[test]
fn errors_of_fallocate_and_fdatasync_reach_the_caller() {
    for mut queue in queues() {
        let memory = Memory::new(1 << 16).unwrap();
        // A pipe is no disk, and a sync of it is invalid.
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let id = queue.add_file(Arc::new(File::from(writer))).unwrap();
        push(&mut queue, &memory, 0, IoOp::Trim { durable: false }, id, 0, &[]);
        let zeroes = IoOp::WriteZeroes { may_punch: true, durable: true };
        push(&mut queue, &memory, 1, zeroes, id, 0, &[]);
        push(&mut queue, &memory, 2, IoOp::Flush, id, 0, &[]);
        push(&mut queue, &memory, 3, IoOp::Status, id, 0, &[]);
        let ends = run(&mut queue, 4);
        let failed = |errno| Status::Failed(errno);
        // ESPIPE is no "not supported": the caller named something that is no disk.
        assert_eq!(ends[0].status, failed(Errno::ESPIPE), "{}", queue.kind());
        assert_eq!(ends[1].status, failed(Errno::ESPIPE), "{}", queue.kind());
        assert_eq!(ends[2].status, failed(Errno::EINVAL), "{}", queue.kind());
        assert_eq!(ends[3].extent.unwrap().kind, ExtentKind::Data);
    }
}

#[test]
fn a_queue_that_is_dropped_waits_for_what_is_in_flight() {
    for mut queue in queues() {
        let mut memory = Memory::new(1 << 20).unwrap();
        let target = file(OFlag::O_DIRECT);
        let id = queue.add_file(Arc::clone(&target)).unwrap();
        for tag in 0..16 {
            let segment = memory.allocate(PAGE_SIZE).unwrap();
            memory.copy_in(segment, &[200; 4096]);
            push(&mut queue, &memory, tag, WRITE, id, tag * 4096, &[segment]);
            push(&mut queue, &memory, 100 + tag, IoOp::Status, id, 0, &[]);
        }
        queue.submit(false);
        drop(queue);
        let mut page = vec![0; 65_536];
        let buffered = File::open(format!("/proc/self/fd/{}", fd(&target))).unwrap();
        buffered.read_exact_at(&mut page, 0).unwrap();
        assert!(page.iter().all(|byte| *byte == 200));
        assert_eq!(Arc::strong_count(&target), 1);
    }
}

fn fd(file: &File) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

#[test]
#[should_panic(expected = "1 I/Os on a file that is removed")]
fn asserts_that_a_removed_file_has_nothing_in_flight() {
    let mut queue = Queue::new(EngineKind::Sync, QueueConfig::default()).unwrap();
    let memory = Memory::new(1).unwrap();
    let id = queue.add_file(file(OFlag::empty())).unwrap();
    push(&mut queue, &memory, 0, IoOp::Flush, id, 0, &[]);
    queue.remove_file(id);
}

#[test]
fn the_file_table_has_room_for_64_and_says_so() {
    let mut queue = Queue::new(EngineKind::Sync, QueueConfig::default()).unwrap();
    let null = Arc::new(File::open("/dev/null").unwrap());
    let ids: Vec<FileId> = (0..64).map(|_| queue.add_file(Arc::clone(&null)).unwrap()).collect();
    assert_eq!(queue.add_file(Arc::clone(&null)), None);
    queue.remove_file(ids[13]);
    assert_eq!(queue.add_file(null), Some(ids[13]));
}
