//! VHDs that are served: beside the raw image of the same contents, beside QEMU on the same file.
//!
//! Made by our own tools and by writing through tapdisk: a dynamic image with every block there,
//! chains in whose layers lie as many random sectors each, and fresh images for first writes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::client::{self, Amount, PATTERNS, Pattern};
use super::numbers::{self, Spread, float};
use super::rates::{self, Contestant};
use super::servers::{Kind, Server};
use super::syscalls::{self, Counter};
use super::{Ground, Image, callgrind, fresh};
use crate::Result;
use crate::{command, wait};

/// Of chains.
const RANDOM_READ: Pattern = PATTERNS[1];
/// Of what is written into chains and during snapshots.
const RANDOM_WRITE: Pattern = PATTERNS[3];

/// A disk as large as they come, written to at random: most memory for maps of blocks and sectors.
const LARGE_BYTES: u64 = 100 << 30;
const LARGE_WRITES: u64 = 200_000;

/// Until a load is under way.
const LIMIT: Duration = Duration::from_secs(10);
/// How long it lasts.
const SNAPSHOT_SECONDS: u32 = 2;

/// The tables, and what one of them is called in `only=`.
const COUNTS: &str = "counts";
const RATES: &str = "rates";
const CHAINS: &str = "chains";
const FIRST: &str = "first";
const SNAPSHOTS: &str = "snapshots";

/// All the tables; with `only=`, those whose name begins so.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    let only = std::mem::take(&mut ground.only);
    let is_wanted = |table: &str| table.starts_with(&only);
    let raw = ground.image.clone();
    let dynamic = ground.folder().join("dynamic.vhd");
    vhd_util(&["convert", "-f", "raw", "-n"], &[&raw.path, Path::new("-N"), &dynamic])?;
    let dynamic = Image { path: dynamic, is_vhd: true };
    if is_wanted(COUNTS) || is_wanted(CHAINS) {
        let three = chain(ground, &dynamic, 3)?;
        if is_wanted(COUNTS) {
            counts(ground, &[("raw", &raw), ("dynamic", &dynamic), ("3 layers", &three)])?;
        }
        if is_wanted(CHAINS) {
            chains(ground, &dynamic, &three)?;
        }
    }
    if is_wanted(RATES) {
        beside_others(ground, &raw, &dynamic)?;
    }
    if is_wanted(FIRST) {
        fresh::measure(ground)?;
    }
    if is_wanted(SNAPSHOTS) {
        snapshots(ground, &dynamic)?;
    }
    (ground.image, ground.only) = (raw, only);
    Ok(())
}

/// Reads of chains beside those of their base.
fn chains(ground: &mut Ground, dynamic: &Image, three: &Image) -> Result<()> {
    let thirty = chain(ground, dynamic, 30)?;
    println!();
    let one = |name: &str, image: &Image| contestant(name, Kind::Ours, image);
    let layers = [one("dynamic", dynamic), one("3 layers", three), one("30 layers", &thirty)];
    rates::compare(ground, &layers, &[RANDOM_READ])
}

pub(super) fn vhd_util(arguments: &[&str], more: &[&Path]) -> Result<()> {
    let mut command = Command::new(command::target("release").join("vhd-util"));
    command::capture(command.args(arguments).args(more)).map(drop)
}

fn contestant(name: &str, kind: Kind, image: &Image) -> Contestant {
    Contestant { name: name.to_owned(), kind: Some(kind), image: image.clone() }
}

/// A child of `parent`, which is linked to even while it is empty.
fn child(parent: &Path, new: &Path) -> Result<()> {
    vhd_util(&["snapshot", "-e", "-p"], &[parent, Path::new("-n"), new])
}

/// Snapshots on `base` until there are `depth` layers, each with its share of random writes.
fn chain(ground: &mut Ground, base: &Image, depth: u64) -> Result<Image> {
    let mut top = base.clone();
    for layer in 2..=depth {
        let path = ground.folder().join(format!("layer-{layer}-of-{depth}.vhd"));
        child(&top.path, &path)?;
        top = Image { path, is_vhd: true };
        ground.image = top.clone();
        let server = Server::start(ground, Kind::Ours, &[])?;
        let requests = RANDOM_WRITE.bytes / u64::from(RANDOM_WRITE.block) / depth;
        client::run(ground, &server.socket, &RANDOM_WRITE, Amount::Requests(requests))?;
        server.stop()?;
    }
    Ok(top)
}

/// Instructions and system calls per small request. A turn of the loop serves more requests in one
/// run than in another: so images take turns in several, and the last column is what an image costs
/// where it has as many turns as the first, as the runs tell it.
fn counts(ground: &mut Ground, images: &[(&str, &Image)]) -> Result<()> {
    let has_valgrind = command::find("valgrind").is_some();
    let counter = Counter::pick();
    println!(
        "{:<26} {:<20} {:>12} {:>14} {:>7} {:>20}",
        "pattern", "image", "system calls", "instructions", "turns", "at the turns of raw"
    );
    for pattern in PATTERNS.iter().filter(|pattern| pattern.is_small) {
        let mut runs = vec![Vec::new(); images.len()];
        for _ in 0..if has_valgrind { ground.rounds } else { 0 } {
            for ((_, image), runs) in images.iter().zip(&mut runs) {
                ground.image = (*image).clone();
                let cost = callgrind::per_request(ground, Kind::Ours, pattern)?;
                runs.push((cost.turns, cost.instructions));
            }
        }
        let level = numbers::level(&runs);
        for (number, ((name, image), runs)) in images.iter().zip(&runs).enumerate() {
            let mut calls = "-".to_owned();
            if let Some(counter) = counter {
                ground.image = (*image).clone();
                let count = syscalls::per_request(ground, Kind::Ours, pattern, counter)?;
                calls = format!("{count:.2}");
            }
            let median = |of: fn(&(f64, f64)) -> f64| Spread::of(runs.iter().map(of).collect());
            let text = |spread: Option<Spread>, digits| {
                spread.map_or("-".to_owned(), |spread| format!("{:.digits$}", spread.median))
            };
            let (turns, instructions) =
                (text(median(|run| run.0), 3), text(median(|run| run.1), 0));
            let level = level.as_ref().map_or("-".to_owned(), |level| {
                format!("{:.0} ({:.3})", level[number], level[number] / level[0])
            });
            println!(
                "{:<26} {name:<20} {calls:>12} {instructions:>14} {turns:>7} {level:>20}",
                pattern.name
            );
        }
    }
    Ok(())
}

/// Rates of the allocated image beside those of the raw one and of QEMU.
fn beside_others(ground: &mut Ground, raw: &Image, dynamic: &Image) -> Result<()> {
    println!();
    let mut contestants = vec![
        contestant("tapdisk, VHD", Kind::Ours, dynamic),
        contestant("tapdisk, raw", Kind::Ours, raw),
    ];
    let peers = Kind::present(ground).into_iter();
    let peers = peers.filter(|kind| matches!(kind, Kind::QemuIoUring | Kind::QemuNative));
    contestants
        .extend(peers.map(|kind| contestant(&format!("{}, vpc", kind.name()), kind, dynamic)));
    rates::compare(ground, &contestants, &PATTERNS)
}

/// The longest that a request waits while its disk goes on in a new image, and without.
fn snapshots(ground: &mut Ground, base: &Image) -> Result<()> {
    let mut waits = [Vec::new(), Vec::new()];
    for _ in 0..ground.rounds {
        for (is_snapshot, waits) in [false, true].into_iter().zip(&mut waits) {
            let [below, above] = ["below.vhd", "above.vhd"].map(|name| ground.folder().join(name));
            child(&base.path, &below)?;
            ground.image = Image { path: below.clone(), is_vhd: true };
            let server = Server::start(ground, Kind::Ours, &[])?;
            let meanwhile = || {
                wait::until(LIMIT, "the load", || is_under_load(&below).then_some(()))?;
                if is_snapshot { server.snapshot(&above) } else { Ok(()) }
            };
            let socket = server.socket.clone();
            let report =
                client::run_beside(ground, &socket, &RANDOM_WRITE, SNAPSHOT_SECONDS, meanwhile)?;
            waits.push(report.slowest_ms);
            server.stop()?;
            remove(&below)?;
            if is_snapshot {
                remove(&above)?;
            }
        }
    }
    println!("\nslowest of the writes of {SNAPSHOT_SECONDS} s at depth 32, in ms");
    for (name, waits) in ["nothing else", "tap-ctl snapshot meanwhile"].into_iter().zip(waits) {
        if let Some(Spread { median, min, max }) = Spread::of(waits) {
            println!("{name:<26} {median:>9.1} ({min:.1} to {max:.1})");
        }
    }
    Ok(())
}

/// Whether the child, which was empty, holds many blocks.
fn is_under_load(child: &Path) -> bool {
    fs::metadata(child).is_ok_and(|found| found.len() > RANDOM_WRITE.bytes / 4)
}

/// What a process with a large disk has in memory after writes all over it, and with a second one.
pub(super) fn memory(ground: &mut Ground) -> Result<()> {
    let paths = ["large.vhd", "second.vhd"].map(|name| ground.folder().join(name));
    let mebibytes = (LARGE_BYTES >> 20).to_string();
    let images = paths.clone().map(|path| Image { path, is_vhd: true });
    for path in &paths {
        vhd_util(&["create", "-s", &mebibytes, "-n"], &[path])?;
    }
    let pattern = RANDOM_WRITE.over(LARGE_BYTES);
    let amount = || Amount::Requests(LARGE_WRITES);
    let [first, second] = images;
    ground.image = first;
    let server = Server::start(ground, Kind::Ours, &[])?;
    let idle = server.resident_kib()?;
    client::run(ground, &server.socket, &pattern, amount())?;
    let used = server.resident_kib()?;
    ground.image = second;
    let disk = server.beside(ground)?;
    client::run(ground, &disk.socket, &pattern, amount())?;
    let both = server.resident_kib()?;
    disk.remove()?;
    server.stop()?;
    paths.iter().try_for_each(|path| remove(path))?;
    println!("\nresident, dynamic disks of {} GiB", LARGE_BYTES >> 30);
    let used_name = "after 200,000 random writes";
    let both_name = "a second disk, as many there";
    for (name, kib) in [("one, idle", idle), (used_name, used), (both_name, both)] {
        println!("{name:<28} {:>7.1} MiB", float(kib) / 1024.0);
    }
    Ok(())
}

pub(super) fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|error| format!("Cannot remove {}: {error}", path.display()))
}
