//! Minors, and the commands that are made of several steps.

use std::path::{Path, PathBuf};

use tapdisk_control::message::{MessageId, Request, Response};
use tapdisk_control::minor::lock_marker;

use crate::bench::{Bench, PID, Server, refuse, send, told};

/// A script that behaves as `FAKE_TAPDISK` says; it does not serve its socket.
fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tap_ctl/fake_tapdisk.sh")
}

fn run_with_daemon(bench: &Bench, behaviour: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = bench.command(arguments);
    command.env("TAPDISK", program()).env("FAKE_TAPDISK", behaviour);
    told(&command.output().unwrap())
}

fn agree(request: &Request, stream: &mut std::os::unix::net::UnixStream) {
    send(
        stream,
        &match request {
            Request::Attach { .. } => Response::Attach,
            Request::Open { .. } => Response::Open(Default::default()),
            Request::Close { .. } => Response::Close,
            Request::Detach { .. } => Response::Detach,
            other => panic!("asked for {other:?}"),
        },
    );
}

#[test]
fn minors_are_taken_listed_and_given_back() {
    let bench = Bench::new("c1");
    for minor in 0..3 {
        let stdout = format!("{}\n", bench.paths().marker(minor).display());
        assert_eq!(bench.run(&["allocate"]), (0, stdout, "".into()));
    }
    assert_eq!(bench.run(&["free", "-m", "1"]), (0, "".into(), "".into()));
    assert_eq!(bench.run(&["list"]).1, "minor=0\nminor=2\n");
    let absent = (2, String::new(), "No such file or directory\n".to_owned());
    assert_eq!(bench.run(&["free", "-m", "1"]), absent);
    assert_eq!(bench.run(&["free", "-m", "60000"]), absent);
    let attached = lock_marker(&bench.paths(), 0).unwrap();
    let busy = (11, String::new(), "Resource temporarily unavailable\n".to_owned());
    assert_eq!(bench.run(&["free", "-m", "0"]), busy);
    drop(attached);
    assert_eq!(bench.run(&["free", "-m", "0"]).0, 0);
}

#[test]
fn spawn_prints_the_pid_that_the_daemon_names() {
    let bench = Bench::new("c2");
    assert_eq!(run_with_daemon(&bench, "ok", &["spawn"]), (0, "7654321\n".into(), "".into()));
}

#[test]
fn spawn_fails_as_the_daemon_did() {
    let bench = Bench::new("c3");
    let no_memory = (12, String::new(), "Cannot allocate memory\n".to_owned());
    assert_eq!(run_with_daemon(&bench, "exit-12", &["spawn"]), no_memory);
    let interrupted = (4, String::new(), "Interrupted system call\n".to_owned());
    assert_eq!(run_with_daemon(&bench, "term", &["spawn"]), interrupted);
    assert_eq!(run_with_daemon(&bench, "usr1-always", &["spawn"]), interrupted);
    assert_eq!(run_with_daemon(&bench, "mute", &["spawn"]).0, 71);
    let output = bench.command(&["spawn"]).env("TAPDISK", "/nonexistent/tapdisk").output();
    let absent = (2, String::new(), "No such file or directory\n".to_owned());
    assert_eq!(told(&output.unwrap()), absent);
}

#[test]
fn create_prints_the_marker_and_destroy_takes_it_away() {
    let bench = Bench::new("c5");
    let server = Server::start(&bench, PID, agree);
    let (status, stdout, stderr) = run_with_daemon(&bench, "ok", &["create", "-a", "vhd:/x"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(stdout, format!("{}\n", bench.paths().marker(0).display()));
    assert_eq!(server.requests(), [MessageId::Attach, MessageId::Open]);
    let result = bench.run(&["destroy", "-p", "7654321", "-m", "0", "-t", "60"]);
    assert_eq!(result, (0, "".into(), "".into()));
    assert_eq!(server.requests()[2..], [MessageId::Close, MessageId::Detach]);
    assert!(!bench.paths().marker(0).exists());
}

#[test]
fn create_undoes_what_it_did_when_the_image_does_not_open() {
    let bench = Bench::new("c6");
    let server = Server::start(&bench, PID, |request, stream| match request {
        Request::Open { .. } => refuse(stream, 2),
        _ => agree(request, stream),
    });
    let result = run_with_daemon(&bench, "ok", &["create", "-a", "vhd:/x"]);
    assert_eq!(result, (2, "".into(), "No such file or directory\n".into()));
    assert_eq!(server.requests(), [MessageId::Attach, MessageId::Open, MessageId::Detach]);
    assert!(!bench.paths().marker(0).exists());
}

#[test]
fn create_gives_the_minor_back_when_no_daemon_starts_or_attaches() {
    let bench = Bench::new("c7");
    assert_eq!(run_with_daemon(&bench, "exit-12", &["create", "-a", "vhd:/x"]).0, 12);
    assert!(!bench.paths().marker(0).exists());
    let server = Server::start(&bench, PID, |_, stream| refuse(stream, 12));
    assert_eq!(run_with_daemon(&bench, "ok", &["create", "-a", "vhd:/x"]).0, 12);
    assert_eq!(server.requests(), [MessageId::Attach]);
    assert!(!bench.paths().marker(0).exists());
}

#[test]
fn destroy_stops_at_the_first_step_that_fails() {
    let bench = Bench::new("c8");
    bench.run(&["allocate"]);
    let server = Server::start(&bench, PID, |request, stream| match request {
        Request::Detach { .. } => refuse(stream, 16),
        _ => agree(request, stream),
    });
    let result = bench.run(&["destroy", "-p", "7654321", "-m", "0"]);
    assert_eq!(result, (16, "".into(), "Device or resource busy\n".into()));
    assert_eq!(server.requests(), [MessageId::Close, MessageId::Detach]);
    assert!(bench.paths().marker(0).exists());
}
