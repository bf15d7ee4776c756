//! What callgrind writes: instructions by function, and by the source file of each line.
//!
//! The format is that of the Valgrind manual, "Callgrind Format Specification". Names are
//! compressed: `(number) name` the first time, `(number)` afterwards. Costs of calls, which stand
//! on the line behind `calls=`, are the callee's and left out here.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::Result;

/// Instructions of one function on lines of one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) function: String,
    /// The file of the function.
    pub(super) home: String,
    /// The file of the lines: another one where a function of it is inlined here.
    pub(super) file: String,
}

/// Instructions by place.
pub(super) type Profile = HashMap<Place, i64>;

/// Reads what callgrind left.
pub(super) fn read(file: &Path) -> Result<Profile> {
    let profile = parse(&text_of(file)?);
    if profile.is_empty() {
        return Err(format!("{} has no costs", file.display()));
    }
    Ok(profile)
}

/// How often a function was called, in what callgrind left.
pub(super) fn calls(file: &Path, function: &str) -> Result<u64> {
    Ok(count_calls(&text_of(file)?, function))
}

fn text_of(file: &Path) -> Result<String> {
    let bytes =
        fs::read(file).map_err(|error| format!("Callgrind left no {}: {error}", file.display()))?;
    // Names of functions are bytes of foreign object files.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `calls=COUNT ...` stands behind the name of who is called.
fn count_calls(text: &str, function: &str) -> u64 {
    let (mut names, mut callee, mut sum) = (Names::default(), String::new(), 0);
    for line in text.lines() {
        match line.split_once('=') {
            Some(("fn", name)) => drop(names.get(name)),
            Some(("cfn", name)) => callee = names.get(name),
            Some(("calls", counts)) if callee == function => {
                let count = counts.split_whitespace().next();
                sum += count.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            }
            _ => {}
        }
    }
    sum
}

/// The instructions of `many` that `few` does not have.
pub(super) fn difference(many: Profile, few: &Profile) -> Profile {
    let mut rest = many;
    for (place, cost) in few {
        *rest.entry(place.clone()).or_default() -= cost;
    }
    rest
}

#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    /// The name that stands there, or stood there before under the same number.
    fn get(&mut self, text: &str) -> String {
        let number = text.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        match number {
            None => text.to_owned(),
            Some((number, "")) => self.0.get(number).cloned().unwrap_or_default(),
            Some((number, name)) => {
                let name = name.trim_start().to_owned();
                self.0.insert(number.to_owned(), name.clone());
                name
            }
        }
    }
}

fn parse(text: &str) -> Profile {
    let (mut files, mut functions) = (Names::default(), Names::default());
    let mut place = Place { function: String::new(), home: String::new(), file: String::new() };
    let mut is_call = false;
    let mut profile = Profile::new();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("fl", name)) => {
                place.home = files.get(name);
                place.file.clone_from(&place.home);
            }
            Some(("fi" | "fe", name)) => place.file = files.get(name),
            Some(("fn", name)) => place.function = functions.get(name),
            // Named here for the first time, perhaps.
            Some(("cfi" | "cfl", name)) => drop(files.get(name)),
            Some(("cfn", name)) => drop(functions.get(name)),
            Some(("calls", _)) => is_call = true,
            _ if line
                .starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) =>
            {
                let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<i64>().ok());
                if !std::mem::take(&mut is_call)
                    && let Some(cost) = cost
                {
                    *profile.entry(place.clone()).or_default() += cost;
                }
            }
            _ => {}
        }
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
events: Ir

fl=(1) main.rs
fn=(1) main
16 400
+3 50
fi=(2) inlined.rs
7 20
fe=(1)
cfi=(3) other.rs
cfn=(2) callee
calls=3 50
16 900

fl=(3)
fn=(2)
51 900
totals: 1370
";

    #[test]
    fn costs_are_of_the_function_and_of_the_file_of_their_line() {
        let profile = parse(TEXT);
        let cost = |function: &str, home: &str, file: &str| {
            let place = Place { function: function.into(), home: home.into(), file: file.into() };
            profile.get(&place).copied()
        };
        assert_eq!(cost("main", "main.rs", "main.rs"), Some(450));
        assert_eq!(cost("main", "main.rs", "inlined.rs"), Some(20));
        assert_eq!(cost("callee", "other.rs", "other.rs"), Some(900));
        assert_eq!(profile.values().sum::<i64>(), 1370);
    }

    #[test]
    fn calls_are_of_who_is_called() {
        let text = format!("{TEXT}fn=(1)\ncfn=(2)\ncalls=4 51\n16 9\n");
        assert_eq!(count_calls(&text, "callee"), 7);
        assert_eq!(count_calls(&text, "main"), 0);
    }

    #[test]
    fn a_difference_is_of_each_place() {
        let rest = difference(parse(TEXT), &parse(TEXT));
        assert!(rest.values().all(|cost| *cost == 0), "{rest:?}");
    }
}
