//! The data path of the queue allocates nothing: a counting allocator around a million I/Os.
//!
//! One test in one binary, so that nobody else's allocations are counted.
#![allow(missing_docs, clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tapdisk::memory::{Memory, PAGE_SIZE};
use tapdisk::queue::{EngineKind, Io, IoOp, Queue, QueueConfig, Tag};
use tapdisk::status::Status;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; counting changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Batches of reads and writes, some of which merge; every so often everything else.
fn run(queue: &mut Queue, memory: &mut Memory, file: Arc<File>, batches: u64) {
    let id = queue.add_file(file).unwrap();
    let page = memory.allocate(PAGE_SIZE).unwrap();
    let mut ended = 0;
    let mut pushed = 0;
    for batch in 0..batches {
        for number in 0..32 {
            let op = match (batch % 64, number) {
                (0, 7) => IoOp::Flush,
                (0, 8) => IoOp::Trim { durable: false },
                (0, 9) => IoOp::WriteZeroes { may_punch: true, durable: false },
                (0, 10) => IoOp::Status,
                (1, 11) => IoOp::Write { durable: true },
                (_, 16..) => IoOp::Write { durable: false },
                _ => IoOp::Read,
            };
            let segments = [page];
            let io = Io {
                tag: Tag(number),
                op,
                file: id,
                // Two neighbours, a gap, and two more.
                offset: (number + number / 2) * u64::from(PAGE_SIZE),
                len: u64::from(PAGE_SIZE),
                segments: if op.has_data() { &segments } else { &[] },
            };
            queue.push(memory, &io);
            pushed += 1;
        }
        while ended < pushed {
            queue.submit(false);
            if !queue.is_ready() {
                queue.wait_batch(4, Duration::from_secs(10));
            }
            ended += queue.reap(|end| assert_eq!(end.status, Status::Done));
        }
    }
    memory.free(page);
    queue.remove_file(id);
}

#[test]
fn nothing_is_allocated_after_the_queue_is_made() {
    let mut file = File::options();
    let path = format!("/dev/shm/queue-no-alloc-{}", std::process::id());
    let file = Arc::new(file.read(true).write(true).create_new(true).open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    file.write_all_at(&[1; 64 * PAGE_SIZE as usize], 0).unwrap();
    let mut memory = Memory::new(1 << 20).unwrap();
    for kind in [EngineKind::Aio, EngineKind::Uring, EngineKind::Sync] {
        // Below what is pushed at once, so that some are deferred.
        let config = QueueConfig { capacity: 32, engine_depth: 16, ..QueueConfig::default() };
        let mut queue = match Queue::new(kind, config) {
            Err(error) if kind == EngineKind::Uring => {
                eprintln!("skipped: {error}");
                continue;
            }
            result => result.unwrap(),
        };
        // The helper thread starts here.
        run(&mut queue, &mut memory, Arc::clone(&file), 65);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        run(&mut queue, &mut memory, Arc::clone(&file), 10_000);
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(allocated, 0, "{kind}: allocations in {:?}", queue.stats());
    }
}
