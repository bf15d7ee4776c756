//! A disk that is paused and resumed under load loses nothing; a flush is as good as its word.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use tapdisk_control::message::Params;
use tapdisk_tests::load::{CLIENTS, DEPTH, loads, run_all};
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, has_program, wait_until};

const SECTORS_PER_CLIENT: u64 = 2048;
const PAUSES: u32 = 100;

/// Serves an image to clients under load while `meanwhile` runs; compares the image at the end.
fn under_load(engine: &str, meanwhile: impl FnOnce(&Daemon, u16, &AtomicU64)) {
    let host = Host::new();
    let image = host.image("disk", CLIENTS * SECTORS_PER_CLIENT * 512);
    let daemon = host.daemon(&["--queue", engine]);
    let (minor, socket) = host.serve(&daemon, &format!("aio:{}", image.display()));
    let mut loads = loads(SECTORS_PER_CLIENT, false);
    let (answered, end) = run_all(&mut loads, &socket, |done| meanwhile(&daemon, minor, done));
    end.unwrap();
    eprintln!("{engine}: {answered} requests");
    daemon.client.close(minor, false, None).unwrap();
    for load in &mut loads {
        load.verify(|offset, len| Host::read(&image, offset, len));
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
