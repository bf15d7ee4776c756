//! Each system call of each command that changes something fails once, with EIO and with ENOSPC.
//!
//! strace makes them fail. The command says so by its exit status, or had no need of it; the image
//! opens afterwards, or its journal brings it back; and the same command once more does what the
//! first one should have done.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use vhd::header::BlockSize;
use vhd::testing::Spec;
use vhd::units::Uuid;

use crate::bench::Bench;

/// What changes files.
const CALLS: [&str; 9] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "fallocate",
    "linkat",
    "link",
    "unlink",
    "unlinkat",
];

/// A command, in a directory with a child `c` of a parent `p`.
struct Case {
    /// Of vhd-util, or of the program that it begins with.
    command: &'static str,
    /// What is true when it was done.
    done: fn(&Bench),
    /// The image that has to open whatever happened; none for a new one.
    image: Option<&'static str>,
}

/// With small blocks: the directory is made anew for each failure.
fn parent() -> Spec {
    let block_size = BlockSize::new(256 << 10).unwrap();
    let spec = Spec::new(4 << 20).with(0, 3, 1).with(4096, 512, 1);
    Spec { uuid: Uuid([9; 16]), block_size, ..spec }
}

fn child() -> Spec {
    let block_size = parent().block_size;
    Spec { block_size, ..Spec::child_of(&parent(), "p").with(1, 3, 2).with(4100, 2, 2) }
}

/// What the child shows.
fn merged() -> Vec<u8> {
    let mut both = parent();
    both.sectors.extend(child().sectors);
    both.disk()
}

fn shows(bench: &Bench, name: &str) -> Vec<u8> {
    if !ENCRYPTED.contains(&name) {
        return bench.vhd_ok(&format!("read -n {name} -r 0 -c 8192"));
    }
    drop(fs::remove_file(bench.path("plain")));
    bench.vhd_ok(&format!("convert -n {name} -N plain -O raw -k {KEY}"));
    bench.read("plain")
}

fn is_sound(bench: &Bench, name: &str) {
    assert_eq!(bench.vhd_text(&format!("check -b -n {name}")), format!("{name} is valid\n"));
}

const KEY: &str = "k,aes-xts-plain,512.key";

/// Images in one key: `e` of the parent `ep`, and `r` of the raw parent `raw`.
const ENCRYPTED: [&str; 3] = ["e", "ep", "r"];

/// What the cases with a key start from. Both children hold some of what `merged` shows, where
/// their parents hold something else.
fn make_encrypted(bench: &Bench) {
    let names = ["e", "ep", "r", "raw"];
    let kept = |name: &str| bench.path(&format!("{name}.kept"));
    if !kept("raw").exists() {
        for name in names {
            drop(fs::remove_file(bench.path(name)));
        }
        fs::write(bench.path(KEY), [7; 64]).unwrap();
        let mut both = parent();
        both.sectors.extend(child().sectors);
        bench.make("both", &both);
        fs::write(bench.path("flat"), merged()).unwrap();
        bench.vhd_ok(&format!("copy -n both -N both.in-key -k {KEY}"));
        bench.make("older", &parent().with(1, 3, 2));
        bench.vhd_ok(&format!("copy -n older -N ep -k {KEY}"));
        bench.vhd_ok("snapshot -n e -p both.in-key");
        bench.vhd_ok("snapshot -n r -p flat -m");
        bench.vhd_ok(&format!("key -s -n r -k {KEY}"));
        bench.vhd_ok(&format!("fill -n e --key={KEY} -b -f 4096 -t 4607"));
        bench.vhd_ok(&format!("fill -n r --key={KEY} -b -f 0 -t 3"));
        bench.vhd_ok("modify -n e -p ep");
        let mut raw = merged();
        raw[..2 << 20].fill(9);
        fs::write(bench.path("raw"), raw).unwrap();
        bench.vhd_ok("modify -n r -p raw -m");
        assert!(shows(bench, "e") == merged() && shows(bench, "r") == merged());
        for name in names {
            fs::copy(bench.path(name), kept(name)).unwrap();
        }
    }
    for name in names {
        fs::copy(kept(name), bench.path(name)).unwrap();
    }
}

/// All blocks of an image are there, and show what they did.
fn is_full(bench: &Bench, name: &str) {
    is_sound(bench, name);
    // The size of a block, in the header.
    let block = u32::from_be_bytes(*bench.read(name)[512 + 32..].first_chunk().unwrap());
    let blocks = merged().len() / block as usize;
    assert_eq!(bench.vhd_text(&format!("query -a -n {name}")), format!("{blocks}\n"));
    assert!(shows(bench, name) == merged());
}

/// A program and its arguments.
fn words(command: &str) -> (&str, Vec<&str>) {
    let mut words: Vec<&str> = command.split_whitespace().collect();
    let is_other = words.first().is_some_and(|word| ["cbt-util", "td-util"].contains(word));
    let program = if is_other { words.remove(0) } else { "vhd-util" };
    (program, words)
}

fn log(bench: &Bench, field: &str) -> Vec<u8> {
    bench.ok("cbt-util", &["get", "-n", "log", field])
}

const CASES: [Case; 27] = [
    Case { command: "create -n new -s 4", done: |bench| is_sound(bench, "new"), image: None },
    Case {
        command: "snapshot -n new -p p",
        done: |bench| {
            is_sound(bench, "new");
            assert!(shows(bench, "new") == parent().disk());
        },
        image: None,
    },
    Case {
        command: "set -n c -f hidden -v 7",
        done: |bench| assert_eq!(bench.vhd_text("query -f -n c"), "hidden: 7\n"),
        image: Some("c"),
    },
    Case {
        command: "set -n c -f marker -v 7",
        done: |bench| assert_eq!(bench.vhd_text("query -m -n c"), "marker: 7\n"),
        image: Some("c"),
    },
    Case { command: "repair -n c", done: |bench| is_sound(bench, "c"), image: Some("c") },
    Case {
        command: "coalesce -n c",
        done: |bench| {
            is_sound(bench, "p");
            assert!(shows(bench, "p") == merged());
        },
        image: Some("c"),
    },
    Case {
        command: "fill -n c",
        done: |bench| {
            is_sound(bench, "c");
            assert_eq!(bench.vhd_text("query -a -n c"), "16\n");
        },
        image: Some("c"),
    },
    Case { command: "modify -p p -n c", done: |bench| is_sound(bench, "c"), image: Some("c") },
    Case {
        command: "modify -s 9000000 -n c",
        done: |bench| assert_eq!(bench.read("c").len(), 9_000_000),
        image: Some("c"),
    },
    Case { command: "compact -n c", done: |bench| is_sound(bench, "c"), image: Some("c") },
    Case {
        command: "convert -n c -N new -O dynamic",
        done: |bench| {
            is_sound(bench, "new");
            assert!(shows(bench, "new") == merged());
        },
        image: None,
    },
    Case {
        command: "resize -n c -s 600 -j j",
        done: |bench| {
            is_sound(bench, "c");
            assert_eq!(bench.vhd_text("query -v -n c"), "600\n");
        },
        image: Some("c"),
    },
    Case {
        command: "revert -n c -j j",
        done: |bench| {
            is_sound(bench, "c");
            assert!(shows(bench, "c") == merged() && !bench.path("j").exists());
        },
        image: Some("c"),
    },
    Case {
        command: "modify -z -n c",
        done: |bench| {
            is_sound(bench, "c");
            assert!(shows(bench, "c") == parent().disk());
        },
        // Its data are what it is about to lose.
        image: None,
    },
    Case {
        command: "copy -n p -N new",
        done: |bench| {
            is_sound(bench, "new");
            assert!(shows(bench, "new") == parent().disk());
        },
        image: None,
    },
    Case {
        command: "key -s -n empty -H 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        done: |bench| assert!(bench.vhd_text("key -p -n empty").contains(" 00112233")),
        image: None,
    },
    Case {
        command: "fill -n e --key=k,aes-xts-plain,512.key",
        done: |bench| is_full(bench, "e"),
        image: Some("e"),
    },
    Case {
        command: "fill -n r --key=k,aes-xts-plain,512.key",
        done: |bench| is_full(bench, "r"),
        image: Some("r"),
    },
    Case {
        command: "coalesce -n e --key=k,aes-xts-plain,512.key",
        done: |bench| {
            is_sound(bench, "ep");
            assert!(shows(bench, "ep") == merged());
        },
        image: Some("e"),
    },
    Case {
        command: "coalesce -n r --key=k,aes-xts-plain,512.key",
        done: |bench| assert!(bench.read("raw") == merged()),
        image: Some("r"),
    },
    Case { command: "td-util create vhd 4 new", done: |bench| is_sound(bench, "new"), image: None },
    Case {
        command: "td-util create vhd -r 4 new",
        done: |bench| {
            // Of a fixed disk it prints nothing.
            assert_eq!(bench.vhd_text("check -n new"), "");
            assert_eq!(bench.read("new").len(), (4 << 20) + 512);
        },
        image: None,
    },
    Case {
        command: "td-util snapshot vhd new p",
        done: |bench| {
            is_sound(bench, "new");
            assert!(shows(bench, "new") == parent().disk());
        },
        image: None,
    },
    Case {
        command: "td-util set vhd c hidden 7",
        done: |bench| assert_eq!(bench.vhd_text("query -f -n c"), "hidden: 7\n"),
        image: Some("c"),
    },
    Case {
        command: "cbt-util create -n log -s 2097152",
        done: |bench| {
            assert_eq!((log(bench, "-s"), log(bench, "-b")), (b"2097152\n".into(), vec![0; 4]));
        },
        image: None,
    },
    Case {
        command: "cbt-util set -n log -f 1 -s 2097152",
        done: |bench| {
            assert_eq!((log(bench, "-f"), log(bench, "-s")), (b"1\n".into(), b"2097152\n".into()));
            assert_eq!(log(bench, "-b"), [6, 0, 0, 0]);
        },
        image: None,
    },
    Case {
        command: "cbt-util coalesce -p older -c log",
        done: |bench| assert_eq!(log(bench, "-b"), [7, 5]),
        image: None,
    },
];

/// The directory as it was before a command.
fn reset(bench: &Bench, command: &str) {
    for name in ["new", "j"] {
        drop(fs::remove_file(bench.path(name)));
    }
    bench.make("p", &parent());
    bench.make("c", &child());
    bench.make("empty", &Spec::new(4 << 20));
    // Logs of 16 blocks.
    let header = [&[0; 40], &1_048_576_u64.to_le_bytes()[..]].concat();
    fs::write(bench.path("older"), [&header, &[5, 5][..]].concat()).unwrap();
    fs::write(bench.path("log"), [&header, &[6, 0][..]].concat()).unwrap();
    if command.contains("--key=") {
        make_encrypted(bench);
    }
    if command.starts_with("revert") {
        // A resize that was interrupted.
        let mut resize = bench.command("vhd-util", &["resize", "-n", "c", "-s", "600", "-j", "j"]);
        let status = resize.env("VHD_UTIL_TEST_FAIL_RESIZE_METADATA_MOVED", "1").output().unwrap();
        assert_eq!(status.status.code(), Some(22));
    }
}

/// Runs a command, of whose calls of one kind the `number`th of each thread fails; its exit status,
/// and whether one did.
fn run(bench: &Bench, command: &str, call: &str, errno: &str, number: u32) -> (i32, bool) {
    let (status, was_changed) = trace(bench, command, call, &format!("error={errno}"), number);
    (status.code().expect("it died of a signal"), was_changed)
}

/// Runs a command until its `number`th call of one kind, which kills it; whether it came that far.
fn is_killed(bench: &Bench, command: &str, call: &str, number: u32) -> bool {
    let (status, _) = trace(bench, command, call, "signal=KILL", number);
    assert!(status.success() || status.signal() == Some(9), "{command}: {status}");
    status.signal().is_some()
}

/// Runs a command, of whose calls of one kind one is changed; its end, and whether one was.
fn trace(
    bench: &Bench,
    command: &str,
    call: &str,
    change: &str,
    number: u32,
) -> (ExitStatus, bool) {
    let mut arguments =
        vec!["-qq".to_owned(), "-f".into(), "-o".into(), bench.path("trace").display().to_string()];
    let inject = format!("inject={call}:{change}:when={number}");
    arguments.extend(["-e".into(), format!("trace={call}"), "-e".into(), inject]);
    let (program, words) = words(command);
    arguments.push(crate::bench::path_of(program).into());
    arguments.extend(words.into_iter().map(ToOwned::to_owned));
    let mut strace = std::process::Command::new("strace");
    let strace = strace.args(&arguments).current_dir(bench).stdin(Stdio::null());
    let output = strace.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let trace = fs::read_to_string(bench.path("trace")).unwrap();
    (output, trace.contains("(INJECTED)"))
}

/// Whether strace is there and may make calls fail.
fn has_strace(bench: &Bench) -> bool {
    reset(bench, "");
    let there = std::process::Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    let works = there.is_ok() && run(bench, "create -n new -s 2", "pwrite64", "EIO", 1).1;
    if !works {
        println!("skipped: strace is not there, or may not change calls");
    }
    works
}

/// After a failure: opens, shows what it did or what it should, and can be done again.
fn can_be_done_again(bench: &Bench, case: &Case, what: &str) {
    let mut command = case.command;
    if command.starts_with("revert") {
        // The journal goes last: without it nothing is left to do.
        if !bench.path("j").exists() {
            command = "query -v -n c";
        }
    } else if bench.path("j").exists() {
        // A resize that was interrupted: its journal brings back what was.
        bench.vhd_ok("revert -n c -j j");
    } else if case.image.is_none() && bench.path("new").exists() {
        // What has its name is whole.
        command = "query -v -n new";
    }
    if let Some(image) = case.image.filter(|_| !command.starts_with("revert")) {
        assert!(shows(bench, image) == merged(), "{what}: the data changed");
    }
    let (program, words) = words(command);
    bench.ok(program, &words);
    (case.done)(bench);
}

/// What is done with each case, several at once; the number of calls that failed.
fn in_parallel(name: &str, of_case: impl Fn(&Bench, &Case) -> u32 + Sync) -> Option<u32> {
    if !has_strace(&Bench::in_memory(name)) {
        return None;
    }
    let next = AtomicUsize::new(0);
    let work = |thread: usize| {
        let bench = Bench::in_memory(&format!("{name}-{thread}"));
        let mut count = 0;
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            count += of_case(&bench, case);
        }
        count
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(thread))).collect();
        Some(threads.into_iter().map(|thread| thread.join().unwrap()).sum())
    })
}

#[test]
fn every_change_that_fails_is_told_and_can_be_done_again() {
    let count = in_parallel("faults-writes", |bench, case| {
        let mut count = 0;
        for (errno, status) in [("EIO", 5), ("ENOSPC", 28)] {
            for call in CALLS {
                for number in 1.. {
                    reset(bench, case.command);
                    let (found, has_failed) = run(bench, case.command, call, errno, number);
                    if !has_failed {
                        break;
                    }
                    count += 1;
                    let what = format!("{}: {call} {number} {errno}", case.command);
                    // Shown when one of the assertions fails.
                    println!("{what} ended with {found}");
                    if found != 0 {
                        assert_eq!(found, status, "{what}");
                        can_be_done_again(bench, case, &what);
                    } else if !case.command.contains("hidden") {
                        // It had another way to do what it had to.
                        (case.done)(bench);
                    }
                }
            }
        }
        count
    });
    let Some(count) = count else { return };
    println!("{count} calls failed");
    assert!(count > 200, "only {count} calls failed");
}

#[test]
fn every_read_that_fails_is_told_and_changes_nothing_that_counts() {
    let count = in_parallel("faults-reads", |bench, case| {
        let mut count = 0;
        for number in 1.. {
            reset(bench, case.command);
            let (found, has_failed) = run(bench, case.command, "pread64", "EIO", number);
            if !has_failed {
                break;
            }
            if found == 127 {
                // The first ones are the loader's, of libraries.
                continue;
            }
            count += 1;
            let what = format!("{}: read {number}", case.command);
            println!("{what} ended with {found}");
            if found == 0 {
                (case.done)(bench);
            } else {
                assert_eq!(found, 5, "{what}");
                can_be_done_again(bench, case, &what);
            }
        }
        count
    });
    let Some(count) = count else { return };
    println!("{count} reads failed");
    assert!(count > 100, "only {count} reads failed");
}

/// What a resize leaves its journal puts back; all others are simply done again.
#[test]
fn what_is_killed_at_any_change_of_an_image_can_be_done_again() {
    let count = in_parallel("faults-kills", |bench, case| {
        let mut count = 0;
        let has_journal = case.command.contains("-j j");
        for call in CALLS.into_iter().filter(|_| case.image.is_some() && !has_journal) {
            for number in 1.. {
                reset(bench, case.command);
                if !is_killed(bench, case.command, call, number) {
                    break;
                }
                count += 1;
                let what = format!("{}: killed in {call} {number}", case.command);
                println!("{what}");
                can_be_done_again(bench, case, &what);
            }
        }
        count
    });
    let Some(count) = count else { return };
    println!("{count} times killed");
    assert!(count > 50, "only {count} times killed");
}
