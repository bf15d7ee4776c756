//! `cbt-util set`: changes fields of a log.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use vhd::units::Uuid;

use super::log::Log;
use crate::console::{Console, Failure};
use crate::number::{atoi, unsigned};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(super) const COMMAND: Command = Command {
    name: "set",
    short: "n:p:c:f:s:h",
    long: &[],
    usage: "cbt-util set: Set field in log file\n\nOptions:\n -n name\tName of log file\n[-p \
            parent]\tParent log file UUID\n[-c child]\tChild log file UUID\n[-f 0|1]\tConsistency \
            flag\n[-s size]\tSize of the disk in bytes\n[-h]\t\thelp\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: "Any of the fields, at least one.

  -n name   the log
  -p uuid   the log before it; what is no uuid changes nothing, as ever
  -c uuid   the log after it; the same
  -f flag   1: every write since the log began is in it
  -s bytes  size of the disk, which only grows; the new blocks are unchanged ones
",
    run,
};

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_field = b"pcfs".iter().any(|field| options.has(*field));
    let (Some(name), true) = (options.argument(b'n'), has_field) else {
        return COMMAND.refuse(console, "Option -n and at least one of -p -c -f -s are needed");
    };
    let size = match options.argument(b's').map(unsigned).transpose() {
        Ok(size) => size,
        Err(why) => return COMMAND.refuse(console, &format!("Option -s has {why}")),
    };
    let log = Log::open(console, Path::new(name), true)?;
    let mut header = log.header(console)?;
    if let Some(parent) = options.argument(b'p').and_then(parse_uuid) {
        header.parent = parent;
    }
    if let Some(child) = options.argument(b'c').and_then(parse_uuid) {
        header.child = child;
    }
    if let Some(flag) = options.argument(b'f') {
        header.consistent = atoi(flag).unwrap_or(0);
    }
    if let Some(size) = size {
        if size < header.size {
            let found = header.size;
            console.complain(format!("Size smaller than current file size ({found})\n"));
            return Err(Failure::new(Errno::EINVAL, "A disk with a log can only grow"));
        }
        let bitmap_is_there = log.check_bitmap(&header);
        if bitmap_is_there.is_err() {
            console.complain(format!("Failed to read bitmap from file {}\n", log.name()));
            return bitmap_is_there;
        }
        header.size = size;
        // The room first: a header that claims more than there is could not be read again.
        log.set_length(&header)?;
        log.sync()?;
    }
    log.set_header(console, &header)?;
    log.sync()
}

/// The one form that uuid_parse of the C library takes.
fn parse_uuid(text: &OsStr) -> Option<[u8; 16]> {
    text.to_str()?.parse::<Uuid>().ok().map(|uuid| uuid.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_a_uuid() {
        assert!(parse_uuid(OsStr::new("0a1b2c3d-0001-4002-8003-000000000001")).is_some());
        for text in ["", "not-a-uuid", "0a1b2c3d000140028003000000000001", "{0a1b2c3d-0001-4002}"] {
            assert_eq!(parse_uuid(OsStr::new(text)), None, "{text}");
        }
    }
}
