//! Images at their edges: odd sizes, read-only, no room, no image at all, and storage that fails.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use serde_json::Value;
use tapdisk_control::message::{Flags, Params};
use tapdisk_control::statistics::{Counter, Statistics};
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, LoopDevice, Mount, has_program, skip, vhd, wait_until};

/// Errors of NBD: EIO, ENOSPC.
const NBD_EIO: u32 = 5;
const NBD_ENOSPC: u32 = 28;
const NBD_EPERM: u32 = 1;

/// The flag of an export.
const READ_ONLY: u16 = 1 << 1;

fn aio(path: &Path) -> String {
    format!("aio:{}", path.display())
}

fn open_flags(daemon: &Daemon, minor: u16, image: &str, flags: Flags) -> Result<(), Errno> {
    let params = Params { path: image.into(), flags, ..Params::default() };
    let opened = daemon.client.open(minor, params);
    opened.map(drop).map_err(|error| Errno::from_raw(error.errno()))
}

fn connect(host: &Host, daemon: &Daemon, minor: u16) -> NbdClient {
    NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap()
}

/// Whether the daemon has the file open for direct I/O.
fn is_direct(daemon: &Daemon, image: &Path) -> bool {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap().flatten();
    let mut found =
        entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == image));
    let number = found.next().expect("the image is open").file_name();
    let info = format!("/proc/{}/fdinfo/{}", daemon.pid, number.display());
    let info = std::fs::read_to_string(info).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    i32::from_str_radix(flags, 8).unwrap() & nix::fcntl::OFlag::O_DIRECT.bits() != 0
}

/// Where files are in memory only; a directory that goes with this.
struct InMemory(PathBuf);

impl InMemory {
    fn new(name: &str) -> Option<Self> {
        let path = Path::new("/dev/shm").join(format!("tapdisk-{name}-{}", std::process::id()));
        if std::fs::create_dir(&path).is_err() {
            skip("no directory can be made in /dev/shm");
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_tail_that_is_no_whole_sector_is_ignored() {
    for engine in ["aio", "io_uring", "sync"] {
        let host = Host::new();
        let image = host.image_of("disk", &[0xaa; 8 * 512 + 100]);
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, _) = host.serve(&daemon, &aio(&image));
        let mut client = connect(&host, &daemon, minor);
        assert_eq!(client.size, 8 * 512);
        assert_eq!(client.write(7 * 512, &[0xbb; 512]).unwrap(), 0);
        assert_ne!(client.write(8 * 512, &[0xcc; 512]).unwrap(), 0);
        assert!(client.read(7 * 512, 1024).unwrap().is_err());
        daemon.client.close(minor, false, None).unwrap();
        let mut wanted = vec![0xaa; 8 * 512 + 100];
        wanted[7 * 512..8 * 512].fill(0xbb);
        assert_eq!(std::fs::read(&image).unwrap(), wanted);
    }
}

#[test]
fn a_read_only_disk_takes_no_write_and_no_trim() {
    let host = Host::new();
    let image = host.image_of("disk", &[0xaa; 8192]);
    let before = std::fs::metadata(&image).unwrap().modified().unwrap();
    // Not even root could write it; an open for writing would show as an error.
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    open_flags(&daemon, minor, &aio(&image), Flags::READ_ONLY).unwrap();
    let mut client = connect(&host, &daemon, minor);
    assert_ne!(client.flags & READ_ONLY, 0);
    assert_eq!(client.write(0, &[1; 512]).unwrap(), NBD_EPERM);
    let trim = tapdisk_tests::nbd::command::TRIM;
    client.send(trim, 0, 4096, &[]).unwrap();
    assert_eq!(client.reply().unwrap().0, NBD_EPERM);
    assert_eq!(client.read(4096, 512).unwrap(), Ok(vec![0xaa; 512]));
    daemon.client.close(minor, false, None).unwrap();
    assert_eq!(std::fs::read(&image).unwrap(), [0xaa; 8192]);
    assert_eq!(std::fs::metadata(&image).unwrap().modified().unwrap(), before);
}

#[test]
fn direct_io_is_used_where_there_is_some_and_not_with_the_flag() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    open_flags(&daemon, minor, &aio(&image), Flags::NO_O_DIRECT).unwrap();
    assert!(!is_direct(&daemon, &image));
    daemon.client.close(minor, false, None).unwrap();
    open_flags(&daemon, minor, &aio(&image), Flags::default()).unwrap();
    let mut probe = std::fs::OpenOptions::new();
    let direct = nix::fcntl::OFlag::O_DIRECT.bits();
    let probe = std::os::unix::fs::OpenOptionsExt::custom_flags(probe.read(true), direct);
    match probe.open(&image) {
        Ok(_) => assert!(is_direct(&daemon, &image)),
        Err(_) => skip("the directory for temporary files takes no direct I/O"),
    }
}

#[test]
fn a_file_system_without_direct_io_serves_all_the_same() {
    let Some(memory) = InMemory::new("direct") else { return };
    for engine in ["aio", "io_uring", "sync"] {
        let host = Host::new();
        let image = memory.0.join("disk");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, _) = host.serve(&daemon, &aio(&image));
        let mut client = connect(&host, &daemon, minor);
        for number in 0..100_u64 {
            let data = number.to_le_bytes().repeat(64);
            assert_eq!(client.write(number * 512, &data).unwrap(), 0);
            assert_eq!(client.read(number * 512, 512).unwrap(), Ok(data));
        }
        assert_eq!(client.flush().unwrap(), 0);
        daemon.client.close(minor, false, None).unwrap();
    }
}

#[test]
fn what_is_no_image_is_refused_at_once() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    let fifo = host.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let socket = host.path("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (empty, short) = (host.image("empty", 0), host.image("short", 511));
    std::os::unix::fs::symlink("loop", host.path("loop")).unwrap();
    let cases = [
        (aio(&fifo), Errno::EINVAL),
        (aio(&host.path("run")), Errno::EISDIR),
        ("aio:/dev/null".into(), Errno::EINVAL),
        (aio(&socket), Errno::ENXIO),
        (aio(&empty), Errno::EINVAL),
        (aio(&short), Errno::EINVAL),
        (aio(&host.path("missing")), Errno::ENOENT),
        (aio(&host.path("empty/below")), Errno::ENOTDIR),
        (aio(&host.path("loop")), Errno::ELOOP),
        (format!("ram:{}", fifo.display()), Errno::EINVAL),
        ("null:513".into(), Errno::EINVAL),
        ("null:0".into(), Errno::EINVAL),
    ];
    let before = daemon.descriptors();
    for (image, wanted) in cases {
        assert_eq!(open_flags(&daemon, minor, &image, Flags::default()), Err(wanted), "{image}");
    }
    wait_until("all of them are closed again", || daemon.descriptors() <= before);
    // The disk is none the worse.
    let image = host.image("disk", 512);
    open_flags(&daemon, minor, &aio(&image), Flags::default()).unwrap();
    assert_eq!(connect(&host, &daemon, minor).size, 512);
}

#[test]
fn a_disk_in_memory_forgets_at_close() {
    let host = Host::new();
    let image = host.image_of("disk", &[0xaa; 8192]);
    let name = format!("ram:{}", image.display());
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    for _ in 0..2 {
        open_flags(&daemon, minor, &name, Flags::default()).unwrap();
        let mut client = connect(&host, &daemon, minor);
        assert_eq!(client.read(512, 512).unwrap(), Ok(vec![0xaa; 512]));
        assert_eq!(client.write(512, &[0xbb; 512]).unwrap(), 0);
        assert_eq!(client.flush().unwrap(), 0);
        assert_eq!(client.read(512, 512).unwrap(), Ok(vec![0xbb; 512]));
        daemon.client.close(minor, false, None).unwrap();
    }
    assert_eq!(std::fs::read(&image).unwrap(), [0xaa; 8192]);
}

#[test]
fn a_disk_without_storage_has_the_size_of_its_name() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    for (name, size) in
        [("null:", 1 << 30), ("null:512", 512), ("null:64M", 64 << 20), ("null:2T", 2 << 40)]
    {
        open_flags(&daemon, minor, name, Flags::default()).unwrap();
        let mut client = connect(&host, &daemon, minor);
        assert_eq!(client.size, size, "{name}");
        assert_eq!(client.write(size - 512, &[1; 512]).unwrap(), 0);
        assert_eq!(client.read(size - 512, 512).unwrap(), Ok(vec![0; 512]));
        daemon.client.close(minor, false, None).unwrap();
    }
}

#[test]
fn a_block_device_gives_the_disk_its_sectors() {
    for sector in [512, 1024, 2048, 4096] {
        let host = Host::new();
        let Some(device) = LoopDevice::attach(&host.image("backing", 1 << 20), sector) else {
            return;
        };
        let daemon = host.daemon(&[]);
        let (minor, _) = host.serve(&daemon, &aio(device.path()));
        let info = daemon.client.info(minor).unwrap();
        assert_eq!((info.sectors, info.sector_size), (2048, sector));
        let mut client = connect(&host, &daemon, minor);
        assert_eq!(client.size, 1 << 20);
        assert_eq!(client.write(8192, &[7; 4096]).unwrap(), 0);
        assert_eq!(client.flush().unwrap(), 0);
        assert_eq!(client.read(8192, 4096).unwrap(), Ok(vec![7; 4096]));
        daemon.client.close(minor, false, None).unwrap();
        assert_eq!(Host::read(device.path(), 8192, 4096), [7; 4096]);
    }
}

#[test]
fn a_full_file_system_can_be_told_at_once_and_is_written_to_when_there_is_room_again() {
    for engine in ["aio", "io_uring", "sync"] {
        let host = Host::new();
        let Some(small) = Mount::in_memory(&host.path("small"), "1m") else { return };
        let image = small.path().join("disk");
        std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let ballast = small.path().join("ballast");
        std::fs::write(&ballast, vec![1; 512 << 10]).unwrap();
        let daemon = host.daemon(&["--queue", engine, "--no-space", "fail"]);
        let (minor, _) = host.serve(&daemon, &aio(&image));
        let mut client = connect(&host, &daemon, minor);
        let block = vec![5; 64 << 10];
        let full = (0..128_u64).find_map(|number| {
            let error = client.write(number * (64 << 10), &block).unwrap();
            (error != 0).then_some((number, error))
        });
        let (number, error) = full.expect("8 MiB do not fit into 1");
        assert_eq!(error, NBD_ENOSPC, "{engine}");
        assert!(number > 0, "there was room for some");
        // What was there before still reads, and once there is room the same write succeeds.
        assert_eq!(client.read(0, 512).unwrap(), Ok(vec![5; 512]));
        std::fs::remove_file(&ballast).unwrap();
        assert_eq!(client.write(number * (64 << 10), &block).unwrap(), 0, "{engine}");
        assert_eq!(client.flush().unwrap(), 0);
        daemon.client.close(minor, false, None).unwrap();
        let mut found = vec![0; 64 << 10];
        let file = std::fs::File::open(&image).unwrap();
        file.read_exact_at(&mut found, number * (64 << 10)).unwrap();
        assert_eq!(found, block);
    }
}

fn state_names(host: &Host) -> Value {
    let text = host.tap_ctl(&["list", "--json"]).expect_success();
    let rows: Value = serde_json::from_str(&text).unwrap();
    rows[0]["state_names"].clone()
}

/// Writes that come to a full file system wait, are seen to wait, and are done when there is room:
/// found by the disk itself, or told to it.
#[test]
fn a_full_file_system_holds_writes_until_there_is_room() {
    for (engine, kind, is_told) in [
        ("aio", "aio", false),
        ("io_uring", "vhd", false),
        ("sync", "vhd", true),
        ("aio", "vhd", true),
    ] {
        let host = Host::new();
        let Some(small) = Mount::in_memory(&host.path("small"), "6m") else { return };
        let image = small.path().join("disk");
        match kind {
            "vhd" => vhd::dynamic(&image, 32 << 20),
            _ => std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap(),
        }
        let ballast = small.path().join("ballast");
        std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, _) = host.serve(&daemon, &format!("{kind}:{}", image.display()));
        let mut client = connect(&host, &daemon, minor);
        assert_eq!(state_names(&host), serde_json::json!([]));
        // More than fits, less than the ballast: a page in each of many places, and all at once.
        let page = |number: u64| vec![u8::try_from(number % 251).unwrap() + 1; 4096];
        let places: Vec<u64> = (0..700).map(|number| number * 45_056).collect();
        let (mut sent, mut answered) = (0, 0);
        let mut stuck = false;
        while answered < places.len() {
            while sent < places.len() && sent - answered < 32 {
                let number = u64::try_from(sent).unwrap();
                client.send(command::WRITE, places[sent], 4096, &page(number)).unwrap();
                sent += 1;
            }
            let mut is_answered = stuck;
            wait_until("there is an answer, or all wait", || {
                is_answered |= client.is_answered_within(Duration::from_millis(50)).unwrap();
                is_answered || stats(&host, &daemon)["waiting_for_space"] == sent - answered
            });
            if !is_answered {
                assert_eq!(state_names(&host), serde_json::json!(["waiting-for-space"]), "{kind}");
                stuck = true;
                std::fs::remove_file(&ballast).unwrap();
                if is_told {
                    let (pid, minor) = (daemon.pid.to_string(), minor.to_string());
                    host.tap_ctl(&["unpause", "-p", &pid, "-m", &minor]).expect_success();
                }
            }
            let (error, _) = client.reply().unwrap();
            assert_eq!(error, 0, "{kind}: guests see no error");
            answered += 1;
        }
        assert!(stuck, "{kind}: the file system was never full");
        assert_eq!(client.flush().unwrap(), 0);
        for (number, place) in (0..).zip(&places) {
            assert_eq!(client.read(*place, 4096).unwrap(), Ok(page(number)), "{kind} {place}");
        }
        wait_until("nobody waits any more", || state_names(&host) == serde_json::json!([]));
        let log = Daemon::log(&host);
        assert!(log.contains("The storage is full") && log.contains("No request waits"), "{log}");
        daemon.client.close(minor, false, None).unwrap();
    }
}

/// How many flushes a block device has ended: the sixteenth number of its line.
fn flushes(device: &Path) -> u64 {
    let name = device.file_name().unwrap();
    let line = std::fs::read_to_string(Path::new("/sys/block").join(name).join("stat")).unwrap();
    line.split_whitespace().nth(15).unwrap().parse().unwrap()
}

#[test]
fn a_write_with_fua_and_a_flush_reach_the_device_and_a_plain_write_does_not_flush() {
    for engine in ["aio", "io_uring", "sync"] {
        let host = Host::new();
        let Some(device) = LoopDevice::attach(&host.image("backing", 1 << 20), 512) else {
            return;
        };
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, _) = host.serve(&daemon, &aio(device.path()));
        let mut client = connect(&host, &daemon, minor);
        let count = || flushes(device.path());
        let start = count();
        assert_eq!(client.write(0, &[1; 4096]).unwrap(), 0);
        assert_eq!(count(), start, "{engine}: a plain write");
        // The kernel may flush twice for one: with the write, and behind it.
        for number in 1..=3 {
            let before = count();
            assert_eq!(client.write_fua(4096 * number, &[2; 4096]).unwrap(), 0);
            assert!(count() > before, "{engine}: a write with FUA");
        }
        let before = count();
        assert_eq!(client.flush().unwrap(), 0);
        assert!(count() > before, "{engine}: a flush");
    }
}

/// A disk whose storage fails as the layer says.
fn failing(layer: &str, options: &[&str]) -> (Host, Daemon, NbdClient) {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[options, &["--layer", layer]].concat());
    let (minor, _) = host.serve(&daemon, &aio(&image));
    let client = connect(&host, &daemon, minor);
    (host, daemon, client)
}

fn stats(host: &Host, daemon: &Daemon) -> Value {
    let pid = daemon.pid.to_string();
    let text = host.tap_ctl(&["stats", "-p", &pid, "-m", "0", "--json"]).expect_success();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_failure_that_passes_is_hidden_from_the_client() {
    for errno in ["EAGAIN", "EBUSY", "EIO", "ETIMEDOUT", "ESTALE", "ENOSPC"] {
        let layer = format!("fault:op=write,count=1,errno={errno}");
        let (host, daemon, mut client) = failing(&layer, &[]);
        assert_eq!(client.write(4096, &[9; 512]).unwrap(), 0, "{errno}");
        assert_eq!(client.read(4096, 512).unwrap(), Ok(vec![9; 512]));
        let stats = stats(&host, &daemon);
        assert!(stats["retries"].as_u64().is_some_and(|retries| retries >= 1), "{stats}");
    }
}

#[test]
fn a_failure_that_stays_is_told_once_and_the_disk_serves_on() {
    for (errno, wanted) in [("EIO", NBD_EIO), ("ENOSPC", NBD_ENOSPC)] {
        let layer = format!("fault:op=write,count=2,errno={errno}");
        let as_blktap = ["--retry", "0", "--no-space", "fail"];
        let (host, daemon, mut client) = failing(&layer, &as_blktap);
        assert_eq!(client.write(0, &[1; 512]).unwrap(), wanted);
        assert_eq!(client.write(0, &[1; 512]).unwrap(), wanted);
        wait_until("the log names it", || {
            let log = Daemon::log(&host);
            log.contains("The storage failed a request") && log.contains("op=Write")
        });
        assert_eq!(client.write(0, &[2; 512]).unwrap(), 0);
        assert_eq!(client.read(0, 512).unwrap(), Ok(vec![2; 512]));
        // The page is written after the answers of a turn went out.
        let page = host.paths().statistics(daemon.pid, 0);
        wait_until("both are counted", || {
            Statistics::read(&page).unwrap().get(Counter::IoErrors) == 2
        });
    }
}

#[test]
fn a_flush_that_fails_is_told() {
    let (_host, _daemon, mut client) = failing("fault:op=flush,count=1,errno=EIO", &[]);
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
    assert_eq!(client.flush().unwrap(), NBD_EIO);
    // The storage tells of a loss once: the next fdatasync says nothing.
    assert_eq!(client.flush().unwrap(), NBD_EIO);
}

/// The image is closed, and the command done; what may be lost is told beside it.
#[test]
fn a_loss_is_told_by_list_by_who_closes_the_image_and_by_the_next_flush() {
    let (host, daemon, mut client) = failing("fault:op=flush,count=1,errno=EIO", &[]);
    let (pid, minor) = (daemon.pid.to_string(), "0");
    let run = |command: &str| host.tap_ctl(&[command, "-p", &pid, "-m", minor]);
    assert_eq!(client.flush().unwrap(), NBD_EIO);
    wait_until("the state is shown", || state_names(&host) == serde_json::json!(["writes-lost"]));
    let paused = run("pause");
    assert_eq!(paused.status, 0);
    assert!(paused.stderr.contains("may have lost"), "{paused:?}");
    run("unpause").expect_success();
    assert_eq!(state_names(&host), serde_json::json!(["writes-lost"]));
    // The layer is made anew with the chain, and has its one failure again.
    assert_eq!(client.flush().unwrap(), NBD_EIO);
    assert_eq!(client.flush().unwrap(), NBD_EIO);
    let closed = run("close");
    assert_eq!(closed.status, 0);
    assert!(closed.stderr.contains("may have lost"), "{closed:?}");
}

#[test]
fn the_integrity_layer_agrees_with_fio() {
    if !has_program("fio") {
        return;
    }
    for engine in ["aio", "io_uring"] {
        let host = Host::new();
        let image = host.image("disk", 16 << 20);
        let daemon = host.daemon(&["--queue", engine, "--layer", "integrity"]);
        let (_, socket) = host.serve(&daemon, &aio(&image));
        let list = host.run("fio", &["--enghelp"]).expect_success();
        if !list.split_whitespace().any(|name| name == "nbd") {
            return skip("this fio has no nbd engine");
        }
        let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
        let job = ["--name=integrity", "--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-64k"];
        let more = ["--iodepth=32", "--size=16m", "--verify=crc32c", "--verify_fatal=1"];
        let arguments = [&job[..], &more, &["--randseed=5", "--fallocate=none"]].concat();
        host.run("fio", &arguments).expect_success();
    }
}

#[test]
fn the_integrity_layer_notices_a_change_behind_its_back() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&["--layer", "integrity"]);
    let (minor, _) = host.serve(&daemon, &aio(&image));
    let mut client = connect(&host, &daemon, minor);
    assert_eq!(client.write(4096, &[1; 4096]).unwrap(), 0);
    assert_eq!(client.flush().unwrap(), 0);
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[2; 512], 4608).unwrap();
    file.sync_all().unwrap();
    assert_eq!(client.read(4096, 512).unwrap(), Ok(vec![1; 512]));
    assert!(client.read(4608, 512).unwrap().is_err());
}
