//! The data path of a disk allocates nothing: a counting allocator around a million mixed requests.
//!
//! Ring door and NBD door, on each engine, through the loop of the daemon on this thread. Reads and
//! writes of many sizes, flushes, trims, zeroings and questions for extents go over a raw file;
//! what is measured starts when each kind has been seen once. Only this thread counts: it is the
//! loop's, and also the simulated guest's and the client's, which allocate nothing either.
//!
//! A room with `unsafe`: `GlobalAlloc` is an unsafe trait. Contract: every call is passed on to the
//! system's allocator as it is.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use blktap_ioctl::sim::{self, Driver, Segments, SimOptions};
use tapdisk::disk::rig::Rig;
use tapdisk::queue::EngineKind;
use tapdisk_tests::{Random, skip};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // The thread may be past its destructors: then nobody measures.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is the system allocator's; counting changes nothing, and allocates nothing:
// the cell is initialised at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Of one door on one engine: six of them make the million.
const REQUESTS: u64 = 170_000;
/// Of each VHD: they wait for flushes.
const VHD_REQUESTS: u64 = 10_000;
/// Before it is counted.
const WARM_UP: u64 = 3_000;
const DISK_BYTES: u64 = 4 << 20;
const SECTORS: u64 = DISK_BYTES / 512;
/// Of a VHD: 64 blocks.
const VHD_BYTES: u64 = 128 << 20;
const DEPTH: u64 = 32;
/// Of an NBD request, in bytes.
const PAYLOAD_MAX: u64 = 128 << 10;

/// A folder of its own, with an image in it.
struct Ground {
    folder: PathBuf,
    /// `type:path`.
    image: String,
    sectors: u64,
}

impl Ground {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("no-alloc-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let image = File::create(folder.join("image")).unwrap();
        image.write_all_at(&vec![0x5a; usize::try_from(DISK_BYTES).unwrap()], 0).unwrap();
        let image = format!("aio:{}", folder.join("image").display());
        Self { folder, image, sectors: SECTORS }
    }

    /// A VHD in which first writes do not come to an end: a child of the raw image, or a dynamic
    /// one whose blocks are freed again and again.
    fn vhd(name: &str, has_parent: bool) -> Self {
        let mut ground = Self::new(name);
        let leaf = ground.folder.join("leaf.vhd");
        if has_parent {
            tapdisk_tests::vhd::child(&leaf, VHD_BYTES, &ground.folder.join("image"));
        } else {
            tapdisk_tests::vhd::dynamic(&leaf, VHD_BYTES);
        }
        ground.image = format!("vhd:{}", leaf.display());
        ground.sectors = VHD_BYTES / 512;
        ground
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs `some` requests for each call, first the warm-up, and returns what the rest allocated.
fn counted(count: u64, mut some: impl FnMut(u64)) -> u64 {
    some(WARM_UP);
    let before = ALLOCATIONS.get();
    some(count);
    ALLOCATIONS.get() - before
}

fn ring(engine: EngineKind) -> u64 {
    let ground = Ground::new(&format!("ring-{engine}"));
    let (ring, device) =
        sim::create(SimOptions { driver: Driver::Dkms, ..SimOptions::default() }).unwrap();
    let mut rig = Rig::new(&ground.folder, engine, Some(ring)).unwrap();
    rig.open(&ground.image).unwrap();
    let mut random = Random::new(7);
    let data = [0x33; 11 * 4096];
    let allocated = counted(REQUESTS, |requests| {
        let (mut submitted, mut ended) = (0, 0);
        while ended < requests {
            while submitted < requests && submitted - ended < DEPTH {
                let sectors = 1 + random.below(88);
                let sector = random.below(SECTORS - sectors);
                let bytes = usize::try_from(sectors * 512).unwrap();
                match random.below(128) {
                    0 => device.submit_flush(submitted),
                    1 => device.submit_trim(submitted, sector & !7, 8),
                    2..64 => {
                        let segments = Segments::plain(bytes);
                        device.submit_write(submitted, sector, segments, &data[..bytes])
                    }
                    _ => device.submit_read(submitted, sector, Segments::plain(bytes)),
                }
                .unwrap();
                submitted += 1;
            }
            rig.turn();
            device.completions(|completion| {
                assert_eq!(completion.outcome, Ok(()), "{completion:?}");
                ended += 1;
            });
        }
    });
    rig.close().unwrap();
    allocated
}

/// A client that sends without waiting and counts replies, on the stack and two buffers.
struct Client {
    stream: UnixStream,
    out: Vec<u8>,
    /// Bytes of `out` that the socket has taken.
    sent: usize,
    input: Vec<u8>,
    /// Bytes of `input` that were received.
    received: usize,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const FUA: u16 = 1;

impl Client {
    /// Connects and negotiates while the loop turns; simple replies.
    fn connect(rig: &mut Rig, path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        let mut hello = Vec::from(3_u32.to_be_bytes());
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1_u32.to_be_bytes());
        hello.extend_from_slice(&0_u32.to_be_bytes());
        stream.write_all(&hello).unwrap();
        stream.set_nonblocking(true).unwrap();
        // The greeting, and the size and flags of the export.
        let mut answer = [0; 28];
        let mut filled = 0;
        while filled < answer.len() {
            rig.turn();
            match stream.read(&mut answer[filled..]) {
                Ok(count) => filled += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        // So that they never grow: all that can be under way, and a few replies.
        let out = Vec::with_capacity(usize::try_from(DEPTH * (PAYLOAD_MAX + 28)).unwrap());
        Self { stream, out, sent: 0, input: vec![0; 1 << 20], received: 0 }
    }

    fn queue(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) {
        self.out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        self.out.extend_from_slice(&flags.to_be_bytes());
        self.out.extend_from_slice(&kind.to_be_bytes());
        self.out.extend_from_slice(&cookie.to_be_bytes());
        self.out.extend_from_slice(&offset.to_be_bytes());
        self.out.extend_from_slice(&len.to_be_bytes());
        self.out.extend_from_slice(data);
    }

    fn send(&mut self) {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return;
                }
            }
        }
        self.out.clear();
        self.sent = 0;
    }

    /// Receives what is there; the cookie of a read's reply tells how much data follows it. Returns
    /// how many replies were complete.
    fn receive(&mut self, lengths: &[u32]) -> u64 {
        let mut replies = 0;
        loop {
            match self.stream.read(&mut self.input[self.received..]) {
                Ok(count) => {
                    assert!(count > 0, "the server has hung up");
                    self.received += count;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    return replies;
                }
            }
            let mut at = 0;
            while let Some(header) = self.input[at..self.received].first_chunk::<16>() {
                assert_eq!(header[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "a simple reply");
                let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
                let whole = 16 + lengths[usize::try_from(cookie).unwrap()] as usize;
                if self.received - at < whole {
                    break;
                }
                at += whole;
                replies += 1;
            }
            self.input.copy_within(at..self.received, 0);
            self.received -= at;
        }
    }
}

fn nbd(engine: EngineKind, ground: &Ground, count: u64) -> u64 {
    let mut rig = Rig::new(&ground.folder, engine, None).unwrap();
    rig.open(&ground.image).unwrap();
    let path = rig.nbd_path().to_owned();
    let mut client = Client::connect(&mut rig, &path);
    let mut random = Random::new(11);
    let data = vec![0x44; usize::try_from(PAYLOAD_MAX).unwrap()];
    // By cookie: what follows the reply. One for each request: a write that waits for a flush may
    // be overtaken by any number of others.
    let mut lengths = vec![0_u32; usize::try_from(count.max(WARM_UP)).unwrap()];
    let allocated = counted(count, |requests| {
        let (mut queued, mut answered) = (0, 0);
        while answered < requests {
            while client.sent == 0 && queued < requests && queued - answered < DEPTH {
                let sectors =
                    if random.below(50) == 0 { PAYLOAD_MAX / 512 } else { 1 + random.below(32) };
                let offset = random.below(ground.sectors - sectors) * 512;
                let len = u32::try_from(sectors * 512).unwrap();
                let cookie = queued;
                let number = usize::try_from(cookie).unwrap();
                lengths[number] = 0;
                match random.below(128) {
                    0 => client.queue(0, FLUSH, cookie, 0, 0, &[]),
                    1 if ground.sectors > SECTORS => {
                        // A whole block of a VHD.
                        client.queue(0, TRIM, cookie, offset & !((2 << 20) - 1), 2 << 20, &[]);
                    }
                    1 => client.queue(0, TRIM, cookie, offset & !4095, 4096, &[]),
                    2 => client.queue(0, WRITE_ZEROES, cookie, offset & !4095, 4096, &[]),
                    3 => client.queue(FUA, WRITE, cookie, offset, len, &data[..len as usize]),
                    4..64 => client.queue(0, WRITE, cookie, offset, len, &data[..len as usize]),
                    _ => {
                        lengths[number] = len;
                        client.queue(0, READ, cookie, offset, len, &[]);
                    }
                }
                queued += 1;
            }
            client.send();
            rig.turn();
            answered += client.receive(&lengths);
        }
    });
    drop(client);
    rig.close().unwrap();
    allocated
}

#[test]
fn a_million_mixed_requests_allocate_nothing() {
    for engine in [EngineKind::Aio, EngineKind::Uring, EngineKind::Sync] {
        let config = tapdisk::queue::QueueConfig::default();
        if let Err(error) = tapdisk::queue::Queue::new(engine, config) {
            assert_eq!(engine, EngineKind::Uring, "{error}");
            skip(&error.to_string());
            continue;
        }
        assert_eq!(ring(engine), 0, "allocations behind the ring on {engine}");
        let ground = Ground::new(&format!("nbd-{engine}"));
        assert_eq!(nbd(engine, &ground, REQUESTS), 0, "allocations behind NBD on {engine}");
    }
}

#[test]
fn first_writes_to_vhds_allocate_nothing() {
    for has_parent in [false, true] {
        let ground = Ground::vhd(&format!("vhd-{has_parent}"), has_parent);
        let allocated = nbd(EngineKind::Aio, &ground, VHD_REQUESTS);
        assert_eq!(allocated, 0, "allocations of a VHD, with a parent: {has_parent}");
    }
}

#[test]
fn the_allocator_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
