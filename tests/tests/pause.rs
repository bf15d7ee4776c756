//! A disk that is paused and resumed under load loses nothing; a flush is as good as its word.
//!
//! The load: several NBD clients, each with up to 32 writes, reads and flushes in flight, in
//! sectors of its own.
//! Every write of a sector carries the next version of it, and a client has at most one write of a
//! sector in flight: so each read has exactly one right answer, and so has the image at the end.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tapdisk_control::message::Params;
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, Random, has_program, wait_until};

const SECTOR: usize = 512;
const DEPTH: usize = 32;
const CLIENTS: u64 = 4;
const SECTORS_PER_CLIENT: u64 = 2048;
const PAUSES: u32 = 100;

/// What a sector holds: its number and version, all over it. Version 0 is never written.
fn content(sector: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; SECTOR];
    }
    [sector.to_le_bytes(), version.to_le_bytes()].concat().repeat(SECTOR / 16)
}

/// What a request in flight is about: some sectors, written or read.
struct InFlight {
    first: u64,
    count: u64,
    is_write: bool,
}

/// A client, what it has been promised, and what it waits for.
struct Load {
    client: NbdClient,
    random: Random,
    first: u64,
    /// The version of each sector, counting the write in flight.
    versions: Vec<u64>,
    busy: Vec<bool>,
    in_flight: HashMap<u64, InFlight>,
}

impl Load {
    fn new(socket: &Path, number: u64) -> Self {
        let sectors = usize::try_from(SECTORS_PER_CLIENT).unwrap();
        Self {
            client: NbdClient::connect(socket).unwrap(),
            random: Random::new(100 + number),
            first: number * SECTORS_PER_CLIENT,
            versions: vec![0; sectors],
            busy: vec![false; sectors],
            in_flight: HashMap::new(),
        }
    }

    /// Sends one request, to sectors for which none is under way.
    fn send(&mut self) {
        if self.random.below(50) == 0 {
            let cookie = self.client.send(command::FLUSH, 0, 0, &[]).unwrap();
            let nothing = InFlight { first: self.first, count: 0, is_write: true };
            self.in_flight.insert(cookie, nothing);
            return;
        }
        let count = 1 + self.random.below(16);
        let start = self.random.below(SECTORS_PER_CLIENT - count + 1);
        let range = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        if self.busy[range.clone()].contains(&true) {
            return;
        }
        self.busy[range.clone()].fill(true);
        let is_write = self.random.below(3) > 0;
        let first = self.first + start;
        let len = u32::try_from(count).unwrap() * 512;
        let cookie = if is_write {
            self.versions[range.clone()].iter_mut().for_each(|version| *version += 1);
            let sectors = (first..).zip(&self.versions[range]);
            let data: Vec<u8> =
                sectors.flat_map(|(sector, version)| content(sector, *version)).collect();
            self.client.send(command::WRITE, first * 512, len, &data).unwrap()
        } else {
            self.client.send(command::READ, first * 512, len, &[]).unwrap()
        };
        self.in_flight.insert(cookie, InFlight { first, count, is_write });
    }

    /// Receives one reply and checks it.
    fn receive(&mut self) {
        let (error, cookie) = self.client.reply().unwrap();
        assert_eq!(error, 0, "request {cookie}");
        let request = self.in_flight.remove(&cookie).expect("one request, one reply");
        let start = usize::try_from(request.first - self.first).unwrap();
        let range = start..start + usize::try_from(request.count).unwrap();
        if !request.is_write {
            let mut found = vec![0; range.len() * SECTOR];
            self.client.stream.read_exact(&mut found).unwrap();
            assert_sectors(&found, request.first, &self.versions[range.clone()]);
        }
        self.busy[range].fill(false);
    }

    /// Runs until it is told to stop, then waits for what is in flight.
    fn run(mut self, stop: &AtomicBool, done: &AtomicU64) -> (u64, Vec<u64>) {
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..4 * DEPTH {
                if self.in_flight.len() < DEPTH {
                    self.send();
                }
            }
            self.receive();
            done.fetch_add(1, Ordering::Relaxed);
        }
        while !self.in_flight.is_empty() {
            self.receive();
        }
        (self.first, self.versions)
    }
}

fn assert_sectors(found: &[u8], first: u64, versions: &[u64]) {
    for ((sector, version), found) in (first..).zip(versions).zip(found.chunks(SECTOR)) {
        let head: Vec<u64> = found[..16]
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(
            found,
            content(sector, *version),
            "sector {sector}, version {version}: {head:?}"
        );
    }
}

/// Serves an image to clients under load while `meanwhile` runs; compares the image at the end.
fn under_load(engine: &str, meanwhile: impl FnOnce(&Daemon, u16, &AtomicU64)) {
    let host = Host::new();
    let image = host.image("disk", CLIENTS * SECTORS_PER_CLIENT * 512);
    let daemon = host.daemon(&["--queue", engine]);
    let (minor, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let results: Vec<(u64, Vec<u64>)> = std::thread::scope(|scope| {
        let loads: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let load = Load::new(&socket, number);
                let (stop, done) = (&stop, &done);
                scope.spawn(move || load.run(stop, done))
            })
            .collect();
        meanwhile(&daemon, minor, &done);
        stop.store(true, Ordering::Relaxed);
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    eprintln!("{engine}: {} requests", done.load(Ordering::Relaxed));
    daemon.client.close(minor, false, None).unwrap();
    for (first, versions) in results {
        let found = Host::read(&image, first * 512, versions.len() * SECTOR);
        assert_sectors(&found, first, &versions);
    }
}

/// The load goes on: something that was not under way before is answered.
fn wait_for_load(done: &AtomicU64) {
    let wanted = done.load(Ordering::Relaxed) + CLIENTS * DEPTH as u64;
    wait_until("the load goes on", || done.load(Ordering::Relaxed) >= wanted);
}

#[test]
fn a_hundred_pauses_under_load_lose_nothing() {
    for engine in ["aio", "io_uring", "sync"] {
        under_load(engine, |daemon, minor, done| {
            for _ in 0..PAUSES {
                wait_for_load(done);
                daemon.client.pause(minor, None).unwrap();
                assert_eq!(daemon.client.list().unwrap()[0].state, 0x2a);
                daemon.client.resume(minor, Params::default()).unwrap();
            }
            wait_for_load(done);
        });
    }
}

#[test]
fn while_paused_nothing_is_written() {
    let host = Host::new();
    let (image, other) = (host.image("disk", 1 << 20), host.image("other", 1 << 20));
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
    daemon.client.pause(minor, None).unwrap();
    let cookie = client.send(command::WRITE, 512, 512, &[2; 512]).unwrap();
    // The image is closed: it can be exchanged, which is what pauses are for.
    for entry in std::fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert_ne!(target, image);
    }
    assert_eq!(Host::read(&image, 0, 1024), [[1; 512], [0; 512]].concat());
    let path = format!("aio:{}", other.display());
    daemon.client.resume(minor, Params { path: path.into(), ..Params::default() }).unwrap();
    assert_eq!(client.reply().unwrap(), (0, cookie));
    daemon.client.close(minor, false, None).unwrap();
    assert_eq!(Host::read(&image, 0, 1024), [[1; 512], [0; 512]].concat());
    assert_eq!(Host::read(&other, 0, 1024), [[0; 512], [2; 512]].concat());
}

#[test]
fn images_are_exchanged_under_load() {
    // Two names of one file: each resume opens "another" image, and nothing may be lost in between.
    under_load("aio", |daemon, minor, done| {
        let list = daemon.client.list().unwrap();
        let path = list[0].path.to_str().unwrap().strip_prefix("aio:").unwrap().to_owned();
        let link = format!("{path}.link");
        std::fs::hard_link(&path, &link).unwrap();
        for number in 0..20 {
            wait_for_load(done);
            daemon.client.pause(minor, None).unwrap();
            let name = if number % 2 == 0 { &link } else { &path };
            let name = format!("aio:{name}").into();
            daemon.client.resume(minor, Params { path: name, ..Params::default() }).unwrap();
        }
    });
}

/// strace, attached to a daemon: which system calls it makes for durability.
struct Tracer {
    child: Child,
    file: std::path::PathBuf,
}

impl Tracer {
    /// Attaches; `None` where that is not allowed.
    fn attach(host: &Host, daemon: &Daemon) -> Option<Self> {
        let file = host.path("trace");
        let calls = "trace=fdatasync,fsync,io_submit,io_uring_enter,pwritev2,pwrite64,pwritev";
        let mut child = host
            .command("strace")
            .args(["-f", "-q", "-v", "-e", calls, "-e", "signal=none", "-s", "0", "-o"])
            .arg(&file)
            .args(["-p", &daemon.pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", daemon.pid);
        let mut refused = false;
        wait_until("strace has attached", || {
            refused = child.try_wait().unwrap().is_some();
            let status = std::fs::read_to_string(&status).unwrap();
            refused || !status.lines().any(|line| line == "TracerPid:\t0")
        });
        // Every thread has its own tracer.
        let is_traced = |path: &Path| {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            !status.lines().any(|line| line == "TracerPid:\t0")
        };
        wait_until("strace has attached to every thread", || {
            refused |= child.try_wait().unwrap().is_some();
            let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap();
            refused || tasks.flatten().all(|task| is_traced(&task.path()))
        });
        if refused {
            tapdisk_tests::skip("strace may not attach here");
            return None;
        }
        Some(Self { child, file })
    }

    /// Detaches; returns the calls.
    fn finish(mut self) -> String {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        std::fs::read_to_string(&self.file).unwrap()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many I/Os of a trace make something durable, as far as the engine shows.
fn syncs(trace: &str) -> usize {
    ["fdatasync(", "IOCB_CMD_FDSYNC", "IOCB_CMD_FSYNC", "RWF_DSYNC", "fsync("]
        .iter()
        .map(|name| match *name {
            // Part of the name above.
            "fsync(" => trace.matches(" fsync(").count(),
            name => trace.matches(name).count(),
        })
        .sum()
}

#[test]
fn every_flush_and_fua_ends_in_a_sync_of_the_file() {
    if !has_program("strace") {
        return;
    }
    // What io_uring does is in shared memory: its own tests look at that.
    for engine in ["aio", "sync"] {
        let host = Host::new();
        let image = host.image("disk", 1 << 20);
        let daemon = host.daemon(&["--queue", engine]);
        let (_, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
        let mut client = NbdClient::connect(&socket).unwrap();
        assert_eq!(client.write(0, &[1; 4096]).unwrap(), 0);
        let Some(tracer) = Tracer::attach(&host, &daemon) else { return };
        for number in 0..20_u64 {
            assert_eq!(client.write(number * 4096, &[2; 4096]).unwrap(), 0);
            assert_eq!(client.flush().unwrap(), 0);
        }
        for number in 0..10_u64 {
            assert_eq!(client.write_fua(number * 4096, &[3; 4096]).unwrap(), 0);
        }
        for _ in 0..50 {
            assert_eq!(client.write(0, &[4; 4096]).unwrap(), 0);
        }
        let trace = tracer.finish();
        let found = syncs(&trace);
        assert_eq!(found, 30, "{engine}: one for each flush and each FUA, and no more:\n{trace}");
    }
}

/// Flushes while writes are in flight: at its answer everything that was answered before is
/// durable. The trace shows the order: the writes that were answered, then the sync, then the
/// answer.
#[test]
fn a_flush_under_load_syncs_after_the_writes_that_it_covers() {
    if !has_program("strace") {
        return;
    }
    let host = Host::new();
    let image = host.image("disk", 4 << 20);
    let daemon = host.daemon(&["--queue", "sync"]);
    let (_, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert_eq!(client.flush().unwrap(), 0);
    let Some(tracer) = Tracer::attach(&host, &daemon) else { return };
    for round in 0..20_u64 {
        let mut waiting = 0;
        for number in 0..32_u64 {
            let offset = (round * 32 + number) * 4096;
            client.send(command::WRITE, offset, 4096, &[5; 4096]).unwrap();
            waiting += 1;
        }
        // Half of the answers, so that half of the writes are covered for certain.
        for _ in 0..16 {
            assert_eq!(client.reply().unwrap().0, 0);
            waiting -= 1;
        }
        client.send(command::FLUSH, 0, 0, &[]).unwrap();
        for _ in 0..=waiting {
            assert_eq!(client.reply().unwrap().0, 0);
        }
    }
    let trace = tracer.finish();
    // Bytes written before the n-th sync: at least those that were answered before its flush was
    // sent.
    let mut written = 0_u64;
    let mut covered = Vec::new();
    for line in trace.lines() {
        if line.contains("fdatasync") && !line.contains("resumed") {
            covered.push(written);
        } else if let Some(result) = line.rsplit_once("= ").filter(|_| line.contains("pwrite")) {
            written += result.1.trim().parse::<u64>().unwrap_or(0);
        }
    }
    assert_eq!(written, 20 * 32 * 4096, "{trace}");
    assert_eq!(covered.len(), 20, "{trace}");
    for (round, covered) in (0..).zip(covered) {
        let answered: u64 = (round * 32 + 16) * 4096;
        assert!(covered >= answered, "flush {round}: {covered} of {answered} bytes");
    }
}
