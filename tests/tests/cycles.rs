//! What comes and goes ten thousand times leaves nothing behind.
//!
//! All of it through one daemon, in which one disk stays attached. Afterwards it has the
//! descriptors that it had before, about the memory, and serves.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tapdisk_control::message::{Params, Request};
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, Random, wait_until};

/// Cycles before the first look: allocators and caches have grown to most of what they need.
const WARM_UP: u32 = 1_000;
/// Then so many looks, each after so many cycles.
const SPANS: u32 = 9;
const SPAN: u32 = 1_000;
/// The threads of so many disks may be on their way out at once.
const BATCH: u32 = 25;

/// How much more memory there may be after one span, where a leak of 25 bytes in each cycle is as
/// much. It must hold for one of them only: a stack or a piece of heap that is kept because one
/// more thread than ever before was on its way out counts once, a leak in every span. On a busy
/// machine such steps come often: three spans have been seen with one in each of them.
const GROWTH_MAX_KIB: u64 = 24;
/// And after all of them: 25 kept stacks of some 100 KiB each, and the heap that goes with them.
const GROWTH_ALL_MAX_KIB: u64 = 4096;

fn params(image: &Path) -> Params {
    Params { path: format!("aio:{}", image.display()).into(), ..Params::default() }
}

/// A daemon with a disk that stays.
fn served(host: &Host, engine: &str) -> (Daemon, PathBuf) {
    let image = host.image("stays", 1 << 20);
    let daemon = host.daemon(&["--queue", engine]);
    let (_, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    (daemon, socket)
}

fn assert_serves(socket: &Path, mark: u8) {
    let mut let_in = None;
    // A door whose places are all taken, some of them by the dying, says so by hanging up.
    wait_until("a client is let in", || {
        let_in = NbdClient::connect(socket).ok();
        let_in.is_some()
    });
    let mut client = let_in.unwrap();
    assert_eq!(client.write(4096, &[mark; 4096]).unwrap(), 0);
    assert_eq!(client.flush().unwrap(), 0);
    assert_eq!(client.read(4096, 4096).unwrap().unwrap(), [mark; 4096]);
}

fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap().count()
}

/// One of those before may have been the last control client's, who is gone now.
fn wait_for_descriptors(daemon: &Daemon, before: usize) {
    wait_until("the descriptors are as before", || daemon.descriptors() <= before);
}

#[test]
fn ten_thousand_disks_come_and_go() {
    let host = Host::new();
    let mut command = host.command("tapdisk");
    // One heap: else what is kept depends on which threads met.
    command.args(["-D", "--log", "stderr"]).env("MALLOC_ARENA_MAX", "1");
    let daemon = host.daemon_by(command);
    let image = host.image("stays", 1 << 20);
    let (_, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    let image = host.image("goes", 1 << 20);
    let minor = host.attach(&daemon);
    daemon.client.detach(minor).unwrap();
    let cycle = |number: u32| {
        daemon.client.attach(minor).unwrap();
        daemon.client.open(minor, params(&image)).unwrap();
        daemon.client.close(minor, number.is_multiple_of(7), None).unwrap();
        daemon.client.detach(minor).unwrap();
        if number.is_multiple_of(BATCH) {
            wait_until("the threads end", || threads(&daemon) <= 3);
        }
    };
    (0..=WARM_UP).for_each(cycle);
    let descriptors = daemon.descriptors();
    let mut resident_kib = vec![daemon.resident_kib()];
    for _ in 0..SPANS {
        (0..=SPAN).for_each(cycle);
        resident_kib.push(daemon.resident_kib());
    }
    eprintln!("resident, in KiB: {resident_kib:?}");
    wait_for_descriptors(&daemon, descriptors);
    let growth = resident_kib.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    assert!(growth.min().unwrap() <= GROWTH_MAX_KIB, "{resident_kib:?}");
    let all = resident_kib.last().unwrap().saturating_sub(resident_kib[0]);
    assert!(all <= GROWTH_ALL_MAX_KIB, "{resident_kib:?}");
    assert_serves(&socket, 1);
    assert_eq!(daemon.client.list().unwrap().len(), 1);
}

#[test]
fn other_engines_give_back_what_they_took() {
    for engine in ["io_uring", "sync"] {
        let host = Host::new();
        let (daemon, socket) = served(&host, engine);
        let image = host.image("goes", 1 << 20);
        let minor = host.attach(&daemon);
        daemon.client.detach(minor).unwrap();
        let mut before = 0;
        for number in 0..300 {
            daemon.client.attach(minor).unwrap();
            daemon.client.open(minor, params(&image)).unwrap();
            let socket = host.nbd_socket(daemon.pid, minor);
            let mut client = NbdClient::connect(&socket).unwrap();
            assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
            daemon.client.pause(minor, None).unwrap();
            daemon.client.resume(minor, Params::default()).unwrap();
            daemon.client.close(minor, number % 2 == 0, None).unwrap();
            daemon.client.detach(minor).unwrap();
            if number == 10 {
                wait_until("the last disk's thread ends", || threads(&daemon) <= 3);
                before = daemon.descriptors();
            }
        }
        wait_until("the last disk's thread ends", || threads(&daemon) <= 3);
        wait_for_descriptors(&daemon, before);
        assert_serves(&socket, 2);
    }
}

/// The bytes of an NBD client, from its first one, and where the data of its writes are.
struct Conversation {
    bytes: Vec<u8>,
    data: Vec<std::ops::Range<usize>>,
}

/// Where dying clients write: the upper half of the disk.
const REGION: u64 = 512 << 10;

impl Conversation {
    fn new(random: &mut Random) -> Self {
        let mut bytes = Vec::from(3_u32.to_be_bytes());
        // Some ask this and that before they go on.
        for _ in 0..random.below(3) {
            let option = [3_u32, 6, 10, 8, 77][usize::try_from(random.below(5)).unwrap()];
            let len = u32::try_from(random.below(200)).unwrap();
            bytes.extend_from_slice(b"IHAVEOPT");
            bytes.extend_from_slice(&option.to_be_bytes());
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend((0..len).map(|_| random.draw().to_le_bytes()[0]));
        }
        bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\x04test");
        let mut data = Vec::new();
        for cookie in 0..1 + random.below(40) {
            let len = 512 << random.below(8);
            let offset = REGION + random.below((REGION - len) / 512 + 1) * 512;
            let what = [command::READ, command::WRITE, command::FLUSH, command::TRIM]
                [usize::try_from(random.below(4)).unwrap()];
            let (offset, len) = if what == command::FLUSH { (0, 0) } else { (offset, len) };
            bytes.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&what.to_be_bytes());
            bytes.extend_from_slice(&cookie.to_be_bytes());
            bytes.extend_from_slice(&offset.to_be_bytes());
            bytes.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            if what == command::WRITE {
                let end = bytes.len() + usize::try_from(len).unwrap();
                data.push(bytes.len()..end);
                bytes.resize(end, 0xdd);
            }
        }
        Self { bytes, data }
    }

    /// Ends it early. A write that is cut carries a mark that must never be on the disk.
    fn cut(mut self, at: usize) -> Vec<u8> {
        self.bytes.truncate(at);
        if let Some(cut) = self.data.iter().find(|data| data.start < at && at < data.end) {
            self.bytes[cut.start..].fill(0xee);
        }
        self.bytes
    }
}

/// Connects, says as much as it likes, reads as much as it likes. Its socket is its life.
fn dying_client(socket: &Path, random: &mut Random) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_write_timeout(Some(tapdisk_tests::PATIENCE)).unwrap();
    let conversation = Conversation::new(random);
    let len = u64::try_from(conversation.bytes.len()).unwrap();
    // Many die young: in the greeting, in an option.
    let bound = if random.below(3) == 0 { 60.min(len) } else { len };
    let cut = usize::try_from(random.below(bound + 1)).unwrap();
    // A server that does not like an option says so and hangs up.
    let _ = stream.write_all(&conversation.cut(cut));
    if random.below(2) == 0 {
        stream.set_nonblocking(true).unwrap();
        let mut some = vec![0; usize::try_from(random.below(5000)).unwrap()];
        let _ = stream.read(&mut some);
    }
    stream
}

#[test]
fn a_thousand_nbd_clients_die_at_random_points() {
    let host = Host::new();
    let (daemon, socket) = served(&host, "aio");
    assert_serves(&socket, 9);
    let before = daemon.descriptors();
    let mut random = Random::new(20);
    let mut alive = Vec::new();
    for number in 0..1000_u32 {
        alive.push(dying_client(&socket, &mut random));
        while random.below(8) < u64::try_from(alive.len()).unwrap() {
            let index = random.below(u64::try_from(alive.len()).unwrap());
            drop(alive.swap_remove(usize::try_from(index).unwrap()));
        }
        if number % 100 == 0 {
            assert_serves(&socket, u8::try_from(number / 100).unwrap());
        }
    }
    drop(alive);
    wait_until("the descriptors are as before", || daemon.descriptors() <= before);
    assert_serves(&socket, 0x77);
    let region = Host::read(&host.path("stays"), REGION, 512 << 10);
    assert!(!region.contains(&0xee), "a write whose data never came whole was done");
    assert!(region.contains(&0xdd), "no write of a client that died later was done");
}

/// A request, some of whose bytes are sent, to a disk that comes and goes.
fn request(random: &mut Random, minor: u16, image: &Path) -> Vec<u8> {
    let requests = [
        Request::Pid,
        Request::List,
        Request::ListMinors,
        Request::Stats { minor },
        Request::DiskInfo { minor },
        Request::Attach { minor },
        Request::Open { minor, params: params(image) },
        Request::Pause { minor },
        Request::Resume { minor, params: Params::default() },
        Request::Close { minor },
        Request::ForceShutdown { minor },
        Request::Detach { minor },
    ];
    let index = usize::try_from(random.below(13)).unwrap();
    match requests.get(index) {
        Some(request) => request.encode().unwrap(),
        None => (0..1000).map(|_| random.draw().to_le_bytes()[0]).collect(),
    }
}

#[test]
fn control_clients_die_at_random_points() {
    let host = Host::new();
    let (daemon, socket) = served(&host, "aio");
    let image = host.image("goes", 1 << 20);
    let minor = host.attach(&daemon);
    daemon.client.detach(minor).unwrap();
    wait_until("the first disk's thread ends", || threads(&daemon) <= 3);
    let before = daemon.descriptors();
    let control = host.paths().control_socket(daemon.pid);
    let mut random = Random::new(21);
    for number in 0..1000 {
        let bytes = request(&mut random, minor, &image);
        let len = u64::try_from(bytes.len()).unwrap();
        let cut = if random.below(2) == 0 { random.below(len + 1) } else { len };
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.set_read_timeout(Some(tapdisk_tests::PATIENCE)).unwrap();
        // It may have been refused and hung up on meanwhile.
        let _ = stream.write_all(&bytes[..usize::try_from(cut).unwrap()]);
        if cut == len && random.below(2) == 0 {
            let mut some = vec![0; usize::try_from(random.below(600)).unwrap()];
            let _ = stream.read(&mut some);
        }
        drop(stream);
        if number % 50 == 0 {
            assert_eq!(daemon.client.pid().unwrap(), daemon.pid);
        }
    }
    // Whatever it was left in: it can be closed and detached.
    wait_until("the disk can be detached", || {
        let _ = daemon.client.close(minor, true, None);
        let _ = daemon.client.detach(minor);
        daemon.client.list().unwrap().len() == 1
    });
    wait_until("the last disk's thread ends", || threads(&daemon) <= 3);
    wait_for_descriptors(&daemon, before);
    assert_serves(&socket, 3);
    daemon.client.attach(minor).unwrap();
    daemon.client.open(minor, params(&image)).unwrap();
    assert_serves(&host.nbd_socket(daemon.pid, minor), 4);
}
