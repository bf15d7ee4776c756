//! `cargo xtask demo`: a disk image and a VHD served and used, in under a minute after the build.
//!
//! It needs no root and touches nothing outside two temporary folders, which go away with
//! everything that was started, also after an error or Ctrl-C.

mod chain;
mod chart;
mod story;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::{command, packages, vm, wait};
use story::{Disk, Story};

/// Of the image with the file system. The second disk has more: the load writes behind this.
const IMAGE_MIB: u32 = 96;
const SCRATCH_MIB: u32 = 128;

/// The longest that a load may take: only ever reached when something hangs. On a machine that is
/// busy with ten other things it takes more than a minute.
const LOAD_LIMIT: Duration = Duration::from_secs(600);

/// The whole story.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {}
        [word] if word == "--xen" => return vm::start(&["demo"]),
        _ => return Err("usage: cargo xtask demo [--xen]".into()),
    }
    if let Some(reason) = packages::provide("demo") {
        println!("What needs them is left out: {reason}");
    }
    println!("Building ...");
    let packages = ["-p", "tapdisk", "-p", "tap-tools"];
    command::run(command::cargo(["build", "--release", "--quiet"]).args(packages))?;

    let start = Instant::now();
    let mut story = Story::new()?;
    println!("\nThe programs run in {}", story.files().display());
    println!("with TAPDISK_RUN_DIR={} (so no root is needed).", story.run().display());

    let sum = make_image(&mut story)?;
    chapter("Serve it, and a second, empty disk: a VHD");
    let disk = story.create("aio", "disk.img")?;
    let scratch = story.create("vhd", chain::BASE)?;
    println!("Each disk has a process and an NBD socket: nbd<pid>.<minor> in TAPDISK_RUN_DIR.");
    read_it(&mut story, &disk, &sum)?;
    write_it(&mut story, &disk, &scratch)?;
    pause_it(&mut story, &scratch)?;
    chain::snapshot(&mut story, &scratch)?;
    show_it(&story, &scratch)?;
    let served = copy_it(&mut story, &scratch)?;
    take_down(&mut story, &[disk, scratch], &sum)?;
    chain::show(&story)?;
    chain::witness(&mut story, served)?;

    if !story.left_out.is_empty() {
        println!("Left out, not installed: {}", story.left_out.join(", "));
    }
    println!("\nAll of it matched, in {:.0} s.", start.elapsed().as_secs_f32());
    Ok(())
}

fn chapter(title: &str) {
    println!("\n== {title}");
}

/// Makes the images and returns the first one's checksum.
fn make_image(story: &mut Story) -> Result<String> {
    chapter("An image with a file system and files in it");
    let files = story.files().join("files");
    make_files(&files).map_err(|error| format!("Cannot write {}: {error}", files.display()))?;
    if story.has("mke2fs") {
        let size = format!("{IMAGE_MIB}M");
        story.types("mke2fs", ["-q", "-t", "ext4", "-d", "files", "disk.img", &size])?;
    } else {
        story.types("cp", ["files/0", "disk.img"])?;
        story.types("truncate", ["-s", &format!("{IMAGE_MIB}M"), "disk.img"])?;
    }
    story.vhd_util(["create", "-n", chain::BASE, "-s", &SCRATCH_MIB.to_string()])?;
    checksum(story, "disk.img")
}

/// Some large files and many small ones, 24 MiB, the same in every run.
fn make_files(folder: &Path) -> std::io::Result<()> {
    fs::create_dir(folder)?;
    let mut state = 1_u32;
    for index in 0..206_u32 {
        let words = if index < 6 { 1 << 20 } else { index };
        let mut bytes = Vec::new();
        for _ in 0..words {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        fs::write(folder.join(index.to_string()), bytes)?;
    }
    Ok(())
}

fn checksum(story: &Story, file: &str) -> Result<String> {
    let line = story.types("sha256sum", [file])?;
    let sum = line.split(' ').next().filter(|sum| sum.len() == 64);
    sum.map(str::to_owned).ok_or_else(|| format!("sha256sum printed {line:?}"))
}

fn read_it(story: &mut Story, disk: &Disk, sum: &str) -> Result<()> {
    chapter("Read it with programs that are not ours");
    if story.has("nbdinfo") {
        story.types("nbdinfo", [&disk.uri])?;
    }
    if story.has("qemu-img") {
        story.types("qemu-img", ["compare", "-f", "raw", "-F", "raw", "disk.img", &disk.uri])?;
    }
    if story.has("nbdcopy") {
        story.types("nbdcopy", [&disk.uri, "copy.img"])?;
        if checksum(story, "copy.img")? != sum {
            return Err("The copy that nbdcopy made differs from the image".into());
        }
        if story.has("e2fsck") {
            story.types("e2fsck", ["-f", "-n", "copy.img"])?;
        }
    }
    Ok(())
}

fn write_it(story: &mut Story, disk: &Disk, scratch: &Disk) -> Result<()> {
    chapter("Copy it from disk to disk, both served");
    if story.has("qemu-img") {
        let convert = ["convert", "-n", "-f", "raw", "-O", "raw", &disk.uri, &scratch.uri];
        story.types("qemu-img", convert)?;
        println!("(the second disk is larger: beyond the first one's end it must read as zeros)");
        let compare = ["compare", "-f", "raw", "-F", "raw", &disk.uri, &scratch.uri];
        story.types("qemu-img", compare)?;
    } else if story.has("nbdcopy") {
        story.types("nbdcopy", [&disk.uri, &scratch.uri])?;
    }
    Ok(())
}

/// A load that checks what it reads back; meanwhile the disk pauses, and goes on.
fn pause_it(story: &mut Story, disk: &Disk) -> Result<()> {
    chapter("Pause it under load");
    if !story.has("fio") {
        return Ok(());
    }
    let mut load = chain::load(story, disk, "load")?;
    wait::pass(Duration::from_secs(1));
    let disk_is = ["-p", disk.pid.as_str(), "-m", disk.minor.as_str()];
    story.tap_ctl(["pause"].iter().chain(&disk_is))?;
    story.tap_ctl(["list", "-p", &disk.pid])?;
    let before = stats(story, disk)?["secs"].clone();
    wait::pass(Duration::from_secs(1));
    if stats(story, disk)?["secs"] != before {
        return Err("The paused disk went on".into());
    }
    println!("(a second passes: the load waits, nothing is served, nothing fails)");
    if !load.is_running() {
        return Err("The load ended before the pause did".into());
    }
    story.tap_ctl(["unpause"].iter().chain(&disk_is))?;
    println!("(the load goes on to its end, and reads back all that it wrote)");
    load.end(LOAD_LIMIT)
}

/// All that the daemon tells of a disk.
fn stats(story: &Story, disk: &Disk) -> Result<serde_json::Value> {
    let text = story.quiet("tap-ctl", ["stats", "--json", "-p", &disk.pid, "-m", &disk.minor])?;
    serde_json::from_str(&text).map_err(|error| format!("tap-ctl stats printed no JSON: {error}"))
}

fn show_it(story: &Story, disk: &Disk) -> Result<()> {
    chapter("What it did");
    story.tap_ctl(["list"])?;
    story.tap_ctl(["stats", "-p", &disk.pid, "-m", &disk.minor])?;
    println!("The latencies (with --json they are in it), as bars:");
    let stats = stats(story, disk)?;
    for kind in ["read", "write", "flush"] {
        print!("{}", chart::bars(&stats, kind));
    }
    Ok(())
}

/// What the disk serves last, all of it.
fn copy_it(story: &mut Story, disk: &Disk) -> Result<Option<&'static str>> {
    if !story.has("nbdcopy") {
        return Ok(None);
    }
    chapter("Keep a copy of what it serves");
    story.types("nbdcopy", [&disk.uri, "served.img"])?;
    if story.has("e2fsck") && story.has("mke2fs") && story.has("qemu-img") {
        story.types("e2fsck", ["-f", "-n", "served.img"])?;
    }
    Ok(Some("served.img"))
}

fn take_down(story: &mut Story, disks: &[Disk], sum: &str) -> Result<()> {
    chapter("Take both down");
    for disk in disks {
        story.tap_ctl(["destroy", "-p", &disk.pid, "-m", &disk.minor])?;
    }
    let list = story.tap_ctl(["list"])?;
    if !list.trim().is_empty() {
        return Err(format!("Something is left: {list}"));
    }
    if checksum(story, "disk.img")? != sum {
        return Err("The image that was only read has changed".into());
    }
    Ok(())
}
