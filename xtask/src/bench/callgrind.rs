//! User instructions per request: the slope between two runs under callgrind.
//!
//! It is exact, but what is measured is not the same each time: a turn of a server's loop costs by
//! itself, and how many requests it serves depends on when they come. So turns are counted too, and
//! several runs are made.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::client::{self, PATTERNS, Pattern};
use super::numbers::Spread;
use super::servers::{Kind, Server};
use super::{Ground, numbers, profile};
use crate::Result;
use crate::command;

/// Far enough apart that what differs from run to run is below a percent of the slope.
const REQUESTS: [u64; 2] = [1000, 6000];

/// Called once in each turn of the loop.
const TURN: &str = "epoll_wait";

/// Of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) instructions: f64,
    /// Of ours; other servers wait in other ways.
    pub(super) turns: f64,
}

/// The table of instructions per 4k request.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    if command::find("valgrind").is_none() {
        println!("left out: valgrind is not installed");
        return Ok(());
    }
    println!(
        "{:<26} {:<20} {:>14} {:>16} {:>8}",
        "pattern", "server", "instructions", "(min to max)", "turns"
    );
    for pattern in PATTERNS.iter().filter(|pattern| pattern.is_small) {
        for kind in Kind::present(ground) {
            // Valgrind of many systems knows no io_uring.
            if !kind.is_counted() || kind == Kind::QemuIoUring {
                continue;
            }
            let rounds = if kind == Kind::Ours { ground.rounds } else { 1 };
            let costs: Result<Vec<_>> =
                (0..rounds).map(|_| per_request(ground, kind, pattern)).collect();
            print(pattern.name, kind.name(), &costs?);
        }
    }
    Ok(())
}

fn print(pattern: &str, server: &str, costs: &[Cost]) {
    let spread = |of: fn(&Cost) -> f64| Spread::of(costs.iter().map(of).collect());
    let (Some(instructions), Some(turns)) =
        (spread(|cost| cost.instructions), spread(|cost| cost.turns))
    else {
        return;
    };
    let Spread { median, min, max } = instructions;
    let range = if costs.len() > 1 { format!("{min:.0} to {max:.0}") } else { String::new() };
    let turns = if turns.max > 0.0 { format!("{:.3}", turns.median) } else { "-".to_owned() };
    println!("{pattern:<26} {server:<20} {median:>14.0} {range:>16} {turns:>8}");
}

/// Of a server of what `ground` serves.
pub(super) fn per_request(ground: &mut Ground, kind: Kind, pattern: &Pattern) -> Result<Cost> {
    let [few, many] = REQUESTS;
    let first = total(ground, kind, pattern, few)?;
    let second = total(ground, kind, pattern, many)?;
    let slope = |of: fn(&Total) -> u64| numbers::slope((few, of(&first)), (many, of(&second)));
    let (instructions, turns) = (slope(|total| total.instructions), slope(|total| total.turns));
    Ok(Cost { instructions, turns })
}

/// Of one run.
struct Total {
    instructions: u64,
    turns: u64,
}

/// Of a server that answers `requests` requests and ends.
fn total(ground: &mut Ground, kind: Kind, pattern: &Pattern, requests: u64) -> Result<Total> {
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
    Ok(Total { instructions: read(&file)?, turns: profile::calls(&file, TURN)? })
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
