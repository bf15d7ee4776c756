//! `cbt-util get`: one field of a log.

use std::path::Path;

use vhd::units::Uuid;

use super::log::{Header, Log, pieces};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(super) const COMMAND: Command = Command {
    name: "get",
    short: "n:pcfsbh",
    long: &[],
    usage: "cbt-util get: Read field from log file\n\nOptions:\n -n name\tName of log \
            file\n[-p]\t\tPrint parent log file UUID\n[-c]\t\tPrint child log file \
            UUID\n[-f]\t\tPrint consistency flag\n[-s]\t\tPrint size of disk in \
            bytes\n[-b]\t\tPrint bitmap contents\n[-h]\t\thelp\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: "Exactly one of the fields is printed.

  -n name  the log
  -p, -c   the logs before and after it
  -f       1: every write since the log began is in it
  -s       size of the disk, in bytes
  -b       the bitmap, raw: bit N%8 of byte N/8 is the Nth block of 64 KiB
",
    run,
};

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let fields: Vec<u8> = b"pcfsb".iter().copied().filter(|field| options.has(*field)).collect();
    let (Some(name), [field]) = (options.argument(b'n'), fields.as_slice()) else {
        return COMMAND.refuse(console, "Option -n and exactly one of -p -c -f -s -b are needed");
    };
    let log = Log::open(console, Path::new(name), false)?;
    let header = log.header(console)?;
    let text = match field {
        b'p' => Uuid(header.parent).to_string(),
        b'c' => Uuid(header.child).to_string(),
        b'f' => header.consistent.to_string(),
        b's' => header.size.to_string(),
        _ => return print_bitmap(console, &log, &header),
    };
    console.print(format!("{text}\n"))
}

/// All of it or nothing: half a bitmap would be taken for a whole one.
fn print_bitmap(console: &mut Console, log: &Log, header: &Header) -> Result<(), Failure> {
    let bitmap_is_there = log.check_bitmap(header);
    if bitmap_is_there.is_err() {
        console.complain(format!("Failed to read bitmap from file {}\n", log.name()));
        return bitmap_is_there;
    }
    let mut piece = Vec::new();
    for (at, length) in pieces(header.bitmap_size()) {
        piece.resize(length, 0);
        log.read(&mut piece, at)?;
        console.print(&piece)?;
    }
    Ok(())
}
