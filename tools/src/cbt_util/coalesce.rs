//! `cbt-util coalesce`: the blocks of an older log are changed in the newer one too.

use std::path::Path;

use nix::errno::Errno;

use super::log::{Log, pieces};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(super) const COMMAND: Command = Command {
    name: "coalesce",
    short: "p:c:h",
    long: &[],
    usage: "cbt-util coalesce: Coalesce contents of parent bitmap on to child \
            bitmap\n\nOptions:\n\t-p Parent log file name\n\t-c Child log file name\n\t[-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: "Afterwards a block counts as changed in the child when it did in either. A disk that was
resized in between has the larger child. Run again after an interruption, it ends the same.

  -p name  the older log, which is only read
  -c name  the newer one
",
    run,
};

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let (Some(parent), Some(child)) = (options.argument(b'p'), options.argument(b'c')) else {
        return COMMAND.refuse(console, "Options -p and -c are needed");
    };
    let parent = Log::open(console, Path::new(parent), false)?;
    let parent_header = parent.header(console)?;
    let child = Log::open(console, Path::new(child), true)?;
    let child_header = child.header(console)?;
    if parent_header.size > child_header.size {
        console.complain("Parent bitmap larger than child bitmap,can't coalesce");
        let (found, wanted) = (parent_header.size, child_header.size);
        let why = format!("The parent's disk has {found} bytes, more than the child's {wanted}");
        return Err(Failure::new(Errno::EINVAL, why));
    }
    for (log, header) in [(&parent, &parent_header), (&child, &child_header)] {
        let bitmap_is_there = log.check_bitmap(header);
        if bitmap_is_there.is_err() {
            console.complain("Failed to read bitmap\n");
            return bitmap_is_there;
        }
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (at, length) in pieces(parent_header.bitmap_size()) {
        from.resize(length, 0);
        to.resize(length, 0);
        parent.read(&mut from, at)?;
        child.read(&mut to, at)?;
        if from.iter().zip(&to).all(|(from, to)| from & !to == 0) {
            continue;
        }
        for (from, to) in from.iter().zip(&mut to) {
            *to |= from;
        }
        child.write(&to, at)?;
    }
    child.sync()
}
