//! System calls per request, as the slope between two runs.
//!
//! Counted by perf where it may (a tracepoint: hardly slower than without), else by strace. Strace
//! makes the server slower, so that more requests wait at each of its turns: at depth 32 it counts
//! fewer calls than there are, or more.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::client::{self, PATTERNS, Pattern};
use super::servers::{Kind, Server};
use super::{Ground, numbers};
use crate::Result;
use crate::{command, wait};

/// A second of the fastest: how many requests a turn serves changes from moment to moment.
const REQUESTS: [u64; 2] = [5000, 65_000];
const LIMIT: Duration = Duration::from_secs(20);
const TRACEPOINT: &str = "raw_syscalls:sys_enter";

/// What counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    Perf,
    Strace,
}

impl Counter {
    /// The better one that works here.
    pub(super) fn pick() -> Option<Self> {
        let mut perf = command::tool("perf");
        let perf = command::output(perf.args(["stat", "-x,", "-e", TRACEPOINT, "true"]));
        // Where it may not, it still exits with 0 and reports `<not supported>` or the like.
        if perf.is_ok_and(|output| parse_perf(&String::from_utf8_lossy(&output.stderr)).is_some()) {
            return Some(Self::Perf);
        }
        command::find("strace").map(|_| Self::Strace)
    }
}

/// The table of system calls per 4k request.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    let Some(counter) = Counter::pick() else {
        println!("left out: neither perf nor strace is installed");
        return Ok(());
    };
    println!("{:<26} {:<20} {:>14}  ({counter:?})", "pattern", "server", "system calls");
    for pattern in PATTERNS.iter().filter(|pattern| pattern.is_small) {
        for kind in Kind::present(ground) {
            if !kind.is_counted() {
                continue;
            }
            let calls = per_request(ground, kind, pattern, counter)?;
            println!("{:<26} {:<20} {calls:>14.2}", pattern.name, kind.name());
        }
    }
    Ok(())
}

/// Of a server of what `ground` serves.
pub(super) fn per_request(
    ground: &mut Ground,
    kind: Kind,
    pattern: &Pattern,
    counter: Counter,
) -> Result<f64> {
    let [few, many] = REQUESTS;
    let first = total(ground, kind, pattern, few, counter)?;
    let second = total(ground, kind, pattern, many, counter)?;
    Ok(numbers::slope((few, first), (many, second)))
}

/// The system calls of all threads of a server while it answers `requests` requests.
fn total(
    ground: &mut Ground,
    kind: Kind,
    pattern: &Pattern,
    requests: u64,
    counter: Counter,
) -> Result<u64> {
    let server = Server::start(ground, kind, &[])?;
    let file = ground.fresh("count");
    match counter {
        Counter::Perf => {
            let mut perf = command::tool("perf");
            perf.args(["stat", "-x,", "-e", TRACEPOINT, "-p", &server.pid.to_string(), "-o"]);
            perf.arg(&file).arg("--");
            client::run_exactly(ground, &server.socket, pattern, requests, Some(perf))?;
        }
        Counter::Strace => {
            let mut strace = Strace::attach(ground, server.pid, &file)?;
            client::run_exactly(ground, &server.socket, pattern, requests, None)?;
            strace.end()?;
        }
    }
    server.stop()?;
    let text =
        fs::read_to_string(&file).map_err(|error| format!("No counts were left: {error}"))?;
    let calls = match counter {
        Counter::Perf => parse_perf(&text),
        Counter::Strace => parse_strace(&text),
    };
    calls.ok_or_else(|| format!("No count in {text:?}"))
}

/// The system calls of a program, but those on eventfds (`read` and `write`).
pub(super) fn around(program: &Command, file: &Path) -> Result<u64> {
    counted(program, file, &["-e", "trace=!read,write"])
}

/// All system calls of a program, from its start to its end.
pub(super) fn of_all(program: &Command, file: &Path) -> Result<u64> {
    counted(program, file, &[])
}

fn counted(program: &Command, file: &Path, filter: &[&str]) -> Result<u64> {
    let mut strace = command::tool("strace");
    strace.args(["-f", "-c"]).args(filter).arg("-o").arg(file);
    // Cargo's: in each of its folders libraries would be looked for.
    strace.env_remove("LD_LIBRARY_PATH");
    if let Some(folder) = program.get_current_dir() {
        strace.current_dir(folder);
    }
    strace.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        if let Some(value) = value {
            strace.env(name, value);
        }
    }
    command::capture(&mut strace)?;
    let text = fs::read_to_string(file).map_err(|error| format!("No counts were left: {error}"))?;
    parse_strace(&text).ok_or_else(|| format!("No count in {text:?}"))
}

struct Strace {
    child: std::process::Child,
}

impl Strace {
    fn attach(ground: &mut Ground, pid: u32, file: &Path) -> Result<Self> {
        let mut strace: Command = command::tool("strace");
        let child = strace
            .args(["-f", "-c", "-o"])
            .arg(file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("Cannot run strace: {error}"))?;
        ground.janitor.watch(child.id())?;
        let strace = Self { child };
        wait::until(LIMIT, "strace (may it trace?)", || is_traced(pid).then_some(()))?;
        Ok(strace)
    }

    fn end(&mut self) -> Result<()> {
        command::run(command::tool("kill").args(["-s", "INT", &self.child.id().to_string()]))?;
        wait::until(LIMIT, "the end of strace", || {
            self.child.try_wait().is_ok_and(|end| end.is_some()).then_some(())
        })
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Both fail only when it has ended, as it has unless there was an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread of the process is traced.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    })
}

/// The count in a line of `perf stat -x,`: count, unit, event, ...
fn parse_perf(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(TRACEPOINT))?;
    line.split(',').next()?.parse().ok()
}

/// The calls in the last line of strace's summary. Columns without a value are blank, so they are
/// found by the header, whose names end where the values do.
fn parse_strace(summary: &str) -> Option<u64> {
    let header = summary.lines().find(|line| line.contains("calls"))?;
    // The first `call` is part of another column's name.
    let end = header.find(" calls")? + " calls".len();
    let total = summary.lines().rev().find(|line| line.trim_end().ends_with(" total"))?;
    total.get(..end)?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_calls_whatever_columns_are_blank() {
        let header = "% time     seconds  usecs/call     calls    errors syscall\n";
        let rows = "------ ----------- ----------- --------- --------- ----------------\n";
        let full = "100.00    0.004526           3      1244        15 total\n";
        let blank = "100.00    0.004526                  1244           total\n";
        assert_eq!(parse_strace(&format!("{header}{rows}{full}")), Some(1244));
        assert_eq!(parse_strace(&format!("{header}{rows}{blank}")), Some(1244));
        assert_eq!(parse_strace(""), None);
    }

    #[test]
    fn a_tracepoint_that_may_not_be_counted_is_no_count() {
        assert_eq!(parse_perf("# started\n\n109,,raw_syscalls:sys_enter,1,100.00,,\n"), Some(109));
        assert_eq!(parse_perf("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
    }
}
