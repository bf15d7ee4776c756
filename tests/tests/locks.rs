//! One writer for each image: two that write one destroy it, and say nothing while they do.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tapdisk_control::message::{Flags, Params};
use tapdisk_tests::nbd::NbdClient;
use tapdisk_tests::{Daemon, Host, LoopDevice, PATIENCE, Ran, has_program, wait_until};

fn params(image: &Path, flags: Flags) -> Params {
    Params { path: format!("aio:{}", image.display()).into(), flags, ..Params::default() }
}

fn open(daemon: &Daemon, minor: u16, image: &Path) -> Result<(), Errno> {
    let result = daemon.client.open(minor, params(image, Flags::NONE));
    result.map(drop).map_err(|error| Errno::from_raw(error.errno()))
}

/// Whether a call was refused because this process has the image open, and says so.
fn is_locked(ran: &Ran, image: &Path, holder: i32) -> bool {
    ran.status == Errno::EAGAIN as i32
        && ran.stderr.lines().count() == 1
        && ran.stderr.contains(image.to_str().unwrap())
        && ran.stderr.contains(&format!("process {holder} (tapdisk) has locked it"))
}

#[test]
fn two_disks_of_a_daemon_do_not_write_one_image() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let (first, second) = (host.attach(&daemon), host.attach(&daemon));
    open(&daemon, first, &image).unwrap();
    let arguments =
        ["-p", &daemon.pid.to_string(), "-m", &second.to_string(), "-a"].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = format!("aio:{}", image.display());
    let ran = host.tap_ctl(&[&["open"], arguments.as_slice(), &[&name]].concat());
    assert!(is_locked(&ran, &image, daemon.pid), "{ran:?}");
    // The first serves on, and the second is free for another image.
    let mut client = NbdClient::connect(&host.nbd_socket(daemon.pid, first)).unwrap();
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
    open(&daemon, second, &host.image("other", 1 << 20)).unwrap();
}

#[test]
fn two_daemons_do_not_write_one_image_by_whatever_name() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let (link, hard) = (host.path("link"), host.path("hard"));
    std::os::unix::fs::symlink(&image, &link).unwrap();
    std::fs::hard_link(&image, &hard).unwrap();
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    open(&daemon, minor, &image).unwrap();
    for other in [&image, &link, &hard] {
        let ran = host.tap_ctl(&["create", "-a", &format!("aio:{}", other.display())]);
        assert!(is_locked(&ran, other, daemon.pid), "{ran:?}");
    }
    // Nothing is left of the attempts.
    let list = host.tap_ctl(&["list"]).expect_success();
    assert_eq!(list.lines().filter(|line| line.contains("minor=")).count(), 1, "{list}");
    daemon.client.close(minor, false, None).unwrap();
    host.tap_ctl(&["create", "-a", &format!("aio:{}", image.display())]).expect_success();
}

#[test]
fn readers_are_in_nobodys_way() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let minors: Vec<u16> = (0..3).map(|_| host.attach(&daemon)).collect();
    let read_only = || params(&image, Flags::READ_ONLY);
    daemon.client.open(minors[0], read_only()).unwrap();
    open(&daemon, minors[1], &image).unwrap();
    daemon.client.open(minors[2], read_only()).unwrap();
}

#[test]
fn a_killed_daemon_has_let_go_of_its_images() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let mut first = host.daemon(&[]);
    let (_, socket) = host.serve(&first, &format!("aio:{}", image.display()));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
    first.signal(Signal::SIGKILL);
    assert!(!first.wait().success());
    let second = host.daemon(&[]);
    let minor = host.attach(&second);
    open(&second, minor, &image).unwrap();
}

#[test]
fn a_paused_image_may_be_handed_over_under_load_and_comes_back() {
    for engine in ["aio", "io_uring", "sync"] {
        let host = Host::new();
        let image = host.image("disk", 1 << 20);
        let (first, second) =
            (host.daemon(&["--queue", engine]), host.daemon(&["--queue", engine]));
        let (one, two) = (host.attach(&first), host.attach(&second));
        open(&first, one, &image).unwrap();
        let mut client = NbdClient::connect(&host.nbd_socket(first.pid, one)).unwrap();
        for round in 0..50_u8 {
            client.write(0, &[round; 4096]).unwrap();
            // Under way while the pause comes.
            for offset in 0..8 {
                let command = tapdisk_tests::nbd::command::WRITE;
                client.send(command, 8192 + offset * 4096, 4096, &[round; 4096]).unwrap();
            }
            first.client.pause(one, None).unwrap();
            open(&second, two, &image).unwrap_or_else(|errno| panic!("{engine} {round}: {errno}"));
            second.client.close(two, false, None).unwrap();
            first.client.resume(one, Params::default()).unwrap();
            for _ in 0..8 {
                assert_eq!(client.reply().unwrap().0, 0);
            }
        }
    }
}

#[test]
fn an_image_that_was_given_away_during_a_pause_is_waited_for_and_not_written() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let (first, second) = (host.daemon(&[]), host.daemon(&[]));
    let (one, two) = (host.attach(&first), host.attach(&second));
    let other = host.attach(&first);
    open(&first, one, &image).unwrap();
    first.client.pause(one, None).unwrap();
    open(&second, two, &image).unwrap();
    std::thread::scope(|scope| {
        let resume = scope.spawn(|| first.client.resume(one, Params::default()));
        wait_until("the first attempt", || Daemon::log(&host).contains("trying again"));
        // The waiting keeps nothing else from going on.
        let state =
            first.client.list().unwrap().iter().find(|disk| disk.minor == one).unwrap().state;
        assert_eq!(state & 0x20, 0x20);
        let busy = first.client.pause(one, None).unwrap_err();
        assert_eq!(busy.errno(), Errno::EBUSY as i32);
        open(&first, other, &host.image("other", 1 << 20)).unwrap();
        second.client.close(two, false, None).unwrap();
        resume.join().unwrap().unwrap();
    });
    let mut client = NbdClient::connect(&host.nbd_socket(first.pid, one)).unwrap();
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
}

#[test]
fn a_client_that_does_not_wait_for_a_resume_ends_the_attempts_and_so_does_a_forced_close() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let (first, second) = (host.daemon(&[]), host.daemon(&[]));
    let (one, two) = (host.attach(&first), host.attach(&second));
    open(&first, one, &image).unwrap();
    first.client.pause(one, None).unwrap();
    open(&second, two, &image).unwrap();
    let resume =
        tapdisk_control::message::Request::Resume { minor: one, params: Params::default() };
    let ask = || {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(first.client.socket()).unwrap();
        stream.write_all(&resume.encode().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    drop(ask());
    // The disk is free for another command as soon as the first is given up: as if it had failed.
    let failed = || first.client.list().unwrap()[0].state == 0x22a;
    wait_until("the attempts end with their client", failed);
    let mut waits = ask();
    let mut reply = [0; tapdisk_control::message::MESSAGE_SIZE];
    wait_until("it is tried again", || {
        first.client.pause(one, None).is_err_and(|error| error.errno() == Errno::EBUSY as i32)
    });
    first.client.close(one, true, None).unwrap();
    std::io::Read::read_exact(&mut waits, &mut reply).unwrap();
    let tapdisk_control::message::Response::Error { errno, .. } =
        tapdisk_control::message::Response::decode(&reply).unwrap()
    else {
        panic!("a resume of a closed disk")
    };
    assert_eq!(errno, Errno::ESHUTDOWN as i32);
    first.client.detach(one).unwrap();
}

#[test]
fn who_wants_no_lock_has_none() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let first = host.daemon(&[]);
    let (one, two) = (host.attach(&first), host.attach(&first));
    open(&first, one, &image).unwrap();
    // By a flag of the message.
    first.client.open(two, params(&image, Flags::SHARED)).unwrap();
    // By an option of tap-ctl.
    let name = format!("aio:{}", image.display());
    host.tap_ctl(&["create", "--shared", "-a", &name]).expect_success();
    // By one of the daemon, and by the environment.
    let free = host.daemon(&["--lock", "never"]);
    let minor = host.attach(&free);
    open(&free, minor, &image).unwrap();
    let mut create = host.command("tap-ctl");
    create.args(["create", "-a", &name]).env("TAPDISK_LOCK", "never");
    Ran::from(create.output().unwrap()).expect_success();
    // And nonsense is not taken for any of them.
    let mut spawn = host.command("tap-ctl");
    let spawn = spawn.arg("spawn").env("TAPDISK_LOCK", "off").env("TAP_CTL_ERRORS", "long");
    let ran = Ran::from(spawn.output().unwrap());
    assert_eq!(ran.status, Errno::EINVAL as i32, "{ran:?}");
    assert!(ran.stderr.contains("auto, always or never"), "{ran:?}");
}

#[test]
fn qemu_and_a_disk_keep_each_other_from_writing_and_a_patient_reader_is_let_in() {
    if !has_program("qemu-img") || !has_program("qemu-io") {
        return;
    }
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    open(&daemon, minor, &image).unwrap();
    let qemu = |arguments: &[&str]| host.run(arguments[0], &arguments[1..]);
    let path = image.to_str().unwrap();
    let write = ["qemu-io", "-f", "raw", "-c", "write 0 512", path];
    let convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", path, "copy"];
    assert_ne!(qemu(&write).status, 0, "it writes what is written here");
    assert_ne!(qemu(&convert).status, 0, "it reads what is written here");
    qemu(&["qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", path, "copy"]).expect_success();
    daemon.client.close(minor, false, None).unwrap();
    qemu(&write).expect_success();
    // The other way round: one that has the image open until its input ends.
    let mut holder = host.command("qemu-io");
    holder.args(["-f", "raw", path]).stdin(std::process::Stdio::piped());
    holder.stdout(std::process::Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut prompt = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    let pid = holder.id();
    let error = daemon.client.open(minor, params(&image, Flags::NONE)).unwrap_err();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(error.errno(), Errno::EAGAIN as i32);
    assert!(error.to_string().contains(&format!("process {pid} (qemu-io)")), "{error}");
    open(&daemon, minor, &image).unwrap();
}

#[test]
fn a_block_device_has_one_writer_too() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let Some(device) = LoopDevice::attach(&image, 512) else { return };
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    open(&daemon, minor, device.path()).unwrap();
    let ran = host.tap_ctl(&["create", "-a", &format!("aio:{}", device.path().display())]);
    assert!(is_locked(&ran, device.path(), daemon.pid), "{ran:?}");
}
