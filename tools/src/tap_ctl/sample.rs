//! What a disk has done so far, and what it did between two looks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tapdisk_control::statistics::{Counter, Statistics};

/// Everything a disk has done when it was looked at. What its tapdisk does not tell is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Reads that were answered.
    pub(crate) reads: Option<u64>,
    /// Writes that were answered.
    pub(crate) writes: Option<u64>,
    /// In sectors of 512 bytes.
    pub(crate) read_sectors: Option<u64>,
    /// In sectors of 512 bytes.
    pub(crate) write_sectors: Option<u64>,
    /// Requests that are under way.
    pub(crate) outstanding: Option<u64>,
    /// How many reads and writes took at most so many microseconds (and more than the next lower).
    pub(crate) latency: BTreeMap<u64, u64>,
}

impl Sample {
    /// Puts together what the statistics of a disk say; a page in shared memory counts requests,
    /// which JSON of older daemons does not.
    pub(crate) fn new(stats: &Value, page: Option<&Statistics>) -> Self {
        let latency = stats.get("latency_us");
        let histogram = |name| buckets(latency.and_then(|latency| latency.get(name)));
        let (reads, writes) = (histogram("read"), histogram("write"));
        let count = |histogram: &Option<BTreeMap<u64, u64>>| {
            histogram.as_ref().map(|histogram| histogram.values().sum())
        };
        let sectors = |index: usize| stats.get("secs")?.get(index)?.as_u64();
        let mut sample = Self {
            reads: count(&reads),
            writes: count(&writes),
            read_sectors: sectors(0),
            write_sectors: sectors(1),
            outstanding: stats.get("reqs_outstanding").and_then(Value::as_u64),
            latency: reads.unwrap_or_default(),
        };
        for (upper, count) in writes.unwrap_or_default() {
            let sum = sample.latency.entry(upper).or_default();
            *sum = sum.saturating_add(count);
        }
        if let Some(page) = page {
            sample.reads = Some(page.get(Counter::ReadsCompleted));
            sample.writes = Some(page.get(Counter::WritesCompleted));
        }
        sample
    }
}

/// `[[upper, count], ...]`; what is something else is passed over.
fn buckets(value: Option<&Value>) -> Option<BTreeMap<u64, u64>> {
    let mut buckets = BTreeMap::new();
    for bucket in value?.as_array()? {
        let upper = bucket.get(0).and_then(Value::as_u64).unwrap_or(u64::MAX);
        if let Some(count) = bucket.get(1).and_then(Value::as_u64) {
            buckets.insert(upper, count);
        }
    }
    Some(buckets)
}

/// What a disk did, per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Reads per second.
    pub(crate) reads: Option<f64>,
    /// Writes per second.
    pub(crate) writes: Option<f64>,
    /// In 10^6 bytes per second.
    pub(crate) read_megabytes: Option<f64>,
    /// In 10^6 bytes per second.
    pub(crate) write_megabytes: Option<f64>,
    /// Half of the requests took at most this long, in microseconds.
    pub(crate) p50_us: Option<u64>,
    /// All but one in a hundred took at most this long, in microseconds.
    pub(crate) p99_us: Option<u64>,
}

impl Rates {
    /// Between two looks. A counter that went back, because the disk was made anew, counts as
    /// still.
    pub(crate) fn between(before: &Sample, after: &Sample, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let rate = |before: Option<u64>, after: Option<u64>| {
            Some(after?.saturating_sub(before?) as f64 / seconds)
        };
        let megabytes = |before, after| rate(before, after).map(|sectors| sectors * 512e-6);
        let done: BTreeMap<u64, u64> = after
            .latency
            .iter()
            .map(|(upper, count)| {
                (*upper, count.saturating_sub(before.latency.get(upper).copied().unwrap_or(0)))
            })
            .collect();
        Self {
            reads: rate(before.reads, after.reads),
            writes: rate(before.writes, after.writes),
            read_megabytes: megabytes(before.read_sectors, after.read_sectors),
            write_megabytes: megabytes(before.write_sectors, after.write_sectors),
            p50_us: percentile(&done, 50),
            p99_us: percentile(&done, 99),
        }
    }
}

/// The upper end of the bucket in which `percent` of all are reached; none of nothing.
fn percentile(buckets: &BTreeMap<u64, u64>, percent: u128) -> Option<u64> {
    let total: u128 = buckets.values().map(|count| u128::from(*count)).sum();
    let wanted = (total * percent).div_ceil(100);
    let mut sum = 0;
    buckets.iter().filter(|_| total > 0).find_map(|(upper, count)| {
        sum += u128::from(*count);
        (sum >= wanted).then_some(*upper)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_percentile_is_the_end_of_the_bucket_that_reaches_it() {
        let buckets = BTreeMap::from([(100, 50), (200, 49), (400, 1)]);
        assert_eq!(percentile(&buckets, 50), Some(100));
        assert_eq!(percentile(&buckets, 51), Some(200));
        assert_eq!(percentile(&buckets, 99), Some(200));
        assert_eq!(percentile(&buckets, 100), Some(400));
        assert_eq!(percentile(&BTreeMap::from([(100, 0)]), 99), None);
        assert_eq!(percentile(&BTreeMap::from([(1, u64::MAX), (2, u64::MAX)]), 99), Some(2));
    }

    #[test]
    fn rates_are_differences_per_second() {
        let at = |reads: u64, slow: u64| {
            json!({
                "secs": [reads * 8, 0], "reqs_outstanding": 3,
                "latency_us": { "read": [[100, reads], [900, slow]], "write": [], "flush": [[1, 9]] },
            })
        };
        let before = Sample::new(&at(1000, 5), None);
        let after = Sample::new(&at(3000, 5), None);
        let rates = Rates::between(&before, &after, Duration::from_secs(2));
        assert_eq!(rates.reads, Some(1000.0));
        assert_eq!(rates.writes, Some(0.0));
        assert_eq!(rates.read_megabytes, Some(4.096));
        assert_eq!((rates.p50_us, rates.p99_us), (Some(100), Some(100)));
        assert_eq!(after.outstanding, Some(3));
    }

    #[test]
    fn a_daemon_that_tells_less_is_shown_with_less() {
        let old = Sample::new(&json!({ "secs": [8, 16] }), None);
        let rates = Rates::between(&old, &old, Duration::from_secs(1));
        let still =
            Rates { read_megabytes: Some(0.0), write_megabytes: Some(0.0), ..Rates::default() };
        assert_eq!(rates, still);
    }

    #[test]
    fn statistics_of_another_shape_are_passed_over() {
        for stats in [
            json!(null),
            json!([1, 2]),
            json!({ "secs": "x", "latency_us": [1], "reqs_outstanding": -1 }),
            json!({ "latency_us": { "read": [1, [2], ["x", 3], [4, "y"]] } }),
        ] {
            let sample = Sample::new(&stats, None);
            assert_eq!(sample.read_sectors, None);
            assert!(sample.latency.len() <= 1, "{stats}");
        }
    }

    #[test]
    fn a_counter_that_goes_back_counts_as_still() {
        let before = Sample { reads: Some(10), ..Sample::default() };
        let after = Sample { reads: Some(2), ..Sample::default() };
        assert_eq!(Rates::between(&before, &after, Duration::ZERO).reads, Some(0.0));
    }
}
