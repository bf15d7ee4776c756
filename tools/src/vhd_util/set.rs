//! `vhd-util set`: the fields that a storage manager uses for itself.

use std::path::Path;

use vhd::plan::Plan;
use vhd::plan::set::{set_hidden, set_marker};
use vhd_files::execute::OpenFiles;

use super::attribute;
use super::image::{self, Reading};
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::number::atoi;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "set",
    short: "n:f:v:h",
    long: &["--no-lock"],
    usage: "options: <-n name> <-f field> <-v value> [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "  -n name    the image
  -f hidden  not 0: will be removed; scans and queries tell. A full storage can still hide an image
  -f marker  free for a storage manager
  -v value   0 to 255
  --no-lock  although another process has the image open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let arguments = [b'n', b'f', b'v'].map(|option| options.argument(option));
    let ([Some(name), Some(field), Some(value)], false) = (arguments, has_operands) else {
        return COMMAND.refuse(console, "Options -n, -f and -v are needed");
    };
    if field != "hidden" && field != "marker" {
        console.print(format!("invalid field {}\n", field.display()))?;
        return COMMAND.refuse(console, "The fields are hidden and marker");
    }
    let number = atoi(value).unwrap_or(-1);
    let Ok(value) = u8::try_from(number) else {
        console.print(format!("invalid value {number}\n"))?;
        return COMMAND.refuse(console, "A value is a number from 0 to 255");
    };
    let path = Path::new(name);
    set(console, path, field == "marker", value, options)
}

/// Sets one field; says why it cannot.
pub(crate) fn set(
    console: &mut Console,
    path: &Path,
    is_marker: bool,
    value: u8,
    options: &Options,
) -> Result<(), Failure> {
    let policy = perform::policy(options)?;
    let file = perform::open(path, policy)
        .map_err(|failure| perform::say_not_open(console, path, failure))?;
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    let image = image.map_err(|failure| perform::say_not_open(console, path, failure))?;
    if is_marker && image.batmap_header().is_ok_and(|header| header.is_none()) {
        let set = attribute::set(path, "marker", &[value]);
        return set.map_err(|error| Failure::io("Cannot set the attribute", &error));
    }
    drop(image);
    let mut files = OpenFiles::with_image(file, policy);
    let plan: vhd::Result<Box<dyn Plan>> = if is_marker {
        set_marker(&files, value).map(|steps| Box::new(steps) as Box<dyn Plan>)
    } else {
        set_hidden(&files, value)
    };
    let mut plan = plan.map_err(|error| image::failure(path, &error))?;
    perform(console, plan.as_mut(), &mut files, Watch::nothing())
}
