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
    help: "One line of JSON and an empty one. Minor 65535 stands for all disks of the tapdisk.
secs, hits, fail: sectors of 512 bytes [ read, written ]; latency_us: [ up to, how many ].

  --json  the same, checked and spread over lines
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let (client, minor) = options.disk(session)?;
    let mut bytes = client.stats(minor)?;
    if options.has_long("--json") {
        let mut text = format!("{:#}", parse(&bytes, client.process())?);
        text.push('\n');
        return session.print(text);
    }
    bytes.extend_from_slice(b"\n\n");
    session.print(bytes)
}

/// What the daemon sent, as a value. Names of files need not be UTF-8; here they are made so.
pub(crate) fn parse(bytes: &[u8], pid: i32) -> Result<Value, ControlError> {
    serde_json::from_str(&String::from_utf8_lossy(bytes)).map_err(|error| {
        let attempt = format!("Reading the statistics of tapdisk {pid}: no JSON, {error}");
        ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt)
    })
}
