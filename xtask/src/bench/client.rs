//! The client of every measurement: fio, over a Unix socket.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Ground, IMAGE_BYTES};
use crate::Result;
use crate::command;

/// The client's processor; the servers have 0.
const PROCESSOR: u32 = 1;

/// How much of the image small requests are spread over.
const RANDOM_BYTES: u64 = 256 << 20;

/// Of a pattern whose amount is a time.
const SECONDS: u32 = 2;

/// How the disk is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) name: &'static str,
    /// As fio calls it.
    direction: &'static str,
    /// In bytes.
    pub(super) block: u32,
    depth: u32,
    /// How much of the disk is used, in bytes.
    pub(super) bytes: u64,
    /// Whether a small request's rate is of interest, or the bytes.
    pub(super) is_small: bool,
    pub(super) is_read: bool,
}

const fn pattern(name: &'static str, direction: &'static str, kib: u32, depth: u32) -> Pattern {
    let is_read = direction.as_bytes()[direction.len() - 1] == b'd';
    let (block, is_small) = (kib << 10, kib == 4);
    let bytes = if is_small { RANDOM_BYTES } else { IMAGE_BYTES };
    Pattern { name, direction, block, depth, bytes, is_small, is_read }
}

impl Pattern {
    /// The same over so much of a disk.
    pub(super) const fn over(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Whether no byte is read twice: what a server cached does not help it then, what it reads
    /// ahead does.
    pub(super) const fn reads_once(self) -> bool {
        self.is_read && !self.is_small
    }

    /// How much of it makes a rate.
    pub(super) fn amount(self) -> Amount {
        if self.reads_once() {
            Amount::Requests(self.bytes / u64::from(self.block))
        } else {
            Amount::Seconds(SECONDS)
        }
    }
}

/// What is measured.
pub(super) const PATTERNS: [Pattern; 8] = [
    pattern("4k random read, depth 1", "randread", 4, 1),
    pattern("4k random read, depth 32", "randread", 4, 32),
    pattern("4k random write, depth 1", "randwrite", 4, 1),
    pattern("4k random write, depth 32", "randwrite", 4, 32),
    pattern("64k read, depth 8", "read", 64, 8),
    pattern("64k write, depth 8", "write", 64, 8),
    pattern("1M read, depth 4", "read", 1024, 4),
    pattern("1M write, depth 4", "write", 1024, 4),
];

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    Seconds(u32),
    Requests(u64),
}

/// What fio counted.
#[derive(Debug, PartialEq)]
pub(super) struct Report {
    pub(super) requests: u64,
    pub(super) requests_per_second: f64,
    /// The longest that a request took, in milliseconds.
    pub(super) slowest_ms: f64,
}

/// Runs `pattern` against the server on `socket`.
pub(super) fn run(
    ground: &Ground,
    socket: &Path,
    pattern: &Pattern,
    amount: Amount,
) -> Result<Report> {
    let text = command::capture(&mut command(ground, socket, pattern, amount)?)?;
    parse(&text, pattern.is_read)
}

/// Runs `pattern` against the image itself, with direct I/O.
pub(super) fn run_directly(ground: &Ground, pattern: &Pattern, amount: Amount) -> Result<Report> {
    let mut direct = fio(ground, pattern, amount)?;
    direct.args(["--ioengine=libaio", "--direct=1"]);
    direct.arg(format!("--filename={}", ground.image.path.display()));
    parse(&command::capture(&mut direct)?, pattern.is_read)
}

/// Does `meanwhile` under the load of `pattern`, which lasts `seconds`.
pub(super) fn run_beside(
    ground: &Ground,
    socket: &Path,
    pattern: &Pattern,
    seconds: u32,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Report> {
    let mut client = command(ground, socket, pattern, Amount::Seconds(seconds))?;
    client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let client = client.spawn().map_err(|error| format!("Cannot run fio: {error}"))?;
    let done = meanwhile();
    let output = client.wait_with_output().map_err(|error| format!("No end of fio: {error}"))?;
    done?;
    parse(&String::from_utf8_lossy(&output.stdout), pattern.is_read)
}

/// The same with `wrapper` around the client; an error unless it made exactly `requests` requests.
pub(super) fn run_exactly(
    ground: &Ground,
    socket: &Path,
    pattern: &Pattern,
    requests: u64,
    wrapper: Option<Command>,
) -> Result<()> {
    let mut client = command(ground, socket, pattern, Amount::Requests(requests))?;
    if let Some(mut wrapper) = wrapper {
        wrapper.arg(client.get_program()).args(client.get_args()).current_dir(ground.folder());
        client = wrapper;
    }
    let report = parse(&command::capture(&mut client)?, pattern.is_read)?;
    if report.requests == requests {
        return Ok(());
    }
    Err(format!("fio made {} requests, not {requests}", report.requests))
}

fn command(ground: &Ground, socket: &Path, pattern: &Pattern, amount: Amount) -> Result<Command> {
    let mut command = fio(ground, pattern, amount)?;
    command.arg("--ioengine=nbd");
    command.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    Ok(command)
}

/// Without what it is directed at.
fn fio(ground: &Ground, pattern: &Pattern, amount: Amount) -> Result<Command> {
    let fio = command::find("fio").ok_or("fio is not installed")?;
    let mut command = ground.on_processor(PROCESSOR, &fio);
    command.args(["--name=client", "--thread", "--output-format=json"]);
    command.arg(format!("--rw={}", pattern.direction));
    command.arg(format!("--bs={}", pattern.block));
    command.arg(format!("--iodepth={}", pattern.depth));
    command.arg(format!("--size={}", pattern.bytes));
    match amount {
        Amount::Seconds(seconds) => {
            command.args(["--time_based", &format!("--runtime={seconds}")]);
        }
        Amount::Requests(requests) => {
            command.arg(format!("--number_ios={requests}"));
        }
    }
    command.current_dir(ground.folder());
    Ok(command)
}

/// Reads what fio prints: lines of notes, then JSON.
fn parse(text: &str, is_read: bool) -> Result<Report> {
    let start = text.find('{').ok_or_else(|| format!("fio printed no JSON: {text:?}"))?;
    let value: Value = serde_json::from_str(&text[start..])
        .map_err(|error| format!("fio's output is not JSON: {error}"))?;
    let job = &value["jobs"][0];
    let side = &job[if is_read { "read" } else { "write" }];
    match (job["error"].as_u64(), side["total_ios"].as_u64(), side["iops"].as_f64()) {
        (Some(0), Some(requests), Some(requests_per_second)) if requests > 0 => {
            let slowest_ms = side["clat_ns"]["max"].as_f64().unwrap_or_default() * 1e-6;
            Ok(Report { requests, requests_per_second, slowest_ms })
        }
        (error, requests, rate) => {
            Err(format!("fio reports error {error:?}, {requests:?} requests, rate {rate:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"note: both iodepth >= 1 and synchronous
{"jobs": [{"error": 0, "read": {"total_ios": 100, "iops": 2.5, "clat_ns": {"max": 3000000}}, "write": {"total_ios": 0, "iops": 0}}]}"#;

    #[test]
    fn reads_the_side_that_was_asked_for() {
        let report = parse(TEXT, true).unwrap();
        assert_eq!(report, Report { requests: 100, requests_per_second: 2.5, slowest_ms: 3.0 });
        assert!(parse(TEXT, false).is_err(), "no writes is no measurement");
    }

    #[test]
    fn a_failed_job_is_no_measurement() {
        assert!(parse(&TEXT.replace("\"error\": 0", "\"error\": 5"), true).is_err());
        assert!(parse("nothing", true).is_err());
    }

    #[test]
    fn large_reads_end_where_they_would_begin_again() {
        for pattern in PATTERNS.iter().filter(|pattern| pattern.reads_once()) {
            let Amount::Requests(requests) = pattern.amount() else {
                panic!("{} has no end", pattern.name);
            };
            assert_eq!(requests * u64::from(pattern.block), IMAGE_BYTES, "{}", pattern.name);
        }
        assert_eq!(PATTERNS.iter().filter(|pattern| pattern.reads_once()).count(), 2);
    }

    #[test]
    fn a_pattern_reads_or_writes_as_its_name_says() {
        for pattern in PATTERNS {
            assert_eq!(pattern.is_read, pattern.name.contains("read"), "{}", pattern.name);
        }
    }
}
