//! Storage that hangs holds up nobody but who waits for it.
//!
//! The `stuck` layer never ends a request. What must answer then answers; a test that has to wait
//! for the opposite would hang, and is stopped by the limits of the clients that it uses.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tapdisk_control::message::Params;
use tapdisk_tests::nbd::{NbdClient, command};
use tapdisk_tests::{Daemon, Host, wait_until};

fn params(image: &std::path::Path) -> Params {
    Params { path: format!("aio:{}", image.display()).into(), ..Params::default() }
}

/// A daemon whose first disk has a read that never ends, and the client that waits for it.
fn stuck(host: &Host) -> (Daemon, u16, NbdClient) {
    let image = host.image("stuck.raw", 1 << 20);
    let daemon = host.daemon(&["--layer", "stuck:op=read,count=1"]);
    let minor = host.attach(&daemon);
    daemon.client.open(minor, params(&image)).unwrap();
    let mut client = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
    client.send(command::READ, 0, 4096, &[]).unwrap();
    // The disk answers what comes after it, so the read has arrived.
    client.send(command::FLUSH, 0, 0, &[]).unwrap();
    assert_eq!(client.reply().unwrap(), (0, 2));
    (daemon, minor, client)
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    eprintln!("{what}: {} ms", start.elapsed().as_millis());
    result
}

#[test]
fn list_and_stats_answer_while_storage_hangs() {
    let host = Host::new();
    let (daemon, minor, _client) = stuck(&host);
    let list = timed("list", || daemon.client.list()).unwrap();
    assert_eq!((list.len(), list[0].minor, list[0].state), (1, minor, 0));
    let stats = timed("stats", || {
        host.tap_ctl(&["stats", "-p", &daemon.pid.to_string(), "-m", &minor.to_string()])
    });
    let line = stats.expect_success();
    let json: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(json["reqs_outstanding"], 1);
}

#[test]
fn pause_and_close_give_up_at_their_timeout_and_the_disk_serves_on() {
    let host = Host::new();
    let (daemon, minor, _client) = stuck(&host);
    let (pid, number) = (daemon.pid.to_string(), minor.to_string());
    for command in ["pause", "close"] {
        let ran = timed(command, || host.tap_ctl(&[command, "-p", &pid, "-m", &number, "-t", "1"]));
        assert_eq!(ran.status, nix::errno::Errno::ETIMEDOUT as i32, "{ran:?}");
        // The client is gone, and with it the command: the disk is as before, sooner or later.
        wait_for_state(&daemon, 0);
        let mut second = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
        assert_eq!(second.write(8192, &[7; 512]).unwrap(), 0);
    }
}

fn wait_for_state(daemon: &Daemon, state: u32) {
    for _ in 0..10_000 {
        if daemon.client.list().unwrap()[0].state == state {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the disk does not reach state {state:#x}: {:?}", daemon.client.list());
}

#[test]
fn a_forced_close_ends_what_hangs() {
    let host = Host::new();
    let (mut daemon, minor, mut client) = stuck(&host);
    timed("close -f", || daemon.client.close(minor, true, Some(Duration::from_secs(10)))).unwrap();
    // The request that hung has an error, or the connection an end; nobody waits.
    if let Ok((error, cookie)) = client.reply() {
        assert_eq!(cookie, 1);
        assert_ne!(error, 0);
    }
    wait_for_state(&daemon, 2);
    daemon.client.detach(minor).unwrap();
    assert!(daemon.wait().success());
}

#[test]
fn another_disk_of_the_process_does_not_notice() {
    let host = Host::new();
    let (daemon, _, _client) = stuck(&host);
    let image = host.image("fine.raw", 1 << 20);
    let minor = host.attach(&daemon);
    // Its layer has let one read hang too: the first; the flush shows that it has arrived.
    daemon.client.open(minor, params(&image)).unwrap();
    let mut hangs = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
    hangs.send(command::READ, 0, 512, &[]).unwrap();
    hangs.flush_after(1).unwrap();
    let mut client = NbdClient::connect(&host.nbd_socket(daemon.pid, minor)).unwrap();
    for number in 0..1000_u64 {
        let data = number.to_le_bytes().repeat(64);
        let offset = number % 100 * 512;
        assert_eq!(client.write(offset, &data).unwrap(), 0);
        assert_eq!(client.read(offset, 512).unwrap().unwrap(), data);
    }
}

#[test]
fn ten_silent_clients_do_not_keep_an_eleventh_waiting() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let host = Host::new();
    let daemon = host.daemon(&[]);
    let socket = host.paths().control_socket(daemon.pid);
    let silent: Vec<UnixStream> = (0..400)
        .map(|number| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // Some say nothing at all, some stop in the middle of a message.
            stream.write_all(&vec![0; number % 544]).unwrap();
            // More than the daemon keeps: those that were silent longest make room.
            daemon.client.pid().unwrap();
            stream
        })
        .collect();
    assert_eq!(timed("pid", || daemon.client.pid()).unwrap(), daemon.pid);
    drop(silent);
}

#[test]
fn a_pause_that_waits_does_not_block_other_commands() {
    let host = Host::new();
    let (daemon, minor, _client) = stuck(&host);
    let other = host.attach(&daemon);
    let image = host.image("other.raw", 1 << 20);
    std::thread::scope(|scope| {
        let pause =
            scope.spawn(|| daemon.client.pause(minor, Some(Duration::from_secs(5))).unwrap_err());
        // While the pause waits: a whole life of another disk.
        for _ in 0..20 {
            daemon.client.open(other, params(&image)).unwrap();
            daemon.client.pause(other, None).unwrap();
            daemon.client.resume(other, Params::default()).unwrap();
            daemon.client.close(other, false, None).unwrap();
        }
        daemon.client.close(minor, true, None).unwrap();
        let error = pause.join().unwrap();
        assert_eq!(error.errno(), nix::errno::Errno::ESHUTDOWN as i32, "{error}");
    });
}

#[test]
fn a_second_signal_leaves_a_disk_that_hangs_behind() {
    let host = Host::new();
    let (mut daemon, minor, _client) = stuck(&host);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    // The first one waits for the request that hangs: the disk is on its way to being closed.
    wait_until("the disk is closing", || daemon.client.list().unwrap()[0].state != 0);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!host.nbd_socket(daemon.pid, minor).exists());
    assert!(!host.paths().control_socket(daemon.pid).exists());
    assert!(!host.paths().statistics_dir(daemon.pid).exists());
}

#[test]
fn a_daemon_whose_clients_gave_up_waiting_ends_at_one_signal() {
    let host = Host::new();
    let (mut daemon, minor, _client) = stuck(&host);
    let timeout = Some(Duration::from_millis(100));
    daemon.client.pause(minor, timeout).unwrap_err();
    daemon.client.close(minor, false, timeout).unwrap_err();
    wait_for_state(&daemon, 0);
    daemon.client.close(minor, true, None).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_client_that_says_too_much_and_goes_has_given_up_too() {
    use std::io::Write;
    let host = Host::new();
    let (daemon, minor, _client) = stuck(&host);
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.client.socket()).unwrap();
    let pause = tapdisk_control::message::Request::Pause { minor };
    stream.write_all(&pause.encode().unwrap()).unwrap();
    wait_until("the disk pauses", || daemon.client.list().unwrap()[0].state != 0);
    stream.write_all(&[0; 1000]).unwrap();
    drop(stream);
    wait_for_state(&daemon, 0);
}

#[test]
fn a_client_that_found_the_daemon_out_of_descriptors_is_served_when_there_are_some() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let host = Host::new();
    let mut command = host.command("sh");
    let script = "ulimit -n 40; exec \"$TAPDISK\" -D --log stderr";
    command.args(["-c", script]);
    let daemon = host.daemon_by(command);
    let socket = host.paths().control_socket(daemon.pid);
    let connect = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(tapdisk_tests::PATIENCE)).unwrap();
        stream
    };
    let silent: Vec<UnixStream> = (0..60).map(|_| connect()).collect();
    let mut stream = connect();
    let request = tapdisk_control::message::Request::Pid;
    stream.write_all(&request.encode().unwrap()).unwrap();
    wait_until("descriptors run out", || {
        tapdisk_tests::Daemon::log(&host).contains("Cannot accept")
    });
    drop(silent);
    let mut reply = [0; tapdisk_control::message::MESSAGE_SIZE];
    stream.read_exact(&mut reply).unwrap();
}

#[test]
fn a_client_that_has_said_all_it_will_still_gets_its_answer() {
    use std::io::{Read, Write};
    use tapdisk_control::message::{Request, Response};
    let host = Host::new();
    let (daemon, minor, _client) = stuck(&host);
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.client.socket()).unwrap();
    stream.set_read_timeout(Some(tapdisk_tests::PATIENCE)).unwrap();
    stream.write_all(&Request::Pause { minor }.encode().unwrap()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    wait_until("the disk pauses", || daemon.client.list().unwrap()[0].state != 0);
    daemon.client.close(minor, true, None).unwrap();
    let mut reply = [0; tapdisk_control::message::MESSAGE_SIZE];
    stream.read_exact(&mut reply).unwrap();
    let reply = Response::decode(&reply).unwrap();
    let Response::Error { errno, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(errno, nix::errno::Errno::ESHUTDOWN as i32);
}
