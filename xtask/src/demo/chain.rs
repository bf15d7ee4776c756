//! The second disk of the demo, a VHD: a snapshot under load, where its data is then, and what
//! programs that are not ours find in the two images.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::story::{Disk, Load, Story};
use super::{IMAGE_MIB, LOAD_LIMIT, SCRATCH_MIB, chapter, stats};
use crate::{Result, command, wait};

/// The image, and the one that the snapshot makes.
pub(super) const BASE: &str = "base.vhd";
const LEAF: &str = "leaf.vhd";

/// Debian's, which finds Debian's modules.
const PYTHON: &str = "/usr/bin/python3";
const PROGRAM: &str = "libvhdi.py";

/// Reads a disk of two images by libvhdi, in pieces that it reads right: in some of a MiB version
/// 20210425 gives other bytes than in pieces of a sector.
const LIBVHDI: &str = "\
import sys, pyvhdi
leaf, base, copy, size = *sys.argv[1:4], int(sys.argv[4])
files = pyvhdi.file(), pyvhdi.file()
files[0].open(leaf); files[1].open(base); files[0].set_parent(files[1])
with open(copy, 'wb') as out:
    for at in range(0, size, 4096): out.write(files[0].read_buffer_at_offset(4096, at))
print('libvhdi', pyvhdi.get_version(), 'read', size, 'bytes')
";

/// A load that writes pieces of 4 KiB behind the file system, and reads back all that it wrote.
pub(super) fn load(story: &mut Story, disk: &Disk, name: &str) -> Result<Load> {
    let before = stats(story, disk)?;
    let load = story.background(
        "fio",
        [
            &format!("--name={name}"),
            "--ioengine=nbd",
            "--thread",
            &format!("--uri={}", disk.uri),
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            &format!("--offset={IMAGE_MIB}M"),
            &format!("--size={}M", SCRATCH_MIB - IMAGE_MIB),
            // So that it lasts some seconds on a fast machine too.
            "--rate_iops=2000",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
        ],
    )?;
    wait::until(LOAD_LIMIT, "the load's first writes", || {
        stats(story, disk).is_ok_and(|stats| stats["secs"][1] != before["secs"][1]).then_some(())
    })?;
    Ok(load)
}

/// What the disk holds stays in one image, and what is written from now on goes into another.
pub(super) fn snapshot(story: &mut Story, disk: &Disk) -> Result<()> {
    chapter("Snapshot it under load");
    if !story.has("fio") {
        return story.tap_ctl(snapshot_of(disk)).map(drop);
    }
    let mut load = load(story, disk, "more")?;
    wait::pass(Duration::from_secs(1));
    story.tap_ctl(snapshot_of(disk))?;
    if !load.is_running() {
        return Err("The load ended before the snapshot did".into());
    }
    println!("(the load writes on, into the new image, and reads back all that it wrote)");
    load.end(LOAD_LIMIT)?;
    story.tap_ctl(["list", "-p", &disk.pid]).map(drop)
}

fn snapshot_of(disk: &Disk) -> [&str; 7] {
    ["snapshot", "-p", &disk.pid, "-m", &disk.minor, "-n", LEAF]
}

/// The chain, and which part of the disk lies in which image of it; the disk is closed.
pub(super) fn show(story: &Story) -> Result<()> {
    chapter("The chain, and where the data is");
    story.types("ls", ["-ls", BASE, LEAF])?;
    story.vhd_util(["query", "-n", LEAF, "-v", "-p", "-d"])?;
    println!("Each line: start, length, image (0 the new one, 1 its parent), offset in its file:");
    story.vhd_util(["map", "-n", LEAF])?;
    let text = story.quiet("vhd-util", ["map", "--json", "-n", LEAF])?;
    let [leaf, base, zeros] = shares(&text)?;
    println!("In the new image {leaf} KiB, in its parent {base} KiB, nowhere (zeros) {zeros} KiB.");
    if leaf == 0 || base == 0 {
        return Err("One of the images holds nothing of the disk".into());
    }
    for image in [BASE, LEAF] {
        story.vhd_util(["check", "-n", image])?;
    }
    Ok(())
}

/// How many KiB of the disk are in the leaf, in its parent, and nowhere.
fn shares(map: &str) -> Result<[u64; 3]> {
    let map: Value = serde_json::from_str(map)
        .map_err(|error| format!("vhd-util map printed no JSON: {error}"))?;
    let mut bytes = [0; 3];
    for extent in map["extents"].as_array().ok_or("vhd-util map printed no extents")? {
        let at = match extent["image"].as_u64() {
            Some(0) => 0,
            Some(_) => 1,
            None => 2,
        };
        bytes[at] += extent["length"].as_u64().ok_or("vhd-util map printed no length")?;
    }
    Ok(bytes.map(|bytes| bytes >> 10))
}

/// Programs that are not ours find in the images what the disk served: `served` is a copy of it.
pub(super) fn witness(story: &mut Story, served: Option<&str>) -> Result<()> {
    chapter("Let others read the images");
    let bytes = (u64::from(SCRATCH_MIB) << 20).to_string();
    if let Some(served) = served.filter(|_| has_libvhdi(story)) {
        let program = story.files().join(PROGRAM);
        fs::write(&program, LIBVHDI)
            .map_err(|error| format!("Cannot write {}: {error}", program.display()))?;
        story.types(PYTHON, [PROGRAM, LEAF, BASE, "libvhdi.img", &bytes])?;
        story.types("cmp", [served, "libvhdi.img"])?;
        println!("(libvhdi finds in the chain what the disk served last)");
    }
    if story.has("qemu-img") {
        story.types("qemu-img", ["convert", "-f", "vpc", "-O", "raw", BASE, "before.img"])?;
        let system = (u64::from(IMAGE_MIB) << 20).to_string();
        story.types("cmp", ["-n", &system, "disk.img", "before.img"])?;
        println!("(QEMU knows no parents: the old image alone has the file system in it)");
        story.vhd_util(["coalesce", "-n", LEAF])?;
        if let Some(served) = served {
            story.types("qemu-img", ["convert", "-f", "vpc", "-O", "raw", BASE, "after.img"])?;
            story.types("cmp", ["-n", &bytes, served, "after.img"])?;
            println!("(coalesced into one, QEMU finds in it what the disk served last)");
        }
    }
    Ok(())
}

fn has_libvhdi(story: &mut Story) -> bool {
    let mut import = command::tool(PYTHON);
    let is_there = command::capture(import.args(["-c", "import pyvhdi"])).is_ok();
    if !is_there {
        story.left_out.push("libvhdi");
    }
    is_there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_each_image_holds() {
        let map = r#"{"extents": [{"image": 1, "length": 4096}, {"image": null, "length": 2048},
            {"image": 0, "length": 1024}, {"image": 1, "length": 1024}]}"#;
        assert_eq!(shares(map), Ok([1, 5, 2]));
        assert!(shares("{}").is_err());
    }
}
