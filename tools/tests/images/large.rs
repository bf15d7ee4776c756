//! The largest disks there are: 2040 GiB, every block there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::bench::{Bench, told};

/// A block with its bitmap, rounded up so that its data starts at a page, in sectors.
const STRIDE: u64 = 4104;
const BLOCKS: u64 = 2_088_960 / 2;

/// A disk whose blocks lie behind each other, with holes for bitmaps and data. `None` where the
/// file system has no files so large.
fn full(bench: &Bench) -> Option<()> {
    bench.vhd_ok("create -n full -s 2088960");
    let end_of_headers = bench.read("full").len() as u64 - 512;
    let first = end_of_headers.div_ceil(4096) * 8 + 7;
    let places = (0..BLOCKS).map(|block| u32::try_from(first + block * STRIDE).unwrap());
    let table: Vec<u8> = places.flat_map(u32::to_be_bytes).collect();
    let file = File::options().write(true).open(bench.path("full")).unwrap();
    file.write_all_at(&table, 1536).unwrap();
    if let Err(error) = file.set_len((first + BLOCKS * STRIDE) * 512) {
        println!("skipped: no file of 2 TiB: {error}");
        return None;
    }
    bench.vhd_ok("repair -n full");
    Some(())
}

/// Runs it with an address space of so many KiB.
fn within(bench: &Bench, kib: u32, arguments: &str) -> (i32, Vec<u8>, String) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {kib}; exec \"$0\" \"$@\"")]);
    shell.arg(env!("CARGO_BIN_EXE_vhd-util")).args(arguments.split_whitespace());
    told(&shell.current_dir(bench).output().unwrap())
}

#[test]
fn a_full_disk_of_2040_gib_is_queried_in_less_than_16_mib_and_checked_in_little_more() {
    let bench = Bench::new("large");
    if full(&bench).is_none() {
        return;
    }
    let physical = bench.path("full").metadata().unwrap().len();
    // All of the address space, programs and libraries included: what is resident is less.
    for (command, kib, wanted) in [
        (
            "query -vsafp -n full",
            16 << 10,
            format!("2088960\n{physical}\nfull has no parent\nhidden: 0\n{BLOCKS}\n"),
        ),
        (
            "read -b 1044479 -n full",
            16 << 10,
            format!("block: 1044479: offset: {}\n", physical - 512 - 4097 * 512),
        ),
        (
            "scan -f full",
            16 << 10,
            format!("vhd=full capacity={} size={physical} hidden=0 parent=none\n", BLOCKS << 21),
        ),
        // Eight bytes for each block, to find those that lie over each other.
        ("check -n full", 48 << 10, "full is valid\n".to_owned()),
    ] {
        let (status, out, error) = within(&bench, kib, command);
        assert_eq!(
            (status, String::from_utf8_lossy(&out)),
            (0, wanted.into()),
            "{command}: {error}"
        );
    }
}

#[test]
fn a_disk_larger_than_the_format_holds_is_refused_with_the_limit() {
    let bench = Bench::new("large-limit");
    let why = bench.vhd_why("create -n x -s 2088962", 22);
    assert!(why.contains("2190433320960") || why.contains("2088960"), "{why}");
    bench.vhd_ok("create -n a -s 2088960");
    assert_ne!(bench.vhd("resize -n a -s 2088962 -j j").0, 0);
    assert_eq!(bench.vhd_text("query -v -n a"), "2088960\n");
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
}
