//! Building and running the fuzz targets, on the stable compiler.
//!
//! The targets are a workspace of their own (`fuzz/`). They are compiled with the coverage hooks
//! that libFuzzer reads; `cargo test` and the release build never are. Each starts from its
//! committed corpus `fuzz/corpus/TARGET` and keeps what it finds in `fuzz/grown/TARGET`; an input
//! that fails is left in `fuzz/artifacts/TARGET`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;
use crate::{command, packages, wait};

/// How long each target runs unless told otherwise.
pub(crate) const SECONDS: u32 = 60;

/// What the compiler adds for libFuzzer: a counter for each edge of the control flow, a table of
/// their addresses, and the operands of comparisons, so that it learns magic numbers.
const COVERAGE_FLAGS: [&str; 9] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// The most memory of one process, in MiB; one allocation above 64 MiB fails it sooner.
const MEMORY_MAX_MIB: u32 = 1024;

/// The longest input, in bytes: a few messages of every protocol.
const INPUT_MAX: u32 = 64 << 10;

/// An input that takes longer than this, in seconds, hangs.
const INPUT_SECONDS_MAX: u32 = 10;

/// The names of the targets.
pub(crate) fn targets() -> Result<Vec<String>> {
    let folder = command::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder)
        .map_err(|error| format!("Cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// A number of seconds as a person writes it.
pub(crate) fn seconds(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a number of seconds, 1 or more")),
        Ok(seconds) => Ok(seconds),
    }
}

/// `cargo xtask fuzz [TARGET] [SECONDS]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let targets = targets()?;
    let (chosen, rest) = match arguments.split_first() {
        Some((name, rest)) if targets.contains(name) => (vec![name.clone()], rest),
        _ => (targets.clone(), arguments),
    };
    let seconds = match rest {
        [] => SECONDS,
        [text] => seconds(text)
            .map_err(|error| format!("{error}; the targets are {}", targets.join(", ")))?,
        _ => return Err("usage: cargo xtask fuzz [TARGET] [SECONDS]".into()),
    };
    if let Some(reason) = packages::provide("fuzz") {
        return Err(reason);
    }
    build()?;
    run_all(&chosen, seconds)
}

/// Compiles all targets.
pub(crate) fn build() -> Result<()> {
    let host = host()?;
    // With --target the flags do not reach build scripts, which have no libFuzzer to link to.
    let mut command =
        command::cargo(["build", "--release", "--bins", "--quiet", "--target", &host]);
    command.current_dir(command::root().join("fuzz"));
    command.env("RUSTFLAGS", COVERAGE_FLAGS.join(" "));
    command.env("CARGO_TARGET_DIR", command::root().join("fuzz/target"));
    command::run(&mut command)
}

/// Runs the targets, as many at a time as there are processors.
pub(crate) fn run_all(targets: &[String], seconds: u32) -> Result<()> {
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    for batch in targets.chunks(width) {
        let started: Vec<Fuzzer> =
            batch.iter().map(|target| Fuzzer::start(target, seconds)).collect::<Result<_>>()?;
        let ends: Vec<Result<()>> = started.into_iter().map(|fuzzer| fuzzer.end(seconds)).collect();
        ends.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// A target that runs. Ended when dropped.
struct Fuzzer {
    target: String,
    log: PathBuf,
    child: Child,
}

impl Fuzzer {
    fn start(target: &str, seconds: u32) -> Result<Self> {
        let fuzz = command::root().join("fuzz");
        let (corpus, grown, artifacts) = (
            fuzz.join("corpus").join(target),
            fuzz.join("grown").join(target),
            fuzz.join("artifacts").join(target),
        );
        for folder in [&grown, &artifacts] {
            fs::create_dir_all(folder)
                .map_err(|error| format!("Cannot make {}: {error}", folder.display()))?;
        }
        let log = artifacts.join("log");
        let file = fs::File::create(&log)
            .map_err(|error| format!("Cannot make {}: {error}", log.display()))?;
        let program = fuzz.join("target").join(host()?).join("release").join(target);
        let child = Command::new(program)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-rss_limit_mb={MEMORY_MAX_MIB}"))
            .arg("-malloc_limit_mb=64")
            .arg(format!("-max_len={INPUT_MAX}"))
            .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([&grown, &corpus])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| format!("Cannot start the fuzz target {target}: {error}"))?;
        Ok(Self { target: target.into(), log, child })
    }

    fn end(mut self, seconds: u32) -> Result<()> {
        let limit = Duration::from_secs(u64::from(seconds.saturating_add(INPUT_SECONDS_MAX + 60)));
        let what = format!("the fuzz target {}", self.target);
        let status = wait::until(limit, &what, || self.child.try_wait().transpose())?
            .map_err(|error| format!("Cannot wait for {what}: {error}"))?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if !status.success() {
            return Err(format!("{what} found a fault:\n{}", tail(&log, 40)));
        }
        let executed = number_after(&log, "stat::number_of_executed_units:");
        let corpus =
            files_in(self.log.parent().map(|folder| folder.join("../../corpus")), &self.target);
        println!("  {:<20} {executed:>10} inputs, {corpus} in the corpus, no fault", self.target);
        Ok(())
    }
}

impl Drop for Fuzzer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn files_in(corpus: Option<PathBuf>, target: &str) -> usize {
    let folder = corpus.unwrap_or_default().join(target);
    fs::read_dir(folder).map_or(0, |entries| entries.flatten().count())
}

fn number_after(log: &str, key: &str) -> u64 {
    let line = log.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The platform that we compile on, as the compiler names it.
fn host() -> Result<String> {
    let compiler =
        std::env::var_os("RUSTC").map_or_else(|| Path::new("rustc").into(), PathBuf::from);
    let text = command::capture(Command::new(compiler).arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_committed_corpus() {
        for target in targets().unwrap() {
            let folder = command::root().join("fuzz/corpus").join(&target);
            let count = fs::read_dir(folder).map_or(0, Iterator::count);
            assert!(count > 0, "{target} has no corpus");
        }
    }

    #[test]
    fn reads_what_libfuzzer_reports() {
        let log = "#7 DONE\nstat::number_of_executed_units: 1234\nstat::peak_rss_mb: 40\n";
        assert_eq!(number_after(log, "stat::number_of_executed_units:"), 1234);
        assert_eq!(tail(log, 1), "stat::peak_rss_mb: 40");
    }

    #[test]
    fn zero_seconds_is_no_fuzzing() {
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("x").is_err());
        assert_eq!(seconds("7"), Ok(7));
    }
}
