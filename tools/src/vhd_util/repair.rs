//! `vhd-util repair`: footers that are whole again.

use std::path::Path;

use vhd::plan::repair::{RepairOptions, repair};
use vhd::units::Uuid;
use vhd_files::execute::OpenFiles;

use super::image;
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "repair",
    short: "n:bh",
    long: &["--no-lock"],
    usage: "options: <-n name> <-b use the back-up footer> [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "Writes both footers from the one at the end or, where that is damaged, from the copy at the start:
a host that lost power may leave an image without the one at the end. A batmap whose checksum is
wrong is made anew from the bitmaps, and an image without identity gets one.

  -n name    the image
  -b         from the copy, whatever is at the end
  --no-lock  although another process has the image open for writing
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
    let new_uuid = Uuid::from_random(perform::random()?);
    let plan = repair(&files, RepairOptions { by_copy: options.has(b'b'), new_uuid });
    let plan = plan.map_err(|error| image::failure(path, &error));
    let mut plan = plan.map_err(|failure| perform::say_not_open(console, path, failure))?;
    perform(console, plan.as_mut(), &mut files, Watch::nothing())
}
