//! Waiting for another process: always for a condition, always with an end.

use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crate::Result;

/// How often a condition is looked at: below what a person notices, above what costs.
const TICK: Duration = Duration::from_millis(5);

/// Waits until `condition` gives a value.
pub(crate) fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(format!("Waited {} s for {what}", limit.as_secs_f32()));
        }
        park_timeout(TICK);
    }
}

/// Lets `duration` pass, for a person who watches or for a load that shall build up.
pub(crate) fn pass(duration: Duration) {
    let start = Instant::now();
    while let Some(rest) = duration.checked_sub(start.elapsed()) {
        park_timeout(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_that_the_condition_gives() {
        let mut left = 3;
        let value = until(Duration::from_secs(60), "three looks", || {
            left -= 1;
            (left == 0).then_some("value")
        });
        assert_eq!(value, Ok("value"));
    }

    #[test]
    fn gives_up_and_says_for_what() {
        let gone: Result<()> = until(Duration::ZERO, "a bus", || None);
        assert_eq!(gone.unwrap_err(), "Waited 0 s for a bus");
    }
}
