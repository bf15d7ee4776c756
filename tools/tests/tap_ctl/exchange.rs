//! Daemons that are silent, slow, short, gone, or say no.

use std::io::Write;
use std::os::unix::net::UnixListener;

use tapdisk_control::message::{MESSAGE_SIZE, MessageId, Request, Response};

use crate::bench::{Bench, PID, Server, be_silent, refuse, send};

const P: &str = "7654321";

fn lines(status: i32, stderr: &str) -> (i32, String, String) {
    (status, String::new(), format!("{stderr}\n"))
}

#[test]
fn a_silent_daemon_is_given_up_after_the_timeout() {
    let bench = Bench::new("x1");
    let _server = Server::start(&bench, PID, |_, stream| be_silent(stream));
    for command in ["close", "pause", "destroy"] {
        let result = bench.run(&[command, "-p", P, "-m", "0", "-t", "1"]);
        assert_eq!(result, lines(110, "Connection timed out"), "{command}");
    }
}

#[test]
fn a_daemon_that_goes_in_the_middle_breaks_the_protocol() {
    let bench = Bench::new("x2");
    for sent in [0, 1, MESSAGE_SIZE - 1] {
        let reply = Response::Close.encode(0).unwrap();
        let server = Server::start(&bench, PID, move |_, stream| {
            drop(stream.write_all(&reply[..sent]));
        });
        let result = bench.run(&["close", "-p", P, "-m", "0"]);
        assert_eq!(result, lines(71, "Protocol error"), "{sent} bytes");
        drop(server);
        std::fs::remove_file(bench.paths().control_socket(PID)).unwrap();
    }
}

#[test]
fn a_reply_may_come_in_pieces() {
    let bench = Bench::new("x3");
    let _server = Server::start(&bench, PID, |_, stream| {
        for byte in Response::Pause.encode(0).unwrap() {
            stream.write_all(&[byte]).unwrap();
        }
    });
    assert_eq!(bench.run(&["pause", "-p", P, "-m", "3", "-t", "60"]), (0, "".into(), "".into()));
}

#[test]
fn an_error_reply_is_the_exit_status() {
    let bench = Bench::new("x4");
    let _server = Server::start(&bench, PID, |request, stream| {
        refuse(
            stream,
            match request {
                Request::Open { .. } => 114,
                Request::Close { .. } => 16,
                Request::Resume { .. } => 124,
                _ => 19,
            },
        );
    });
    for (arguments, status, stderr) in [
        (&["open", "-a", "vhd:/x"][..], 114, "Operation already in progress"),
        (&["close"], 16, "Device or resource busy"),
        (&["close", "-f"], 19, "No such device"),
        (&["unpause"], 124, "Wrong medium type"),
        (&["pause"], 19, "No such device"),
        (&["stats"], 19, "No such device"),
    ] {
        let arguments = [arguments, &["-p", P, "-m", "0"]].concat();
        assert_eq!(bench.run(&arguments), lines(status, stderr), "{arguments:?}");
    }
}

#[test]
fn attach_and_detach_hide_what_the_daemon_said() {
    let bench = Bench::new("x5");
    let _server = Server::start(&bench, PID, |_, stream| refuse(stream, 17));
    let result = bench.run(&["attach", "-p", P, "-m", "0"]);
    assert_eq!(result, lines(22, "Invalid argument"));
    let (status, stdout, stderr) = bench.run(&["detach", "-p", P, "-m", "0"]);
    assert_eq!((status, stderr.as_str()), (22, "Invalid argument\n"));
    assert_eq!(stdout, "got unexpected result 'error' from 7654321\n");
    let (status, _, stderr) = bench.run_explaining(&["attach", "-p", P, "-m", "0"]);
    assert_eq!(status, 22);
    assert!(stderr.contains("minor 0") && stderr.contains("File exists"), "{stderr}");
}

#[test]
fn an_error_reply_without_an_error_is_one() {
    let bench = Bench::new("x6");
    let _server = Server::start(&bench, PID, |_, stream| refuse(stream, 0));
    assert_eq!(bench.run(&["close", "-p", P, "-m", "0"]), lines(5, "Input/output error"));
}

#[test]
fn a_reply_to_something_else_and_one_that_is_none_break_the_protocol() {
    let bench = Bench::new("x7");
    let _server = Server::start(&bench, PID, |request, stream| match request {
        Request::Close { .. } => send(stream, &Response::Pause),
        _ => stream.write_all(&[0xff; MESSAGE_SIZE]).unwrap(),
    });
    for command in ["close", "pause"] {
        let result = bench.run(&[command, "-p", P, "-m", "0"]);
        assert_eq!(result, lines(71, "Protocol error"), "{command}");
    }
}

#[test]
fn nobody_at_the_socket_and_no_socket_are_told_apart() {
    let bench = Bench::new("x8");
    let result = bench.run(&["close", "-p", P, "-m", "0", "-t", "abc"]);
    assert_eq!(result, lines(2, "No such file or directory"));
    drop(UnixListener::bind(bench.paths().control_socket(PID)).unwrap());
    assert_eq!(bench.run(&["pause", "-p", P, "-m", "0"]), lines(111, "Connection refused"));
    let (_, _, stderr) = bench.run_explaining(&["pause", "-p", P, "-m", "0"]);
    assert!(stderr.starts_with("tap-ctl pause: ") && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains("ctl7654321: Connection refused; "), "{stderr}");
}

#[test]
fn the_options_of_open_arrive() {
    let bench = Bench::new("x9");
    let (sender, receiver) = std::sync::mpsc::channel();
    let _server = Server::start(&bench, PID, move |request, stream| {
        sender.send(request.clone()).unwrap();
        send(stream, &Response::Open(Default::default()));
    });
    let all = [
        "open", "-RDrs", "-e7", "-p", P, "-m", "9", "-a", "vhd:/a b", "-2", "nbd:/s", "-t", "30",
        "-C", "/log",
    ];
    assert_eq!(bench.run(&all), (0, "".into(), "".into()));
    let Request::Open { minor, params } = receiver.recv().unwrap() else { panic!() };
    assert_eq!((minor, params.flags.0), (9, 0x002 | 0x200 | 0x020 | 0x100 | 0x040 | 0x080));
    assert_eq!((params.parent, params.request_timeout_s), (7, 30));
    assert_eq!((params.path, params.secondary), ("vhd:/a b".into(), "nbd:/s".into()));
    assert_eq!(params.log, Some("/log".into()));

    let mut command = bench.command(&["open", "-E", "-p", P, "-m", "9", "-a", "vhd:/a"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[7; 64]).unwrap();
    assert!(child.wait().unwrap().success());
    let Request::Open { params, .. } = receiver.recv().unwrap() else { panic!() };
    assert_eq!(params.key.unwrap().as_bytes(), [7; 64]);
}

#[test]
fn the_options_of_unpause_arrive() {
    let bench = Bench::new("x10");
    let (sender, receiver) = std::sync::mpsc::channel();
    let _server = Server::start(&bench, PID, move |request, stream| {
        sender.send(request.clone()).unwrap();
        send(stream, &Response::Resume);
    });
    let all = ["unpause", "-p", P, "-m", "9", "-a", "vhd:/b", "-2", "null", "-c", "/log"];
    assert_eq!(bench.run(&all), (0, "".into(), "".into()));
    let Request::Resume { params, .. } = receiver.recv().unwrap() else { panic!() };
    assert_eq!(
        (params.flags.0, params.path, params.secondary),
        (0x80, "vhd:/b".into(), "null".into())
    );
    assert_eq!(params.log, Some("/log".into()));
    assert_eq!(bench.run(&["unpause", "-p", P, "-m", "9"]), (0, "".into(), "".into()));
    let Request::Resume { params, .. } = receiver.recv().unwrap() else { panic!() };
    assert_eq!(params, Default::default());
}

#[test]
fn a_path_that_is_too_long_is_refused_and_never_cut() {
    let bench = Bench::new("x11");
    let server = Server::start(&bench, PID, |_, stream| send(stream, &Response::Attach));
    let path = format!("vhd:/{}", "x".repeat(251));
    let result = bench.run(&["open", "-p", P, "-m", "0", "-a", &path]);
    assert_eq!(result, lines(36, "File name too long"));
    assert_eq!(server.requests(), []);
}

#[test]
fn force_is_another_request_than_close() {
    let bench = Bench::new("x12");
    let server = Server::start(&bench, PID, |_, stream| send(stream, &Response::Close));
    assert_eq!(bench.run(&["close", "-p", P, "-m", "0"]).0, 0);
    assert_eq!(bench.run(&["close", "-fp", P, "-m", "0", "-t", "120"]).0, 0);
    // After each it looks whether the storage lost something.
    let (list, force) = (MessageId::List, MessageId::ForceShutdown);
    assert_eq!(server.requests(), [MessageId::Close, list, force, list]);
}
