//! Storage that really hangs: a frozen file system, on which writes sleep in the kernel and cannot
//! be interrupted. Unlike the layer `stuck`, no part of the daemon can end them.
//!
//! A write to a file there hangs in the system call of the disk's own thread; one to a loop device
//! whose file is there is on its way for ever, while the thread goes on.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tapdisk_control::message::Params;
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Frozen, Host, LoopDevice, Mount, PATIENCE, wait_until};

fn params(image: &Path) -> Params {
    Params { path: format!("aio:{}", image.display()).into(), ..Params::default() }
}

/// A file system with an image on it, and a device whose file is there too.
struct Storage {
    // Taken away in this order.
    device: LoopDevice,
    image: PathBuf,
    mount: Mount,
}

impl Storage {
    fn new(host: &Host) -> Option<Self> {
        let mount = Mount::ext4(&host.path("mount"))?;
        let make = |name| {
            let path = mount.path().join(name);
            // Written once: a hole would need the journal to be filled.
            std::fs::write(&path, vec![0; 1 << 20]).unwrap();
            path
        };
        let (image, backing) = (make("image"), make("backing"));
        let device = LoopDevice::attach(&backing, 512)?;
        Some(Self { device, image, mount })
    }

    fn freeze(&self) -> Frozen {
        self.mount.freeze()
    }
}

/// A disk with a write that hangs. The client sent it and waits.
fn hang(
    host: &Host,
    daemon: &Daemon,
    minor: u16,
    image: &Path,
    storage: &Storage,
) -> (NbdClient, Frozen) {
    daemon.client.open(minor, params(image)).unwrap();
    let mut client = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
    assert_eq!(client.write(0, &[1; 4096]).unwrap(), 0);
    let frozen = storage.freeze();
    client.send(command::WRITE, 4096, 4096, &[2; 4096]).unwrap();
    wait_until("the write hangs in the kernel", || hanging(daemon.pid, image, storage));
    (client, frozen)
}

/// Whether a write sleeps in the kernel: in a thread of the daemon, or in the one that serves the
/// loop device.
fn hanging(pid: i32, image: &Path, storage: &Storage) -> bool {
    let sleeps = |stat: PathBuf| {
        let text = std::fs::read_to_string(stat).unwrap_or_default();
        text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    };
    if image == storage.image {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        return tasks.map(|task| task.path().join("stat")).any(sleeps);
    }
    let name = storage.device.path().file_name().unwrap().to_owned();
    let inflight = Path::new("/sys/block").join(name).join("inflight");
    std::fs::read_to_string(inflight).unwrap().split_whitespace().any(|count| count != "0")
}

fn tap(host: &Host, command: &str, daemon: &Daemon, minor: u16) -> i32 {
    let (pid, minor) = (daemon.pid.to_string(), minor.to_string());
    host.tap_ctl(&[command, "-p", &pid, "-m", &minor]).status
}

fn free(host: &Host, minor: u16) -> i32 {
    host.tap_ctl(&["free", "-m", &minor.to_string()]).status
}

const EAGAIN: i32 = Errno::EAGAIN as i32;

#[test]
fn a_disk_that_was_left_behind_keeps_its_minor_and_its_image_until_its_last_write_has_ended() {
    let host = Host::new();
    let Some(storage) = Storage::new(&host) else { return };
    for image in [storage.image.as_path(), storage.device.path()] {
        let daemon = host.daemon(&[]);
        let (stays, minor) = (host.attach(&daemon), host.attach(&daemon));
        let (_client, frozen) = hang(&host, &daemon, minor, image, &storage);
        // Each of these is answered at once, whatever the storage does.
        assert_eq!(daemon.client.list().unwrap().len(), 2);
        daemon.client.close(minor, true, Some(PATIENCE)).unwrap();
        assert_eq!(tap(&host, "pause", &daemon, minor), Errno::ESHUTDOWN as i32);
        assert_eq!(daemon.client.list().unwrap()[1].state & 1, 1, "dead");
        assert_eq!(tap(&host, "close", &daemon, minor), 0);
        assert_eq!(tap(&host, "detach", &daemon, minor), 0);
        assert_eq!(daemon.client.list().unwrap().len(), 1);
        // But the write is still on its way: neither number nor image are free for another one.
        assert_eq!(free(&host, minor), EAGAIN);
        assert_eq!(daemon.client.attach(minor).unwrap_err().errno(), EAGAIN);
        let second = host.daemon(&[]);
        let other = host.attach(&second);
        let error = second.client.open(other, params(image)).unwrap_err();
        assert_eq!(error.errno(), EAGAIN, "{error}");
        assert!(error.to_string().contains(&format!("process {}", daemon.pid)), "{error}");
        frozen.thaw();
        wait_until("the number is free", || free(&host, minor) == 0);
        wait_until("the image is free", || second.client.open(other, params(image)).is_ok());
        // And the first daemon is as good as new.
        assert_eq!(host.attach(&daemon), minor);
        daemon.client.open(stays, params(&host.image("other", 1 << 20))).unwrap();
        for (daemon, minor) in [(&daemon, minor), (&second, other), (&daemon, stays)] {
            daemon.client.close(minor, false, None).unwrap();
            daemon.client.detach(minor).unwrap();
            assert_eq!(free(&host, minor), 0);
        }
    }
}

#[test]
fn a_daemon_that_left_its_last_disk_behind_holds_on_to_it_in_death() {
    let host = Host::new();
    let Some(storage) = Storage::new(&host) else { return };
    for (image, is_killed) in [
        (storage.image.as_path(), false),
        (storage.device.path(), false),
        (storage.image.as_path(), true),
        (storage.device.path(), true),
    ] {
        let mut daemon = host.daemon(&[]);
        let minor = host.attach(&daemon);
        let (_client, frozen) = hang(&host, &daemon, minor, image, &storage);
        if is_killed {
            daemon.signal(Signal::SIGKILL);
        } else {
            daemon.client.close(minor, true, Some(PATIENCE)).unwrap();
            daemon.client.detach(minor).unwrap();
            wait_until("it leaves", || !daemon.client.socket().exists());
        }
        assert_eq!(free(&host, minor), EAGAIN, "{image:?} {is_killed}");
        let second = host.daemon(&[]);
        let other = host.attach(&second);
        assert_eq!(second.client.open(other, params(image)).unwrap_err().errno(), EAGAIN);
        frozen.thaw();
        daemon.wait();
        assert_eq!(free(&host, minor), 0);
        second.client.open(other, params(image)).unwrap();
        second.client.close(other, false, None).unwrap();
        second.client.detach(other).unwrap();
        assert_eq!(free(&host, other), 0);
    }
}

#[test]
fn other_disks_and_commands_do_not_notice_and_all_goes_on_after_the_thaw() {
    let host = Host::new();
    let Some(storage) = Storage::new(&host) else { return };
    for image in [storage.image.as_path(), storage.device.path()] {
        let daemon = host.daemon(&[]);
        let (minor, fine) = (host.attach(&daemon), host.attach(&daemon));
        daemon.client.open(fine, params(&host.image("fine", 1 << 20))).unwrap();
        let (mut client, frozen) = hang(&host, &daemon, minor, image, &storage);
        let error = daemon.client.pause(minor, Some(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.errno(), Errno::ETIMEDOUT as i32);
        let error = daemon.client.close(minor, false, Some(Duration::from_millis(50))).unwrap_err();
        assert_eq!(error.errno(), Errno::ETIMEDOUT as i32);
        daemon.client.stats(minor).unwrap();
        let mut other = NbdClient::connect(&host.nbd_socket(daemon.pid, fine)).unwrap();
        for number in 0..100_u64 {
            assert_eq!(other.write(number * 512, &[7; 512]).unwrap(), 0);
        }
        daemon.client.pause(fine, None).unwrap();
        daemon.client.resume(fine, Params::default()).unwrap();
        frozen.thaw();
        assert_eq!(client.reply().unwrap().0, 0, "the write was only late");
        assert_eq!(client.read(4096, 4096).unwrap(), Ok(vec![2; 4096]));
        wait_until("it serves", || {
            daemon.client.list().unwrap().iter().all(|disk| disk.state == 0)
        });
        for minor in [minor, fine] {
            daemon.client.close(minor, false, None).unwrap();
            daemon.client.detach(minor).unwrap();
            assert_eq!(free(&host, minor), 0);
        }
    }
}

#[test]
fn who_waits_behind_a_thread_that_hangs_is_answered_by_a_forced_close() {
    let host = Host::new();
    let Some(storage) = Storage::new(&host) else { return };
    let daemon = host.daemon(&[]);
    let (_stays, minor) = (host.attach(&daemon), host.attach(&daemon));
    let (_client, frozen) = hang(&host, &daemon, minor, &storage.image, &storage);
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| daemon.client.pause(minor, Some(PATIENCE)).unwrap_err());
        let open = scope.spawn(|| daemon.client.open(minor, params(&storage.image)).unwrap_err());
        wait_until("both wait", || waiting_clients(&daemon) >= 2);
        daemon.client.close(minor, true, Some(PATIENCE)).unwrap();
        assert_eq!(pause.join().unwrap().errno(), Errno::ESHUTDOWN as i32);
        assert_eq!(open.join().unwrap().errno(), Errno::ESHUTDOWN as i32);
    });
    frozen.thaw();
    // The thread has obeyed at last: the disk is closed, and may be opened again.
    wait_until("it is closed", || daemon.client.list().unwrap()[1].state == 2);
    daemon.client.open(minor, params(&storage.image)).unwrap();
}

/// How many connections the control socket has.
fn waiting_clients(daemon: &Daemon) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = daemon.client.socket().to_str().unwrap();
    // The listener has the name too, and flags that no connection has.
    table.lines().filter(|line| line.ends_with(path) && !line.contains(" 00010000 ")).count()
}

#[test]
fn a_disk_that_was_only_slow_is_gone_when_its_detach_is_answered() {
    let host = Host::new();
    let Some(storage) = Storage::new(&host) else { return };
    for image in [storage.image.as_path(), storage.device.path()] {
        let daemon = host.daemon(&[]);
        let (stays, minor) = (host.attach(&daemon), host.attach(&daemon));
        let (_client, frozen) = hang(&host, &daemon, minor, image, &storage);
        daemon.client.close(minor, true, Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            let detach = scope.spawn(|| daemon.client.detach(minor));
            wait_until("the detach waits", || waiting_clients(&daemon) >= 1);
            frozen.thaw();
            detach.join().unwrap().unwrap();
        });
        assert_eq!(free(&host, minor), 0);
        daemon.client.open(stays, params(image)).unwrap();
    }
}
