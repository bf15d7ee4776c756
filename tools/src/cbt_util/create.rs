//! `cbt-util create`: a new log, with no block changed.

use std::path::Path;

use super::log::{Header, Log};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(super) const COMMAND: Command = Command {
    name: "create",
    short: "n:s:h",
    long: &[],
    usage: "cbt-util create: Create new CBT metadata log with default values\n\nOptions:\n\t-n Log \
            file name\n\t-s Num blocks in bitmap\n\t[-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: "Replaces a file of that name.

  -n name   the log
  -s bytes  size of the disk, in bytes
",
    run,
};

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let (Some(name), Some(size)) = (options.argument(b'n'), options.argument(b's')) else {
        return COMMAND.refuse(console, "Options -n and -s are needed");
    };
    let size = match unsigned(size) {
        Ok(0) => return COMMAND.refuse(console, "Option -s has 0, want the bytes of a disk"),
        Err(why) => return COMMAND.refuse(console, &format!("Option -s has {why}")),
        Ok(size) => size,
    };
    let log = Log::create(console, Path::new(name))?;
    let header = Header::new(size);
    log.set_header(console, &header)?;
    log.set_length(&header)?;
    log.sync()
}
