//! What people and programs are told: help, usage, explanations, JSON; td-util.

use std::fs;

use serde_json::Value;
use vhd::testing::Spec;
use vhd::units::Uuid;

use crate::bench::Bench;

pub(crate) fn sha256(data: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pair(name: &str) -> Bench {
    let bench = Bench::new(name);
    let parent = Spec { uuid: Uuid([9; 16]), ..Spec::new(4 << 20) };
    bench.make("p", &parent.clone().with(0, 1, 1));
    bench.make("c", &Spec::child_of(&parent, "p").with(3, 2, 2));
    bench
}

fn json(bench: &Bench, command: &str) -> Value {
    serde_json::from_slice(&bench.vhd_ok(command)).unwrap()
}

#[test]
fn query_scan_read_check_and_map_have_objects() {
    let bench = pair("telling-json");
    let query = json(&bench, "query --json -n c");
    for (key, value) in [
        ("virtual_size", 4 << 20),
        ("allocated_blocks", 1),
        ("block_size", 2 << 20),
        ("hidden", 0),
        ("marker", 0),
        ("chain_depth", 2),
        ("fast_resize_limit", 4 << 20),
    ] {
        assert_eq!(query[key], value, "{key}: {query}");
    }
    assert_eq!((&query["type"], &query["parent_name"]), (&"differencing".into(), &"./p".into()));
    assert_eq!(query["encrypted"], false);
    let scan = json(&bench, "scan --json c p");
    let rows = scan.as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["virtual_size"]), (2, &(4 << 20).into()));
    let (status, out) = bench.vhd("scan --json -c c none");
    let rows: Value = serde_json::from_str(&out).unwrap();
    let failed: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["errno"] == 2).collect();
    assert_eq!((status, failed.len()), (0, 1), "{rows}");
    let read = json(&bench, "read --json -n c");
    assert_eq!(read["footer"]["checksum"]["is_right"], true);
    assert_eq!(read["header"]["table_entries"], 2);
    assert_eq!(read["locators"].as_array().unwrap().len(), 3);
    assert_eq!(read["batmap"]["sectors"], 1);
    let check = json(&bench, "check --json -p -n c");
    assert_eq!((&check[0]["is_valid"], &check[1]["type"]), (&true.into(), &"dynamic".into()));
    let map = json(&bench, "map --json -n c");
    let images: Vec<_> = map["extents"].as_array().unwrap().iter().map(|it| &it["image"]).collect();
    assert_eq!(images, [&Value::from(1), &Value::Null, &0.into(), &Value::Null]);
    assert_eq!(bench.vhd_text("map -n c").lines().count(), 4);
}

#[test]
fn what_check_found_is_in_its_object_with_the_block() {
    let bench = pair("telling-check");
    // Both entries of the table name the same place.
    bench.change("p", |bytes| {
        let entry: [u8; 4] = bytes[1536..1540].try_into().unwrap();
        bytes[1540..1544].copy_from_slice(&entry);
    });
    let (status, out) = bench.vhd("check --json -n p");
    let report: Value = serde_json::from_str(&out).unwrap();
    let finding = &report[0]["findings"][0];
    assert_eq!(
        (status, &report[0]["is_valid"], &finding["errno"]),
        (22, &false.into(), &22.into())
    );
    assert!(finding["block"].is_number() && finding["text"].as_str().unwrap().contains("clobbers"));
    let (status, out) = bench.vhd("check -n p");
    let first = out.lines().next().unwrap();
    assert_eq!((status, first), (22, finding["text"].as_str().unwrap()));
    assert!(out.contains("\np appears invalid; dumping metadata\nVHD Footer Summary:\n"), "{out}");
}

#[test]
fn a_person_is_told_file_offset_found_and_wanted() {
    let bench = pair("telling-why");
    let damage = |at: usize| {
        bench.change("p", |bytes| {
            let end = bytes.len() - 512;
            bytes[at] ^= 1;
            bytes[end + at] ^= 1;
        });
    };
    damage(70);
    let why = bench.vhd_why("query -v -n p", 22);
    assert!(why.starts_with("vhd-util query: p: "), "{why}");
    assert!(why.contains("Footer has checksum 0x") && why.contains("at byte 0x0 of"), "{why}");
    damage(70);
    bench.change("p", |bytes| bytes[512 + 36] ^= 1);
    let why = bench.vhd_why("query -v -n p", 22);
    assert!(
        why.contains("Header has checksum 0x") && why.contains("at byte 0x200 of"),
        "where it is: {why}"
    );
    bench.change("p", |bytes| {
        bytes[512 + 36] ^= 1;
        bytes.truncate(1540);
    });
    let why = bench.vhd_why("read -b 1 -n p", 5);
    assert!(why.contains("p: ") && why.contains("wanted"), "{why}");
    let why = bench.vhd_why("resize -n none -s 5 -f", 2);
    assert!(why.contains("none: "), "{why}");
}

#[test]
fn programs_get_nothing_but_what_they_know() {
    let bench = pair("telling-quiet");
    bench.change("c", |bytes| bytes.truncate(700));
    for arguments in [["query", "-v", "-n", "c"], ["check", "-i", "-n", "c"]] {
        let (status, out, error) = bench.run("vhd-util", &arguments);
        assert_ne!((status, out.len()), (0, 0));
        assert_eq!(error, "", "{arguments:?}");
        // --debug is what storage managers pass, wherever it stands; it asks for an explanation.
        let debug = [arguments.as_slice(), &["--debug"]].concat();
        let (again, same, error) = bench.run("vhd-util", &debug);
        assert_eq!((again, same), (status, out));
        assert!(error.starts_with("vhd-util "), "{error}");
    }
}

#[test]
fn help_teaches_and_usage_is_what_programs_compare() {
    let bench = Bench::new("telling-help");
    let (status, out) = bench.vhd("");
    let usage = "usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := { create | snapshot | query | read | set | \
                 repair | resize | fill | coalesce | modify | scan | check | revert | key | copy }\n";
    assert_eq!((status, out.as_str()), (0, usage));
    let (status, out, error) = bench.run("vhd-util", &["nonsense"]);
    assert_eq!(
        (status, out.as_slice(), error.as_str()),
        (0, usage.as_bytes(), "invalid COMMAND nonsense\n")
    );
    assert!(bench.vhd_text("--help").contains("vhd-util coalesce -n child.vhd"));
    let zero = ["query", "check", "snapshot", "scan", "key"];
    for command in [
        "create", "snapshot", "query", "read", "set", "repair", "resize", "fill", "coalesce",
        "modify", "scan", "check", "revert", "key", "copy", "convert", "map", "compact",
    ] {
        let (status, out, _) = bench.run("vhd-util", &[command, "-h"]);
        assert_eq!(status, if zero.contains(&command) { 0 } else { 22 }, "{command}");
        let (status, long, _) = bench.run("vhd-util", &[command, "--help"]);
        assert_eq!(status, 0, "{command}");
        assert!(long.len() > out.len() + 50, "{command} --help says no more than -h");
    }
    let (status, out, _) = bench.run("vhd-util", &["query", "-Z"]);
    assert!(status == 22 && out.starts_with(b"options: <-n name>"));
}

#[test]
fn td_util_does_what_storage_managers_of_files_ask() {
    let bench = Bench::new("telling-td");
    assert_eq!(bench.ok("td-util", &["create", "vhd", "5", "p"]), b"");
    assert_eq!(bench.ok("td-util", &["snapshot", "vhd", "c", "p"]), b"");
    let path = std::fs::canonicalize(bench.path("p")).unwrap();
    let wanted = format!("6\n{}\nhidden: 0\nchain depth: 2\n", path.display());
    assert_eq!(bench.ok("td-util", &["query", "vhd", "-dfpv", "c"]), wanted.as_bytes());
    assert_eq!(bench.ok("td-util", &["query", "vhd", "-p", "p"]), b"p has no parent\n");
    bench.ok("td-util", &["set", "vhd", "c", "hidden", "1"]);
    assert_eq!(bench.ok("td-util", &["query", "vhd", "-f", "c"]), b"hidden: 1\n");
    assert_eq!(bench.ok("td-util", &["query", "vhd", "-vb", "c"]), b"6\n");
    bench.ok("td-util", &["create", "vhd", "-r", "4", "f"]);
    assert_eq!(bench.read("f").len(), (4 << 20) + 512);
    for (arguments, status) in [
        (&[] as &[&str], 255),
        (&["destroy", "vhd", "x"], 255),
        (&["query", "qcow", "x"], 255),
        (&["query", "vhd"], 22),
        (&["query", "vhd", "-v", "none"], 2),
        (&["create", "vhd", "abc", "x"], 22),
        (&["create", "vhd", "0", "x"], 22),
        (&["create", "aio", "4", "x"], 22),
        (&["snapshot", "vhd", "x", "none"], 2),
        (&["snapshot", "vhd", "-b", "x", "p"], 22),
        (&["snapshot", "aio", "x", "p"], 22),
        (&["set", "vhd", "c", "marker", "1"], 22),
        (&["set", "vhd", "c", "hidden", "256"], 22),
        (&["set", "aio", "c", "hidden", "1"], 22),
    ] {
        assert_eq!(bench.run("td-util", arguments).0, status, "{arguments:?}");
    }
    assert!(!bench.path("x").exists());
    // An interrupted resize has to be finished first.
    bench.change("p", |bytes| {
        let end = bytes.len() - 512;
        for at in [0, end] {
            bytes[at..at + 8].copy_from_slice(b"v_poison");
        }
        vhd::testing::mend(bytes);
    });
    let (status, out, _) = bench.run("td-util", &["query", "vhd", "-v", "p"]);
    assert_eq!((status, out.as_slice()), (22, b"failed opening p: -22\n".as_slice()));
    assert_eq!(bench.vhd_text("query -v -n p"), "6\n");
}

#[test]
fn a_person_at_a_terminal_sees_how_far_it_is_and_nobody_else_does() {
    let bench = Bench::new("telling-progress");
    let parent = Spec { uuid: Uuid([9; 16]), ..Spec::new(8 << 20) };
    bench.make("p", &parent.clone().with(0, 16384, 1));
    bench.make("c", &Spec::child_of(&parent, "p").with(0, 8192, 2));
    for (what, command) in [
        ("check", "check -b -n c"),
        ("fill", "fill -n c"),
        ("coalesce", "coalesce -n c"),
        ("copy", "copy -n p -N copy"),
        ("convert", "convert -n p -N raw -O raw"),
        ("resize", "resize -n p -s 6000 -j j"),
    ] {
        // Its own terminal; what it prints goes through there.
        let line = format!("{} {command}", env!("CARGO_BIN_EXE_vhd-util"));
        let mut script = std::process::Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .current_dir(&bench)
            .stdin(std::process::Stdio::null());
        let Ok(output) = script.output() else {
            println!("skipped: there is no program script");
            return;
        };
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {shown}");
        assert!(
            shown.contains(&format!("\r{what} ")) && shown.contains("MiB/s"),
            "{command}: {shown}"
        );
        assert!(shown.contains("\r\u{1b}[K"), "it is wiped away: {shown}");
        for name in ["copy", "raw", "j"] {
            drop(std::fs::remove_file(bench.path(name)));
        }
        let arguments: Vec<&str> = command.split_whitespace().collect();
        if what != "resize" {
            let (status, out, error) = bench.run("vhd-util", &arguments);
            assert_eq!((status, error.as_str()), (0, ""), "{command}");
            assert!(!out.contains(&b'\r'), "{command}");
        }
        for name in ["copy", "raw"] {
            drop(std::fs::remove_file(bench.path(name)));
        }
    }
}

/// `vgs` and `lvs` of a group whose one physical volume is a file: a chain of two volumes, and one
/// that is in two segments. A parent has its name in the group, not that of its device.
#[test]
fn volumes_of_a_group_are_read_where_their_first_segments_are() {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
    const EXTENT: u64 = 8 << 20;
    let bench = Bench::new("telling-lvm");
    let parent = Spec { uuid: Uuid([5; 16]), ..Spec::new(4 << 20).with(3, 9, 1) };
    let child = Spec::child_of(&parent, "VG-VHD--base");
    let device = fs::File::create(bench.path("pv")).unwrap();
    for (extent, image) in [(3, &parent), (1, &child)] {
        // On a volume the footer is at its end.
        let (image, at) = (image.make(), (1 << 20) + extent * EXTENT);
        let (body, footer) = image.split_at(image.len() - 512);
        device.write_all_at(body, at).unwrap();
        device.write_all_at(footer, at + EXTENT - 512).unwrap();
    }
    let path = bench.path("pv").display().to_string();
    let volumes = format!(
        "VHD-base|{EXTENT}|linear|0|{EXTENT}|{path}(3)\\nVHD-leaf|{EXTENT}|linear|0|{EXTENT}|{path}(1)\\n\
         other|{}|linear|{EXTENT}|{EXTENT}|{path}(7)\\nother|{}|linear|0|{EXTENT}|{path}(6)\\n",
        2 * EXTENT,
        2 * EXTENT
    );
    fs::create_dir(bench.path("bin")).unwrap();
    for (program, says) in [("vgs", format!("{EXTENT}|{path}|1048576\\n")), ("lvs", volumes)] {
        let program = bench.path("bin").join(program);
        // The name is the last argument, whatever is in it.
        let check = "for last; do :; done; [ \"$last\" = 'V G;$(x)' ] || exit 5";
        fs::write(&program, format!("#!/bin/sh\n{check}\nprintf '{says}'\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let scan = |arguments: &[&str]| {
        let mut command = bench.command("vhd-util", arguments);
        let search = format!("{}:{}", bench.path("bin").display(), std::env::var("PATH").unwrap());
        let output = command.env("PATH", search).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, out) = scan(&["scan", "-f", "-l", "V G;$(x)", "-m", "VHD-*"]);
    let line = |name: &str, parent: &str| {
        format!("vhd={name} capacity=4194304 size={EXTENT} hidden=0 parent={parent}\n")
    };
    let mut lines: Vec<&str> = out.split_inclusive('\n').collect();
    lines.sort_unstable();
    assert_eq!(lines, [line("VHD-base", "none"), line("VHD-leaf", "VHD-base")]);
    assert_eq!(status, Some(0));
    assert_ne!(scan(&["scan", "-f", "-l", "none", "-m", "*"]).0, Some(0));
}
