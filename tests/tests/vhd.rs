//! VHDs under the real daemon: what was written is there for others, after kills, in chains, and
//! when a snapshot is taken under load; what is no VHD is refused.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::signal::Signal;
use tapdisk_control::message::{Flags, Params};
use tapdisk_tests::load::{CLIENTS, DEPTH, Load, loads, run_all};
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Host, has_program, vhd, wait_until};

/// Nine blocks each: the clients' parts begin inside of blocks.
const SECTORS_PER_CLIENT: u64 = 9 * 4096 + 24;

/// Of the disk under load, in bytes.
const SIZE: u64 = (CLIENTS * SECTORS_PER_CLIENT * 512).next_multiple_of(1 << 21);

/// How often the daemon is killed. `TAPDISK_KILLS=1000` for more.
fn kills() -> u32 {
    let set = std::env::var("TAPDISK_KILLS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn read_all(socket: &Path) -> impl Fn(u64, usize) -> Vec<u8> {
    move |offset, len| {
        let mut client = NbdClient::connect(socket).unwrap();
        let mut found = Vec::with_capacity(len);
        while found.len() < len {
            let part = (len - found.len()).min(1 << 20);
            let at = offset + found.len() as u64;
            found.extend(client.read(at, u32::try_from(part).unwrap()).unwrap().unwrap());
        }
        found
    }
}

/// What QEMU finds in a dynamic VHD, as a raw file; `None` without QEMU.
fn read_by_qemu(host: &Host, image: &Path) -> Option<std::path::PathBuf> {
    if !has_program("qemu-img") {
        return None;
    }
    let raw = host.path("raw");
    let name = image.to_str().unwrap();
    // By its size, not by the geometry, which rounds it.
    let spec = format!("driver=vpc,force_size_calc=current_size,file.filename={name}");
    let arguments = ["convert", "--image-opts", &spec, "-O", "raw", raw.to_str().unwrap()];
    host.run("qemu-img", &arguments).expect_success();
    Some(raw)
}

fn verify_by_others(host: &Host, image: &Path, loads: &mut [Load]) {
    if let Some(raw) = read_by_qemu(host, image) {
        loads.iter_mut().for_each(|load| load.verify(|at, len| Host::read(&raw, at, len)));
        std::fs::remove_file(raw).unwrap();
    }
    if has_program("vhdiinfo") {
        host.run("vhdiinfo", &[image]).expect_success();
    }
}

#[test]
fn what_was_written_is_there_for_independent_readers() {
    let host = Host::new();
    let image = host.path("disk.vhd");
    vhd::dynamic(&image, SIZE);
    for engine in ["aio", "io_uring", "sync"] {
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, socket) = host.serve(&daemon, &format!("vhd:{}", image.display()));
        let mut loads = loads(SECTORS_PER_CLIENT, true);
        // The disk holds what the engine before left: from here on it is zeros again.
        let mut client = NbdClient::connect(&socket).unwrap();
        let len = u32::try_from(SIZE).unwrap();
        client.send(command::WRITE_ZEROES, 0, len, &[]).unwrap();
        assert_eq!(client.reply().unwrap().0, 0);
        let (answered, end) = run_all(&mut loads, &socket, |done| {
            let wanted = 20 * CLIENTS * DEPTH as u64;
            wait_until("the load goes on", || {
                done.load(std::sync::atomic::Ordering::Relaxed) >= wanted
            });
        });
        end.unwrap();
        eprintln!("{engine}: {answered} requests");
        loads.iter_mut().for_each(|load| load.verify(read_all(&socket)));
        daemon.client.close(minor, false, None).unwrap();
        verify_by_others(&host, &image, &mut loads);
    }
}

/// Whether others open an image that a kill left. `is_opened`: it was opened for writing since, and
/// its end footer is there; until then libvhdi finds none.
fn open_by_others(host: &Host, image: &Path, is_opened: bool) {
    let name = image.to_str().unwrap();
    let check = host.run("vhd-util", &["check", "-n", name]);
    check.expect_success();
    if has_program("qemu-img") {
        host.run("qemu-img", &["info", "-U", "-f", "vpc", name]).expect_success();
    }
    if is_opened && has_program("vhdiinfo") {
        host.run("vhdiinfo", &[name]).expect_success();
    }
}

#[test]
fn a_killed_daemon_loses_nothing_that_it_answered() {
    let host = Host::new();
    let image = host.path("disk.vhd");
    vhd::dynamic(&image, SIZE);
    let name = format!("vhd:{}", image.display());
    let mut loads = loads(SECTORS_PER_CLIENT, true);
    let mut answered = 0;
    for round in 0..kills() {
        let mut daemon = host.daemon(&[]);
        let (minor, socket) = host.serve(&daemon, &name);
        open_by_others(&host, &image, true);
        loads.iter_mut().for_each(|load| load.verify(read_all(&socket)));
        let (count, end) = run_all(&mut loads, &socket, |done| {
            let wanted = u64::from(round % 7) * DEPTH as u64;
            wait_until("the load goes on", || {
                done.load(std::sync::atomic::Ordering::Relaxed) >= wanted
            });
            daemon.signal(Signal::SIGKILL);
            daemon.wait();
        });
        assert!(end.is_err(), "the daemon was killed");
        answered += count;
        let _ = host.tap_ctl(&["free", "-m", &minor.to_string()]);
        // Nobody has opened it since: the footer at its end may be gone. These take the copy.
        open_by_others(&host, &image, false);
    }
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &name);
    open_by_others(&host, &image, true);
    loads.iter_mut().for_each(|load| load.verify(read_all(&socket)));
    daemon.client.close(minor, false, None).unwrap();
    verify_by_others(&host, &image, &mut loads);
    eprintln!("{} kills, {answered} requests answered", kills());
}

#[test]
fn a_snapshot_under_load_loses_nothing() {
    let host = Host::new();
    let image = host.path("0.vhd");
    vhd::dynamic(&image, SIZE);
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &format!("vhd:{}", image.display()));
    let mut loads = loads(SECTORS_PER_CLIENT, true);
    let (_, end) = run_all(&mut loads, &socket, |done| {
        for depth in 1..=8 {
            let wanted = done.load(std::sync::atomic::Ordering::Relaxed) + 200;
            wait_until("the load goes on", || {
                done.load(std::sync::atomic::Ordering::Relaxed) >= wanted
            });
            daemon.client.pause(minor, None).unwrap();
            let leaf = host.path(&format!("{depth}.vhd"));
            vhd::child(&leaf, SIZE, &host.path(&format!("{}.vhd", depth - 1)));
            let path = format!("vhd:{}", leaf.display()).into();
            daemon.client.resume(minor, Params { path, ..Params::default() }).unwrap();
        }
    });
    end.unwrap();
    loads.iter_mut().for_each(|load| load.verify(read_all(&socket)));
    daemon.client.close(minor, false, None).unwrap();
    // Another daemon, read only: all nine images answer.
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    let path = format!("vhd:{}", host.path("8.vhd").display()).into();
    let params = Params { path, flags: Flags::READ_ONLY, ..Params::default() };
    daemon.client.open(minor, params).unwrap();
    let socket = host.nbd_socket(daemon.pid, minor);
    loads.iter_mut().for_each(|load| load.verify(read_all(&socket)));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert_ne!(client.write(0, &[1; 512]).unwrap(), 0, "a disk that is read only");
}

#[test]
fn one_command_takes_a_snapshot_and_puts_everything_back_when_it_fails() {
    let host = Host::new();
    let image = host.path("base.vhd");
    vhd::dynamic(&image, 4 << 20);
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &format!("vhd:{}", image.display()));
    let (pid, minor) = (daemon.pid.to_string(), minor.to_string());
    let snapshot = |name: &str| {
        let new = host.path(name);
        host.tap_ctl(&["snapshot", "-p", &pid, "-m", &minor, "-n", new.to_str().unwrap()])
    };
    let mut client = NbdClient::connect(&socket).unwrap();
    // The parent is still empty: it is the parent all the same.
    snapshot("first.vhd").expect_success();
    assert_eq!(client.write(0, &[1; 512]).unwrap(), 0);
    snapshot("second.vhd").expect_success();
    // Whoever types a name is in a directory of his own, and the daemon in another one.
    host.tap_ctl(&["snapshot", "-p", &pid, "-m", &minor, "-n", "relative.vhd"]).expect_success();
    assert_eq!(client.write(512, &[2; 512]).unwrap(), 0);
    let path = daemon.client.list().unwrap()[0].path.clone();
    assert_eq!(path.to_str().unwrap(), format!("vhd:{}", host.path("relative.vhd").display()));
    // No room for a name that is taken; no place for one in a directory that is not there.
    assert_eq!(snapshot("first.vhd").status, 17);
    assert_ne!(snapshot("nowhere/third.vhd").status, 0);
    assert_eq!(daemon.client.list().unwrap()[0].path, path);
    assert_eq!(daemon.client.list().unwrap()[0].state, 0);
    let found = client.read(0, 1024).unwrap().unwrap();
    assert_eq!(found, [[1; 512], [2; 512]].concat());
}

/// The second disk's new image would lie where its daemon looks for no parents: it is made, and
/// then refused.
#[test]
fn a_snapshot_is_of_all_its_disks_or_of_none() {
    let host = Host::new();
    let names = ["one", "two"].map(|name| host.path(&format!("{name}.vhd")));
    let daemons = [host.daemon(&[]), host.daemon(&[])];
    let disks: Vec<_> = daemons
        .iter()
        .zip(&names)
        .map(|(daemon, image)| {
            vhd::dynamic(image, 4 << 20);
            host.serve(daemon, &format!("vhd:{}", image.display()))
        })
        .collect();
    let snapshot = |leaves: [&Path; 2]| {
        let mut arguments = vec!["snapshot".to_owned()];
        for ((daemon, (minor, _)), leaf) in daemons.iter().zip(&disks).zip(leaves) {
            let (pid, minor) = (daemon.pid.to_string(), minor.to_string());
            let leaf = leaf.display().to_string();
            arguments.extend(["-p".into(), pid, "-m".into(), minor, "-n".into(), leaf]);
        }
        host.tap_ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let served = || {
        let path = |daemon: &tapdisk_tests::Daemon| {
            let disks = daemon.client.list().unwrap();
            assert_eq!(disks[0].state, 0);
            disks[0].path.to_str().unwrap().to_owned()
        };
        daemons.each_ref().map(path)
    };
    let as_vhd = |paths: &[std::path::PathBuf; 2]| {
        paths.each_ref().map(|path| format!("vhd:{}", path.display()))
    };
    let mut loads = loads(4096 / CLIENTS, true);
    std::fs::create_dir(host.path("elsewhere")).unwrap();
    let (_, end) = run_all(&mut loads, &disks[0].1, |done| {
        let wait = || {
            let wanted = done.load(std::sync::atomic::Ordering::Relaxed) + 200;
            wait_until("the load goes on", || {
                done.load(std::sync::atomic::Ordering::Relaxed) >= wanted
            });
        };
        wait();
        let refused = snapshot([&host.path("a.vhd"), &host.path("elsewhere/b.vhd")]);
        assert_ne!(refused.status, 0);
        assert_eq!(served(), as_vhd(&names));
        assert!(!host.path("a.vhd").exists() && !host.path("elsewhere/b.vhd").exists());
        wait();
        let leaves = [host.path("a.vhd"), host.path("b.vhd")];
        snapshot([&leaves[0], &leaves[1]]).expect_success();
        assert_eq!(served(), as_vhd(&leaves));
        wait();
    });
    end.unwrap();
    loads.iter_mut().for_each(|load| load.verify(read_all(&disks[0].1)));
    // The same disk twice, or the same image for both.
    assert_eq!(snapshot([&host.path("c.vhd"), &host.path("c.vhd")]).status, 22);
    assert!(!host.path("c.vhd").exists());
}

/// Xen's programs are played by scripts: `xenstore-read` finds each key as a file.
fn play_xen(host: &Host, minors: [u16; 2]) -> std::ffi::OsString {
    let (bin, store) = (host.path("bin"), host.path("store"));
    let script = |name: &str, text: &str| {
        let path = bin.join(name);
        std::fs::create_dir_all(&bin).expect("a folder");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).expect("a mode");
    };
    let set = |key: &str, value: &str| {
        let path = store.join(key);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, value).expect("a value");
    };
    script("xl", r#"[ "$1 $2" = "domid guest" ] && echo 7"#);
    script("xenstore-read", &format!("cat '{}'\"/$1\"", store.display()));
    script("xenstore-list", &format!("ls '{}'\"/$1\"", store.display()));
    let disks =
        [("51712", "w", Some(minors[0])), ("51728", "w", Some(minors[1])), ("9", "r", None)];
    for (device, mode, minor) in disks {
        let backend = format!("back/{device}");
        set(&format!("local/domain/7/device/vbd/{device}/backend"), &backend);
        set(&format!("{backend}/mode"), mode);
        if let Some(minor) = minor {
            let path = format!("/dev/xen/blktap-2/tapdev{minor}");
            set(&format!("{backend}/physical-device-path"), &path);
        }
    }
    let own = host.command("tap-ctl").get_program().to_owned();
    let own = Path::new(&own).parent().expect("a folder").to_owned();
    let system = std::env::var_os("PATH").unwrap_or_default();
    let all = [bin, own].into_iter().chain(std::env::split_paths(&system));
    std::env::join_paths(all.collect::<Vec<_>>()).expect("a path")
}

#[test]
fn xmsnap_takes_a_snapshot_of_what_a_domain_may_write() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let raw = host.image("root", 4 << 20);
    let image = host.path("data disk.vhd");
    vhd::dynamic(&image, 4 << 20);
    let (first, _) = host.serve(&daemon, &format!("aio:{}", raw.display()));
    let (second, _) = host.serve(&daemon, &format!("vhd:{}", image.display()));
    let path = play_xen(&host, [first, second]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/xen/xmsnap");
    let xmsnap = |domain: &str, tag: &str| {
        let mut command = host.command(script.to_str().unwrap());
        let output = command.args([domain, tag]).env("PATH", &path).output().unwrap();
        let [said, error] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), said, error)
    };
    let served = || {
        let disks = daemon.client.list().unwrap().into_iter();
        disks.map(|disk| disk.path.into_string().unwrap()).collect::<Vec<_>>()
    };
    let (status, said, error) = xmsnap("guest", "monday");
    assert_eq!((status, error.as_str()), (0, ""));
    let leaves = ["root.monday.vhd", "data disk.monday.vhd"]
        .map(|name| format!("vhd:{}", host.path(name).display()));
    assert_eq!(served(), leaves);
    assert!(leaves.iter().all(|leaf| said.contains(leaf.as_str())), "{said}");
    // The names are taken now: nothing changes.
    let (status, _, error) = xmsnap("guest", "monday.vhd/..");
    assert!(status == 1 && error.contains("the tag is"), "{error}");
    assert_eq!(xmsnap("nobody", "monday").0, 1);
    std::fs::write(host.path("data disk.monday.tuesday.vhd"), "taken").unwrap();
    assert_eq!(xmsnap("guest", "tuesday").0, 1);
    assert_eq!(served(), leaves);
    // A disk that tapdisk does not serve could not be of the same moment.
    std::fs::write(host.path("store/back/51712/physical-device-path"), "/dev/loop0").unwrap();
    let (status, _, error) = xmsnap("guest", "wednesday");
    assert!(status == 1 && error.contains("no disk of tapdisk"), "{error}");
    assert_eq!(served(), leaves);
}

#[test]
fn a_raw_parent_that_is_shorter_reads_as_zeros_behind_its_end() {
    let host = Host::new();
    let parent = host.image_of("base", &[0xaa; 3 * 512 + 100]);
    let leaf = host.path("leaf.vhd");
    vhd::child(&leaf, 4 << 20, &parent);
    let before = std::fs::read(&parent).unwrap();
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &format!("vhd:{}", leaf.display()));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert_eq!(client.write(512, &[0xbb; 512]).unwrap(), 0);
    let found = client.read(0, 4096).unwrap().unwrap();
    assert_eq!(found[..512], [0xaa; 512]);
    assert_eq!(found[512..1024], [0xbb; 512]);
    assert_eq!(found[1024..1536], [0xaa; 512]);
    assert_eq!(found[1536..], [0; 4096 - 1536]);
    // Trimmed, a sector never shows the parent's bytes again.
    client.send(command::TRIM, 0, 2 << 20, &[]).unwrap();
    assert_eq!(client.reply().unwrap().0, 0);
    let found = client.read(512, 512).unwrap().unwrap();
    assert!(found == [0xbb; 512] || found == [0; 512]);
    client.send(command::WRITE_ZEROES, 0, 4096, &[]).unwrap();
    assert_eq!(client.reply().unwrap().0, 0);
    assert_eq!(client.read(0, 4096).unwrap().unwrap(), [0; 4096]);
    daemon.client.close(minor, false, None).unwrap();
    assert_eq!(std::fs::read(&parent).unwrap(), before, "a parent is never written");
}

#[test]
fn zeros_take_no_space_and_a_trimmed_block_gives_its_space_back() {
    let host = Host::new();
    let image = host.path("disk.vhd");
    vhd::dynamic(&image, 64 << 20);
    let empty = std::fs::metadata(&image).unwrap().len();
    let daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &format!("vhd:{}", image.display()));
    let mut client = NbdClient::connect(&socket).unwrap();
    for block in 0..32_u64 {
        assert_eq!(client.write(block << 21, &[0; 8192]).unwrap(), 0);
    }
    assert_eq!(std::fs::metadata(&image).unwrap().len(), empty, "zeros to empty blocks");
    for block in 0..8_u64 {
        assert_eq!(client.write(block << 21, &vec![1; 1 << 20]).unwrap(), 0);
    }
    client.send(command::TRIM, 0, 16 << 20, &[]).unwrap();
    assert_eq!(client.reply().unwrap().0, 0);
    assert_eq!(client.read(0, 4096).unwrap().unwrap(), [0; 4096]);
    daemon.client.close(minor, false, None).unwrap();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), empty, "all blocks were freed");
}

#[test]
fn what_a_crash_left_is_restored_at_open() {
    let host = Host::new();
    let image = host.path("disk.vhd");
    vhd::dynamic(&image, 4 << 20);
    let good = std::fs::read(&image).unwrap();
    // Blocks that no entry names, and no footer at the end.
    let mut crashed = good.clone();
    crashed.truncate(good.len() - 512);
    crashed.extend(vec![0x55; 3 << 20]);
    std::fs::write(&image, crashed).unwrap();
    let daemon = host.daemon(&[]);
    let (minor, _) = host.serve(&daemon, &format!("vhd:{}", image.display()));
    assert_eq!(std::fs::read(&image).unwrap(), good, "already while it is open");
    daemon.client.close(minor, false, None).unwrap();
    assert_eq!(std::fs::read(&image).unwrap(), good);
}

#[test]
fn what_is_no_vhd_or_not_whole_is_refused_with_a_reason() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    let refuse = |name: &str, errno: i32| {
        let path = format!("vhd:{}", host.path(name).display()).into();
        let refused = daemon.client.open(minor, Params { path, ..Params::default() });
        let error = refused.expect_err(name);
        assert_eq!(error.errno() as i32, errno, "{name}: {error}");
    };
    let _ = host.image_of("garbage.vhd", &[0x5a; 8192]);
    refuse("garbage.vhd", 22);
    let _ = host.image_of("empty.vhd", &[]);
    refuse("empty.vhd", 22);
    // Two blocks in one place.
    let overlapping = host.path("overlapping.vhd");
    vhd::dynamic(&overlapping, 8 << 20);
    let file = std::fs::File::options().write(true).open(&overlapping).unwrap();
    file.write_all_at(&[0, 0, 0, 7, 0, 0, 0, 8], 1536).unwrap();
    file.set_len(8 << 20).unwrap();
    refuse("overlapping.vhd", 22);
    // A block past the end of the file.
    let outside = host.path("outside.vhd");
    vhd::dynamic(&outside, 8 << 20);
    let file = std::fs::File::options().write(true).open(&outside).unwrap();
    file.write_all_at(&[0, 1, 0, 7], 1536).unwrap();
    refuse("outside.vhd", 22);
    // A parent that vanished, and one that is another image now.
    let base = host.path("base.vhd");
    vhd::dynamic(&base, 4 << 20);
    let orphan = host.path("orphan.vhd");
    vhd::child(&orphan, 4 << 20, &base);
    std::fs::rename(&base, host.path("elsewhere.vhd")).unwrap();
    refuse("orphan.vhd", 2);
    let other = host.path("other.vhd");
    vhd::dynamic(&other, 4 << 20);
    std::fs::rename(&other, &base).unwrap();
    refuse("orphan.vhd", 22);
}
