//! The life of a daemon and its disks, through `tap-ctl` as its callers use it.
//!
//! The first test is a recorded session of blktap's tap-ctl, to the letter, with raw images in
//! place of VHD. The others: what is left behind at each kind of end (nothing, or what the next
//! `list` survives).

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;
use tapdisk_control::message::{Flags, MESSAGE_SIZE, Params, Request, Response};
use tapdisk_control::statistics::{Counter, Statistics};
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, Ran, has_ended, wait_until};

/// A call, its standard output, its standard error, its exit status.
type Step = (&'static str, &'static str, &'static str, i32);

const NONE: &str = "";
const EINVAL: &str = "Invalid argument\n";
const ENOENT: &str = "No such file or directory\n";

const BEFORE_OPEN: &[Step] = &[
    ("list", "pid=@PID@\n", NONE, 0),
    ("list -p @PID@", "pid=@PID@\n", NONE, 0),
    ("allocate", "@DIR@/run/tapdisk/tapdisk-0\n", NONE, 0),
    ("list", "pid=@PID@\nminor=0\n", NONE, 0),
    ("attach -p @PID@ -m 0", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0\n", NONE, 0),
    ("attach -p @PID@ -m 0", NONE, EINVAL, 22),
    ("attach -p @PID@ -m 5", NONE, EINVAL, 22),
    (
        "stats -p @PID@ -m 0",
        "{ \"name\": \"(null)\", \"secs\": [ 0, 0 ], \"images\": [  ], \
         \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
         \"read_caching\": \"false\" }\n\n",
        NONE,
        0,
    ),
    ("close -p @PID@ -m 0", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0x2\n", NONE, 0),
    ("open -p @PID@ -m 0 -a foo:/x", NONE, ENOENT, 2),
    ("open -p @PID@ -m 0 -a vhd", NONE, EINVAL, 22),
    ("open -p @PID@ -m 0 -a aio:", NONE, ENOENT, 2),
    ("open -p @PID@ -m 0 -a :/x", NONE, ENOENT, 2),
    ("open -p @PID@ -m 0 -a vmdk:/x", NONE, "Function not implemented\n", 38),
    ("open -p @PID@ -m 0 -a aio:/nosuch", NONE, ENOENT, 2),
    ("list", "pid=@PID@ minor=0 state=0x2\n", NONE, 0),
];

const OPEN: &[Step] = &[
    ("open -p @PID@ -m 0 -a aio:@DIR@/a", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("list -p @PID@", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("list -m 0", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("list -m 3", NONE, NONE, 0),
    ("list -t aio", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("list -t nosuch", NONE, NONE, 0),
    ("list -f @DIR@/a", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("list -f nosuch", NONE, NONE, 0),
    (
        "stats -p @PID@ -m 0",
        "{ \"name\": \"aio:@DIR@/a\", \"secs\": [ 0, 0 ], \"images\": [ { \"name\": \"@DIR@/a\", \
         \"hits\": [ 0, 0 ], \"fail\": [ 0, 0 ], \"driver\": { \"type\": 0, \"name\": \"aio\", \
         \"status\": { \"reqs\": { \"max\": 256, \"pending\": 0 } } } } ], \
         \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
         \"read_caching\": \"false\" }\n\n",
        NONE,
        0,
    ),
    // blktap's prints two line ends and succeeds.
    ("stats -p @PID@ -m 9", NONE, "No such device\n", 19),
    ("open -p @PID@ -m 0 -a aio:@DIR@/a", NONE, "Operation already in progress\n", 114),
    ("detach -p @PID@ -m 0", "got unexpected result 'error' from @PID@\n", EINVAL, 22),
    ("free -m 0", NONE, "Resource temporarily unavailable\n", 11),
];

const PAUSE: &[Step] = &[
    ("pause -p @PID@ -m 0", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0x2a args=aio:@DIR@/a\n", NONE, 0),
    (
        "stats -p @PID@ -m 0",
        "{ \"name\": \"aio:@DIR@/a\", \"secs\": [ 0, 0 ], \"images\": [  ], \
         \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
         \"read_caching\": \"false\" }\n\n",
        NONE,
        0,
    ),
    ("unpause -p @PID@ -m 0", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("unpause -p @PID@ -m 0", NONE, EINVAL, 22),
    ("pause -p @PID@ -m 0", NONE, NONE, 0),
    ("unpause -p @PID@ -m 0 -a aio:@DIR@/b", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/b\n", NONE, 0),
    ("pause -p @PID@ -m 0", NONE, NONE, 0),
    ("unpause -p @PID@ -m 0 -a aio:@DIR@/missing", NONE, ENOENT, 2),
    ("list", "pid=@PID@ minor=0 state=0x22a args=aio:@DIR@/b\n", NONE, 0),
    ("unpause -p @PID@ -m 0 -a aio:@DIR@/a", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n", NONE, 0),
    ("pause -p @PID@ -m 0", NONE, NONE, 0),
    ("unpause -p @PID@ -m 0 -a aio:@DIR@/larger", NONE, "Wrong medium type\n", 124),
    ("list", "pid=@PID@ minor=0 state=0x22a args=aio:@DIR@/a\n", NONE, 0),
    ("unpause -p @PID@ -m 0", NONE, NONE, 0),
    ("close -p @PID@ -m 0 -t 120", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=0 state=0x2\n", NONE, 0),
    ("close -p @PID@ -m 0", NONE, NONE, 0),
];

const SECOND_DISK: &[Step] = &[
    ("allocate", "@DIR@/run/tapdisk/tapdisk-1\n", NONE, 0),
    ("attach -p @PID@ -m 1", NONE, NONE, 0),
    ("open -p @PID@ -m 1 -a aio:@DIR@/c -R", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=1 state=0 args=aio:@DIR@/c\npid=@PID@ minor=0 state=0x2\n", NONE, 0),
    ("open -p @PID@ -m 0 -a aio:@DIR@/a -D", NONE, NONE, 0),
    (
        "list",
        "pid=@PID@ minor=1 state=0 args=aio:@DIR@/c\npid=@PID@ minor=0 state=0 args=aio:@DIR@/a\n",
        NONE,
        0,
    ),
    (
        "stats -p @PID@ -m 0",
        "{ \"name\": \"aio:@DIR@/a\", \"secs\": [ 0, 0 ], \"images\": [ { \"name\": \"@DIR@/a\", \
         \"hits\": [ 0, 0 ], \"fail\": [ 0, 0 ], \"driver\": { \"type\": 0, \"name\": \"aio\", \
         \"status\": { \"reqs\": { \"max\": 256, \"pending\": 0 } } } } ], \
         \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
         \"read_caching\": \"true\" }\n\n",
        NONE,
        0,
    ),
    ("close -p @PID@ -m 0 -f", NONE, NONE, 0),
    ("detach -p @PID@ -m 0", NONE, NONE, 0),
    ("list", "pid=@PID@ minor=1 state=0 args=aio:@DIR@/c\nminor=0\n", NONE, 0),
    ("free -m 0", NONE, NONE, 0),
    ("close -p @PID@ -m 1", NONE, NONE, 0),
    ("destroy -p @PID@ -m 1", NONE, NONE, 0),
];

const AFTER_THE_END: &[Step] = &[
    ("list", NONE, NONE, 0),
    ("stats -p @PID@ -m 0", NONE, ENOENT, 2),
    ("free -m 1", NONE, ENOENT, 2),
    ("free -m 0", NONE, ENOENT, 2),
    ("list", NONE, NONE, 0),
];

fn replay(host: &Host, pid: i32, steps: &[Step]) {
    let directory = host.path("");
    let directory = directory.to_str().unwrap().trim_end_matches('/');
    let fill = |text: &str| text.replace("@PID@", &pid.to_string()).replace("@DIR@", directory);
    for (call, stdout, stderr, status) in steps {
        let call = fill(call);
        let arguments: Vec<&str> = call.split(' ').collect();
        let wanted = Ran { status: *status, stdout: fill(stdout), stderr: fill(stderr) };
        assert_eq!(host.tap_ctl(&arguments), wanted, "tap-ctl {call}");
    }
}

#[test]
fn a_session_goes_as_it_was_recorded() {
    let host = Host::new();
    for (name, size) in [("a", 4 << 20), ("b", 4 << 20), ("c", 1 << 20), ("larger", 8 << 20)] {
        let _ = host.image(name, size);
    }
    let pid = host.spawn();
    for steps in [BEFORE_OPEN, OPEN, PAUSE, SECOND_DISK] {
        replay(&host, pid, steps);
    }
    wait_until("the daemon leaves after its last disk", || has_ended(pid));
    replay(&host, pid, AFTER_THE_END);
    assert!(host.sockets().is_empty(), "{:?}", host.sockets());
    assert!(!host.paths().statistics_dir(pid).exists());
}

/// `aio:` and the path.
fn aio(path: &Path) -> String {
    format!("aio:{}", path.display())
}

/// The only row of the list, as pid and minor.
fn only_row(host: &Host) -> (i32, String) {
    let list = host.tap_ctl(&["list"]).expect_success();
    let field = |name: &str| {
        let found = list.split_whitespace().find_map(|field| field.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{list:?} has no {name}")).to_owned()
    };
    assert_eq!(list.lines().count(), 1, "{list:?}");
    (field("pid=").parse().unwrap(), field("minor="))
}

#[test]
fn create_serves_and_destroy_leaves_nothing() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let marker = host.tap_ctl(&["create", "-a", &aio(&image)]).expect_success();
    assert_eq!(marker.trim_end(), host.paths().marker(0).to_str().unwrap());
    let (pid, minor) = only_row(&host);
    let mut client = NbdClient::connect(&host.nbd_socket(pid, 0)).unwrap();
    assert_eq!(client.size, 1 << 20);
    assert_eq!(client.write(4096, &[0x5a; 512]).unwrap(), 0);
    host.tap_ctl(&["destroy", "-p", &pid.to_string(), "-m", &minor]).expect_success();
    wait_until("the daemon leaves", || has_ended(pid));
    assert_eq!(Host::read(&image, 4096, 512), [0x5a; 512]);
    assert!(host.sockets().is_empty());
    assert!(!host.paths().marker(0).exists());
}

#[test]
fn relative_directories_are_those_of_the_caller() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let relative = |command: &mut std::process::Command| {
        command.env("TAPDISK_RUN_DIR", "run").env("TAPDISK_SHM_DIR", "shm");
        Ran::from(command.output().unwrap())
    };
    relative(host.command("tap-ctl").args(["create", "-a", &aio(&image)])).expect_success();
    let list = relative(host.command("tap-ctl").arg("list")).expect_success();
    assert_eq!(list, host.tap_ctl(&["list"]).expect_success());
    let (pid, minor) = only_row(&host);
    assert!(host.paths().statistics(pid, 0).exists());
    relative(host.command("tap-ctl").args(["destroy", "-p", &pid.to_string(), "-m", &minor]))
        .expect_success();
}

#[test]
fn an_image_that_is_not_there_is_named_as_the_daemon_looked_for_it() {
    let host = Host::new();
    // It is there, but not where a daemon in the background looks.
    let _image = host.image("disk", 1 << 20);
    let mut command = host.command("tap-ctl");
    command.args(["create", "-a", "aio:disk"]).env("TAP_CTL_ERRORS", "long");
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.status, 2, "{ran:?}");
    assert!(ran.stderr.contains("(/disk)"), "{ran:?}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    let spawn = |host: &Host| {
        let mut command = host.command("tap-ctl");
        command.arg("spawn").env("TAP_CTL_ERRORS", "long");
        Ran::from(command.output().unwrap())
    };
    std::fs::set_permissions(host.path("run"), PermissionsExt::from_mode(0o777)).unwrap();
    let ran = spawn(&host);
    assert_eq!(ran.status, nix::errno::Errno::EPERM as i32, "{ran:?}");
    assert!(ran.stderr.contains("found mode 0777, want 0700"), "{ran:?}");
    let mut command = host.command("tapdisk");
    let ran = Ran::from(command.args(["--log", "file:no/such/log"]).output().unwrap());
    assert_eq!(ran.status, nix::errno::Errno::ENOENT as i32, "{ran:?}");
    assert!(ran.stderr.contains("no/such/log"), "{ran:?}");
}

#[test]
fn create_of_a_missing_image_leaves_nothing() {
    let host = Host::new();
    let ran = host.tap_ctl(&["create", "-a", "aio:/nosuch"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (2, ENOENT), "{ran:?}");
    assert_eq!(ran.stdout, "");
    wait_until("the daemon leaves", || host.sockets().is_empty());
    assert_eq!(host.tap_ctl(&["list"]).expect_success(), "");
    let markers = std::fs::read_dir(host.paths().marker_dir()).unwrap();
    assert_eq!(markers.flatten().count(), 0);
    wait_until("its statistics are removed", || {
        std::fs::read_dir(host.path("shm")).unwrap().count() == 0
    });
}

#[test]
fn two_daemons_do_not_meet() {
    let host = Host::new();
    let (one, two) = (host.image("one", 1 << 20), host.image("two", 2 << 20));
    host.tap_ctl(&["create", "-a", &aio(&one)]).expect_success();
    host.tap_ctl(&["create", "-a", &aio(&two)]).expect_success();
    let row = |path: &Path| {
        let list = host.tap_ctl(&["list", "-f", path.to_str().unwrap()]).expect_success();
        assert_eq!(list.lines().count(), 1);
        let pid = list.split(' ').next().unwrap().strip_prefix("pid=").unwrap();
        pid.parse::<i32>().unwrap()
    };
    let (first, second) = (row(&one), row(&two));
    assert_ne!(first, second);
    // The other one's disk is not theirs to take, nor to end.
    let ran = host.tap_ctl(&["attach", "-p", &first.to_string(), "-m", "1"]);
    assert_eq!(ran.status, 22, "{ran:?}");
    let ran = host.tap_ctl(&["close", "-p", &first.to_string(), "-m", "1"]);
    assert_eq!(ran.status, 19, "{ran:?}");
    assert_eq!(NbdClient::connect(&host.nbd_socket(first, 0)).unwrap().size, 1 << 20);
    host.tap_ctl(&["destroy", "-p", &first.to_string(), "-m", "0"]).expect_success();
    wait_until("the first daemon leaves", || has_ended(first));
    assert_eq!(NbdClient::connect(&host.nbd_socket(second, 1)).unwrap().size, 2 << 20);
    host.tap_ctl(&["destroy", "-p", &second.to_string(), "-m", "1"]).expect_success();
    wait_until("the second daemon leaves", || has_ended(second));
}

#[test]
fn list_has_the_last_attached_disk_first() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let minors: Vec<u16> = (0..4).map(|_| host.attach(&daemon)).collect();
    assert_eq!(minors, [0, 1, 2, 3]);
    daemon.client.detach(1).unwrap();
    daemon.client.attach(1).unwrap();
    let list = host.tap_ctl(&["list"]).expect_success();
    let rows = [1, 3, 2, 0].map(|minor| format!("pid={} minor={minor} state=0\n", daemon.pid));
    assert_eq!(list, rows.concat());
}

#[test]
fn a_signal_ends_a_daemon_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let host = Host::new();
        let image = host.image("disk", 1 << 20);
        let mut daemon = host.daemon(&[]);
        let (_, socket) = host.serve(&daemon, &aio(&image));
        let other = host.attach(&daemon);
        let mut client = NbdClient::connect(&socket).unwrap();
        assert_eq!(client.write(0, &[7; 4096]).unwrap(), 0);
        assert!(host.paths().statistics(daemon.pid, other).exists());
        daemon.signal(signal);
        assert!(daemon.wait().success(), "{signal}: {}", Daemon::log(&host));
        assert!(host.sockets().is_empty(), "{signal}: {:?}", host.sockets());
        assert!(!host.paths().statistics_dir(daemon.pid).exists(), "{signal}");
        assert!(client.reply().is_err(), "{signal}: the connection has an end");
        assert_eq!(Host::read(&image, 0, 4096), [7; 4096]);
        // The markers are the storage manager's: it frees them.
        assert_eq!(host.tap_ctl(&["list"]).expect_success(), "minor=0\nminor=1\n");
        host.tap_ctl(&["free", "-m", "0"]).expect_success();
    }
}

#[test]
fn a_detach_may_follow_a_forced_close_at_once() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let _stays = host.attach(&daemon);
    let minor = host.attach(&daemon);
    daemon.client.detach(minor).unwrap();
    for _ in 0..200 {
        daemon.client.attach(minor).unwrap();
        let params = Params { path: aio(&image).into(), ..Params::default() };
        daemon.client.open(minor, params).unwrap();
        let mut client = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
        for number in 0..8 {
            client.send(command::WRITE, number * 65536, 65536, &[3; 65536]).unwrap();
        }
        daemon.client.close(minor, true, None).unwrap();
        daemon.client.detach(minor).unwrap();
    }
}

#[test]
fn every_command_to_a_disk_on_its_way_out_is_answered() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&[]);
    let _stays = host.attach(&daemon);
    let minor = host.attach(&daemon);
    daemon.client.detach(minor).unwrap();
    let open = Params { path: aio(&image).into(), ..Params::default() };
    let requests = [
        Request::Detach { minor },
        Request::Open { minor, params: open },
        Request::Detach { minor },
        Request::Close { minor },
        Request::ForceShutdown { minor },
        Request::Detach { minor },
    ];
    for _ in 0..100 {
        daemon.client.attach(minor).unwrap();
        // All of them are sent before the first answer is looked at.
        let streams: Vec<UnixStream> = requests
            .iter()
            .map(|request| {
                let mut stream = UnixStream::connect(daemon.client.socket()).unwrap();
                stream.set_read_timeout(Some(tapdisk_tests::PATIENCE)).unwrap();
                stream.write_all(&request.encode().unwrap()).unwrap();
                stream
            })
            .collect();
        let detached = streams.into_iter().zip(&requests).filter_map(|(mut stream, request)| {
            let mut reply = [0; MESSAGE_SIZE];
            stream.read_exact(&mut reply).unwrap_or_else(|error| panic!("{request:?}: {error}"));
            (Response::decode(&reply).unwrap() == Response::Detach).then_some(())
        });
        assert_eq!(detached.count(), 1);
    }
    assert_eq!(daemon.client.list().unwrap().len(), 1);
    daemon.signal(Signal::SIGTERM);
    wait_until("nothing that was left behind keeps it", || has_ended(daemon.pid));
}

#[test]
fn sigusr1_dumps_the_state_to_the_log() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let log = host.path("own.log");
    let mut command = host.command("tapdisk");
    command.args(["-D", "--layer", "stuck:op=read,count=1", "--log"]);
    command.arg(format!("file:{}", log.display()));
    let daemon = host.daemon_by(command);
    let (_, socket) = host.serve(&daemon, &aio(&image));
    let mut client = NbdClient::connect(&socket).unwrap();
    let read = client.send(command::READ, 0, 4096, &[]).unwrap();
    client.flush_after(read).unwrap();
    daemon.signal(Signal::SIGUSR1);
    let mut text = String::new();
    wait_until("the dump is in the log", || {
        text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
        text.contains("State of the disk")
    });
    assert!(text.contains("Running"), "{text}");
    // And it goes on.
    assert_eq!(daemon.client.pid().unwrap(), daemon.pid);
}

#[test]
fn what_a_killed_daemon_leaves_holds_up_nobody() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let mut daemon = host.daemon(&[]);
    let (minor, socket) = host.serve(&daemon, &aio(&image));
    daemon.signal(Signal::SIGKILL);
    assert!(!daemon.wait().success());
    assert!(socket.exists(), "nobody was there to remove it");
    assert!(host.paths().control_socket(daemon.pid).exists());
    assert_eq!(host.tap_ctl(&["list"]).expect_success(), format!("minor={minor}\n"));
    let ran = host.tap_ctl(&["stats", "-p", &daemon.pid.to_string(), "-m", &minor.to_string()]);
    assert_eq!(ran.status, nix::errno::Errno::ECONNREFUSED as i32, "{ran:?}");
    // Its lock on the minor went with it: another daemon takes the disk over.
    let second = host.daemon(&[]);
    second.client.attach(minor).unwrap();
    let params = Params { path: aio(&image).into(), ..Params::default() };
    second.client.open(minor, params).unwrap();
    let mut client = NbdClient::connect(&host.nbd_socket(second.pid, minor)).unwrap();
    assert_eq!(client.read(0, 512).unwrap(), Ok(vec![0; 512]));
    let row = format!("pid={} minor={minor} state=0 args={}\n", second.pid, aio(&image));
    assert_eq!(host.tap_ctl(&["list"]).expect_success(), row);
}

#[test]
fn descriptors_of_the_caller_are_closed() {
    let host = Host::new();
    let leaked = host.path("leaked");
    std::fs::write(&leaked, "").unwrap();
    for background in [false, true] {
        // A shell, because what it opens its child inherits.
        let mut command = host.command("sh");
        let program = host.command("tapdisk").get_program().to_owned();
        let way = if background { "" } else { "-D" };
        command.arg("-c").arg(format!("exec 7<>leaked 8<leaked; exec \"$0\" {way} --log stderr"));
        command.arg(&program);
        let daemon = host.daemon_by(command);
        let open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap_or_default())
            .collect();
        assert!(!open.is_empty());
        assert!(!open.contains(&leaked), "{open:?}");
        if background {
            assert!(!open.contains(&host.path("tapdisk.log")), "{open:?}");
        }
        daemon.signal(Signal::SIGTERM);
        wait_until("it leaves", || has_ended(daemon.pid));
    }
}

#[test]
fn the_statistics_page_counts_what_was_done() {
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let daemon = host.daemon(&["--retry", "0", "--layer", "fault:op=read,count=1,errno=EIO"]);
    let (minor, socket) = host.serve(&daemon, &aio(&image));
    let mut client = NbdClient::connect(&socket).unwrap();
    assert!(client.read(0, 4096).unwrap().is_err());
    for number in 0..10 {
        assert_eq!(client.write(number * 8192, &[1; 8192]).unwrap(), 0);
        assert!(client.read(number * 8192, 4096).unwrap().is_ok());
    }
    let path = host.paths().statistics(daemon.pid, minor);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    // The page is written after the answers of a turn went out.
    let mut page = Statistics::read(&path).unwrap();
    wait_until("all is counted", || {
        page = Statistics::read(&path).unwrap();
        page.get(Counter::Outstanding) == 0 && page.get(Counter::ReadsCompleted) == 11
    });
    assert_eq!(page.get(Counter::ReadsSubmitted), 11);
    assert_eq!(page.get(Counter::WritesSubmitted), 10);
    assert_eq!(page.get(Counter::WritesCompleted), 10);
    assert_eq!(page.get(Counter::ReadSectors), 11 * 8);
    assert_eq!(page.get(Counter::WriteSectors), 10 * 16);
    assert_eq!(page.get(Counter::IoErrors), 1);
    // All of it came through this door; there is no other one.
    let door = path.with_file_name(format!("nbd-{minor}"));
    wait_until("the door shows the same", || {
        let shown = Statistics::read(&door).unwrap();
        Counter::ALL.iter().all(|counter| shown.get(*counter) == page.get(*counter))
    });
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
    daemon.client.close(minor, false, None).unwrap();
    daemon.client.detach(minor).unwrap();
    wait_until("the pages go with their disk", || !path.exists() && !door.exists());
}

#[test]
fn stats_of_odd_file_names_are_json() {
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let names: [&[u8]; 5] = [
        b"a \"quoted\" name",
        b"back\\slash",
        b"line\nend\tand tab",
        b"not\xffutf\xfe8",
        "dürr=ü ☃".as_bytes(),
    ];
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        let path = host.path("").join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let minor = host.attach(&daemon);
        let mut wanted = std::ffi::OsString::from("aio:");
        wanted.push(&path);
        let params = Params { path: wanted.clone(), flags: Flags::READ_ONLY, ..Params::default() };
        daemon.client.open(minor, params).unwrap();
        let (pid, minor) = (daemon.pid.to_string(), minor.to_string());
        for more in [&[][..], &["--json"]] {
            let arguments = [&["stats", "-p", &pid, "-m", &minor], more].concat();
            let text = host.tap_ctl(&arguments).expect_success();
            let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(json["name"], *wanted.to_string_lossy());
            assert_eq!(json["images"][0]["name"], *path.to_string_lossy());
        }
        let list = host.tap_ctl(&["list", "-m", &minor]).expect_success();
        assert_eq!(list.lines().count(), 1, "{list:?}");
        // The exact bytes find it.
        let ran = host.run("tap-ctl", &["list".as_ref(), "-f".as_ref(), path.as_os_str()]);
        assert_eq!(ran.expect_success(), list);
    }
    let all = daemon.client.stats(u16::MAX).unwrap();
    let all: Value = serde_json::from_slice(&all).unwrap();
    assert_eq!(all.as_array().map(Vec::len), Some(names.len()));
}

#[test]
fn nobody_else_may_connect_whatever_the_umask_of_the_caller() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    let image = host.image("disk", 1 << 20);
    let mut command = host.command("sh");
    command.args(["-c", "umask 0; exec \"$TAPDISK\" -D --log stderr"]);
    let daemon = host.daemon_by(command);
    let (_, socket) = host.serve(&daemon, &aio(&image));
    for path in [socket.as_path(), daemon.client.socket()] {
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "{}: {mode:o}", path.display());
    }
}

#[test]
fn a_daemon_that_nobody_waits_for_does_not_stay() {
    let host = Host::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = host.command("tapdisk");
    command.args(["-D", "--log", "stderr"]).stdout(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    assert!(!child.wait().unwrap().success());
    assert!(host.sockets().is_empty(), "{:?}", host.sockets());
}
