//! cbt-util: logs of changed blocks.

use std::fs;

use crate::bench::Bench;

const HEADER: usize = 48;

fn get(bench: &Bench, file: &str, field: &str) -> Vec<u8> {
    bench.ok("cbt-util", &["get", "-n", file, field])
}

#[test]
fn coalesce_is_the_union_whatever_the_size() {
    let bench = Bench::new("cbt-union");
    // Several pieces, and an end in the middle of a byte.
    let blocks = (3 << 23) + 13_u64;
    let size = (blocks * 65536).to_string();
    for (name, step) in [("p", 7_usize), ("c", 11)] {
        bench.ok("cbt-util", &["create", "-n", name, "-s", &size]);
        let mut bytes = fs::read(bench.path(name)).unwrap();
        bytes[HEADER..].iter_mut().step_by(step).for_each(|byte| *byte = 0x41);
        fs::write(bench.path(name), bytes).unwrap();
    }
    let (parent, child) = (get(&bench, "p", "-b"), get(&bench, "c", "-b"));
    let union: Vec<u8> = parent.iter().zip(&child).map(|(one, other)| one | other).collect();
    for _ in 0..2 {
        bench.ok("cbt-util", &["coalesce", "-p", "p", "-c", "c"]);
        assert!(get(&bench, "c", "-b") == union);
    }
    assert!(get(&bench, "p", "-b") == parent);
}

#[test]
fn a_smaller_parent_leaves_the_rest_of_the_child_alone() {
    let bench = Bench::new("cbt-smaller");
    bench.ok("cbt-util", &["create", "-n", "p", "-s", "524288"]);
    bench.ok("cbt-util", &["create", "-n", "c", "-s", "1048576"]);
    let file = |byte| [vec![0; 40], 524_288_u64.to_le_bytes().to_vec(), vec![byte]].concat();
    fs::write(bench.path("p"), file(0xff)).unwrap();
    bench.ok("cbt-util", &["coalesce", "-p", "p", "-c", "c"]);
    assert_eq!(get(&bench, "c", "-b"), [0xff, 0]);
}

#[test]
fn a_header_that_claims_what_is_not_there_takes_no_memory_and_is_eio() {
    let bench = Bench::new("cbt-claim");
    let bytes = [vec![0; 40], u64::MAX.to_le_bytes().to_vec(), vec![1]].concat();
    fs::write(bench.path("x"), &bytes).unwrap();
    let (status, out, error) = bench.run("cbt-util", &["get", "-n", "x", "-b"]);
    assert_eq!((status, out.as_slice()), (5, [].as_slice()));
    assert_eq!(error, "Failed to read bitmap from file x\n");
    assert_eq!(bench.run("cbt-util", &["coalesce", "-p", "x", "-c", "x"]).0, 5);
    assert_eq!(get(&bench, "x", "-s"), b"18446744073709551615\n");
    assert_eq!(fs::read(bench.path("x")).unwrap(), bytes);
}

#[test]
fn a_size_that_is_no_number_makes_no_log() {
    let bench = Bench::new("cbt-number");
    for size in ["0", "abc", "-1", "1e9", "18446744073709551616"] {
        let (status, _, _) = bench.run("cbt-util", &["create", "-n", "x", "-s", size]);
        assert_eq!(status, 22, "{size}");
        assert!(!bench.path("x").exists(), "{size}");
    }
}

#[test]
fn a_person_is_told_what_was_found_and_wanted() {
    let bench = Bench::new("cbt-explain");
    bench.ok("cbt-util", &["create", "-n", "x", "-s", "1048576"]);
    let mut command = bench.command("cbt-util", &["set", "-n", "x", "-s", "65536"]);
    let output = command.env("VHD_UTIL_ERRORS", "long").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("Size smaller than current file size (1048576)\n"), "{error}");
    assert!(error.ends_with("can only grow\n"), "{error}");
}
