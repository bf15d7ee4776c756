//! An image that is open for writing has no second writer.

use std::time::{Duration, Instant};

use vhd::testing::Spec;
use vhd_files::file::ImageFile;
use vhd_files::lock::Policy;

use crate::bench::Bench;

const EAGAIN: i32 = 11;

/// A child `c` of a parent `p`, and a journal that belongs to nobody.
fn pair(name: &str) -> Bench {
    let bench = Bench::new(name);
    let parent = Spec { uuid: vhd::units::Uuid([9; 16]), ..Spec::new(4 << 20) };
    bench.make("p", &parent.clone().with(0, 1, 1));
    bench.make("c", &Spec::child_of(&parent, "p").with(3, 2, 2));
    std::fs::write(bench.path("j"), [0; 512]).unwrap();
    bench
}

/// Opens an image for writing. A process that another test starts just now has, for a moment, all
/// that this one had open before: then its lock is not gone yet.
fn hold(bench: &Bench, name: &str) -> ImageFile {
    let start = Instant::now();
    loop {
        match ImageFile::open_for_writing(&bench.path(name), Policy::Always) {
            Ok((file, _)) => return file,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{name}: {error}"),
        }
        std::thread::yield_now();
    }
}

/// Every command that writes, with the image of which it needs the lock.
const WRITERS: [(&str, &str); 14] = [
    ("c", "set -n c -f hidden -v 1"),
    ("c", "set -n c -f marker -v 1"),
    ("c", "repair -n c"),
    ("c", "resize -n c -s 6 -j new"),
    ("c", "resize -n c -s 4 -f"),
    ("c", "fill -n c"),
    ("c", "modify -n c -p p"),
    ("c", "modify -n c -s 9000000"),
    ("c", "modify -n c -z"),
    ("c", "compact -n c"),
    ("c", "revert -n c -j j"),
    ("c", "create -n c -s 4"),
    ("c", "snapshot -n c -p p"),
    ("p", "coalesce -n c"),
];

#[test]
fn a_second_writer_is_refused_and_told_who_the_first_one_is() {
    let bench = pair("locks-refused");
    for (image, command) in WRITERS {
        let before = (bench.read("c"), bench.read("p"));
        let held = hold(&bench, image);
        let holder = format!("process {} ", std::process::id());
        let mut why = bench.vhd_why(command, EAGAIN);
        for _ in 0..100 {
            // A child of another test holds the lock as well, between its fork and its exec.
            if why.contains(&holder) {
                break;
            }
            why = bench.vhd_why(command, EAGAIN);
        }
        assert!(why.contains(&holder) && why.contains(image), "{command}: {why}");
        // Programs get what they know: an errno, and nothing on standard error but what was there.
        let (status, _) = bench.vhd(command);
        assert_eq!(status, EAGAIN, "{command}");
        drop(held);
        assert!((bench.read("c"), bench.read("p")) == before, "{command} changed something");
    }
}

#[test]
fn readers_need_no_lock() {
    let bench = pair("locks-readers");
    let _held = ["c", "p"].map(|name| hold(&bench, name));
    for command in [
        "query -vspfmdaS -n c",
        "read -p -n c",
        "read -r 0 -c 8192 -n c",
        "check -p -n c",
        "scan c p",
        "map -n c",
        "key -p -n c",
        "convert -n c -N raw -O raw",
    ] {
        bench.vhd_ok(command);
    }
}

#[test]
fn whoever_has_locks_of_his_own_can_go_without() {
    let bench = pair("locks-without");
    let _held = ["c", "p"].map(|name| hold(&bench, name));
    bench.vhd_ok("set -n c -f hidden -v 1 --no-lock");
    assert_eq!(bench.vhd_text("query -f -n c"), "hidden: 1\n");
    let set = |policy: &str, value: &str| {
        let mut command =
            bench.command("vhd-util", &["set", "-n", "c", "-f", "hidden", "-v", value]);
        command.env("TAPDISK_LOCK", policy).output().unwrap().status.code()
    };
    assert_eq!(set("never", "2"), Some(0));
    assert_eq!(bench.vhd_text("query -f -n c"), "hidden: 2\n");
    assert_eq!(set("always", "3"), Some(EAGAIN));
    assert_eq!(set("perhaps", "3"), Some(22));
    assert_eq!(bench.vhd_text("query -f -n c"), "hidden: 2\n");
    assert_eq!(bench.vhd("coalesce -n c --no-lock").0, 0);
}
