//! First writes: what a guest feels of a disk that is fresh.
//!
//! A fresh image is written to, and then again, in the same order. Beside it a raw file without
//! blocks, in turns: what the file system does by itself.

use std::path::Path;

use super::client::{self, Amount, PATTERNS, Pattern};
use super::numbers::Spread;
use super::servers::{Kind, Server};
use super::vhd::{remove, vhd_util};
use super::written::Written;
use super::{Ground, Image};
use crate::Result;
use crate::command;

/// The size of the disks.
const MEBIBYTES: &str = "16384";

const RANDOM: Pattern = PATTERNS[3];

/// What is written and in how many requests: the sequential ones stay within the disk.
const FIRST_WRITES: [(&str, Pattern, u64); 4] = [
    ("4k random, depth 32, over 16 GiB", RANDOM.over(16 << 30), 100_000),
    ("4k random, depth 32, over 2 GiB", RANDOM.over(2 << 30), 32_768),
    ("64k, depth 8", PATTERNS[5].over(4 << 30), 32_768),
    ("1M, depth 4", PATTERNS[7].over(4 << 30), 2_048),
];

/// The tables: in a file system whose storage has all its blocks, and in the one that is here.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    match Written::new(ground) {
        Ok(written) => {
            table(ground, "storage that has its blocks", written.folder())?;
        }
        Err(reason) => {
            println!("\nfirst writes to storage that has its blocks, left out: {reason}");
        }
    }
    let here = ground.folder().to_path_buf();
    table(ground, "files here", &here)
}

fn table(ground: &mut Ground, title: &str, folder: &Path) -> Result<()> {
    println!(
        "\nfirst writes, {title}\n{:<34} {:<6} {:>11} {:>11} {:>21}",
        "pattern", "image", "first, k/s", "again, k/s", "ratio (min to max)"
    );
    for (name, pattern, requests) in &FIRST_WRITES {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..ground.rounds {
            for (runs, is_vhd) in runs.iter_mut().zip([true, false]) {
                runs.push(first_and_again(ground, folder, is_vhd, pattern, *requests)?);
            }
        }
        for (runs, image) in runs.iter().zip(["VHD", "raw"]) {
            let spread = |of: fn(&[f64; 2]) -> f64| Spread::of(runs.iter().map(of).collect());
            let (Some(first), Some(again), Some(ratio)) =
                (spread(|run| run[0]), spread(|run| run[1]), spread(|run| run[0] / run[1]))
            else {
                continue;
            };
            let Spread { median, min, max } = ratio;
            println!(
                "{name:<34} {image:<6} {:>11.1} {:>11.1} {median:>6.2} ({min:.2} to {max:.2})",
                first.median, again.median
            );
        }
    }
    Ok(())
}

/// Thousands of requests per second.
fn first_and_again(
    ground: &mut Ground,
    folder: &Path,
    is_vhd: bool,
    pattern: &Pattern,
    requests: u64,
) -> Result<[f64; 2]> {
    let image = fresh(folder, is_vhd)?;
    ground.image = image.clone();
    let mut rates = [0.0; 2];
    for rate in &mut rates {
        let server = Server::start(ground, Kind::Ours, &[])?;
        let report = client::run(ground, &server.socket, pattern, Amount::Requests(requests))?;
        *rate = report.requests_per_second * 1e-3;
        server.stop()?;
    }
    remove(&image.path)?;
    Ok(rates)
}

/// An image with nothing in it.
fn fresh(folder: &Path, is_vhd: bool) -> Result<Image> {
    let path = folder.join(if is_vhd { "fresh.vhd" } else { "fresh.raw" });
    if is_vhd {
        vhd_util(&["create", "-s", MEBIBYTES, "-n"], &[&path])?;
    } else {
        let mut truncate = command::tool("truncate");
        command::run(truncate.args(["-s", &format!("{MEBIBYTES}M")]).arg(&path))?;
    }
    Ok(Image { path, is_vhd })
}
