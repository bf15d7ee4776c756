//! Time as the core sees it: a number that its caller gives it.
//!
//! The core never reads a clock. The production loop passes the monotonic clock in, the simulator a
//! virtual one, so that a seed reproduces a run exactly.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A point in time, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// The end of time: what never comes. The earlier of two deadlines is the smaller one, also
    /// when there is none.
    pub const NEVER: Self = Self(u64::MAX);

    /// This point, `duration` later; saturates at the end of time (584 years after the start).
    #[must_use]
    #[inline]
    pub fn after(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanoseconds))
    }

    /// How much later this is than `earlier`, in whole microseconds; zero when it is not.
    #[must_use]
    #[inline]
    pub fn microseconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }

    /// This point, unless it never comes.
    #[must_use]
    pub fn if_ever(self) -> Option<Self> {
        (self != Self::NEVER).then_some(self)
    }

    /// How much later this is than `earlier`; zero when it is not.
    #[must_use]
    #[inline]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The monotonic clock of this process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it showed then, in nanoseconds.
    start: u64,
    /// The time, where it is a simulator's.
    #[cfg(feature = "sim")]
    pub(crate) simulated: Option<Now>,
}

impl Clock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: nanoseconds(),
            #[cfg(feature = "sim")]
            simulated: None,
        }
    }

    /// The time.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Now {
        #[cfg(feature = "sim")]
        if let Some(now) = self.simulated {
            return now;
        }
        Now(nanoseconds().saturating_sub(self.start))
    }
}

/// Read several times in a turn: not through `Instant`, whose arithmetic takes longer than the
/// reading.
#[inline]
fn nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    // Neither is below zero.
    let (seconds, rest) = (time.tv_sec().cast_unsigned(), time.tv_nsec().cast_unsigned());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_never_goes_below_zero() {
        assert_eq!(Now(3).since(Now(10)), Duration::ZERO);
        assert_eq!(Now(10).since(Now(3)), Duration::from_nanos(7));
    }

    #[test]
    fn what_never_comes_is_never_the_earlier_one() {
        let late = Now(u64::MAX - 1);
        assert_eq!([late.min(Now::NEVER), Now::NEVER.min(late)], [late, late]);
        assert_eq!((late.if_ever(), Now::NEVER.if_ever()), (Some(late), None));
    }

    #[test]
    fn after_saturates() {
        assert_eq!(Now(u64::MAX - 1).after(Duration::from_secs(1)), Now(u64::MAX));
    }
}
