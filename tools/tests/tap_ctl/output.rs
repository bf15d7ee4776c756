//! `stats` and `top`, and outputs that do not take what is written.

use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use tapdisk_control::message::{Request, Response};
use tapdisk_control::statistics::{Counter, STATISTICS_SIZE, STATISTICS_VERSION};

use crate::bench::{Bench, PID, Server, answer_list, send, told};

const JSON: &str = r#"{ "name": "vhd:/x", "secs": [ 8, 16 ], "images": [  ], "reqs_outstanding": 5, "latency_us": { "read": [ [ 100, 3 ] ], "write": [  ] } }"#;

/// Announces `length` bytes of statistics and sends `body`.
fn serve_stats(bench: &Bench, length: u64, body: &[u8]) -> Server {
    let body = body.to_vec();
    Server::start(bench, PID, move |request, stream| match request {
        Request::Stats { .. } => {
            send(stream, &Response::Stats { length });
            drop(stream.write_all(&body));
        }
        other => answer_list(other, stream, PID, &[(0, 0, "vhd:/x"), (1, 2, "")]),
    })
}

fn len(body: &[u8]) -> u64 {
    u64::try_from(body.len()).unwrap()
}

#[test]
fn statistics_are_one_line_and_an_empty_one_however_they_end_on_the_wire() {
    for (name, end) in [("o1", ""), ("o2", "\n"), ("o3", "\n\n"), ("o4", "\n\0")] {
        let bench = Bench::new(name);
        let body = format!("{JSON}{end}");
        let _server = serve_stats(&bench, len(body.as_bytes()), body.as_bytes());
        let result = bench.run(&["stats", "-p", "7654321", "-m", "0"]);
        let own = JSON.find(", \"latency_us\"").unwrap();
        let established = format!("{} }}\n\n", &JSON[..own]);
        assert_eq!(result, (0, established, "".into()));
    }
}

#[test]
fn statistics_that_end_early_break_the_protocol() {
    let bench = Bench::new("o5");
    let _server = serve_stats(&bench, 10_000, JSON.as_bytes());
    let result = bench.run(&["stats", "-p", "7654321", "-m", "0"]);
    assert_eq!(result, (71, "".into(), "Protocol error\n".into()));
}

#[test]
fn statistics_of_any_announced_size_are_not_made_room_for() {
    let bench = Bench::new("o6");
    let _server = serve_stats(&bench, u64::MAX, b"");
    let result = bench.run(&["stats", "-p", "7654321", "-m", "0"]);
    assert_eq!(result, (90, "".into(), "Message too long\n".into()));
}

#[test]
fn statistics_of_an_unknown_minor_are_an_error_also_when_the_daemon_says_nothing() {
    for (name, body) in [("o7", ""), ("o8", "\n\n")] {
        let bench = Bench::new(name);
        let _server = serve_stats(&bench, len(body.as_bytes()), body.as_bytes());
        let result = bench.run(&["stats", "-p", "7654321", "-m", "9"]);
        assert_eq!(result, (19, "".into(), "No such device\n".into()));
    }
}

#[test]
fn json_is_the_same_checked_and_spread_over_lines() {
    let bench = Bench::new("o9");
    let body = b"{ \"name\": \"vhd:/\xff\", \"secs\": [ 1, 2 ] }";
    let server = serve_stats(&bench, len(body), body);
    let (status, stdout, _) = bench.run(&["stats", "-p", "7654321", "-m", "0", "--json"]);
    assert_eq!(status, 0);
    let value: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(value["name"], "vhd:/\u{fffd}");
    assert_eq!(value["secs"], serde_json::json!([1, 2]));
    assert!(stdout.lines().count() > 3, "{stdout}");
    drop(server);
    fs::remove_file(bench.paths().control_socket(PID)).unwrap();
    let _server = serve_stats(&bench, 9, b"{ \"x\": \"}");
    let (status, _, stderr) =
        bench.run_explaining(&["stats", "-p", "7654321", "-m", "0", "--json"]);
    assert_eq!(status, 71);
    assert!(stderr.contains("no JSON"), "{stderr}");
}

#[test]
fn top_shows_disks_with_an_image_without_escape_codes() {
    let bench = Bench::new("o10");
    let _server = serve_stats(&bench, len(JSON.as_bytes()), JSON.as_bytes());
    let path = bench.paths().statistics(PID, 0);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut page = [0; STATISTICS_SIZE];
    page[..4].copy_from_slice(&STATISTICS_VERSION.to_ne_bytes());
    page[Counter::ReadsCompleted.offset()] = 9;
    fs::write(&path, page).unwrap();
    let (status, stdout, stderr) = bench.run(&["top", "-n", "2", "-d", "1"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(!stdout.contains('\x1b'));
    let rows: Vec<Vec<&str>> =
        stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 6, "{stdout}");
    assert_eq!(rows[0][..2], ["PID", "MINOR"]);
    assert_eq!(rows[1], ["7654321", "0", "0", "0", "0.0", "0.0", "-", "-", "5", "vhd:/x"]);
    assert_eq!(rows[2], [""; 0]);
    assert_eq!(rows[4], rows[1]);
}

#[test]
fn a_reader_that_went_away_is_no_reason_to_panic() {
    let bench = Bench::new("o11");
    bench.run(&["allocate"]);
    for arguments in [&["list"][..], &["allocate"], &["list", "-h"], &["list", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = bench
            .command(arguments)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(told(&output), (32, "".into(), "".into()), "{arguments:?}");
    }
}

#[test]
fn an_output_that_is_full_is_told() {
    let bench = Bench::new("o12");
    bench.run(&["allocate"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = bench
        .command(&["list"])
        .stdout(Stdio::from(full))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(told(&output), (28, "".into(), "No space left on device\n".into()));
}
