//! Tests of the process. What changes the whole process runs in another one: this very executable,
//! told by an environment variable to be the child, with the one test [`child`].

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SigSet, Signal, raise};

use super::*;

const CASE: &str = "TAPDISK_TEST_CHILD";

/// Runs a case of [`child`] in a process of its own, until its standard output is closed by all.
fn run(case: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::tests::child", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap()
}

/// The lines that a case printed, without those of the test harness.
fn answers(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| line.split_once("child: "))
        .map(|(_, answer)| answer.to_string())
        .collect()
}

fn link(path: &str) -> String {
    std::fs::read_link(path).map_or_else(|error| error.to_string(), |to| to.display().to_string())
}

/// Not a test by itself: the other side of those below.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else {
        return;
    };
    match case.as_str() {
        "daemon" => sys::alone(child_daemon),
        "daemon fails" => sys::alone(|| child_mask_and_daemon().failed(28, "no room")),
        "daemon dies" => sys::alone(|| drop(child_mask_and_daemon())),
        "daemon is killed" => sys::alone(|| {
            let _launch = child_mask_and_daemon();
            raise(Signal::SIGKILL).unwrap();
        }),
        "threads" => child_threads(),
        "close all" => child_close(close_inherited),
        "close listed" => child_close(launch::close_listed),
        "limits" => child_limits(),
        "io thread" => child_io_thread(),
        other => panic!("no case {other}"),
    }
}

fn child_mask_and_daemon() -> Launch {
    let mask = SignalMask::block().unwrap();
    daemonise(&mask).unwrap()
}

fn child_daemon() {
    let before = std::process::id();
    let launch = child_mask_and_daemon();
    let id = nix::unistd::getpid();
    let facts = [
        format!("forked {}", std::process::id() != before),
        format!("leads its session {}", nix::unistd::getsid(None).unwrap() == id),
        format!("cwd {}", link("/proc/self/cwd")),
        format!("streams {} {} {}", link("/dev/fd/0"), link("/dev/fd/1"), link("/dev/fd/2")),
        format!("keeps {}", SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1)),
    ];
    // The one way out is the line of the control path.
    launch.ready(Path::new(&format!("child: {}", facts.join("; ")))).unwrap();
    sys::exit_now(0);
}

/// Two threads: that of the harness and that of the test.
fn child_threads() {
    let mask = SignalMask::block().unwrap();
    println!("child: {}", daemonise(&mask).unwrap_err());
}

fn child_close(close: fn(u32) -> std::io::Result<()>) {
    // Owned by nobody, as inherited ones are.
    let leaked: Vec<_> = (0..3)
        .map(|_| std::os::fd::IntoRawFd::into_raw_fd(File::open("/dev/null").unwrap()))
        .collect();
    close(u32::try_from(leaked[1]).unwrap()).unwrap();
    let open = |fd| Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok();
    println!("child: {:?}", leaked.iter().map(|fd| open(*fd)).collect::<Vec<_>>());
}

fn child_limits() {
    let warnings = raise_limits();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let denied = warnings.iter().any(|warning| warning.what.starts_with("lock"));
    println!("child: locked or denied {}", denied || locked.trim() != "0 kB");
    // Locked or not, memory can still be had.
    let arena = crate::memory::Memory::new(64 << 20).unwrap();
    println!("child: arena {}", arena.free_bytes());
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = files.split_whitespace().skip(3);
    println!("child: files at hard limit {}", numbers.next() == numbers.next());
}

fn child_io_thread() {
    name_thread("abcdefghijklmnopqrstuvwxyz").unwrap();
    println!("child: {}", std::fs::read_to_string("/proc/thread-self/comm").unwrap().trim());
    let warnings = prepare_io_thread();
    let slack = nix::sys::prctl::get_timerslack().unwrap();
    println!("child: slack {slack} or {}", warnings.len());
}

#[test]
fn the_daemon_is_detached_and_reports_its_path_on_the_original_stdout() {
    let output = run("daemon");
    assert!(output.status.success(), "{output:?}");
    let streams = "streams /dev/null /dev/null /dev/null";
    let facts = format!("forked true; leads its session true; cwd /; {streams}; keeps true");
    assert_eq!(answers(&output), [facts]);
}

#[test]
fn the_parent_exits_with_the_status_of_a_failed_start() {
    let output = run("daemon fails");
    assert_eq!(output.status.code(), Some(28));
    // And says why: the daemon has no standard error of its own any more.
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("tapdisk: no room"), "{text}");
}

#[test]
fn the_parent_exits_with_one_when_the_daemon_ends_without_a_word() {
    assert_eq!(run("daemon dies").status.code(), Some(1));
    assert_eq!(run("daemon is killed").status.code(), Some(1));
}

#[test]
fn refuses_to_fork_with_another_thread() {
    let output = run("threads");
    assert_eq!(answers(&output), ["Cannot fork with 2 threads, expected 1"]);
}

#[test]
fn closes_from_the_first_on_with_and_without_close_range() {
    assert_eq!(answers(&run("close all")), ["[true, false, false]"]);
    assert_eq!(answers(&run("close listed")), ["[true, false, false]"]);
}

#[test]
fn limits_are_raised_and_memory_can_still_be_had() {
    let expected = ["locked or denied true", "arena 67108864", "files at hard limit true"];
    assert_eq!(answers(&run("limits")), expected);
}

#[test]
fn an_io_thread_has_a_short_name_and_exact_timers() {
    let lines = answers(&run("io thread"));
    assert_eq!(lines[0], "abcdefghijklmno");
    assert!(lines[1].starts_with("slack 1 or "), "{lines:?}");
}

#[test]
fn a_name_with_a_nul_is_refused() {
    assert!(name_thread("a\0b").is_err());
}

#[test]
fn a_warning_says_what_and_why() {
    let warning =
        Warning { what: "lock the memory mapped so far", errno: nix::errno::Errno::EPERM };
    let text = "Cannot lock the memory mapped so far: Operation not permitted";
    assert_eq!(warning.to_string(), text);
}

/// Signals are raised for this very thread, which has them blocked: no other test sees them.
#[test]
fn each_signal_becomes_its_event_and_wakes_the_loop() {
    let mask = SignalMask::block().unwrap();
    let mut signals = Signals::open(&mask).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut signals, Token(5), Interest::READABLE).unwrap();
    let expected = [
        (Signal::SIGHUP, SignalEvent::ReopenLog),
        (Signal::SIGINT, SignalEvent::Interrupt),
        (Signal::SIGUSR1, SignalEvent::Dump),
        (Signal::SIGUSR2, SignalEvent::Poll),
        (Signal::SIGTERM, SignalEvent::Terminate),
    ];
    for (signal, event) in expected {
        raise(signal).unwrap();
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(events.iter().any(|event| event.token() == Token(5)), "{signal}");
        let received = signals.receive().unwrap().unwrap();
        assert_eq!((received.event, received.pid), (event, std::process::id()));
        assert_eq!(signals.receive().unwrap(), None);
    }
    poll.registry().deregister(&mut signals).unwrap();
    mask.restore().unwrap();
    assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGHUP));
}

#[test]
fn a_program_that_we_start_can_be_ended() {
    // What a program inherits is the mask; blocked, it could not be told to stop.
    let mask = SignalMask::block().unwrap();
    mask.restore().unwrap();
    let mut program = Command::new("sleep").arg("10").spawn().unwrap();
    let id = nix::unistd::Pid::from_raw(i32::try_from(program.id()).unwrap());
    nix::sys::signal::kill(id, Signal::SIGTERM).unwrap();
    assert_eq!(program.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
}
