//! A corpus of images and transcripts of the reference, replayed by the corpus' own program.
//!
//! `TAPDISK_GOLDEN` names its directory; it is not part of the tree. Every step passes, or is
//! listed in `deviations.txt` with the reason, and then differs: a step that differs and is not
//! listed fails, and so does one that is listed and passes.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const DEVIATIONS: &str = include_str!("deviations.txt");

/// More than processors: the cases wait for storage and for processes that start.
const JOBS: &str = "4";

/// A case, a step of it, and what of the step: `result`, `state`, `size` ...
type Place = (String, String, String);

/// What is listed, with the line of its reason.
fn listed(text: &str) -> Result<BTreeMap<Place, usize>, String> {
    let mut places = BTreeMap::new();
    let (mut reason, mut reasons) = (0, BTreeSet::new());
    for (line, text) in (1..).zip(text.lines()) {
        if let Some(title) = text.strip_prefix("# ") {
            if !reasons.insert(title) {
                return Err(format!("line {line}: this reason is there already"));
            }
            reason = line;
            continue;
        }
        let mut words = text.split_whitespace().take_while(|word| *word != ";");
        let (Some(case), Some(aspect)) = (words.next(), words.next()) else { continue };
        if reason == 0 {
            return Err(format!("line {line} has no reason"));
        }
        for range in words {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse()) else {
                return Err(format!("line {line}: {range} is no step"));
            };
            for step in first..=last {
                let place = (case.to_owned(), step.to_string(), aspect.to_owned());
                if places.insert(place, reason).is_some() {
                    return Err(format!("line {line}: {case} {aspect} {step} is there already"));
                }
            }
        }
    }
    Ok(places)
}

#[test]
fn the_tools_do_what_the_reference_does_in_every_step_that_is_not_listed() {
    let Some(corpus) = std::env::var_os("TAPDISK_GOLDEN").map(PathBuf::from) else {
        println!("skipped: TAPDISK_GOLDEN is not set");
        return;
    };
    let programs = Path::new(env!("CARGO_BIN_EXE_vhd-util")).parent().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/replay_all.py");
    let replayed = Command::new("python3")
        .arg("-B")
        .args([script, corpus, programs.to_owned()])
        .args(["vhd-util,td-util,cbt-util", JOBS])
        .output();
    let Ok(output) = replayed else {
        println!("skipped: python3 is not installed");
        return;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut stale = listed(DEVIATIONS).unwrap();
    let (mut passed, mut deviating, mut wrong) = (0, 0, Vec::new());
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["+", ..] => passed += 1,
            ["-", case, step, aspect, command, differences] => {
                let place = (case.to_owned(), step.to_owned(), aspect.to_owned());
                match stale.remove(&place) {
                    Some(_) => deviating += 1,
                    None => wrong.push(format!("{case} {aspect} {step}: {command} {differences}")),
                }
            }
            ["#", words] => println!("{words}"),
            _ => panic!("what is this? {line}"),
        }
    }
    println!("{passed} results as the reference, {deviating} others on purpose");
    assert!(passed > 10_000, "the corpus was not replayed: {errors}");
    assert!(wrong.is_empty(), "{} results differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(stale.is_empty(), "these are listed, and as the reference: {stale:#?}");
}

#[test]
fn a_list_has_a_reason_for_each_step_and_no_step_twice() {
    let places = listed("; a note\n# why\na result 3-4\n\n# so\nb state 1 3\n").unwrap();
    let found: Vec<_> = places.keys().map(|it| (it.0.as_str(), it.1.as_str())).collect();
    assert_eq!(found, [("a", "3"), ("a", "4"), ("b", "1"), ("b", "3")]);
    for wrong in ["a result 1", "# why\na result 1 1", "# why\na result x", "# why\n# why\n"] {
        assert!(listed(wrong).is_err(), "{wrong}");
    }
    assert!(!listed(DEVIATIONS).unwrap().is_empty());
}
