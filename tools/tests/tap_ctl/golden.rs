//! Replays transcripts of blktap 4's tap-ctl: `TAPDISK_GOLDEN` names the directory of the corpus.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, told};

/// The directory that the transcripts name; a bench has its own.
const RUN_DIR: &str = "/run/blktap-control";

/// Calls with a better result than the one that was recorded.
const DEVIATIONS: [&[&str]; 1] = [
    // The reference does not know its own -t.
    &["pause", "-p", "5", "-m", "6", "-t", "3"],
];

#[test]
fn calls_without_a_daemon_are_answered_as_recorded() {
    let Some(corpus) = corpus() else { return };
    assert!(replay(&corpus, "cli-tap") >= 40);
    assert!(replay(&corpus, "cli-tap2") >= 30);
}

#[test]
fn minors_are_taken_and_given_back_as_recorded() {
    let Some(corpus) = corpus() else { return };
    assert!(replay(&corpus, "sc-tap-minors") >= 20);
}

fn corpus() -> Option<PathBuf> {
    let Some(corpus) = env::var_os("TAPDISK_GOLDEN").map(PathBuf::from) else {
        println!("skipped: TAPDISK_GOLDEN is not set");
        return None;
    };
    if !corpus.join("transcripts").is_dir() {
        println!("skipped: {} has no transcripts", corpus.display());
        return None;
    }
    Some(corpus)
}

/// Runs the steps of a case in order; returns how many agreed.
fn replay(corpus: &Path, case: &str) -> usize {
    let path = corpus.join("transcripts").join(format!("{case}.json"));
    let transcript: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let bench = Bench::new(case);
    let mut agreed = 0;
    for (number, step) in transcript["steps"].as_array().unwrap().iter().enumerate() {
        let arguments: Vec<&str> = step["argv"].as_array().unwrap()[1..]
            .iter()
            .map(|argument| argument.as_str().unwrap())
            .collect();
        if DEVIATIONS.contains(&arguments.as_slice()) {
            continue;
        }
        let (status, stdout, mut stderr) = told(&bench.command(&arguments).output().unwrap());
        if step["compare"]["stderr"] == "ignore" {
            stderr = text(&step["stderr"]);
        }
        let run_dir = bench.paths().run_dir().display().to_string();
        let recorded = (
            i32::try_from(step["exit"].as_i64().unwrap()).unwrap(),
            text(&step["stdout"]).replace(RUN_DIR, &run_dir),
            text(&step["stderr"]),
        );
        assert_eq!((status, stdout, stderr), recorded, "{case}[{number}] {arguments:?}");
        agreed += 1;
    }
    agreed
}

fn text(field: &Value) -> String {
    field["text"].as_str().expect("these transcripts hold text").to_owned()
}

#[test]
fn pause_knows_its_timeout() {
    let bench = Bench::new("deviation");
    let arguments: Vec<OsString> = DEVIATIONS[0].iter().map(OsString::from).collect();
    let result = told(&bench.command(&arguments).output().unwrap());
    assert_eq!(result, (2, "".into(), "No such file or directory\n".into()));
}
