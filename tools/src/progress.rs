//! The line that shows how far a long operation is: only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is drawn at most: what a person can follow.
const INTERVAL: Duration = Duration::from_millis(200);

/// Draws on standard error, so that it is never in the way of what is printed.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    is_shown: bool,
    start: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    /// Of an operation; shown only if standard error is a terminal.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self { what, is_shown: io::stderr().is_terminal(), start: Instant::now(), drawn: None }
    }

    /// So much of `total` is done, in bytes.
    pub fn update(&mut self, done: u64, total: u64) {
        if !self.is_shown {
            return;
        }
        let now = Instant::now();
        if self.drawn.is_some_and(|drawn| now.duration_since(drawn) < INTERVAL) {
            return;
        }
        self.drawn = Some(now);
        let line = line(self.what, done, total, now.duration_since(self.start));
        drop(io::stderr().write_all(format!("\r{line}\x1b[K").as_bytes()));
    }

    /// Wipes the line away.
    pub fn finish(&mut self) {
        if self.drawn.take().is_some() {
            drop(io::stderr().write_all(b"\r\x1b[K"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let permille = u128::from(done) * 1000 / u128::from(total.max(1));
    let (mib, total_mib) = (done >> 20, total >> 20);
    let milliseconds = elapsed.as_millis().max(1);
    let rate = (u128::from(done) * 1000 / milliseconds) >> 20;
    let left_ms = u128::from(total.saturating_sub(done)) * milliseconds / u128::from(done.max(1));
    let left = left_ms / 1000;
    let (minutes, seconds) = (left / 60, left % 60);
    format!(
        "{what} {}.{}% {mib} of {total_mib} MiB, {rate} MiB/s, {minutes}:{seconds:02} left",
        permille / 10,
        permille % 10
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long() {
        let text = line("coalesce", 512 << 20, 2048 << 20, Duration::from_secs(2));
        assert_eq!(text, "coalesce 25.0% 512 of 2048 MiB, 256 MiB/s, 0:06 left");
        let text = line("fill", 0, 0, Duration::ZERO);
        assert_eq!(text, "fill 0.0% 0 of 0 MiB, 0 MiB/s, 0:00 left");
        line("copy", u64::MAX, u64::MAX, Duration::ZERO);
    }
}
