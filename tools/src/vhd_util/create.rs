//! `vhd-util create`: a new fixed or dynamic image.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use vhd::plan::create::{Kind, Spec, create, whole_blocks};
use vhd::units::Uuid;

use super::image;
use super::making::{self, now};
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "create",
    short: "n:s:S:rh",
    long: &["--no-lock"],
    usage: "options: <-n name> <-s size (MB)> [-r reserve] [-h help] [<-S size (MB) for \
            metadata preallocation (see vhd-util resize)>]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "A file of this name loses its contents.

  -n name    the image, a file or a device
  -s size    virtual size, in MB; rounded up to even ones, at most 2040 GB
  -r         fixed: the file is as large as the disk from the start
  -S size    dynamic: make the tables large enough for this size, so that 'resize -f' can grow it
             to that without moving data
  --no-lock  although another process has the image open for writing

  vhd-util create -n disk.vhd -s 10240
";

/// The largest number of MB whose bytes can be counted.
const MB_MAX: u64 = u64::MAX >> 20;

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let Some(name) = options.argument(b'n').filter(|_| !has_operands) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let size = options.argument(b's');
    let table = options.argument(b'S');
    let (size, table) = match (bytes(size), bytes(table)) {
        (Ok(size), Ok(table)) => (size, table),
        (Err(why), _) | (_, Err(why)) => {
            console.complain(format!("{}: {why}\n", name.display()));
            return Err(Failure::new(Errno::EINVAL, why));
        }
    };
    let is_fixed = options.has(b'r');
    if is_fixed && table.is_some() {
        return Err(Failure::new(Errno::EINVAL, "A fixed image has no tables: -S is not for -r"));
    }
    let Some(size) = size else {
        return COMMAND.refuse(console, "Option -s is needed");
    };
    if table.is_some_and(|table| table < size) {
        console.print("Error: <-S size> must be greater than <-s size>\n")?;
        return Err(Failure::new(Errno::EINVAL, "Tables smaller than the disk"));
    }
    make(console, Path::new(name), size, table, is_fixed, options)
}

/// Megabytes, as a size that a disk can have.
fn bytes(text: Option<&OsStr>) -> Result<Option<u64>, String> {
    let Some(text) = text else { return Ok(None) };
    match unsigned(text) {
        Ok(megabytes @ 1..=MB_MAX) => Ok(Some(megabytes << 20)),
        _ => Err(format!("The size is {text:?}, want a number of MB from 1 to 2088960")),
    }
}

/// Makes an image; sizes are in bytes.
pub(crate) fn make(
    console: &mut Console,
    path: &Path,
    size: u64,
    table_size: Option<u64>,
    is_fixed: bool,
    options: &Options,
) -> Result<(), Failure> {
    let failed = |error: vhd::Error| image::failure(path, &error);
    let size = whole_blocks(size).map_err(failed)?;
    let kind = if is_fixed { Kind::Fixed } else { Kind::Dynamic { metadata_size: table_size } };
    let spec = Spec { kind, size, uuid: Uuid::from_random(perform::random()?), now: now() };
    let mut files = making::place(console, path, perform::policy(options)?)?;
    let plan = create(&files, &spec);
    let mut plan = plan.map_err(|error| making::say(console, path, error.errno(), &error))?;
    let done = perform(console, &mut plan, &mut files, Watch::nothing());
    making::told(console, path, done)
}
