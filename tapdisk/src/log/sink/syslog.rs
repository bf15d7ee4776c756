//! Syslog: RFC 3164 as it is spoken to `/dev/log`, without the name of the host.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::IDENTIFIER;
use super::super::entry::Entry;
use super::super::format::{cut, push_rfc3164, push_text, severity};
use super::Sink;
use super::datagram::Datagram;
use crate::process::{LocalTime, local_time};

/// The facility of system daemons.
const DAEMON: u8 = 3;

#[derive(Debug)]
pub(super) struct Syslog {
    datagram: Datagram,
    pid: u32,
    line: String,
}

impl Syslog {
    pub(super) fn open(path: &Path, pid: u32) -> io::Result<Self> {
        Ok(Self { datagram: Datagram::open(path)?, pid, line: String::new() })
    }
}

impl Sink for Syslog {
    fn write(&mut self, entry: &Entry) -> u64 {
        format_line(&mut self.line, entry, local(entry.time).as_ref(), self.pid);
        u64::from(!self.datagram.send(self.line.as_bytes()))
    }
}

fn local(time: SystemTime) -> Option<LocalTime> {
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    local_time(i64::try_from(seconds).ok()?)
}

/// Without a time the daemon takes that of the arrival.
fn format_line(line: &mut String, entry: &Entry, time: Option<&LocalTime>, pid: u32) {
    line.clear();
    let priority = DAEMON * 8 + severity(entry.level);
    write!(line, "<{priority}>").expect("a String takes all");
    if let Some(time) = time {
        push_rfc3164(line, time);
        line.push(' ');
    }
    write!(line, "{IDENTIFIER}[{pid}]: ").expect("a String takes all");
    push_text(line, entry);
    cut(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::Level;

    #[test]
    fn a_line_has_priority_time_and_name() {
        let entry = Entry {
            time: UNIX_EPOCH,
            level: Level::Warning,
            message: "Slow\nstorage".to_string(),
            fields: Vec::new(),
        };
        let time = LocalTime { month: 10, day: 3, hour: 2, minute: 9, second: 58 };
        let mut line = String::new();
        format_line(&mut line, &entry, Some(&time), 42);
        assert_eq!(line, "<28>Nov  3 02:09:58 tapdisk[42]: Slow\\nstorage");
        format_line(&mut line, &entry, None, 42);
        assert_eq!(line, "<28>tapdisk[42]: Slow\\nstorage");
    }

    #[test]
    fn local_time_is_within_a_day_of_utc() {
        // 2026-11-23 12:00:00 UTC: no zone is more than 14 hours off.
        let time = local(UNIX_EPOCH + std::time::Duration::from_secs(1_795_435_200)).unwrap();
        assert_eq!(time.month, 10);
        assert!((22..=24).contains(&time.day), "{time:?}");
    }
}
