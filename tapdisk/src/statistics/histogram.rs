//! How long requests take: counts in buckets whose width grows with the value.
//!
//! Four buckets an octave, so a bucket is at most a quarter wider than its lower bound:
//!
//! ```text
//!   index   0  1  2  3 |  4  5  6  7 |  8   9  10  11 | ... |  96 .. 99           |  100
//!   from    0  1  2  3 |  4  5  6  7 |  8  10  12  14 | ... |  2^25 .. 7*2^23 us  |  2^26 us
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sub-buckets of an octave, as a power of two.
const SUB_BITS: u32 = 2;

/// The first octave that has no buckets of its own: 2^26 us are 67 s, and of what takes longer
/// nobody needs to know a quarter of an octave.
const OCTAVE_END: u32 = 26;

/// One for each value below 4, four for each octave from 4 to 2^26, one for the rest.
pub(super) const BUCKETS: usize = ((OCTAVE_END - SUB_BITS + 1) << SUB_BITS) as usize + 1;

/// The bucket that a value belongs to.
fn index_of(us: u64) -> usize {
    // Setting the lowest two bits spares a branch for 0 and leaves every octave where it is.
    let octave = (us | 3).ilog2().max(SUB_BITS);
    if octave >= OCTAVE_END {
        return BUCKETS - 1;
    }
    let base = (octave - SUB_BITS) << SUB_BITS;
    // Below 2^3, because the shift leaves the leading bit and two more.
    base as usize + usize::try_from(us >> (octave - SUB_BITS)).unwrap_or(0)
}

/// The first value, in microseconds, above a bucket; none for the last.
fn upper_of(index: usize) -> Option<u64> {
    let next = u32::try_from(index + 1).ok().filter(|_| index + 1 < BUCKETS)?;
    let (octave, sub) = (next >> SUB_BITS, u64::from(next & 3));
    Some(if octave == 0 { sub } else { (4 + sub) << (octave - 1) })
}

/// The counts of one class of requests, written by one thread.
#[derive(Debug)]
pub(super) struct AtomicHistogram {
    counts: [AtomicU64; BUCKETS],
    max_us: AtomicU64,
}

impl AtomicHistogram {
    pub(super) fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], max_us: AtomicU64::new(0) }
    }

    /// Counts one value. By the one writer only: not a read-modify-write.
    #[inline]
    pub(super) fn record(&self, us: u64) {
        let count = &self.counts[index_of(us)];
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if us > self.max_us.load(Ordering::Relaxed) {
            self.max_us.store(us, Ordering::Relaxed);
        }
    }

    pub(super) fn load(&self) -> Histogram {
        let mut histogram = Histogram::new();
        for (target, source) in histogram.counts.iter_mut().zip(&self.counts) {
            *target = source.load(Ordering::Relaxed);
        }
        histogram.max_us = self.max_us.load(Ordering::Relaxed);
        histogram
    }
}

/// Counts of durations, as plain numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    max_us: u64,
}

impl Histogram {
    /// Nothing counted.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], max_us: 0 }
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let us = microseconds(duration);
        self.counts[index_of(us)] += 1;
        self.max_us = self.max_us.max(us);
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        for (target, source) in self.counts.iter_mut().zip(&other.counts) {
            *target = target.saturating_add(*source);
        }
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The longest, in microseconds; 0 when there is none.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// A duration, in microseconds, that `per_mille` of a thousand did not exceed: the end of the
    /// bucket, so up to a quarter too long, never too short. `None` when nothing was counted.
    ///
    /// # Panics
    /// When `per_mille` is above 1000.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> Option<u64> {
        assert!(per_mille <= 1000, "{per_mille} of a thousand");
        let total = u128::from(self.count());
        let rank = (total * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                let last = upper_of(index).map_or(self.max_us, |upper| upper - 1);
                return Some(last.min(self.max_us));
            }
        }
        None
    }

    /// The buckets that are not empty, in order: the first value above the bucket, in microseconds,
    /// and its count. The last bucket has no end of its own: there it is the first value above all
    /// that were counted.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| {
            (upper_of(index).unwrap_or_else(|| self.max_us.saturating_add(1)), *count)
        })
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// In whole microseconds, rounded down.
fn microseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_bucket_starts_where_the_one_before_it_ends() {
        assert_eq!(index_of(0), 0);
        for index in 0..BUCKETS - 1 {
            let upper = upper_of(index).unwrap();
            assert_eq!(index_of(upper - 1), index, "last of bucket {index}");
            assert_eq!(index_of(upper), index + 1, "first after bucket {index}");
        }
        assert_eq!(upper_of(BUCKETS - 2), Some(1 << 26));
        assert_eq!(upper_of(BUCKETS - 1), None);
        assert_eq!(index_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_above_four_are_at_most_a_quarter_wide() {
        for index in 4..BUCKETS - 2 {
            let (from, to) = (upper_of(index).unwrap(), upper_of(index + 1).unwrap());
            assert!((to - from) * 4 <= from, "bucket {index}: {from}..{to}");
        }
    }

    #[test]
    fn an_empty_histogram_has_no_percentile() {
        assert_eq!(Histogram::new().percentile(500), None);
        assert_eq!(Histogram::new().buckets().count(), 0);
    }

    #[test]
    fn the_last_bucket_ends_after_the_longest() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_secs(120));
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(120_000_001, 1)]);
        assert_eq!(histogram.percentile(500), Some(120_000_000));
    }

    proptest! {
        #[test]
        fn a_percentile_is_never_below_the_true_one_and_at_most_a_quarter_above(
            mut values in prop::collection::vec(0..1_u64 << 30, 1..200),
            per_mille in 0..=1000_u32,
        ) {
            let mut histogram = Histogram::new();
            for value in &values {
                histogram.record(Duration::from_micros(*value));
            }
            values.sort_unstable();
            let rank = (values.len() * per_mille as usize).div_ceil(1000).max(1);
            let exact = values[rank - 1];
            let answer = histogram.percentile(per_mille).unwrap();
            prop_assert!(answer >= exact);
            prop_assert!(answer <= exact + exact / 4 || exact >= 1 << 26);
        }

        #[test]
        fn merging_is_counting_all_in_one(
            left in prop::collection::vec(0..1_u64 << 30, 0..50),
            right in prop::collection::vec(0..1_u64 << 30, 0..50),
        ) {
            let count = |values: &[u64]| {
                let mut histogram = Histogram::new();
                for value in values {
                    histogram.record(Duration::from_micros(*value));
                }
                histogram
            };
            let mut merged = count(&left);
            merged.merge(&count(&right));
            prop_assert_eq!(merged, count(&[left, right].concat()));
        }

        #[test]
        fn the_atomic_one_counts_alike(values in prop::collection::vec(any::<u64>(), 0..50)) {
            let atomic = AtomicHistogram::new();
            let mut plain = Histogram::new();
            for value in values {
                atomic.record(value);
                plain.counts[index_of(value)] += 1;
                plain.max_us = plain.max_us.max(value);
            }
            prop_assert_eq!(atomic.load(), plain);
        }
    }
}
