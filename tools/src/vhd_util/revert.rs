//! `vhd-util revert`: undoes a resize that did not come to its end.

use std::path::Path;

use vhd::plan::revert::revert;
use vhd_files::execute::OpenFiles;
use vhd_files::lock::Policy;

use super::image;
use super::perform::{self, Watch, errno_of, perform};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "revert",
    short: "n:j:h",
    long: &["--no-lock"],
    usage: "options: <-n name> <-j journal> [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str =
    "Puts back what a resize with this journal has changed, and removes the journal. An image whose
resize had not begun, or was done, stays as it is. Killed at any point, it can be run again.

  -n name     the image
  -j journal  what 'resize -j' was given
  --no-lock   although another process has the image open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let arguments = (options.argument(b'n'), options.argument(b'j'), has_operands);
    let (Some(name), Some(journal), false) = arguments else {
        return COMMAND.refuse(console, "Options -n and -j are needed");
    };
    let (path, journal) = (Path::new(name), Path::new(journal));
    let policy = perform::policy(options)?;
    // Who has the image has its journal, too.
    let opened = perform::open(journal, Policy::Never).and_then(|journal| {
        let files = OpenFiles::with_image(perform::open(path, policy)?, policy);
        Ok(files.and_journal(journal))
    });
    let planned = opened.and_then(|files| {
        let plan = revert(&files).map_err(|error| image::failure(journal, &error))?;
        Ok((files, plan))
    });
    let (mut files, mut plan) = match planned {
        Ok(planned) => planned,
        Err(failure) => {
            console.print(format!("opening journal failed: {}\n", -errno_of(&failure)))?;
            return Err(failure);
        }
    };
    perform(console, plan.as_mut(), &mut files, Watch::nothing()).or_else(|failure| {
        console.print(format!("reverting journal failed: {}\n", -errno_of(&failure)))?;
        Err(failure)
    })
}
