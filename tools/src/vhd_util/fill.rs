//! `vhd-util fill`: every block of an image is there.

use std::path::Path;

use nix::errno::Errno;
use vhd::batmap::KeyHash;
use vhd::plan::fill::fill;
use vhd_files::execute::OpenFiles;

use super::image::{self, Reading};
use super::key;
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "fill",
    short: "n:f:t:bBh",
    long: &["--no-lock", "--rate=", "--key="],
    usage: "options: <-n name> [-h help] [-b initialise the BAT and bitmaps, don't write to \
            the data blocks (much faster)] [-f start intialisation from this sector, only \
            usable with -b] [-t intialise up to this sector (inclusive), only usable with \
            -b] [-B ignore the 2 TB limit, only usable with -b]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "Reads all blocks through the chain and stores them in the image, so that it needs no more space
later, nor its parents for reading. What the disk holds does not change. An encrypted image needs its
key: zeros, and what a raw parent holds, are stored encrypted.

  -n name    the image; nobody may write it meanwhile
  -b         the blocks of the range that -f and -t give, or all
  -f sector  from this one
  -t sector  to this one, included
  -B         as ever; a block past 2 TiB cannot be named and is refused all the same
  --key=FILE the key of an encrypted image
  --rate=N   at most N bytes a second: 50M, 1G
  --no-lock  although another process has the image open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let range = options.has(b'f') || options.has(b't') || options.has(b'B');
    if range && !options.has(b'b') {
        return COMMAND.refuse(console, "Options -f, -t and -B are for -b");
    }
    let number = |option: u8| options.argument(option).map(unsigned).transpose();
    let (first, last) = match (number(b'f'), number(b't')) {
        (Ok(first), Ok(last)) => (first.unwrap_or(0), last),
        (Err(why), _) | (_, Err(why)) => {
            return COMMAND.refuse(console, &format!("A sector is {why}"));
        }
    };
    let path = Path::new(name);
    let policy = perform::policy(options)?;
    let file = perform::open(path, policy)
        .map_err(|failure| perform::say_not_open(console, path, failure))?;
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    let image = image.map_err(|failure| perform::say_not_open(console, path, failure))?;
    let Ok(block_size) = image.block_size() else {
        return Err(Failure::new(Errno::EINVAL, "A fixed image is full"));
    };
    let end = last.map_or(image.sector_count(), |last| last.saturating_add(1));
    if first >= end || end > image.sector_count() {
        let count = image.sector_count();
        let why = format!("Sectors {first} to {end} are asked for, the disk has {count}");
        return Err(Failure::new(Errno::ERANGE, why));
    }
    let key = key::of_options(options)?;
    let chain = image.chain_as_stored().map_err(|error| image.failure(&error))?;
    let ancestors: Vec<_> = chain.members().skip(1).map(|(_, path)| path.to_owned()).collect();
    drop((image, chain));
    let ancestors: Vec<&Path> = ancestors.iter().map(|path| path.as_path()).collect();
    let files = OpenFiles::with_image(file, policy);
    let mut files = perform::with_ancestors(files, &ancestors)?;
    if let Some(key) = &key {
        files = files.and_key(key);
    }
    let sectors = options.has(b'b').then_some(first..end);
    let opens = key.as_ref().map(|key| |keyhash: &KeyHash| key.opens(keyhash));
    let opens = opens.as_ref().map(|opens| opens as &dyn Fn(&KeyHash) -> bool);
    let mut plan = fill(&files, sectors, opens).map_err(|error| image::failure(path, &error))?;
    let watch = Watch::long("fill", options, block_size.bytes())?;
    perform(console, plan.as_mut(), &mut files, watch)
}
