//! Requests per second and processor time, server beside server.
//!
//! In each round every server serves the pattern once, in an order that turns from round to round,
//! so that a busy minute hits all of them.

use super::Ground;
use super::client::{self, Amount, PATTERNS, Pattern};
use super::numbers::{Spread, float, verdict};
use super::servers::{Kind, Server};
use crate::Result;

/// Of each pattern, server and round.
const SECONDS: u32 = 2;

/// What the rounds of one server gave.
#[derive(Default)]
struct Column {
    rates: Vec<f64>,
    /// Microseconds of the server's processor per request.
    costs: Vec<f64>,
}

/// The table of rates.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    let kinds = Kind::present(ground);
    println!(
        "{:<26} {:<20} {:>9} {:>19} {:>6} {:>19} {:>9}",
        "pattern", "server", "median", "(min to max)", "unit", "ours to it", "us CPU"
    );
    for pattern in &PATTERNS {
        let mut columns: Vec<Column> = kinds.iter().map(|_| Column::default()).collect();
        for round in 0..ground.rounds as usize {
            for turn in 0..kinds.len() {
                let index = (turn + round) % kinds.len();
                let (rate, cost) = once(ground, kinds[index], pattern)?;
                columns[index].rates.push(rate);
                columns[index].costs.push(cost);
            }
        }
        print(pattern, &kinds, columns);
    }
    Ok(())
}

fn once(ground: &mut Ground, kind: Kind, pattern: &Pattern) -> Result<(f64, f64)> {
    ground.drop_cache()?;
    let server = Server::start(ground, kind, &[])?;
    let before = server.cpu_seconds()?;
    let report = client::run(ground, &server.socket, pattern, Amount::Seconds(SECONDS))?;
    let used = server.cpu_seconds()? - before;
    server.stop()?;
    Ok((report.requests_per_second, used * 1e6 / float(report.requests)))
}

fn print(pattern: &Pattern, kinds: &[Kind], columns: Vec<Column>) {
    let (unit, factor) =
        if pattern.is_small { ("k/s", 1e-3) } else { ("MB/s", f64::from(pattern.block) * 1e-6) };
    let mut ours = None;
    for (kind, column) in kinds.iter().zip(columns) {
        let (Some(rate), Some(cost)) = (Spread::of(column.rates), Spread::of(column.costs)) else {
            continue;
        };
        if *kind == Kind::Ours {
            ours = Some(rate.median);
        }
        let range = format!("({:.1} to {:.1})", rate.min * factor, rate.max * factor);
        let ratio = match ours {
            _ if !kind.is_peer_in(pattern.is_read) => "page cache".to_owned(),
            Some(ours) if *kind != Kind::Ours => {
                let ratio = ours / rate.median;
                format!("{ratio:.2} {}", verdict(ratio))
            }
            _ => String::new(),
        };
        let (median, cost) = (rate.median * factor, cost.median);
        println!(
            "{:<26} {:<20} {median:>9.1} {range:>19} {unit:>6} {ratio:>19} {cost:>9.1}",
            pattern.name,
            kind.name()
        );
    }
}
