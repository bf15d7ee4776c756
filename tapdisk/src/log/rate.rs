//! A limit on how often one source may complain: a disk whose storage is gone fails every request.

use std::time::Duration;

use crate::time::Now;

/// Messages of one source in one window.
pub const RATE_BURST: u32 = 16;

/// The length of a window. It starts with the first message after the one before it has ended.
pub const RATE_WINDOW: Duration = Duration::from_secs(90);

/// The limit for one source: the driver of one image, one peer.
///
/// ```
/// # use tapdisk::log::RateLimit;
/// # use tapdisk::time::Now;
/// # let (mut errors, now) = (RateLimit::new(), Now(0));
/// if let Some(suppressed) = errors.admit(now) {
///     // log the message, and that `suppressed` others of its kind were not, if any
/// }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimit {
    /// The end of the window; zero before the first message.
    end: Now,
    admitted: u32,
    suppressed: u64,
}

impl RateLimit {
    /// No message yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { end: Now(0), admitted: 0, suppressed: 0 }
    }

    /// Whether a message may be logged at `now`; if so, how many were not since the last one that
    /// was.
    pub fn admit(&mut self, now: Now) -> Option<u64> {
        if now >= self.end {
            self.end = now.after(RATE_WINDOW);
            self.admitted = 0;
        }
        if self.admitted == RATE_BURST {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// How many were not logged since the last one that was.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn sixteen_pass_in_ninety_seconds_and_the_next_says_what_was_missed() {
        let mut limit = RateLimit::new();
        let start = 5 * SECOND;
        for index in 0..16 {
            assert_eq!(limit.admit(Now(start + index)), Some(0));
        }
        assert_eq!(limit.admit(Now(start + 16)), None);
        assert_eq!(limit.admit(Now(start + 90 * SECOND - 1)), None);
        assert_eq!(limit.suppressed(), 2);
        assert_eq!(limit.admit(Now(start + 90 * SECOND)), Some(2));
        assert_eq!(limit.suppressed(), 0);
        assert_eq!(limit.admit(Now(start + 91 * SECOND)), Some(0));
    }

    #[test]
    fn a_window_starts_with_its_first_message() {
        let mut limit = RateLimit::new();
        assert_eq!(limit.admit(Now(0)), Some(0));
        for _ in 0..16 {
            assert_eq!(limit.admit(Now(1000 * SECOND)), Some(0));
        }
        assert_eq!(limit.admit(Now(1089 * SECOND)), None);
        assert_eq!(limit.admit(Now(1090 * SECOND)), Some(1));
    }

    #[test]
    fn the_end_of_time_is_no_special_case() {
        let mut limit = RateLimit::new();
        assert_eq!(limit.admit(Now(u64::MAX)), Some(0));
        assert_eq!(limit.admit(Now(u64::MAX)), Some(0));
    }
}
