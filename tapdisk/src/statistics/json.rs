//! Writes JSON in the one spelling that readers of `tap-ctl stats` know: `{ "a": [ 1, 2 ] }`.
//!
//! Some of them match text instead of parsing, so the separators are part of the interface: `", "`,
//! `": "`, and a space inside every bracket; an empty list is `[  ]`.

use std::fmt::Write;

/// A document being written. Brackets close themselves: what opens them takes a closure.
#[derive(Debug, Default)]
pub struct Json {
    out: String,
    /// Something stands before the next element in its bracket.
    follows: bool,
}

impl Json {
    /// An empty document.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn into_string(self) -> String {
        self.out
    }

    /// An object; `members` writes its keys and values.
    pub fn object(&mut self, members: impl FnOnce(&mut Self)) {
        self.bracket("{ ", " }", members);
    }

    /// A list; `elements` writes its values.
    pub fn array(&mut self, elements: impl FnOnce(&mut Self)) {
        self.bracket("[ ", " ]", elements);
    }

    /// The key of a member; its value comes next.
    pub fn key(&mut self, name: &str) -> &mut Self {
        self.separate();
        self.quote(name);
        self.out.push_str(": ");
        self.follows = false;
        self
    }

    /// A string.
    pub fn string(&mut self, value: &str) {
        self.separate();
        self.quote(value);
    }

    /// A number.
    pub fn number(&mut self, value: u64) {
        self.separate();
        self.format(format_args!("{value}"));
    }

    /// `null`.
    pub fn null(&mut self) {
        self.separate();
        self.out.push_str("null");
    }

    /// A list of numbers.
    pub fn numbers(&mut self, values: &[u64]) {
        self.array(|json| values.iter().for_each(|value| json.number(*value)));
    }

    fn bracket(&mut self, open: &str, close: &str, contents: impl FnOnce(&mut Self)) {
        self.separate();
        self.out.push_str(open);
        self.follows = false;
        contents(self);
        self.out.push_str(close);
        self.follows = true;
    }

    fn separate(&mut self) {
        if self.follows {
            self.out.push_str(", ");
        }
        self.follows = true;
    }

    fn quote(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                // Legal in JSON above 0x1f, but the document is one line of a terminal too.
                control if control.is_control() => {
                    self.format(format_args!("\\u{:04x}", u32::from(control)));
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }

    fn format(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.out.write_fmt(arguments).expect("writing to a String does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn separators_are_those_that_readers_match() {
        let mut json = Json::new();
        json.object(|json| {
            json.key("a").number(1);
            json.key("b").array(|json| {
                json.numbers(&[2, 3]);
                json.object(|_| ());
                json.string("x");
            });
            json.key("c").array(|_| ());
            json.key("d").null();
        });
        let text = json.into_string();
        assert_eq!(text, r#"{ "a": 1, "b": [ [ 2, 3 ], {  }, "x" ], "c": [  ], "d": null }"#);
    }

    proptest! {
        #[test]
        fn any_string_survives_and_stays_on_one_line(text in any::<String>()) {
            let mut json = Json::new();
            json.string(&text);
            let written = json.into_string();
            prop_assert!(!written.chars().any(char::is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
