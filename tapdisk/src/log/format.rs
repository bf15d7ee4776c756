//! How a record reads as one line: `The message key=value other="a value"`.
//!
//! One record is one line, whatever it contains: control characters are escaped (also those that
//! steer a terminal), and a value that could be taken for more than one is quoted.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use slog::Level;

use super::entry::{Entry, head};
use crate::process::LocalTime;

/// The longest line, in bytes: what common syslog daemons take.
pub(super) const LINE_MAX: usize = 8192;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The severity of syslog.
pub(super) fn severity(level: Level) -> u8 {
    match level {
        Level::Critical => 2,
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The message and its key-values.
pub(super) fn push_text(line: &mut String, entry: &Entry) {
    push_escaped(line, &entry.message, false);
    for field in &entry.fields {
        line.push(' ');
        push_escaped(line, field.key, false);
        line.push('=');
        if needs_quotes(&field.value) {
            line.push('"');
            push_escaped(line, &field.value, true);
            line.push('"');
        } else {
            line.push_str(&field.value);
        }
    }
}

/// Cuts a line at its maximum, between characters.
pub(super) fn cut(line: &mut String) {
    if line.len() > LINE_MAX {
        line.truncate(head(line, LINE_MAX - 3).len());
        line.push_str("...");
    }
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty()
        || value.chars().any(|character| {
            character.is_control()
                || character.is_whitespace()
                || matches!(character, '"' | '\\' | '=')
        })
}

fn push_escaped(line: &mut String, text: &str, quoted: bool) {
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            '"' | '\\' if quoted => {
                line.push('\\');
                line.push(character);
            }
            // Line and paragraph separators are not control characters, but end lines in some eyes.
            '\u{2028}' | '\u{2029}' => push_code(line, character),
            control if control.is_control() => push_code(line, control),
            other => line.push(other),
        }
    }
}

fn push_code(line: &mut String, character: char) {
    write!(line, "\\u{{{:x}}}", u32::from(character)).expect("a String takes all");
}

/// `2026-11-23T02:39:58.123456Z`.
pub(super) fn push_utc(line: &mut String, time: SystemTime) {
    // A clock before 1970 is wrong anyway.
    let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = elapsed.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = elapsed.subsec_micros();
    write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
        .expect("a String takes all");
}

/// The year, month (1 to 12) and day of the Gregorian calendar, so many days after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of a year: 719 468 days earlier.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let of_era_year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_year + of_era_year / 4 - of_era_year / 100);
    // Months from March on have 153 days in every five.
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + of_era_year + u64::from(month <= 2), month, day)
}

/// `Nov  3 02:39:58`, the time of RFC 3164.
pub(super) fn push_rfc3164(line: &mut String, time: &LocalTime) {
    let month = MONTHS.get(usize::from(time.month)).unwrap_or(&"Jan");
    let LocalTime { day, hour, minute, second, .. } = time;
    write!(line, "{month} {day:>2} {hour:02}:{minute:02}:{second:02}").expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use super::super::entry::Field;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn text(message: &str, value: &str) -> String {
        let fields = vec![Field { key: "path", value: value.to_string() }];
        let entry =
            Entry { time: UNIX_EPOCH, level: Level::Info, message: message.to_string(), fields };
        let mut line = String::new();
        push_text(&mut line, &entry);
        line
    }

    fn utc(seconds: u64, micros: u64) -> String {
        let mut line = String::new();
        let since = Duration::from_secs(seconds) + Duration::from_micros(micros);
        push_utc(&mut line, UNIX_EPOCH + since);
        line
    }

    #[test]
    fn a_value_is_quoted_when_it_could_be_read_as_more() {
        assert_eq!(text("Opened", "/srv/a.vhd"), "Opened path=/srv/a.vhd");
        assert_eq!(text("Opened", "a b"), "Opened path=\"a b\"");
        assert_eq!(text("Opened", ""), "Opened path=\"\"");
        assert_eq!(text("Opened", "a=1"), "Opened path=\"a=1\"");
        assert_eq!(text("Opened", "\"\\"), r#"Opened path="\"\\""#);
    }

    #[test]
    fn a_value_cannot_begin_another_line() {
        let forged = "x\n2026-01-01T00:00:00.000000Z ERROR forged\u{1b}[2J\u{2028}";
        let line = text("A\r\nB", forged);
        let expected =
            "A\\u{d}\\nB path=\"x\\n2026-01-01T00:00:00.000000Z ERROR forged\\u{1b}[2J\\u{2028}\"";
        assert_eq!(line, expected);
    }

    proptest! {
        #[test]
        fn one_record_is_one_line(message in any::<String>(), value in any::<String>()) {
            prop_assert!(!text(&message, &value).chars().any(char::is_control));
        }

        #[test]
        fn a_quoted_value_reads_back(value in "[ -~]*") {
            let line = text("M", &format!("{value} "));
            let quoted = line.strip_prefix("M path=").unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(quoted).unwrap(), format!("{value} "));
        }

        #[test]
        fn each_day_follows_the_one_before(days in 0..400_000_u64) {
            let (year, month, day) = civil(days);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let next = if day < last {
                (year, month, day + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
            prop_assert_eq!(civil(days + 1), next);
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(utc(951_782_400, 7), "2000-02-29T00:00:00.000007Z");
        assert_eq!(utc(1_795_401_598, 123_456), "2026-11-23T02:39:58.123456Z");
        let time = LocalTime { month: 10, day: 3, hour: 2, minute: 39, second: 58 };
        let mut line = String::new();
        push_rfc3164(&mut line, &time);
        assert_eq!(line, "Nov  3 02:39:58");
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        let mut line = "é".repeat(5000);
        cut(&mut line);
        assert_eq!(line, format!("{}...", "é".repeat(4094)));
        let mut short = "short".to_string();
        cut(&mut short);
        assert_eq!(short, "short");
    }
}
