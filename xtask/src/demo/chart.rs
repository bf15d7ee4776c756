//! Latencies as bars of text.

use std::fmt::Write as _;

use serde_json::Value;

/// The longest bar, in characters.
const WIDTH: u64 = 40;

/// The bars of one kind of request, from the disk's `stats`: `[[upper bound in us, count], ...]`,
/// put together by powers of two. Empty where nothing was counted.
pub(super) fn bars(stats: &Value, kind: &str) -> String {
    let mut rows: Vec<(u64, u64)> = Vec::new();
    for bucket in stats["latency_us"][kind].as_array().into_iter().flatten() {
        let (Some(upper), Some(count)) = (bucket[0].as_u64(), bucket[1].as_u64()) else {
            continue;
        };
        let upper = upper.checked_next_power_of_two().unwrap_or(u64::MAX);
        match rows.last_mut() {
            Some(row) if row.0 == upper => row.1 = row.1.saturating_add(count),
            _ => rows.push((upper, count)),
        }
    }
    rows.retain(|row| row.1 > 0);
    let most = rows.iter().map(|row| row.1).max().unwrap_or(0);
    let total: u64 = rows.iter().map(|row| row.1).sum();
    let mut text = String::new();
    for (upper, count) in rows {
        // At least one mark: a single slow request is what one looks for.
        let length = (count.saturating_mul(WIDTH) / most).max(1);
        let bar = "#".repeat(usize::try_from(length).unwrap_or(0));
        let _ = writeln!(text, "{:>8} |{bar} {count}", below(upper));
    }
    if total > 0 {
        text = format!("{kind}: {total} requests, by the time that each took\n{text}");
    }
    text
}

fn below(upper_us: u64) -> String {
    match upper_us {
        upper if upper < 1000 => format!("<{upper} us"),
        // With a tenth: the bounds are powers of two, and 1.1, 2.1, 4.1 look like it.
        upper if upper < 10_000 => {
            let tenths = upper.div_ceil(100);
            format!("<{}.{} ms", tenths / 10, tenths % 10)
        }
        upper if upper < 1_000_000 => format!("<{} ms", upper.div_ceil(1000)),
        upper => format!("<{} s", upper.div_ceil(1_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_one_power_of_two_are_one_bar() {
        let stats = serde_json::json!({ "latency_us": {
            "read": [[96, 30], [112, 10], [250, 20], [3000, 1]], "write": [],
        }});
        let text = bars(&stats, "read");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1], format!(" <128 us |{} 40", "#".repeat(40)));
        assert_eq!(lines[2], format!(" <256 us |{} 20", "#".repeat(20)));
        assert_eq!(lines[3], " <4.1 ms |# 1");
    }

    #[test]
    fn nothing_counted_is_nothing_drawn() {
        let stats = serde_json::json!({ "latency_us": { "read": [[1, 0]] } });
        assert_eq!(bars(&stats, "read"), "");
        assert_eq!(bars(&Value::Null, "write"), "");
    }
}
