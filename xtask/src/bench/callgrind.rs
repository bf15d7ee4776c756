//! User instructions per request: the slope between two runs under callgrind, exact to a fraction
//! of a percent and the same on a busy machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::client::{self, PATTERNS, Pattern};
use super::servers::{Kind, Server};
use super::{Ground, numbers};
use crate::Result;
use crate::command;

/// Far enough apart that what differs from run to run is below a percent of the slope.
const REQUESTS: [u64; 2] = [1000, 6000];

/// The table of instructions per 4k request.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    if command::find("valgrind").is_none() {
        println!("left out: valgrind is not installed");
        return Ok(());
    }
    println!("{:<26} {:<20} {:>14}", "pattern", "server", "instructions");
    for pattern in PATTERNS.iter().filter(|pattern| pattern.is_small) {
        for kind in Kind::present(ground) {
            // Valgrind of many systems knows no io_uring.
            if !kind.is_counted() || kind == Kind::QemuIoUring {
                continue;
            }
            let instructions = per_request(ground, kind, pattern)?;
            println!("{:<26} {:<20} {instructions:>14.0}", pattern.name, kind.name());
        }
    }
    Ok(())
}

/// Of a server of what `ground` serves.
pub(super) fn per_request(ground: &mut Ground, kind: Kind, pattern: &Pattern) -> Result<f64> {
    let [few, many] = REQUESTS;
    let first = total(ground, kind, pattern, few)?;
    let second = total(ground, kind, pattern, many)?;
    Ok(numbers::slope((few, first), (many, second)))
}

/// All instructions of a server that answers `requests` requests and ends.
fn total(ground: &mut Ground, kind: Kind, pattern: &Pattern, requests: u64) -> Result<u64> {
    let file = ground.fresh("callgrind");
    let wrapper = [
        "valgrind".to_owned(),
        "--quiet".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", file.display()),
    ];
    let server = Server::start(ground, kind, &wrapper)?;
    client::run_exactly(ground, &server.socket, pattern, requests, None)?;
    server.stop()?;
    read(&file)
}

/// Callgrind counts every byte of a `rep stosb` or `rep movsb` as an instruction; a processor does
/// not. With this glibc uses ordinary stores.
const ORDINARY_STORES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.x86_rep_stosb_threshold=0x10000000:glibc.cpu.x86_rep_movsb_threshold=0x10000000",
);

/// All instructions of a program, from its start to its end.
pub(super) fn around(program: &Command, file: &Path) -> Result<u64> {
    let mut valgrind = command::tool("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.env(ORDINARY_STORES.0, ORDINARY_STORES.1).env_remove("LD_LIBRARY_PATH");
    valgrind.arg(program.get_program()).args(program.get_args());
    if let Some(folder) = program.get_current_dir() {
        valgrind.current_dir(folder);
    }
    command::capture(&mut valgrind)?;
    read(file)
}

fn read(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file)
        .map_err(|error| format!("Callgrind left no {}: {error}", file.display()))?;
    parse(&text).ok_or_else(|| format!("{} has no total", file.display()))
}

/// The total of a profile: `totals:` at its end, or `summary:` in older versions.
fn parse(profile: &str) -> Option<u64> {
    let total = |key: &str| {
        let line = profile.lines().rev().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    total("totals:").or_else(|| total("summary:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_total_of_a_profile() {
        assert_eq!(parse("version: 1\nevents: Ir\nsummary: 12\n\n3 4\n\ntotals: 34\n"), Some(34));
        assert_eq!(parse("version: 1\nsummary: 12 99\n3 4\n"), Some(12));
        assert_eq!(parse("version: 1\n"), None);
    }
}
