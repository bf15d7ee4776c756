//! `list`: the outer join of sockets, disks and markers.

use std::fs;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tapdisk_control::message::{ListEntry, Request, Response};

use crate::bench::{Bench, Server, answer_list, refuse, send};

fn mark(bench: &Bench, minors: &[u16]) {
    bench.paths().create_marker_dir().unwrap();
    for minor in minors {
        fs::write(bench.paths().marker(*minor), "").unwrap();
    }
}

#[test]
fn sockets_come_first_then_the_minors_that_nobody_has() {
    let bench = Bench::new("l1");
    mark(&bench, &[0, 1, 2, 10]);
    let disks = [(1, 0x2a, "vhd:/srv/a b.vhd"), (10, 0, "aio:/x"), (7, 2, "")];
    let _one =
        Server::start(&bench, 20, move |request, stream| answer_list(request, stream, 20, &disks));
    let _two = Server::start(&bench, 100, |request, stream| answer_list(request, stream, 100, &[]));
    // By name, so 100 before 20; in each the last attached first; minors by name.
    let all = "pid=100\npid=20 minor=7 state=0x2\npid=20 minor=10 state=0 args=aio:/x\n\
               pid=20 minor=1 state=0x2a args=vhd:/srv/a b.vhd\nminor=0\nminor=2\n";
    for (arguments, stdout) in [
        (&["list"][..], all),
        (&["list", "-p", "100"], "pid=100\n"),
        (&["list", "-p", "20", "-m", "10"], "pid=20 minor=10 state=0 args=aio:/x\n"),
        (&["list", "-m", "2"], "minor=2\n"),
        (&["list", "-m", "3"], ""),
        (&["list", "-t", "aio"], "pid=20 minor=10 state=0 args=aio:/x\n"),
        (&["list", "-t", "ai"], ""),
        (&["list", "-f", "/srv/a b.vhd"], "pid=20 minor=1 state=0x2a args=vhd:/srv/a b.vhd\n"),
        (&["list", "-f", "/srv/a"], ""),
    ] {
        assert_eq!(bench.run(arguments), (0, stdout.into(), "".into()), "{arguments:?}");
    }
}

#[test]
fn a_dead_socket_is_passed_over_and_left() {
    let bench = Bench::new("l2");
    let socket = bench.paths().control_socket(7);
    drop(UnixListener::bind(&socket).unwrap());
    for arguments in [&["list"][..], &["list", "-p", "7"], &["list", "-p", "8"]] {
        assert_eq!(bench.run(arguments), (0, "".into(), "".into()), "{arguments:?}");
    }
    assert!(socket.exists());
}

#[test]
fn a_tapdisk_that_goes_while_it_lists_is_a_pid_alone_or_an_error() {
    let bench = Bench::new("l3");
    mark(&bench, &[1]);
    let _server = Server::start(&bench, 20, |request, stream| match request {
        Request::Pid => send(stream, &Response::Pid(20)),
        _ => {
            let path = "vhd:/x".into();
            let entry = ListEntry { remaining: 2, minor: 1, state: 0, path };
            send(stream, &Response::List(entry));
        }
    });
    assert_eq!(bench.run(&["list"]), (0, "pid=20\nminor=1\n".into(), "".into()));
    let result = bench.run(&["list", "-p", "20"]);
    assert_eq!(result, (71, "".into(), "Protocol error\n".into()));
}

#[test]
fn a_tapdisk_that_does_not_know_list_is_a_pid_alone() {
    let bench = Bench::new("l4");
    let _server = Server::start(&bench, 20, |request, stream| match request {
        Request::Pid => send(stream, &Response::Pid(20)),
        _ => refuse(stream, 22),
    });
    assert_eq!(bench.run(&["list"]), (0, "pid=20\n".into(), "".into()));
    assert_eq!(bench.run(&["list", "-p", "20"]).0, 22);
}

#[test]
fn other_files_in_the_directories_are_nothing() {
    let bench = Bench::new("l5");
    mark(&bench, &[5]);
    for name in ["ctl", "ctlx", "ctl5x", "nbd5.0", "tapdisk/tapdisk-x", "tapdisk/other"] {
        fs::write(bench.paths().run_dir().join(name), "").unwrap();
    }
    assert_eq!(bench.run(&["list"]), (0, "minor=5\n".into(), "".into()));
}

#[test]
fn json_has_every_row_and_the_doors_that_there_are() {
    let bench = Bench::new("l6");
    mark(&bench, &[0, 3]);
    let _server = Server::start(&bench, 20, |request, stream| {
        answer_list(request, stream, 20, &[(0, 0x20, "vhd:/a\"\\\n.vhd")]);
    });
    let (door, device) = (bench.paths().nbd_socket(20, 0), bench.paths().block_device(3));
    fs::write(&door, "").unwrap();
    fs::create_dir_all(bench.paths().device_dir()).unwrap();
    fs::write(&device, "").unwrap();
    let (status, stdout, stderr) = bench.run(&["list", "--json"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    let rows: Value = serde_json::from_str(&stdout).unwrap();
    let expected = json!([
        { "pid": 20, "minor": 0, "state": 32, "state_names": ["paused"], "type": "vhd",
          "path": "/a\"\\\n.vhd", "door": door },
        { "pid": null, "minor": 3, "state": null, "state_names": null, "type": null, "path": null,
          "device": device },
    ]);
    assert_eq!(rows, expected);
    assert_eq!(bench.run(&["list", "--json", "-m", "9"]).1, "[]\n");
}
