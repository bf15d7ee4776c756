//! `tap-ctl top`: what every disk does, again and again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use tapdisk_control::list::list;
use tapdisk_control::statistics::Statistics;
use tapdisk_control::{Client, ControlError, ErrorKind, Paths};

use crate::command::{Command, Failure, Options, invalid};
use crate::sample::{Rates, Sample};
use crate::session::Session;
use crate::stats::parse;

pub(crate) const COMMAND: Command = Command {
    name: "top",
    short: "n:bd:h",
    long: &[],
    usage: "usage: top [-n iterations] [-b batch] [-d delay secs]\n",
    help: "Shows what every disk with an image does, from one look to the next: requests and 10^6 bytes
per second, the time that half of the requests and all but 1% took at most, how many are under way.
A - is what its tapdisk does not tell.

  -n number   so many tables; without it, until it is interrupted
  -b          one table after the other, as is also done when the output is no terminal
  -d seconds  between two looks, 1 to 60; default 2
",
    run,
};

const DELAY_DEFAULT_S: i32 = 2;

/// To the upper left corner; to the end of the line; to the end of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// One look at all disks.
struct Look {
    at: Instant,
    disks: BTreeMap<(i32, u16), (String, Sample)>,
}

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let delay = options.number(b'd')?.unwrap_or(DELAY_DEFAULT_S);
    let Some(delay) = u16::try_from(delay).ok().filter(|delay| (1..=60).contains(delay)) else {
        return Err(invalid(&format!("Option -d has {delay}, want 1 to 60")));
    };
    let iterations = options.number(b'n')?;
    if iterations.is_some_and(|iterations| iterations < 1) {
        return Err(invalid("Option -n is below 1"));
    }
    let batch = options.has(b'b') || !session.is_terminal();
    let mut left = iterations;
    let mut before = look(&session.paths)?;
    while left != Some(0) {
        wait(Duration::from_secs(delay.into()))?;
        let after = look(&session.paths)?;
        let text = table(&before, &after);
        session.print(if batch { text + "\n" } else { screen(&text) })?;
        before = after;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

fn look(paths: &Paths) -> Result<Look, ControlError> {
    let mut disks = BTreeMap::new();
    for row in list(paths)? {
        let (Some(pid), Some(minor), Some(image)) = (row.pid, row.minor, row.image) else {
            continue;
        };
        // One that goes away, or talks nonsense, is not shown; the others are.
        let Ok(bytes) = Client::new(paths, pid).stats(minor) else { continue };
        let Ok(stats) = parse(&bytes, pid) else { continue };
        let page = Statistics::read(&paths.statistics(pid, minor)).ok();
        let name = format!("{}:{}", image.kind.display(), image.path.display());
        disks.insert((pid, minor), (name, Sample::new(&stats, page.as_ref())));
    }
    Ok(Look { at: Instant::now(), disks })
}

fn wait(delay: Duration) -> Result<(), ControlError> {
    let end = Instant::now() + delay;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // At most 60 s and 1 ms, rounded up so that the last turn does not spin.
        let timeout = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        match poll(&mut [], PollTimeout::from(timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ControlError::new(ErrorKind::System, errno, "Waiting")),
        }
    }
}

fn table(before: &Look, after: &Look) -> String {
    let elapsed = after.at.saturating_duration_since(before.at);
    let mut text = format!(
        "{:>8} {:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>5} IMAGE\n",
        "PID", "MINOR", "READ/S", "WRITE/S", "RMB/S", "WMB/S", "P50us", "P99us", "OUT"
    );
    for ((pid, minor), (name, sample)) in &after.disks {
        let rates = match before.disks.get(&(*pid, *minor)) {
            Some((_, earlier)) => Rates::between(earlier, sample, elapsed),
            None => Rates::default(),
        };
        let row = writeln!(
            text,
            "{pid:>8} {minor:>5} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>5} {}",
            decimal(rates.reads, 0),
            decimal(rates.writes, 0),
            decimal(rates.read_megabytes, 1),
            decimal(rates.write_megabytes, 1),
            whole(rates.p50_us),
            whole(rates.p99_us),
            whole(sample.outstanding),
            name.replace(|character: char| character.is_control(), "?"),
        );
        row.expect("a String takes everything");
    }
    text
}

/// Over the former table, without flicker.
fn screen(table: &str) -> String {
    let lines = table.lines().map(|line| format!("{line}{CLEAR_LINE}\n"));
    std::iter::once(HOME.to_owned()).chain(lines).chain([CLEAR_BELOW.to_owned()]).collect()
}

fn decimal(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn whole(value: Option<u64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(u64::MAX) => "more".to_owned(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_with(disks: &[((i32, u16), Sample)], at: Instant) -> Look {
        let disks = disks.iter().map(|(key, sample)| (*key, ("vhd:/a".to_owned(), sample.clone())));
        Look { at, disks: disks.collect() }
    }

    #[test]
    fn a_disk_that_was_not_there_before_has_no_rates_yet() {
        let start = Instant::now();
        let old = Sample { reads: Some(100), outstanding: Some(2), ..Sample::default() };
        let new = Sample { reads: Some(300), ..old.clone() };
        let before = look_with(&[((1, 0), old.clone())], start);
        let after = look_with(&[((1, 0), new), ((2, 0), old)], start + Duration::from_secs(2));
        let text = table(&before, &after);
        let rows: Vec<Vec<&str>> =
            text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["1", "0", "100", "-", "-", "-", "-", "-", "2", "vhd:/a"]);
        assert_eq!(rows[1], ["2", "0", "-", "-", "-", "-", "-", "-", "2", "vhd:/a"]);
    }

    #[test]
    fn a_screen_leaves_nothing_of_the_former_one() {
        assert_eq!(screen("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
