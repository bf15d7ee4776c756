//! The options of one call of a command, as [`Getopt`] found them.

use std::ffi::{OsStr, OsString};

use crate::getopt::{Getopt, Item, Wrong};

/// What the arguments of a command came to.
#[derive(Debug)]
pub enum Parsed {
    /// It can run.
    Options(Options),
    /// `-h`.
    Usage,
    /// `--help`.
    Help,
    /// getopt's complaint.
    Wrong(Wrong),
}

/// The options of a call, in order.
#[derive(Debug, Default)]
pub struct Options {
    items: Vec<Item>,
}

impl Options {
    /// Reads the arguments of a command; `short` and `long` as [`Getopt`] has them. What comes
    /// first decides: help or a mistake.
    #[must_use]
    pub fn parse(short: &str, long: &[&'static str], arguments: &[OsString]) -> Parsed {
        let mut long = long.to_vec();
        long.push("--help");
        let mut options = Self::default();
        for item in Getopt::new(short, &long, arguments) {
            match item {
                Err(wrong) => return Parsed::Wrong(wrong),
                Ok(Item::Short(b'h', None)) => return Parsed::Usage,
                Ok(Item::Long("--help", _)) => return Parsed::Help,
                Ok(item) => options.items.push(item),
            }
        }
        Parsed::Options(options)
    }

    /// All of them.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Whether a short option was given.
    #[must_use]
    pub fn has(&self, option: u8) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Short(given, _) if *given == option))
    }

    /// Whether a long option was given.
    #[must_use]
    pub fn has_long(&self, name: &str) -> bool {
        self.items.iter().any(|item| matches!(item, Item::Long(given, _) if *given == name))
    }

    /// The argument of a short option; the last one counts.
    #[must_use]
    pub fn argument(&self, option: u8) -> Option<&OsStr> {
        self.items.iter().rev().find_map(|item| match item {
            Item::Short(given, argument) if *given == option => argument.as_deref(),
            _ => None,
        })
    }

    /// The value of a long option, by its name with the `=`; the last one counts.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.items.iter().rev().find_map(|item| match item {
            Item::Long(given, value) if *given == name => value.as_deref(),
            _ => None,
        })
    }

    /// What is no option, in order.
    pub fn operands(&self) -> impl Iterator<Item = &OsStr> {
        self.items.iter().filter_map(|item| match item {
            Item::Operand(operand) => Some(operand.as_os_str()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Parsed {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Options::parse("n:s:vh", &["--json", "--rate="], &arguments)
    }

    #[test]
    fn the_last_of_an_option_counts() {
        let Parsed::Options(options) = parse(&["-n", "a", "x", "-vn", "b", "--rate=1", "--rate=2"])
        else {
            panic!("these are options")
        };
        assert_eq!(options.argument(b'n'), Some(OsStr::new("b")));
        assert_eq!(options.argument(b's'), None);
        assert_eq!(options.value("--rate="), Some(OsStr::new("2")));
        assert!(options.has(b'v') && !options.has(b's') && !options.has_long("--json"));
        assert_eq!(options.operands().collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn help_and_mistakes_count_in_the_order_in_which_they_come() {
        assert!(matches!(parse(&["-h", "-Z"]), Parsed::Usage));
        assert!(matches!(parse(&["--help", "-h"]), Parsed::Help));
        assert!(matches!(parse(&["-Z", "-h"]), Parsed::Wrong(Wrong::Invalid(b'Z'))));
        assert!(matches!(parse(&["-n"]), Parsed::Wrong(Wrong::NeedsArgument(b'n'))));
    }
}
