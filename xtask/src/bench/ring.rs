//! The ring door in front of `null:`, without a kernel driver: instructions by part of the daemon,
//! and system calls, per 4 KiB read at depth 32.
//!
//! The simulated driver's instructions are counted apart, and its calls (eventfds) left out: in
//! their place stand the two that the door makes, poll and RESPOND.

use std::collections::BTreeMap;
use std::process::Command;

use super::profile::{self, Place, Profile};
use super::{Ground, numbers, syscalls};
use crate::Result;
use crate::command;

/// Far enough apart that what differs from run to run is below a percent of the slope.
const REQUESTS: [u64; 2] = [20_000, 120_000];

/// Glibc fills large pieces with `rep stosb`, of which callgrind counts every byte as an
/// instruction; up to this size it takes ordinary stores instead.
const NO_STOSB: (&str, &str) = ("GLIBC_TUNABLES", "glibc.cpu.x86_rep_stosb_threshold=0x10000000");

/// How the simulated guest behaves: a name, and turns of the loop for each batch of 32.
const GUESTS: [(&str, &str); 2] =
    [("the next 32 wait already", "1"), ("the ring runs empty between", "2")];

/// Parts of the daemon by the start of the path of their source; the first that fits counts.
const PARTS: [(&str, &str); 12] = [
    ("blktap-ioctl/src/ring/", "entry copied and checked, response"),
    ("tapdisk/src/frontend/blktap", "the door"),
    ("tapdisk/src/frontend/", "the NBD door, which idles"),
    ("tapdisk/src/vbd/", "slots, order, checks"),
    ("tapdisk/src/chain", "what goes where"),
    ("tapdisk/src/image/", "the image"),
    ("tapdisk/src/memory/", "bounds"),
    ("tapdisk/src/queue/", "the queue"),
    ("tapdisk/src/statistics/", "counters, histogram"),
    ("tapdisk/src/server/", "what tap-ctl list and stats read"),
    ("tapdisk/src/disk/", "the loop"),
    ("tapdisk/src/", "request, status, time"),
];

const DRIVER: &str = "(the simulated driver and guest)";

/// Both tables.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    if command::find("valgrind").is_some() {
        instructions(ground)?;
    } else {
        println!("instructions are left out: valgrind is not installed");
    }
    println!("\n{:<62} {:>9}", "system calls per read", "calls");
    for (name, turns) in GUESTS {
        let calls = system_calls(ground, turns)?;
        println!("{name:<62} {calls:>9.3}");
    }
    Ok(())
}

fn ring_null(ground: &Ground, requests: u64, turns: &str) -> Command {
    let program = command::target("release").join("ring_null");
    let mut command = Command::new(program);
    command.args([&requests.to_string(), "32", turns]).env("TMPDIR", ground.folder());
    command
}

fn instructions(ground: &mut Ground) -> Result<()> {
    let [few, many] = REQUESTS;
    let first = profiled(ground, few)?;
    let second = profiled(ground, many)?;
    let rest = profile::difference(second, &first);
    let mut parts: BTreeMap<String, i64> = BTreeMap::new();
    for (place, cost) in &rest {
        *parts.entry(part_of(place)).or_default() += cost;
    }
    let mut rows: Vec<(String, f64)> = parts
        .into_iter()
        .map(|(part, cost)| (part, signed(cost) / numbers::float(many - few)))
        .filter(|(_, cost)| *cost >= 0.05)
        .collect();
    rows.sort_by(|one, other| other.1.total_cmp(&one.1));
    println!("{:<62} {:>9}", "instructions per read", "");
    let mut sum = 0.0;
    for (part, cost) in &rows {
        println!("{part:<62} {cost:>9.1}");
        sum += if part == DRIVER { 0.0 } else { *cost };
    }
    println!("{:<62} {sum:>9.1}", "sum, without the simulated driver and guest");
    Ok(())
}

fn profiled(ground: &mut Ground, requests: u64) -> Result<Profile> {
    let file = ground.fresh("ring");
    let mut valgrind = command::tool("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let ring_null = ring_null(ground, requests, "1");
    valgrind.arg(ring_null.get_program()).args(ring_null.get_args());
    valgrind.env("TMPDIR", ground.folder()).env(NO_STOSB.0, NO_STOSB.1);
    command::capture(&mut valgrind)?;
    profile::read(&file)
}

/// What a place belongs to.
fn part_of(place: &Place) -> String {
    let inside = |file: &str| {
        let root = command::root();
        file.strip_prefix(&*root.to_string_lossy()).map(|path| path[1..].to_owned())
    };
    // Eventfds: nobody but the simulated driver reads and writes any.
    let is_driver =
        |path: &str| path.starts_with("blktap-ioctl/src/sim/") || path.starts_with("benches/");
    let home = inside(&place.home);
    if home.as_deref().is_some_and(is_driver) || matches!(&*place.function, "read" | "write") {
        return DRIVER.into();
    }
    let Some(path) = inside(&place.file).or(home) else {
        return match &*place.function {
            name if name.contains("memset") => "zeros for null:, in libc".into(),
            name if name.contains("memcpy") || name.contains("memmove") => "copies, in libc".into(),
            _ => "standard library, libc: clock, epoll, channel".into(),
        };
    };
    if is_driver(&path) {
        return DRIVER.into();
    }
    let part = PARTS.iter().find(|(start, _)| path.starts_with(start));
    part.map_or(path, |(start, what)| format!("{:<26} {what}", start.trim_end_matches('/')))
}

/// Calls per read: those that the door says it made, and the process's own but for the eventfds.
fn system_calls(ground: &mut Ground, turns: &str) -> Result<f64> {
    let [few, many] = REQUESTS;
    let first = calls(ground, few, turns)?;
    let second = calls(ground, many, turns)?;
    Ok(numbers::slope((few, first), (many, second)))
}

fn calls(ground: &mut Ground, requests: u64, turns: &str) -> Result<u64> {
    let text = command::capture(&mut ring_null(ground, requests, turns))?;
    let door = parse_calls(&text).ok_or_else(|| format!("ring_null printed {text:?}"))?;
    let file = ground.fresh("count");
    let others = syscalls::around(&ring_null(ground, requests, turns), &file)?;
    Ok(door + others)
}

/// Polls and responds in what `ring_null` prints.
fn parse_calls(text: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["requests", _, "polls", polls, "responds", responds] => {
            Some(polls.parse::<u64>().ok()? + responds.parse::<u64>().ok()?)
        }
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn signed(cost: i64) -> f64 {
    cost as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(function: &str, home: &str, file: &str) -> Place {
        let root = command::root();
        let path = |path: &str| {
            if path.starts_with('/') { path.into() } else { format!("{}/{path}", root.display()) }
        };
        Place { function: function.into(), home: path(home), file: path(file) }
    }

    #[test]
    fn the_standard_library_counts_where_it_is_inlined() {
        let place = place("Vbd::reap", "tapdisk/src/vbd/mod.rs", "/rustc/x/library/core/option.rs");
        assert!(part_of(&place).starts_with("tapdisk/src/vbd"));
    }

    #[test]
    fn all_that_the_simulated_driver_calls_inline_is_its_own() {
        let file = "blktap-ioctl/src/ring/mapping.rs";
        assert_eq!(part_of(&place("poll", "blktap-ioctl/src/sim/state.rs", file)), DRIVER);
        assert_eq!(part_of(&place("poll_now", file, "blktap-ioctl/src/sim/kernel.rs")), DRIVER);
        assert!(part_of(&place("take", file, file)).starts_with("blktap-ioctl/src/ring"));
    }

    #[test]
    fn reads_the_calls_of_the_door() {
        assert_eq!(parse_calls("requests 32 polls 2 responds 1\n"), Some(3));
        assert_eq!(parse_calls("requests 32\n"), None);
    }
}
