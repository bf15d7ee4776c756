//! systemd's journal, by its native protocol: one datagram per record, fields of the form
//!
//! ```text
//!   NAME=value \n
//!   NAME \n  length (u64, little-endian)  value \n       for a value with a newline in it
//! ```
//!
//! Source: systemd, "Native Journal Protocol".

use std::io;
use std::path::Path;

use super::super::IDENTIFIER;
use super::super::entry::Entry;
use super::super::format::{cut, push_text, severity};
use super::Sink;
use super::datagram::Datagram;

/// The longest name that the journal takes.
const NAME_MAX: usize = 64;

/// Before the names of our own fields: names that begin with an underscore are the journal's, and
/// short ones are everybody's.
const PREFIX: &str = "TAPDISK_";

#[derive(Debug)]
pub(super) struct Journald {
    datagram: Datagram,
    pid: u32,
    buffer: Vec<u8>,
    text: String,
}

impl Journald {
    pub(super) fn open(path: &Path, pid: u32) -> io::Result<Self> {
        let datagram = Datagram::open(path)?;
        Ok(Self { datagram, pid, buffer: Vec::new(), text: String::new() })
    }
}

impl Sink for Journald {
    fn write(&mut self, entry: &Entry) -> u64 {
        self.text.clear();
        // The values are in the message as well: who reads the journal sees only that.
        push_text(&mut self.text, entry);
        cut(&mut self.text);
        encode(&mut self.buffer, entry, &self.text, self.pid);
        u64::from(!self.datagram.send(&self.buffer))
    }
}

fn encode(buffer: &mut Vec<u8>, entry: &Entry, text: &str, pid: u32) {
    buffer.clear();
    push_field(buffer, "MESSAGE", text);
    push_field(buffer, "PRIORITY", &severity(entry.level).to_string());
    push_field(buffer, "SYSLOG_IDENTIFIER", IDENTIFIER);
    push_field(buffer, "SYSLOG_PID", &pid.to_string());
    for field in &entry.fields {
        push_field(buffer, &name_of(field.key), &field.value);
    }
}

fn push_field(buffer: &mut Vec<u8>, name: &str, value: &str) {
    buffer.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        let length = u64::try_from(value.len()).expect("a value is bounded");
        buffer.push(b'\n');
        buffer.extend_from_slice(&length.to_le_bytes());
    } else {
        buffer.push(b'=');
    }
    buffer.extend_from_slice(value.as_bytes());
    buffer.push(b'\n');
}

/// `minor` is `TAPDISK_MINOR`: capital letters, digits and underscores are what a name may have.
fn name_of(key: &str) -> String {
    let allowed = |character: char| {
        if character.is_ascii_alphanumeric() { character.to_ascii_uppercase() } else { '_' }
    };
    PREFIX.chars().chain(key.chars().map(allowed)).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::entry::Field;
    use super::*;
    use slog::Level;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_value_with_a_newline_is_framed_by_its_length() {
        let fields = vec![
            Field { key: "minor", value: "3".to_string() },
            Field { key: "path", value: "a\nMESSAGE=forged".to_string() },
        ];
        let entry =
            Entry { time: UNIX_EPOCH, level: Level::Error, message: "Failed".to_string(), fields };
        let mut buffer = Vec::new();
        encode(&mut buffer, &entry, "text", 42);
        let expected = [
            &b"MESSAGE=text\nPRIORITY=3\nSYSLOG_IDENTIFIER=tapdisk\nSYSLOG_PID=42\n"[..],
            b"TAPDISK_MINOR=3\nTAPDISK_PATH\n\x10\0\0\0\0\0\0\0a\nMESSAGE=forged\n",
        ]
        .concat();
        assert_eq!(buffer, expected, "{}", String::from_utf8_lossy(&buffer));
    }

    #[test]
    fn a_name_has_only_what_the_journal_takes() {
        assert_eq!(name_of("error-kind"), "TAPDISK_ERROR_KIND");
        assert_eq!(name_of("ä="), "TAPDISK___");
        assert_eq!(name_of(&"k".repeat(100)).len(), NAME_MAX);
    }
}
