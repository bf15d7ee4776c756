//! Requests per second and processor time, server beside server.
//!
//! In each round every server serves the pattern once, in an order that turns from round to round,
//! so that a busy minute hits all of them.

use super::client::{self, PATTERNS, Pattern};
use super::numbers::{Spread, float, verdict};
use super::servers::{Kind, Server};
use super::{Ground, Image};
use crate::Result;

/// What the rounds of one server gave.
#[derive(Default)]
struct Column {
    rates: Vec<f64>,
    /// Microseconds of the server's processor per request; none without a server.
    costs: Vec<f64>,
}

/// A server with what it serves.
pub(super) struct Contestant {
    pub(super) name: String,
    /// `None`: the client uses the image itself, which is what the storage gives.
    pub(super) kind: Option<Kind>,
    pub(super) image: Image,
}

/// The table of rates.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    let with =
        |name: &str, kind| Contestant { name: name.to_owned(), kind, image: ground.image.clone() };
    let mut contestants: Vec<Contestant> =
        Kind::present(ground).into_iter().map(|kind| with(kind.name(), Some(kind))).collect();
    if ground.only.is_empty() {
        contestants.push(with("fio alone, no server", None));
    }
    compare(ground, &contestants, &PATTERNS)
}

/// Each of them in each pattern, in turns; the ratios are those of the first one to the others.
pub(super) fn compare(
    ground: &mut Ground,
    contestants: &[Contestant],
    patterns: &[Pattern],
) -> Result<()> {
    println!(
        "{:<26} {:<24} {:>9} {:>19} {:>6} {:>19} {:>9}",
        "pattern", "server", "median", "(min to max)", "unit", "ratio to it", "us CPU"
    );
    for pattern in patterns {
        let mut columns: Vec<Column> = contestants.iter().map(|_| Column::default()).collect();
        for round in 0..ground.rounds as usize {
            for turn in 0..contestants.len() {
                let index = (turn + round) % contestants.len();
                ground.image = contestants[index].image.clone();
                let (rate, cost) = once(ground, contestants[index].kind, pattern)?;
                columns[index].rates.push(rate);
                columns[index].costs.extend(cost);
            }
        }
        print(pattern, contestants, columns);
    }
    Ok(())
}

fn once(ground: &mut Ground, kind: Option<Kind>, pattern: &Pattern) -> Result<(f64, Option<f64>)> {
    ground.drop_cache()?;
    let Some(kind) = kind else {
        let report = client::run_directly(ground, pattern, pattern.amount())?;
        return Ok((report.requests_per_second, None));
    };
    let server = Server::start(ground, kind, &[])?;
    let before = server.cpu_seconds()?;
    let report = client::run(ground, &server.socket, pattern, pattern.amount())?;
    let used = server.cpu_seconds()? - before;
    server.stop()?;
    Ok((report.requests_per_second, Some(used * 1e6 / float(report.requests))))
}

fn print(pattern: &Pattern, contestants: &[Contestant], columns: Vec<Column>) {
    let (unit, factor) =
        if pattern.is_small { ("k/s", 1e-3) } else { ("MB/s", f64::from(pattern.block) * 1e-6) };
    let mut first = None;
    for (contestant, column) in contestants.iter().zip(columns) {
        let Some(rate) = Spread::of(column.rates) else { continue };
        let range = format!("({:.1} to {:.1})", rate.min * factor, rate.max * factor);
        let ratio = match first {
            _ if contestant.kind.is_some_and(|kind| !kind.is_peer_in(pattern)) => {
                "page cache".to_owned()
            }
            Some(first) => {
                let ratio = first / rate.median;
                format!("{ratio:.2} {}", verdict(ratio))
            }
            None => String::new(),
        };
        first = first.or(Some(rate.median));
        let median = rate.median * factor;
        let cost =
            Spread::of(column.costs).map_or("-".to_owned(), |cost| format!("{:.1}", cost.median));
        println!(
            "{:<26} {:<24} {median:>9.1} {range:>19} {unit:>6} {ratio:>19} {cost:>9}",
            pattern.name, contestant.name
        );
    }
}
