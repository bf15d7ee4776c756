//! A corpus of images and transcripts of the reference, replayed by the corpus' own program.
//!
//! `TAPDISK_GOLDEN` names its directory; it is not part of the tree. What differs on purpose is
//! listed here, and said why in docs/compatibility.md: any other difference fails.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Steps with another result on purpose: how the case's name starts, and a part of the command. A
/// command that changes a file also changes what later steps of its case find.
const DEVIATIONS: &[(&str, &str)] = &[
    // Geometries that are rounded up to a cylinder.
    ("qemu-", " check "),
    ("foreign-win-dyn", " check "),
    // Fixed images can be read and resized.
    ("fixed-", " query "),
    ("fixed-", " read "),
    ("qemu-fixed-", " query "),
    ("qemu-fixed-", " read "),
    ("qemu-fixed-1sector", " scan -f"),
    ("bad-footer-511-fixed", " query "),
    ("bad-footer-511-fixed", " read "),
    ("sc-td-util", " f.vhd"),
    ("sc-repair", " fixed.vhd"),
    ("sc-resize-fixed", ""),
    ("sc-set", " f.vhd"),
    // Mistakes that are no sizes.
    ("sc-create", ""),
    // Blocks of other sizes, and files that end inside of a part.
    ("foreign-bs512k", ""),
    ("bad-trunc-bat", ""),
    ("bad-trunc-512", " scan -f"),
    ("bad-ft-curr0", " -b 0 -c 5"),
    ("bad-ft-ver01", ""),
    // What cannot be served says nothing of its parent and its key.
    ("bad-ft-type", " query vhd "),
    ("bad-ft-type", " key -p"),
    ("bad-ft-ffver", " query vhd "),
    ("bad-ft-ffver", " key -p"),
    // More is found, or said of what is found; sectors are counted right.
    ("bad-bat-max", " check "),
    ("bad-bitmap-clear", " check -n a.vhd -b"),
    ("diff-raw-odd", " check "),
    ("diff-small-parent", " check "),
    // An absolute path of another system is no fault while a relative one leads to the parent.
    ("foreign-ms-diff", " check "),
    // A batmap that QEMU wrote over.
    ("dyn-qemu-written", ""),
    // What is done in another order, so that it survives a power cut.
    ("sc-fill", ""),
    ("op-fill-b", ""),
    ("sc-revert", ""),
    ("sc-coalesce-size", ""),
    ("sc-modify", ""),
];

#[test]
fn the_tools_do_what_the_reference_does() {
    let Some(corpus) = std::env::var_os("TAPDISK_GOLDEN").map(PathBuf::from) else {
        println!("skipped: TAPDISK_GOLDEN is not set");
        return;
    };
    let programs = Path::new(env!("CARGO_BIN_EXE_vhd-util")).parent().unwrap();
    let replayed = Command::new("python3")
        .arg(corpus.join("replay.py"))
        .args(["-v", "--jobs", "2", "--tools", "vhd-util,td-util,cbt-util"])
        .arg(programs)
        .output();
    let Ok(output) = replayed else {
        println!("skipped: python3 is not installed");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let totals = text.lines().last().unwrap_or_default();
    println!("{totals}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(totals.contains(" passed, "), "{text}{errors}");
    let is_known = |failed: &&str| {
        let (case, command) = failed.split_once(' ').unwrap_or((failed, ""));
        DEVIATIONS.iter().any(|(name, part)| case.starts_with(name) && command.contains(part))
    };
    let failed = text.lines().filter_map(|line| line.strip_prefix("FAIL "));
    let wrong: Vec<&str> = failed.filter(|failed| !is_known(failed)).collect();
    assert!(wrong.is_empty(), "{} steps differ:\n{}", wrong.len(), wrong.join("\n"));
}
