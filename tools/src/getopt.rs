//! Short options as GNU getopt reads them: `-R`, `-Rp5`, `-p 5`, operands anywhere between, `--`
//! ends options; and a few long ones that are recognised only when they are written out.
//!
//! The long ones are ours. Where getopt sees `--json` it complains about `-`; nobody depends on
//! that for a name which exists. One that takes a value ends with `=` in the table and takes it
//! attached: `--rate=100M`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One thing on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `-x`, with its argument if it takes one.
    Short(u8, Option<OsString>),
    /// `--name`, or `--name=` with its value.
    Long(&'static str, Option<OsString>),
    /// What is no option.
    Operand(OsString),
}

/// What is wrong with an option, in getopt's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is none.
    Invalid(u8),
    /// It takes an argument and has none.
    NeedsArgument(u8),
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, option) = match self {
            Self::Invalid(option) => ("invalid option", option),
            Self::NeedsArgument(option) => ("option requires an argument", option),
        };
        write!(formatter, "{what} -- '{}'", char::from(*option).escape_default())
    }
}

/// Walks over the arguments.
#[derive(Debug)]
pub struct Getopt<'a> {
    short: &'a [u8],
    long: &'a [&'static str],
    arguments: std::slice::Iter<'a, OsString>,
    /// What is left of an argument such as `-Rp5`.
    cluster: &'a [u8],
    ended: bool,
}

impl<'a> Getopt<'a> {
    /// `short` is getopt's: letters, a colon after each that takes an argument.
    pub fn new(short: &'a str, long: &'a [&'static str], arguments: &'a [OsString]) -> Self {
        let short = short.as_bytes();
        Self { short, long, arguments: arguments.iter(), cluster: &[], ended: false }
    }

    fn long_option(&self, argument: &OsStr) -> Option<Item> {
        self.long.iter().find_map(|name| {
            if !name.ends_with('=') {
                return (argument == OsStr::new(name)).then_some(Item::Long(name, None));
            }
            let value = argument.as_bytes().strip_prefix(name.as_bytes())?;
            Some(Item::Long(name, Some(OsString::from_vec(value.to_vec()))))
        })
    }

    fn short_option(&mut self, option: u8) -> Result<Item, Wrong> {
        let at = self.short.iter().position(|known| *known == option && option != b':');
        let Some(at) = at else {
            return Err(Wrong::Invalid(option));
        };
        if self.short.get(at + 1) != Some(&b':') {
            return Ok(Item::Short(option, None));
        }
        let rest = std::mem::take(&mut self.cluster);
        let argument = if rest.is_empty() {
            self.arguments.next().cloned()
        } else {
            Some(OsString::from_vec(rest.to_vec()))
        };
        match argument {
            None => Err(Wrong::NeedsArgument(option)),
            argument => Ok(Item::Short(option, argument)),
        }
    }
}

/// The letters of `-abc`; a lone `-` is an operand.
fn is_cluster(argument: &OsStr) -> Option<&[u8]> {
    argument.as_bytes().strip_prefix(b"-").filter(|letters| !letters.is_empty())
}

impl Iterator for Getopt<'_> {
    type Item = Result<Item, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.cluster.is_empty() {
            let argument = self.arguments.next()?;
            if self.ended {
                return Some(Ok(Item::Operand(argument.clone())));
            } else if argument == OsStr::new("--") {
                self.ended = true;
            } else if let Some(item) = self.long_option(argument) {
                return Some(Ok(item));
            } else if let Some(cluster) = is_cluster(argument) {
                self.cluster = cluster;
            } else {
                return Some(Ok(Item::Operand(argument.clone())));
            }
        }
        let (option, rest) = self.cluster.split_first()?;
        self.cluster = rest;
        Some(self.short_option(*option))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(short: &str, arguments: &[&str]) -> Vec<Result<Item, Wrong>> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Getopt::new(short, &["--json", "--help", "--rate="], &arguments).collect()
    }

    fn short(option: char, argument: &str) -> Result<Item, Wrong> {
        Ok(Item::Short(u8::try_from(option).unwrap(), Some(argument.into())))
    }

    fn flag(option: char) -> Result<Item, Wrong> {
        Ok(Item::Short(u8::try_from(option).unwrap(), None))
    }

    #[test]
    fn an_argument_may_be_attached_or_follow() {
        assert_eq!(parse("p:R", &["-p5"]), [short('p', "5")]);
        assert_eq!(parse("p:R", &["-p", "5"]), [short('p', "5")]);
        assert_eq!(parse("p:R", &["-Rp5"]), [flag('R'), short('p', "5")]);
        assert_eq!(parse("p:R", &["-Rp", "5", "-R"]), [flag('R'), short('p', "5"), flag('R')]);
    }

    #[test]
    fn what_follows_is_the_argument_whatever_it_looks_like() {
        for argument in ["-m", "--", "--json", ""] {
            assert_eq!(parse("p:m:", &["-p", argument]), [short('p', argument)]);
        }
    }

    fn operand(text: &str) -> Result<Item, Wrong> {
        Ok(Item::Operand(text.into()))
    }

    #[test]
    fn operands_may_be_anywhere() {
        assert_eq!(
            parse("p:R", &["x", "-R", "-", "-p", "5", "", "y"]),
            [operand("x"), flag('R'), operand("-"), short('p', "5"), operand(""), operand("y")]
        );
    }

    #[test]
    fn two_dashes_end_the_options() {
        assert_eq!(
            parse("R", &["-R", "--", "-R", "--json", "--"]),
            [flag('R'), operand("-R"), operand("--json"), operand("--")]
        );
    }

    #[test]
    fn a_long_option_takes_its_value_attached() {
        let rate = Item::Long("--rate=", Some("5M".into()));
        assert_eq!(parse("", &["--rate=5M", "x"]), [Ok(rate), operand("x")]);
        assert_eq!(parse("", &["--rate"])[0], Err(Wrong::Invalid(b'-')));
    }

    #[test]
    fn a_missing_argument_and_an_unknown_option_are_told_apart() {
        assert_eq!(parse("p:", &["-p"]), [Err(Wrong::NeedsArgument(b'p'))]);
        assert_eq!(parse("p:", &["-x"]), [Err(Wrong::Invalid(b'x'))]);
        assert_eq!(parse("p:", &["-:"]), [Err(Wrong::Invalid(b':'))]);
        assert_eq!(Wrong::Invalid(b'x').to_string(), "invalid option -- 'x'");
        let wrong = Wrong::NeedsArgument(b'p').to_string();
        assert_eq!(wrong, "option requires an argument -- 'p'");
    }

    #[test]
    fn a_long_option_is_known_only_when_it_is_written_out() {
        assert_eq!(parse("p:", &["--json"]), [Ok(Item::Long("--json", None))]);
        assert_eq!(parse("p:", &["--jso"])[0], Err(Wrong::Invalid(b'-')));
        assert_eq!(parse("p:", &["--nosuch"])[0], Err(Wrong::Invalid(b'-')));
    }
}
