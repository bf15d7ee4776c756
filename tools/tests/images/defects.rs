//! What is wrong in the reference, and right here. docs/compatibility.md has a line for each test.

use std::fs;

use vhd::footer::Footer;
use vhd::header::BlockSize;
use vhd::testing::{Creator, End, Spec, mend};

use crate::bench::Bench;

/// 10 MiB with data at the start, over the end of a block, in a whole block, and at the end.
fn ten_mib() -> Spec {
    Spec::new(10 << 20).with(0, 1, 1).with(4090, 13, 2).with(8192, 4096, 3).with(20477, 3, 4)
}

/// The disk through `read -r`.
#[track_caller]
fn disk(bench: &Bench, name: &str, sectors: u64) -> Vec<u8> {
    bench.vhd_ok(&format!("read -n {name} -r 0 -c {sectors}"))
}

fn refix(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
    mend(bytes);
}

#[test]
fn a_batmap_of_no_sectors_or_of_too_many_is_an_error_and_no_crash() {
    let bench = Bench::new("defect-batmap");
    for size in [0_u32, 1 << 31, u32::MAX] {
        bench.make("a", &ten_mib());
        // The size is 16 bytes into the header, which is behind a table of one sector.
        bench.change("a", |bytes| bytes[2064..2068].copy_from_slice(&size.to_be_bytes()));
        let (status, out) = bench.vhd("check -n a");
        assert!(status == 22 && out.contains("\na appears invalid"), "{out}");
        assert_eq!(disk(&bench, "a", 20480), ten_mib().disk(), "the batmap is a hint");
        assert_eq!(bench.vhd("query -v -n a"), (0, "10\n".into()));
        for command in ["read -p -n a", "read -a -n a", "query -vsafp -n a", "scan -M a"] {
            bench.vhd(command);
        }
    }
}

#[test]
fn a_footer_of_511_bytes_is_one_of_a_disk_that_is_read() {
    let bench = Bench::new("defect-511");
    let spec = Spec { end: End::ShortFooter, ..ten_mib() };
    bench.make("a", &spec);
    assert_eq!(disk(&bench, "a", 20480), spec.disk());
    bench.vhd_ok("create -n f -s 4 -r");
    bench.change("f", |bytes| {
        bytes[..4].copy_from_slice(b"data");
        bytes.pop();
    });
    let fixed = disk(&bench, "f", 8192);
    assert_eq!((fixed.len(), &fixed[..5]), (4 << 20, b"data\0".as_slice()));
}

#[test]
fn the_last_sector_is_read_where_the_footer_at_the_end_is_gone() {
    let bench = Bench::new("defect-end");
    // The last block reaches to the end of the file: its last sector is no footer.
    let spec = Spec { end: End::Nothing, ..ten_mib() };
    bench.make("a", &spec);
    assert_eq!(disk(&bench, "a", 20480), spec.disk());
    assert_eq!(bench.vhd_ok("read -n a -r 20479"), [4; 512]);
    let block = bench.vhd_ok("read -n a -d 4");
    assert_eq!(block, spec.disk()[8 << 20..]);
    // A child of the same kind is coalesced, its last sector too.
    bench.make("p", &Spec { uuid: vhd::units::Uuid([9; 16]), ..Spec::new(10 << 20) });
    let child = Spec { parent: Some((vhd::units::Uuid([9; 16]), "./p".into())), ..spec.clone() };
    bench.make("c", &child);
    assert_eq!(bench.vhd("coalesce -n c"), (0, "Coalesced 4113 sectors".into()));
    assert_eq!(disk(&bench, "p", 20480), spec.disk());
}

#[test]
fn a_block_that_the_file_does_not_hold_to_its_end_is_an_error_and_not_zeros() {
    let bench = Bench::new("defect-cut");
    bench.make("a", &Spec { end: End::Nothing, ..ten_mib() });
    bench.change("a", |bytes| bytes.truncate(bytes.len() - (1 << 20)));
    assert_eq!(bench.vhd_ok("read -n a -r 0 -c 16384"), ten_mib().disk()[..8 << 20]);
    let why = bench.vhd_why("read -n a -r 20477 -c 3", 32);
    assert!(why.contains("a: ") && why.contains("wanted"), "{why}");
}

#[test]
fn blocks_past_the_disk_are_out_of_range_though_the_table_has_them() {
    let bench = Bench::new("defect-table");
    bench.vhd_ok("create -n a -s 10 -S 400");
    for option in ["b", "m", "d"] {
        bench.vhd_ok(&format!("read -n a -{option} 4"));
        for block in [5, 199, 200, u64::MAX] {
            let (status, _) = bench.vhd(&format!("read -n a -{option} {block}"));
            assert_eq!(status, 34, "-{option} {block}");
        }
    }
}

#[test]
fn the_batmap_is_printed_as_far_as_it_was_read() {
    let bench = Bench::new("defect-print");
    // 4 GiB in 2048 blocks, and a table for 2 TiB: a batmap of 256 sectors, one of them summed.
    bench.vhd_ok("create -n a -s 4096 -S 2088960");
    assert_eq!(bench.vhd_ok("read -n a -a"), [0; 512]);
}

#[test]
fn fixed_disks_are_queried_and_read_in_every_form_that_has_a_meaning() {
    let bench = Bench::new("defect-fixed");
    bench.vhd_ok("create -n f -s 5 -r");
    bench.change("f", |bytes| bytes[4 << 20..][..512].fill(7));
    assert_eq!(bench.vhd_text("query -va -n f"), "6\n3\n");
    let dump = bench.vhd_text("read -p -n f");
    assert!(dump.contains("Disk type           : Fixed hard disk\n"), "{dump}");
    assert_eq!(bench.vhd_ok("read -n f -r 8192"), [7; 512]);
    assert_eq!(bench.vhd_ok("read -n f -R 4194303 -c 2"), [0, 7]);
    assert_eq!(bench.vhd("read -n f -r 12288").0, 34);
    // It has no table and no batmap to show.
    for form in ["-t 0", "-b 0", "-B", "-m 0", "-i 0", "-e 0", "-a", "-d 0"] {
        assert_eq!(bench.vhd(&format!("read -n f {form}")).0, 22, "{form}");
    }
}

#[test]
fn a_parent_that_is_raw_or_shorter_is_read_through() {
    let bench = Bench::new("defect-raw");
    let mut raw = vec![0; (4 << 20) + 512];
    raw[..512].fill(1);
    raw[4 << 20..].fill(2);
    fs::write(bench.path("raw"), &raw).unwrap();
    bench.vhd_ok("snapshot -n c -p raw -m");
    assert_eq!(bench.vhd_ok("read -n c -R 0 -c 4096"), raw[..4096]);
    raw.truncate(4 << 20);
    fs::write(bench.path("raw"), &raw).unwrap();
    raw.resize(6 << 20, 0);
    assert_eq!(disk(&bench, "c", 12288), raw, "zeros behind its end");
}

#[test]
fn blocks_smaller_than_2_mib_have_an_entry_each() {
    let bench = Bench::new("defect-small");
    let spec = Spec { block_size: BlockSize::new(512 << 10).unwrap(), ..ten_mib() };
    bench.make("a", &spec);
    assert_eq!(disk(&bench, "a", 20480), spec.disk());
    assert_eq!(bench.vhd_text("query -a -n a"), "8\n");
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
    // A bit for each block, the first the highest: 0, 3 and 4, 8 to 11, 19.
    assert_eq!(bench.vhd_ok("read -n a -B"), [0b1001_1000, 0b1111_0000, 0b0001_0000]);
}

#[test]
fn a_marker_changes_the_marker_and_nothing_else() {
    let bench = Bench::new("defect-marker");
    bench.make("a", &ten_mib());
    let before = bench.read("a");
    bench.vhd_ok("set -n a -f marker -v 9");
    let after = bench.read("a");
    let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    assert_eq!(changed, [2048 + 28]);
    assert_eq!(bench.vhd_text("query -m -n a"), "marker: 9\n");
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
    bench.vhd_ok("set -n a -f marker -v 0");
    assert!(bench.read("a") == before);
}

#[test]
fn fill_b_keeps_the_data_and_the_footer() {
    let bench = Bench::new("defect-fill");
    bench.make("a", &ten_mib());
    bench.vhd_ok("fill -n a -b");
    assert_eq!(disk(&bench, "a", 20480), ten_mib().disk());
    assert_eq!(bench.vhd_text("query -a -n a"), "5\n");
    assert_eq!(bench.vhd_text("check -b -n a"), "a is valid\n");
    assert_eq!(bench.vhd("fill -n a -b -f 0 -t 20480").0, 34, "one past the last");
}

#[test]
fn raw_images_are_made_and_their_size_is_told() {
    let bench = Bench::new("defect-aio");
    bench.ok("td-util", &["create", "aio", "-r", "3", "x"]);
    assert_eq!(bench.read("x"), vec![0; 3 << 20]);
    let out = bench.ok("td-util", &["query", "aio", "-vpfd", "x"]);
    assert_eq!(out, b"3\nx has no parent\nhidden: 0\nchain depth: 1\n");
}

#[test]
fn a_directory_that_is_not_there_has_a_negative_errno_as_everything_has() {
    let bench = Bench::new("defect-scan");
    for options in ["", "-f ", "-c ", "-f -c -a ", "-p -a "] {
        let (status, out) = bench.vhd(&format!("scan {options}-m nodir/*.vhd"));
        assert_eq!(status, if options.contains('c') { 0 } else { 2 }, "{options}");
        assert!(!out.is_empty() && out.lines().all(|line| line.contains("scan-error=-")), "{out}");
    }
    bench.make("a.vhd", &ten_mib());
    let (status, out) = bench.vhd("scan -c missing.vhd a.vhd");
    let error = "vhd=missing.vhd scan-error=-2 error-message='failure scanning target'";
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((status, lines.len(), lines[0]), (0, 2, error), "{out}");
}

#[test]
fn an_image_cannot_be_its_own_parent() {
    let bench = Bench::new("defect-self");
    bench.make("p", &ten_mib());
    let before = bench.read("p");
    std::os::unix::fs::symlink("p", bench.path("link")).unwrap();
    for name in ["p", "./p", "link"] {
        assert_eq!(bench.vhd(&format!("snapshot -n {name} -p p")).0, 22, "{name}");
        assert!(bench.read("p") == before, "{name}");
    }
    bench.make("s", &Spec::child_of(&ten_mib(), "p"));
    assert_eq!(bench.vhd("modify -p s -n s").0, 22);
    // One that says that it is: everything that follows parents comes to an end.
    let own = vhd::units::Uuid([7; 16]);
    bench.make("s", &Spec { parent: Some((own, "./s".into())), ..ten_mib() });
    for command in ["query -d -n s", "check -p -n s", "read -r 0 -n s", "map -n s", "coalesce -n s"]
    {
        assert_ne!(bench.vhd(command).0, 0, "{command}");
    }
    assert_eq!(bench.vhd("scan -p -c s").0, 0);
}

#[test]
fn an_image_without_batmap_can_be_emptied() {
    let bench = Bench::new("defect-empty");
    bench.make("a", &Spec { creator: Creator::Qemu, ..ten_mib() });
    bench.vhd_ok("modify -z -n a");
    assert_eq!(disk(&bench, "a", 20480), vec![0; 10 << 20]);
    assert_eq!(bench.vhd_text("query -a -n a"), "0\n");
}

#[test]
fn a_locator_longer_than_its_space_or_the_file_is_an_error_and_no_crash() {
    let bench = Bench::new("defect-locator");
    let parent = Spec { uuid: vhd::units::Uuid([9; 16]), ..ten_mib() };
    bench.make("p", &parent);
    for length in [513_u32, 1 << 20, u32::MAX] {
        bench.make("c", &Spec::child_of(&parent, "p"));
        // All three: the header is at 512, its locators 576 bytes into it.
        bench.change("c", |bytes| {
            (0..3).for_each(|at| refix(bytes, 512 + 576 + 24 * at + 8, &length.to_be_bytes()));
        });
        assert_eq!(bench.vhd("check -n c").0, 22, "{length}");
        for command in ["query -p -n c", "read -p -n c", "read -r 0 -n c", "scan c"] {
            bench.vhd(command);
        }
    }
}

#[test]
fn a_table_larger_than_the_disk_does_not_make_the_disk_grow_further() {
    let bench = Bench::new("defect-resize");
    bench.vhd_ok("create -n a -s 10 -S 4096");
    bench.vhd_ok("resize -n a -s 20 -j j");
    assert_eq!(bench.vhd_text("query -v -n a"), "20\n");
    assert!(!bench.path("j").exists());
    bench.vhd_ok("create -n f -s 4 -r");
    bench.vhd_ok("resize -n f -s 6 -j j");
    assert_eq!(bench.vhd_text("query -vs -n f"), format!("6\n{}\n", (6 << 20) + 512));
}

#[test]
fn a_batmap_whose_last_bits_no_checksum_covers_is_sound() {
    let bench = Bench::new("defect-8194");
    // 4097 blocks: one more than the 512 bytes that are summed have bits for.
    bench.vhd_ok("create -n a -s 8194");
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
    bench.vhd_ok("resize -n a -s 8210 -j j");
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
    assert_eq!(bench.vhd_text("query -v -n a"), "8210\n");
}

#[test]
fn revert_takes_only_the_journal_of_this_image_and_only_a_whole_one() {
    let bench = Bench::new("defect-revert");
    bench.make("a", &ten_mib());
    bench.make("b", &Spec { uuid: vhd::units::Uuid([3; 16]), ..ten_mib() });
    let mut stopped = bench.command("vhd-util", &["resize", "-n", "a", "-s", "3000", "-j", "j"]);
    let stopped = stopped.env("VHD_UTIL_TEST_FAIL_RESIZE_DATA_MOVED", "1").output().unwrap();
    assert_eq!(stopped.status.code(), Some(22));
    let (image, journal) = (bench.read("a"), bench.read("j"));
    assert_eq!(bench.vhd("revert -n b -j j").0, 22, "of another image");
    bench.change("j", |bytes| bytes[600] ^= 1);
    assert_eq!(bench.vhd("revert -n a -j j").0, 22, "an entry was changed");
    assert!(bench.read("a") == image);
    fs::write(bench.path("j"), &journal).unwrap();
    bench.vhd_ok("revert -n a -j j");
    assert_eq!(disk(&bench, "a", 20480), ten_mib().disk());
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
    assert!(!bench.path("j").exists());
}

#[test]
fn a_geometry_that_is_rounded_up_is_no_fault() {
    let bench = Bench::new("defect-geometry");
    bench.make("a", &Spec { creator: Creator::Qemu, ..ten_mib() });
    for end in [false, true] {
        bench.change("a", |bytes| {
            let at = if end { bytes.len() - 512 } else { 0 };
            // 302 cylinders of 4 heads and 17 sectors: 56 sectors more than the disk has.
            bytes[at + 56..at + 60].copy_from_slice(&[1, 46, 4, 17]);
            mend(bytes);
        });
    }
    let footer = Footer::parse(bench.read("a").last_chunk().unwrap()).unwrap();
    assert_eq!(footer.geometry.cylinders, 302);
    assert_eq!(bench.vhd_text("check -n a"), "a is valid\n");
}

#[test]
fn data_in_the_first_byte_of_a_sector_is_data() {
    let bench = Bench::new("defect-first");
    let spec = Spec::new(4 << 20).with(0, 1, 1);
    bench.make("a", &spec);
    let at = vhd::image::Image::load(&spec.make(), vhd::image::LoadOptions::default())
        .and_then(|image| image.bat_entry(vhd::units::BlockIndex(0)));
    let data = usize::try_from(at.unwrap().unwrap().offset()).unwrap() + 512;
    assert_eq!(bench.vhd_text("check -b -n a"), "a is valid\n");
    bench.change("a", |bytes| bytes[data + 5 * 512] = 1);
    let (status, out) = bench.vhd("check -b -n a");
    let wanted = "sector 0x5 of block 0x0 has data where bitmap is clear\n";
    assert!(status == 22 && out.starts_with(wanted), "{out}");
}

#[test]
fn what_is_no_size_makes_no_disk() {
    let bench = Bench::new("defect-size");
    for size in ["0", "abc", "-1", "12abc", "1e3", "8388608", "2088962", "18446744073709551616"] {
        for kind in ["", " -r"] {
            let (status, _) = bench.vhd(&format!("create -n x -s {size}{kind}"));
            assert!(kind == " -r" && size.starts_with(['8', '2']) || status == 22, "{size}{kind}");
            drop(fs::remove_file(bench.path("x")));
        }
        assert_eq!(bench.vhd(&format!("create -n x -s {size}")).0, 22, "{size}");
        assert!(!bench.path("x").exists(), "{size}");
    }
    assert_eq!(bench.vhd("create -n x -S 50").0, 22);
    let why = bench.vhd_why("create -n x -s 2088962", 22);
    assert!(why.contains("2088962") || why.contains("2190433320960"), "{why}");
}

#[test]
fn every_defect_is_in_the_documents() {
    let text = include_str!("../../../docs/compatibility.md");
    let tests = include_str!("defects.rs").lines().filter_map(|line| line.strip_prefix("fn "));
    let tests = tests.filter_map(|line| line.split_once("() {")).map(|(name, _)| name);
    let missing: Vec<&str> = tests
        .filter(|name| !["ten_mib", "every_defect_is_in_the_documents"].contains(name))
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
