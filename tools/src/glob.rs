//! Patterns of file names, as C's `glob` with `GLOB_BRACE` takes them: `*`, `?`, `[a-z]`, `[!a]`,
//! `\` before a letter that means itself, and `{one,other}`.
//!
//! Names are bytes: a directory can hold names that are no text, and a scan must not miss an image
//! that has one. (The crates for this skip them, or take no escapes.) A name that starts with a dot
//! is found only by a pattern that does.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The most alternatives that the braces of one pattern make: `{a,b}{a,b}` makes four.
const ALTERNATIVES_MAX: usize = 4096;

/// The alternatives of a pattern, without braces; `None` if there are too many.
#[must_use]
pub fn alternatives(pattern: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut done = Vec::new();
    // In the order of the pattern: the first alternative is expanded first.
    let mut waiting = vec![pattern.to_vec()];
    while let Some(pattern) = waiting.pop() {
        let Some((start, parts, end)) = braces(&pattern) else {
            done.push(pattern);
            continue;
        };
        for part in parts.iter().rev() {
            waiting.push([&pattern[..start], part, &pattern[end..]].concat());
        }
        if waiting.len() + done.len() > ALTERNATIVES_MAX {
            return None;
        }
    }
    Some(done)
}

/// The first group in braces: where it starts, its parts, and where it ends.
fn braces(pattern: &[u8]) -> Option<(usize, Vec<&[u8]>, usize)> {
    let mut at = 0;
    while at < pattern.len() {
        match pattern[at] {
            b'\\' => at += 1,
            // As the C library has it: an empty group stands for itself.
            b'{' if pattern[at + 1..].first() == Some(&b'}') => at += 1,
            b'{' => return group(pattern, at),
            _ => {}
        }
        at += 1;
    }
    None
}

fn group(pattern: &[u8], start: usize) -> Option<(usize, Vec<&[u8]>, usize)> {
    let (mut depth, mut part, mut parts) = (0_usize, start + 1, Vec::new());
    let mut at = start + 1;
    while at < pattern.len() {
        match pattern[at] {
            b'\\' => at += 1,
            b'{' => depth += 1,
            b',' if depth == 0 => {
                parts.push(&pattern[part..at]);
                part = at + 1;
            }
            b'}' if depth == 0 => {
                parts.push(&pattern[part..at]);
                return Some((start, parts, at + 1));
            }
            b'}' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

/// Whether a name, without directories, is one that a pattern without braces stands for.
#[must_use]
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // The last star, and the letter behind those that it has taken so far: a mismatch goes back
    // there. Going back to the last one is enough, so this takes pattern times name at most.
    let (mut at, mut letter) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while letter < name.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at + 1, letter));
            at += 1;
            continue;
        }
        if let Some(next) = one(pattern, at, name[letter]) {
            (at, letter) = (next, letter + 1);
            continue;
        }
        let Some((behind, taken)) = star else { return false };
        star = Some((behind, taken + 1));
        (at, letter) = (behind, taken + 1);
    }
    pattern[at..].iter().all(|rest| *rest == b'*')
}

/// Where the pattern goes on if its next element stands for this letter.
fn one(pattern: &[u8], at: usize, letter: u8) -> Option<usize> {
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => match set(pattern, at + 1, letter) {
            Some((true, next)) => Some(next),
            Some((false, _)) => None,
            // It has no end: a letter like any other.
            None => (letter == b'[').then_some(at + 1),
        },
        b'\\' if at + 1 < pattern.len() => (pattern[at + 1] == letter).then_some(at + 2),
        plain => (plain == letter).then_some(at + 1),
    }
}

/// Whether the set that starts here has the letter, and where the pattern goes on.
fn set(pattern: &[u8], start: usize, letter: u8) -> Option<(bool, usize)> {
    let is_inverted = matches!(pattern.get(start), Some(b'!' | b'^'));
    let first = start + usize::from(is_inverted);
    let (mut at, mut has) = (first, false);
    loop {
        let low = match *pattern.get(at)? {
            b']' if at > first => return Some((has != is_inverted, at + 1)),
            b'\\' => {
                at += 1;
                *pattern.get(at)?
            }
            low => low,
        };
        let high = pattern.get(at + 1).zip(pattern.get(at + 2));
        match high {
            Some((b'-', high)) if *high != b']' => {
                has |= (low..=*high).contains(&letter);
                at += 3;
            }
            _ => {
                has |= low == letter;
                at += 1;
            }
        }
    }
}

/// What a pattern found.
#[derive(Debug, Default)]
pub struct Found {
    /// Paths, sorted, as the pattern has them: relative if it is.
    pub paths: Vec<PathBuf>,
    /// Directories that could not be read.
    pub errors: Vec<(PathBuf, io::Error)>,
}

/// The files that a pattern stands for. One that names a file without any wildcard finds it if it
/// is there.
#[must_use]
pub fn find(pattern: &OsStr) -> Found {
    let mut found = Found::default();
    let Some(alternatives) = alternatives(pattern.as_bytes()) else {
        let error = io::Error::new(io::ErrorKind::ArgumentListTooLong, "too many alternatives");
        found.errors.push((pattern.into(), error));
        return found;
    };
    for alternative in alternatives {
        let mut parts: Vec<&[u8]> = alternative.split(|byte| *byte == b'/').collect();
        let name = parts.pop().unwrap_or_default();
        let mut directories = vec![Vec::new()];
        for (index, part) in parts.into_iter().enumerate() {
            directories = enter(&directories, part, index == 0, &mut found.errors);
        }
        let mut paths: Vec<PathBuf> = directories
            .iter()
            .flat_map(|directory| list(directory, name, &mut found.errors))
            .map(|path| PathBuf::from(OsString::from_vec(path)))
            .collect();
        // Byte by byte, as everybody sorts names in the C locale.
        paths.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
        found.paths.append(&mut paths);
    }
    found
}

/// The directories below these that a part of a pattern stands for, with a slash at the end.
fn enter(
    directories: &[Vec<u8>],
    part: &[u8],
    is_first: bool,
    errors: &mut Vec<(PathBuf, io::Error)>,
) -> Vec<Vec<u8>> {
    // The root, and slashes after one another.
    if part.is_empty() {
        let slash: &[u8] = if is_first { b"/" } else { b"" };
        return directories.iter().map(|directory| [directory, slash].concat()).collect();
    }
    let mut entered = Vec::new();
    for directory in directories {
        let below = if is_plain(part) {
            vec![[directory.as_slice(), &unescaped(part)].concat()]
        } else {
            list(directory, part, errors)
        };
        entered.extend(below.into_iter().map(|path| [path, b"/".to_vec()].concat()));
    }
    entered
}

/// The names in a directory that a part of a pattern stands for, with the directory in front.
fn list(directory: &[u8], part: &[u8], errors: &mut Vec<(PathBuf, io::Error)>) -> Vec<Vec<u8>> {
    if part.is_empty() {
        return Vec::new();
    }
    if is_plain(part) {
        let path = [directory, &unescaped(part)].concat();
        let is_there = Path::new(OsStr::from_bytes(&path)).symlink_metadata().is_ok();
        return if is_there { vec![path] } else { Vec::new() };
    }
    let path = if directory.is_empty() { b".".as_slice() } else { directory };
    let entries = match std::fs::read_dir(OsStr::from_bytes(path)) {
        Ok(entries) => entries,
        // What the pattern of a directory found may be a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Vec::new(),
        Err(error) => {
            let path = path.strip_suffix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(path);
            errors.push((OsStr::from_bytes(path).into(), error));
            return Vec::new();
        }
    };
    let names = entries.map_while(Result::ok).map(|entry| entry.file_name().into_vec());
    names.filter(|name| matches(part, name)).map(|name| [directory, &name].concat()).collect()
}

fn is_plain(part: &[u8]) -> bool {
    !part.iter().any(|letter| matches!(letter, b'*' | b'?' | b'['))
}

fn unescaped(part: &[u8]) -> Vec<u8> {
    let mut letters = part.iter().copied();
    let mut plain = Vec::new();
    while let Some(letter) = letters.next() {
        plain.push(if letter == b'\\' { letters.next().unwrap_or(letter) } else { letter });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_these_names_and_not_for_those() {
        for (pattern, name, is_match) in [
            ("*.vhd", "a.vhd", true),
            ("*.vhd", "a.vhdx", false),
            ("*.vhd", ".vhd", false),
            (".*", ".vhd", true),
            ("*", "", true),
            ("", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*a*b*c", "xxaxxbxxcb", false),
            ("VHD-*", "VHD-0a1b", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), is_match, "{pattern} {name}");
        }
        assert!(matches(b"*.vhd", b"\xff\xfe.vhd"));
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        let pattern = b"*a".repeat(200);
        assert!(!matches(&pattern, &[b'a'; 199]));
        assert!(!matches(&[&pattern[..], b"b"].concat(), &[b'a'; 2000]));
    }

    #[test]
    fn braces_make_alternatives_in_their_order() {
        for (pattern, wanted) in [
            ("a", &["a"][..]),
            ("{a,b}c", &["ac", "bc"]),
            ("x{a,{b,c}}{,d}", &["xa", "xad", "xb", "xbd", "xc", "xcd"]),
            ("{a", &["{a"]),
            ("{}", &["{}"]),
            (r"\{a,b}", &[r"\{a,b}"]),
        ] {
            let found = alternatives(pattern.as_bytes()).unwrap();
            let found: Vec<&str> =
                found.iter().map(|it| std::str::from_utf8(it).unwrap()).collect();
            assert_eq!(found, wanted, "{pattern}");
        }
        assert_eq!(alternatives(&b"{a,b}".repeat(60)), None);
    }

    #[test]
    fn files_are_found_sorted_and_directories_that_cannot_be_read_are_named() {
        let directory = std::env::temp_dir().join(format!("tools-glob-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("sub")).unwrap();
        let odd = OsStr::from_bytes(b"\xff.vhd");
        for name in ["b.vhd", "a.vhd", "c.raw", "sub/d.vhd"].map(OsStr::new).iter().chain([&odd]) {
            std::fs::write(directory.join(name), b"").unwrap();
        }
        let paths = |pattern: &str| find(directory.join(pattern).as_os_str()).paths;
        let named =
            |names: &[&str]| names.iter().map(|name| directory.join(name)).collect::<Vec<_>>();
        assert_eq!(paths("[a-z].vhd"), named(&["a.vhd", "b.vhd"]));
        assert_eq!(paths("*.vhd").last(), Some(&directory.join(odd)));
        assert_eq!(paths("{c.raw,a.vhd,none}"), named(&["c.raw", "a.vhd"]));
        assert_eq!(paths("*/d.*"), named(&["sub/d.vhd"]));
        assert_eq!(paths("none*"), named(&[]));
        let errors = find(directory.join("nodir/*.vhd").as_os_str()).errors;
        assert_eq!(errors[0].0, directory.join("nodir"));
        assert_eq!(errors[0].1.kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
