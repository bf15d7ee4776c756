//! The words between a host and the agent in a machine: one line for each, printable.
//!
//! A line is `vm:` and words; bytes of a word that could be taken for something else are written as
//! `%` and two digits. So the same lines pass through a virtio port, the console of a guest - where
//! the kernel may say something in between - and a line inside a word of another line.
//!
//! | to the machine | |
//! |---|---|
//! | `hello N` | answered with `ready N` |
//! | `run ID PROGRAM ARGUMENT...` | starts it, as a process group of its own |
//! | `in ID BYTES`, `close ID` | to its standard input; closes that |
//! | `kill ID SIGNAL` | a signal, by number, for the process group |
//!
//! | from the machine | |
//! |---|---|
//! | `out ID BYTES`, `err ID BYTES` | what it wrote |
//! | `end ID STATUS` | how it ended: the status, or 128 and the signal; 127: it could not be run |

use std::io::{self, BufRead};

/// What a line of ours has before its words. No word contains it.
const MARK: &[u8] = b"vm:";

/// The longest line that is read; longer ones are cut there and so mean nothing.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// The most bytes of output in one word: small enough to be told early, large enough to be cheap.
pub const CHUNK_BYTES: usize = 16 << 10;

/// The line with these words.
#[must_use]
pub fn encode<W: AsRef<[u8]>>(words: &[W]) -> Vec<u8> {
    let mut line = MARK.to_vec();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        for &byte in word.as_ref() {
            if byte.is_ascii_graphic() && byte != b'%' && byte != b':' {
                line.push(byte);
            } else {
                line.extend_from_slice(format!("%{byte:02x}").as_bytes());
            }
        }
    }
    line.push(b'\n');
    line
}

/// The words of a line; nothing when it is not one of ours.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    // Something else may have begun on the same line.
    let start = line.windows(MARK.len()).rposition(|window| window == MARK)? + MARK.len();
    line[start..].trim_ascii_end().split(|byte| *byte == b' ').map(unescape).collect()
}

fn unescape(word: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let digits = [*rest.next()?, *rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

/// Reads a line with its end, of bounded length; an empty one at the end of the stream.
///
/// # Errors
/// Those of the stream.
pub fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut bounded = io::Read::take(from, LINE_BYTES_MAX);
    bounded.read_until(b'\n', &mut line)?;
    Ok(line)
}

/// A word that is a number.
#[must_use]
pub fn number<N: std::str::FromStr>(word: &[u8]) -> Option<N> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_bytes_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        let words: Vec<&[u8]> = vec![b"run", b"", &all, b"vm:", b"a b%\n"];
        let line = encode(&words);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode(&line).unwrap(), words);
    }

    #[test]
    fn a_line_inside_a_word_comes_back() {
        let inner = encode(&["out", "1", "x y"]);
        let outer = encode(&[b"in".as_slice(), b"7", &inner]);
        assert_eq!(decode(&outer).unwrap()[2], inner);
    }

    #[test]
    fn a_line_behind_half_of_another_is_found() {
        let mut line = b"[    1.2] kvm: no hardware support vm:run 1".to_vec();
        line.extend_from_slice(&encode(&["end", "3", "0"]));
        assert_eq!(decode(&line).unwrap(), [b"end".as_slice(), b"3", b"0"]);
    }

    #[test]
    fn what_is_not_ours_means_nothing() {
        for line in ["", "\n", "[  0.1] Linux version", "vm:run %4", "vm:run %zz", "vm"] {
            assert_eq!(decode(line.as_bytes()), None, "{line:?}");
        }
    }
}
