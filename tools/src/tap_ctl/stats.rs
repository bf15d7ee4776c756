//! `tap-ctl stats`: the statistics of a disk, as JSON.

use nix::errno::Errno;
use serde_json::Value;
use tapdisk_control::{ControlError, ErrorKind};

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "stats",
    short: "p:m:h",
    long: &["--json"],
    usage: "usage: stats <-p pid> <-m minor>\n\nPrints a Python dictionary with the VBD stats. The images \
            are listed in reverse order (leaf to root)\n",
    help: "One line of JSON and an empty one, with the keys of blktap. Minor 65535 stands for all disks of
the tapdisk. secs, hits, fail: sectors of 512 bytes [ read, written ].

  --json  all that there is, checked and spread over lines: also latency_us: [ up to, how many ],
          retries, the queue, the doors
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    let bytes = client.stats(minor)?;
    if options.has_long("--json") {
        let mut text = format!("{:#}", parse(&bytes, client.process())?);
        text.push('\n');
        return session.print(text);
    }
    let mut bytes = established(&bytes);
    bytes.extend_from_slice(b"\n\n");
    session.print(bytes)
}

/// Our own keys begin with this one, after those that every tapdisk has. Inside a string its quotes
/// would be escaped.
const OWN_KEYS: &[u8] = br#", "latency_us": "#;

/// The document without our own keys: what programs that were written for blktap expect to the
/// letter.
fn established(document: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(document.len());
    let mut rest = document;
    while let Some(at) = find(rest, OWN_KEYS) {
        kept.extend_from_slice(&rest[..at]);
        let (_, own) = rest.split_at(at);
        // They end with their object: at the brace that closes more than they opened.
        rest = &own[object_end(own)..];
    }
    kept.extend_from_slice(rest);
    kept
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Where the object ends that `bytes` is the middle of: at ` }` without its opening brace. The
/// values of our own keys are numbers and words without braces.
fn object_end(bytes: &[u8]) -> usize {
    let mut depth = 0_usize;
    for (index, byte) in bytes.iter().enumerate() {
        match (byte, depth) {
            (b'{', _) => depth += 1,
            (b'}', 0) => return index.saturating_sub(1),
            (b'}', _) => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

/// What the daemon sent, as a value. Names of files need not be UTF-8; here they are made so.
pub(crate) fn parse(bytes: &[u8], pid: i32) -> Result<Value, ControlError> {
    serde_json::from_str(&String::from_utf8_lossy(bytes)).map_err(|error| {
        let attempt = format!("Reading the statistics of tapdisk {pid}: no JSON, {error}");
        ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_keys_are_left_out_of_each_document() {
        let one = br#"{ "a": 1, "latency_us": { "read": [ [ 1, 2 ] ] }, "nbd": { "x": 1 } }"#;
        assert_eq!(established(one), br#"{ "a": 1 }"#);
        let two = br#"[ { "a": 1, "latency_us": {  } }, { "b": 2, "latency_us": {  } } ]"#;
        assert_eq!(established(two), br#"[ { "a": 1 }, { "b": 2 } ]"#);
    }

    #[test]
    fn a_document_without_our_keys_stays_as_it_is() {
        let foreign = br#"{ "name": "x, \"latency_us\": {", "secs": [ 0, 0 ] }"#;
        assert_eq!(established(foreign), foreign);
    }
}
