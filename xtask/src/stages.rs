//! The stages of `test` and the steps of `check`.
//!
//! A stage that needs a program which is neither there nor can be installed is skipped, with the
//! reason. The first stage that fails ends the run. Without a stage's name all of them run but
//! `debug-kernel`, which builds a kernel first, and cargo's own results are the last lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Result;
use crate::background::Background;
use crate::{command, fuzz, packages, vm};

/// A part of the tests that can be run alone.
#[derive(Debug)]
pub(crate) struct Stage {
    /// What a person types.
    pub(crate) name: String,
    /// One line about it.
    pub(crate) what: String,
    run: Run,
}

#[derive(Debug)]
enum Run {
    Fuzz,
    /// `cargo test` with these arguments.
    Cargo(&'static [&'static str]),
    /// `cargo test` of one file in the folder `tests` of a package.
    File {
        package: &'static str,
        file: String,
    },
    /// The driver's tests on a kernel that watches itself, which is built first.
    DebugKernel,
}

/// Packages with tests of their own that are no part of their library.
const FOLDERS: [(&str, &str); 8] = [
    ("blktap-ioctl", "blktap-ioctl/tests"),
    ("vhd", "vhd/tests"),
    ("vhd-files", "vhd/files/tests"),
    ("tapdisk", "tapdisk/tests"),
    ("tapdisk-control", "tapdisk/control/tests"),
    ("tap-tools", "tools/tests"),
    ("tapdisk-tests", "tests/tests"),
    ("tapdisk-vm", "tests/vm/tests"),
];

/// The package whose tests boot machines.
const MACHINES: &str = "tapdisk-vm";

/// The stages, in the order in which they run.
pub(crate) fn all() -> Result<Vec<Stage>> {
    let stage = |name: &str, what: &str, run| Stage { name: name.into(), what: what.into(), run };
    let mut stages = vec![
        stage("fuzz", "Each fuzz target for FUZZ_SECONDS, from its committed corpus.", Run::Fuzz),
        stage(
            "unit",
            "The tests beside the code.",
            Run::Cargo(&["--workspace", "--lib", "--bins"]),
        ),
    ];
    for (package, folder) in FOLDERS {
        for (file, what) in files(&command::root().join(folder))? {
            let name = file.replace('_', "-");
            stages.push(Stage { name, what, run: Run::File { package, file } });
        }
    }
    // Beside all others: only by its name.
    stages.push(stage(
        "debug-kernel",
        "The driver in `vm` on a kernel with lockdep and KASAN, which is built first. Not among all.",
        Run::DebugKernel,
    ));
    Ok(stages)
}

/// The test files of a folder, `NAME.rs` or `NAME/main.rs`, with the line that each opens with.
fn files(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let main = if path.is_dir() { path.join("main.rs") } else { path.clone() };
        let is_test = main.is_file() && main.extension().is_some_and(|extension| extension == "rs");
        let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_test) else {
            continue;
        };
        let text = fs::read_to_string(&main)
            .map_err(|error| format!("Cannot read {}: {error}", main.display()))?;
        let what = first_sentence(&text);
        files.push((name.to_owned(), what));
    }
    files.sort();
    Ok(files)
}

/// What a source file says of itself first.
fn first_sentence(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//! "));
    let paragraph = lines.collect::<Vec<_>>().join(" ");
    match paragraph.split_once(". ") {
        Some((first, _)) => format!("{first}."),
        None => paragraph,
    }
}

/// `cargo xtask test [STAGE]...`.
pub(crate) fn test(names: &[String]) -> Result<()> {
    let stages = all()?;
    let mut clock = Clock::new();
    if names.is_empty() {
        return test_all(&mut clock);
    }
    let find = |name: &String| {
        stages.iter().find(|stage| stage.name == *name).ok_or_else(|| {
            let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            format!("There is no stage {name:?}, only {}", names.join(", "))
        })
    };
    let chosen = names.iter().map(find).collect::<Result<Vec<_>>>()?;
    prepare(&mut clock)?;
    for stage in &chosen {
        test_one(stage, &mut clock)?;
    }
    // Of one stage its own results are the last lines.
    if chosen.len() > 1 || matches!(chosen[0].run, Run::DebugKernel) {
        clock.table();
    }
    Ok(())
}

fn test_one(stage: &Stage, clock: &mut Clock) -> Result<()> {
    let build = |clock: &mut Clock, words: &[&str]| {
        clock.time(&format!("build {}", stage.name), || {
            command::run(command::cargo(["test", "--no-run", "--quiet"]).args(words))
        })
    };
    let run = |clock: &mut Clock, words: &[&str]| {
        clock.time(&stage.name, || command::run(cargo_test().args(words)))
    };
    match &stage.run {
        Run::Fuzz => run_fuzz(clock),
        Run::Cargo(words) => build(clock, words).and_then(|()| run(clock, words)),
        Run::File { package, file } => {
            let words = ["-p", package, "--test", file];
            build(clock, &words).and_then(|()| run(clock, &words))
        }
        Run::DebugKernel => debug_kernel(clock),
    }
}

/// `cargo xtask check`.
pub(crate) fn check(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        return Err("usage: cargo xtask check".into());
    }
    let mut clock = Clock::new();
    let fuzz_manifest = command::root().join("fuzz/Cargo.toml");
    let fuzz_manifest = fuzz_manifest.to_string_lossy();
    clock.time("format", || {
        command::run(&mut command::cargo(["fmt", "--all", "--check"]))?;
        let arguments = ["fmt", "--check", "--manifest-path", &fuzz_manifest];
        command::run(&mut command::cargo(arguments))
    })?;
    clock.time("lints", || {
        let arguments =
            ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
        command::run(&mut command::cargo(arguments))
    })?;
    clock.time("documentation", || {
        let mut command = command::cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
        command::run(command.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    test_all(&mut clock)
}

/// All stages. `cargo test` covers every one but fuzz, and comes last: twice at the same time, as
/// the machines of the `vm` and `xen` stages keep one processor busy and most other tests another.
fn test_all(clock: &mut Clock) -> Result<()> {
    prepare(clock)?;
    run_fuzz(clock)?;
    clock.time("build tests", || {
        command::run(&mut command::cargo(["test", "--workspace", "--no-run", "--quiet"]))
    })?;
    clock.table();
    let machines = Background::start(
        cargo_test().args(["-p", MACHINES, "--no-fail-fast"]),
        command::target("debug").join("machines.log"),
    )?;
    println!("{} cargo test, its stages vm and xen beside the others", command::time_of_day());
    // All of them, also after one that failed: a run says everything that is wrong.
    let others =
        command::run(cargo_test().args(["--workspace", "--exclude", MACHINES, "--no-fail-fast"]));
    println!("\n{} waiting for the stages vm and xen", command::time_of_day());
    let ends: Vec<String> = [others, machines.end()].into_iter().filter_map(Result::err).collect();
    if ends.is_empty() { Ok(()) } else { Err(ends.join("\n")) }
}

/// What every stage needs: the programs of others, and ours, which the tests start.
fn prepare(clock: &mut Clock) -> Result<()> {
    clock.time("packages", || {
        if let Some(reason) = packages::provide("test") {
            println!("tests that need them will be skipped: {reason}");
        }
        Ok(())
    })?;
    clock.time("build", || {
        command::run(&mut command::cargo(["build", "--workspace", "--bins", "--quiet"]))
    })
}

fn debug_kernel(clock: &mut Clock) -> Result<()> {
    clock.time("debug kernel", || vm::start(&["debug-kernel"]))?;
    clock.time("driver", || {
        let mut test = cargo_test();
        test.args(["-p", MACHINES, "--test", "vm", "blktap::"]);
        command::run(test.env("TAPDISK_VM_KERNEL", "debug"))
    })
}

fn run_fuzz(clock: &mut Clock) -> Result<()> {
    if let Some(reason) = packages::provide("fuzz") {
        clock.skip("fuzz", &reason);
        return Ok(());
    }
    let seconds = match std::env::var("FUZZ_SECONDS") {
        Ok(text) => fuzz::seconds(&text)?,
        Err(_) => fuzz::SECONDS,
    };
    let targets = fuzz::targets()?;
    clock.time("build fuzz", fuzz::build)?;
    clock.time("fuzz", || fuzz::run_all(&targets, seconds))
}

/// `cargo test`, told where the things outside the tree are; tests find our programs beside them.
fn cargo_test() -> Command {
    let mut command = command::cargo(["test"]);
    match golden() {
        Some(folder) => {
            command.env("TAPDISK_GOLDEN", folder);
        }
        None => println!("no golden corpus (TAPDISK_GOLDEN): the tests that read it are skipped"),
    }
    command
}

/// The folder with reference images and transcripts: it is not part of the tree.
fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("TAPDISK_GOLDEN")
        .map_or_else(|| command::root().join("../shared/golden"), PathBuf::from);
    fs::canonicalize(folder).ok().filter(|folder| folder.is_dir())
}

/// Says when each step starts, and at the end how long each took.
#[derive(Debug)]
struct Clock {
    steps: Vec<(String, Duration, &'static str)>,
}

impl Clock {
    fn new() -> Self {
        Self { steps: Vec::new() }
    }

    fn time(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("{} {name}", command::time_of_day());
        let start = Instant::now();
        let result = step();
        let end = if result.is_ok() { "passed" } else { "FAILED" };
        self.steps.push((name.into(), start.elapsed(), end));
        if result.is_err() {
            self.table();
        }
        result
    }

    fn skip(&mut self, name: &str, reason: &str) {
        println!("{} {name}: skipped: {reason}", command::time_of_day());
        self.steps.push((name.into(), Duration::ZERO, "skipped"));
    }

    fn table(&self) {
        println!("\n{:<16} {:>8}", "step", "seconds");
        for (name, duration, end) in &self.steps {
            println!("{name:<16} {:>8.1}  {end}", duration.as_secs_f64());
        }
        println!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_file_is_a_stage_with_a_line_about_it() {
        let stages = all().unwrap();
        for stage in &stages {
            assert!(!stage.what.is_empty(), "{} says nothing about itself", stage.name);
        }
        let tidy = stages.iter().find(|stage| stage.name == "tidy");
        assert!(matches!(tidy.map(|stage| &stage.run), Some(Run::File { .. })), "{stages:?}");
    }

    #[test]
    fn a_file_is_described_by_its_first_sentence() {
        assert_eq!(first_sentence("//! One,\n//! two. Three.\n//!\n//! Four."), "One, two.");
        assert_eq!(first_sentence("//! One.\n\n//! no"), "One.");
        assert_eq!(first_sentence("mod x;"), "");
    }

    #[test]
    fn refuses_a_stage_that_is_not_there() {
        let error = test(&["no-such-stage".into()]).unwrap_err();
        assert!(error.contains("unit"), "{error}");
    }

    #[test]
    fn a_failed_step_ends_the_run_and_stays_in_the_table() {
        let mut clock = Clock::new();
        assert!(clock.time("one", || Ok(())).is_ok());
        assert!(clock.time("two", || Err("broken".into())).is_err());
        assert_eq!(clock.steps.iter().map(|step| step.2).collect::<Vec<_>>(), ["passed", "FAILED"]);
    }
}
