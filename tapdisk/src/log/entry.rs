//! A record on its way to the writer: owned, and bounded in size.

use std::fmt::{self, Write};
use std::time::SystemTime;

use slog::{KV, Key, Level, OwnedKVList, Record, Serializer};

/// The longest message and the longest value, in bytes: a path is at most 4096 long.
const TEXT_MAX: usize = 4096;

/// The most key-values. With all of the largest size, 100 KiB: half of what a datagram may have.
const FIELDS_MAX: usize = 24;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) key: Key,
    pub(super) value: String,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) message: String,
    /// Those of the record, then those of its logger.
    pub(super) fields: Vec<Field>,
}

impl Entry {
    pub(super) fn new(record: &Record<'_>, values: &OwnedKVList, time: SystemTime) -> Self {
        let mut fields = Fields(Vec::new());
        // The serializer refuses only what is too much; what it has by then stays.
        let _ = record.kv().serialize(record, &mut fields);
        let _ = values.serialize(record, &mut fields);
        let message = bounded(record.msg());
        Self { time, level: record.level(), message, fields: fields.0 }
    }

    /// A line of the log about itself.
    pub(super) fn own(level: Level, message: String) -> Self {
        Self { time: SystemTime::now(), level, message, fields: Vec::new() }
    }
}

struct Fields(Vec<Field>);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        if self.0.len() == FIELDS_MAX {
            return Err(slog::Error::Other);
        }
        self.0.push(Field { key, value: bounded(value) });
        Ok(())
    }
}

/// A string that ends at a maximum.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = TEXT_MAX - self.0.len();
        self.0.push_str(head(text, room));
        // An error ends the formatting: what comes after would be thrown away.
        if text.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The longest start of `text` that is at most `len` bytes long and ends between characters.
pub(super) fn head(text: &str, len: usize) -> &str {
    let end = (0..=len.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn bounded(arguments: &fmt::Arguments<'_>) -> String {
    let mut bounded = Bounded(String::new());
    if bounded.write_fmt(*arguments).is_err() {
        bounded.0.push_str("...");
    }
    bounded.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(3000);
        let cut = bounded(&format_args!("x{text}"));
        assert_eq!(cut, format!("x{}...", "ä".repeat(2047)));
    }

    #[test]
    fn there_are_at_most_so_many_fields() {
        let mut fields = Fields(Vec::new());
        for index in 0..FIELDS_MAX {
            fields.emit_arguments("key", &format_args!("{index}")).unwrap();
        }
        assert!(fields.emit_arguments("key", &format_args!("x")).is_err());
        assert_eq!(fields.0.len(), FIELDS_MAX);
    }

    proptest! {
        #[test]
        fn what_fits_stays_as_it_is(parts in prop::collection::vec(any::<String>(), 0..8)) {
            let whole = parts.concat();
            prop_assume!(whole.len() <= TEXT_MAX);
            prop_assert_eq!(bounded(&format_args!("{whole}")), whole);
        }
    }
}
