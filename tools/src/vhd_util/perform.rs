//! What the commands that change images share: the lock, the plan's end, and who watches it.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use vhd::plan::{Milestone, Plan, Progress as Done};
use vhd_files::execute::{End, Failed, Observer, OpenFiles, execute};
use vhd_files::file::{ImageFile, OpenError};
use vhd_files::lock::Policy;

use crate::console::{Console, Failure};
use crate::number::size;
use crate::options::Options;
use crate::progress::Progress;

/// Storage managers set these to see what happens when an operation ends there.
const MILESTONES: [(Milestone, &str); 7] = [
    (Milestone::ResizeBegin, "VHD_UTIL_TEST_FAIL_RESIZE_BEGIN"),
    (Milestone::ResizeDataMoved, "VHD_UTIL_TEST_FAIL_RESIZE_DATA_MOVED"),
    (Milestone::ResizeMetadataMoved, "VHD_UTIL_TEST_FAIL_RESIZE_METADATA_MOVED"),
    (Milestone::ResizeEnd, "VHD_UTIL_TEST_FAIL_RESIZE_END"),
    (Milestone::ReparentBegin, "VHD_UTIL_TEST_FAIL_REPARENT_BEGIN"),
    (Milestone::ReparentLocator, "VHD_UTIL_TEST_FAIL_REPARENT_LOCATOR"),
    (Milestone::ReparentEnd, "VHD_UTIL_TEST_FAIL_REPARENT_END"),
];

fn variable(milestone: Milestone) -> &'static str {
    let known = MILESTONES.iter().find(|(known, _)| *known == milestone);
    known.map_or("", |(_, variable)| variable)
}

/// Whether the environment asks to stop at a milestone whose variable starts so.
pub(super) fn is_stop_wanted(prefix: &str) -> bool {
    let mut wanted = MILESTONES.iter().map(|(_, name)| *name).filter(|it| it.starts_with(prefix));
    wanted.any(|name| std::env::var_os(name).is_some())
}

/// Whether images are locked: `--no-lock`, else what the environment says, else on storage of this
/// host alone.
pub(super) fn policy(options: &Options) -> Result<Policy, Failure> {
    if options.has_long("--no-lock") {
        return Ok(Policy::Never);
    }
    let policy = Policy::from_environment();
    let policy = policy.map_err(|error| Failure::new(Errno::EINVAL, error.to_string()))?;
    Ok(policy.unwrap_or(Policy::Auto))
}

/// Opens an image for writing, and locks it.
pub(super) fn open(path: &Path, policy: Policy) -> Result<ImageFile, Failure> {
    let opened = ImageFile::open_for_writing(path, policy);
    opened.map(|(file, _)| file).map_err(|error| not_open(path, &error))
}

/// Opens an image for reading.
pub(super) fn open_for_reading(path: &Path) -> Result<ImageFile, Failure> {
    ImageFile::open(path).map_err(|error| not_open(path, &error))
}

/// The failure of an image that could not be opened.
pub(super) fn not_open(path: &Path, error: &OpenError) -> Failure {
    Failure::Errno { errno: error.errno(), explanation: format!("{}: {error}", path.display()) }
}

/// Says `error opening NAME: -ERRNO`, as most commands do.
pub(super) fn say_not_open(console: &mut Console, path: &Path, failure: Failure) -> Failure {
    let errno = errno_of(&failure);
    match console.print(format!("error opening {}: {}\n", path.display(), -errno)) {
        Ok(()) => failure,
        Err(failure) => failure,
    }
}

/// The errno of a failure.
pub(super) fn errno_of(failure: &Failure) -> i32 {
    match failure {
        Failure::Errno { errno, .. } => *errno,
        Failure::Status(status) => (*status).into(),
        Failure::Output(_) => Errno::EIO as i32,
    }
}

/// Opens the images of a chain, all but the first for reading, as the ancestors of a plan.
pub(super) fn with_ancestors(mut files: OpenFiles, paths: &[&Path]) -> Result<OpenFiles, Failure> {
    for path in paths {
        files = files.and_ancestor(open_for_reading(path)?);
    }
    Ok(files)
}

/// How a plan is watched.
#[derive(Debug)]
pub(super) struct Watch {
    progress: Option<Progress>,
    rate: Option<Rate>,
    /// The bytes that one of the plan's units stands for.
    unit_bytes: u64,
    /// `-p`: the share that is done, on standard output, as the reference writes it.
    percent: Option<Percent>,
}

/// `\r 12.34%` after each step forward.
#[derive(Debug, Default)]
struct Percent {
    last: Option<u64>,
}

impl Watch {
    /// Nobody waits for this one.
    pub(super) fn nothing() -> Self {
        Self { progress: None, rate: None, unit_bytes: 1, percent: None }
    }

    /// A person sees how far it is, if there is one; `--rate=` bytes a second at most. The plan
    /// counts in units of so many bytes.
    pub(super) fn long(
        what: &'static str,
        options: &Options,
        unit_bytes: u64,
    ) -> Result<Self, Failure> {
        let rate = options.value("--rate=").map(size).transpose();
        let rate = rate.map_err(|why| Failure::new(Errno::EINVAL, format!("--rate={why}")))?;
        let (progress, rate) = (Some(Progress::new(what)), rate.map(Rate::new));
        Ok(Self { progress, rate, unit_bytes, percent: None })
    }

    /// Also as the reference writes it.
    pub(super) fn with_percent(self) -> Self {
        Self { percent: Some(Percent::default()), ..self }
    }
}

impl Observer for Watch {
    fn progress(&mut self, done: Done) {
        if let Some(percent) = &mut self.percent
            && percent.last != Some(done.done)
            && done.done < done.total
        {
            percent.last = Some(done.done);
            // A person waits: now, and not when the rest of the output is written.
            let mut out = io::stdout().lock();
            drop(out.write_all(share(done).as_bytes()).and_then(|()| out.flush()));
        }
        if let Some(progress) = &mut self.progress {
            let bytes = |units: u64| units.saturating_mul(self.unit_bytes);
            progress.update(bytes(done.done), bytes(done.total));
        }
    }

    fn moved(&mut self, bytes: u64) {
        if let Some(rate) = &mut self.rate {
            rate.wait(bytes);
        }
    }

    fn reached(&mut self, milestone: Milestone) -> bool {
        std::env::var_os(variable(milestone)).is_none()
    }
}

fn share(done: Done) -> String {
    let hundredths = done.done.saturating_mul(10_000) / done.total.max(1);
    format!("\r{:>3}.{:02}%", hundredths / 100, hundredths % 100)
}

/// So many bytes in a second, and no more: waits after each piece until it was due.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    start: Instant,
    moved: u64,
}

impl Rate {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), start: Instant::now(), moved: 0 }
    }

    /// When this many bytes may have been moved, from the start.
    fn due(&self) -> Duration {
        let nanoseconds =
            u128::from(self.moved) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    #[allow(clippy::disallowed_methods, reason = "to wait is what a limit to the rate is for")]
    fn wait(&mut self, bytes: u64) {
        self.moved = self.moved.saturating_add(bytes);
        let early = self.due().saturating_sub(self.start.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
    }
}

/// Performs a plan. One that was stopped at a milestone says so and fails with EINVAL.
pub(super) fn perform(
    console: &mut Console,
    plan: &mut dyn Plan,
    files: &mut OpenFiles,
    mut watch: Watch,
) -> Result<(), Failure> {
    if let Some(percent) = &mut watch.percent {
        percent.last = Some(0);
        console.print(share(Done { done: 0, total: 1 }))?;
    }
    console.flush()?;
    let end = execute(plan, files, &mut watch);
    drop(watch.progress.take());
    if watch.percent.is_some() && end.is_ok() {
        console.print("\r100.00%\n")?;
    }
    match end {
        Ok(End::Done) => Ok(()),
        Ok(End::Stopped(milestone)) => {
            console.print(format!("Failing at {}\n", variable(milestone)))?;
            Err(Failure::new(Errno::EINVAL, "Stopped as the environment asks"))
        }
        Err(failed) => Err(failure(&failed)),
    }
}

/// The failure of a plan.
pub(super) fn failure(failed: &Failed) -> Failure {
    Failure::Errno { errno: failed.error.errno(), explanation: failed.to_string() }
}

/// 16 random bytes, for identities; more for nonces.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    let source = std::fs::File::open("/dev/urandom");
    let read = source.and_then(|mut source| source.read_exact(&mut bytes));
    read.map_err(|error| Failure::io("Cannot read random bytes from /dev/urandom", &error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_written_as_printf_does() {
        for (done, total, text) in [
            (0, 5, "\r  0.00%"),
            (1, 5, "\r 20.00%"),
            (1, 3, "\r 33.33%"),
            (3, 3, "\r100.00%"),
            (0, 0, "\r  0.00%"),
        ] {
            assert_eq!(share(Done { done, total }), text);
        }
    }

    #[test]
    fn a_rate_says_when_bytes_are_due() {
        let mut rate = Rate::new(1 << 20);
        rate.moved = 3 << 19;
        assert_eq!(rate.due(), Duration::from_millis(1500));
        rate.moved = u64::MAX;
        assert!(rate.due() > Duration::from_secs(1 << 40) || rate.due().as_nanos() > 0);
    }

    #[test]
    fn every_milestone_has_its_variable() {
        assert_eq!(variable(Milestone::ResizeEnd), "VHD_UTIL_TEST_FAIL_RESIZE_END");
        assert_eq!(variable(Milestone::ReparentBegin), "VHD_UTIL_TEST_FAIL_REPARENT_BEGIN");
    }
}
