//! `vhd-util compact`: what an image does not need goes back to the storage.

use std::path::Path;

use vhd::plan::compact::compact;
use vhd_files::execute::OpenFiles;

use super::image;
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "compact",
    short: "n:h",
    long: &["--no-lock", "--rate="],
    usage: "options: <-n name> [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};

const HELP: &str = "Blocks without a sector, and in dynamic images blocks of zeros, leave the table; their place becomes
holes, and the file ends behind its last block. What the disk holds does not change. Prints how many
blocks went.

  -n name    the image, which nobody may use meanwhile
  --no-lock  although another process has it open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let path = Path::new(name);
    let policy = perform::policy(options)?;
    let file = perform::open(path, policy)
        .map_err(|failure| perform::say_not_open(console, path, failure))?;
    let mut files = OpenFiles::with_image(file, policy);
    let plan = compact(&files).map_err(|error| image::failure(path, &error));
    let mut plan = plan.map_err(|failure| perform::say_not_open(console, path, failure))?;
    perform(console, &mut plan, &mut files, Watch::long("compact", options, 1)?)?;
    console.print(format!("Freed {} blocks\n", plan.freed_blocks()))
}
