//! Numbers of several rounds, and how they are printed.

/// What several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` of no rounds.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// What a ratio of two rates means on a machine that others use too.
pub(super) fn verdict(ratio: f64) -> &'static str {
    match ratio {
        ratio if ratio > 1.25 => "ahead",
        ratio if ratio < 0.8 => "behind",
        _ => "no difference",
    }
}

/// The rise between two points, `(requests, count)`: the cost of one request.
pub(super) fn slope(few: (u64, u64), many: (u64, u64)) -> f64 {
    assert!(many.0 > few.0, "the second run has more requests than the first");
    (float(many.1) - float(few.1)) / float(many.0 - few.0)
}

/// What `y` is of each kind at the `x` of the first kind: the runs of a kind lie along a line, and
/// the lines of all kinds rise alike. So a difference of kinds is told from one of their runs.
/// `None` where a kind has no runs.
pub(super) fn level(kinds: &[Vec<(f64, f64)>]) -> Option<Vec<f64>> {
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (count, sum) =
            values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        (count > 0.0).then(|| sum / count)
    };
    let center = |runs: &Vec<(f64, f64)>| {
        let x = mean(&mut runs.iter().map(|run| run.0))?;
        Some((x, mean(&mut runs.iter().map(|run| run.1))?))
    };
    let centers: Vec<(f64, f64)> = kinds.iter().map(center).collect::<Option<_>>()?;
    let (mut together, mut alone) = (0.0, 0.0);
    for (runs, (x, y)) in kinds.iter().zip(&centers) {
        for run in runs {
            together += (run.0 - x) * (run.1 - y);
            alone += (run.0 - x) * (run.0 - x);
        }
    }
    let rise = if alone > 0.0 { together / alone } else { 0.0 };
    let first = centers.first()?.0;
    Some(centers.iter().map(|(x, y)| y + rise * (first - x)).collect())
}

/// Exact below 2^53, which no count here reaches.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_middle_ones() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert!((Spread::of(vec![1.0, 4.0, 2.0, 3.0]).unwrap().median - 2.5).abs() < 1e-9);
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn a_slope_leaves_out_what_starting_costs() {
        let per_request = slope((1000, 5_000_000 + 3000), (6000, 5_000_000 + 18_000));
        assert!((per_request - 3.0).abs() < 1e-9);
    }

    #[test]
    fn kinds_are_compared_where_the_first_one_is() {
        let line = |x: f64, above: f64| (x, 700.0 + 2000.0 * x + above);
        let kinds = [
            vec![line(0.1, 1.0), line(0.12, 0.0), line(0.11, -1.0)],
            vec![line(0.2, 49.0), line(0.16, 51.0), line(0.18, 50.0)],
        ];
        let level = level(&kinds).unwrap();
        assert!((level[0] - 920.0).abs() < 1e-9, "{level:?}");
        assert!((level[1] - 970.0).abs() < 5.0, "{level:?}");
    }

    #[test]
    fn runs_that_do_not_differ_have_no_rise() {
        assert_eq!(level(&[vec![(1.0, 5.0)], vec![(2.0, 7.0)]]), Some(vec![5.0, 7.0]));
        assert_eq!(level(&[vec![(1.0, 5.0)], vec![]]), None);
        assert_eq!(level(&[]), None);
    }

    #[test]
    fn a_fifth_more_or_less_is_no_difference() {
        assert_eq!(verdict(1.2), "no difference");
        assert_eq!(verdict(1.3), "ahead");
        assert_eq!(verdict(0.7), "behind");
    }
}
