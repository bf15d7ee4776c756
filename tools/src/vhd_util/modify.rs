//! `vhd-util modify`: another parent, another place of the footer, or nothing in it.

use std::path::Path;

use nix::errno::Errno;
use vhd::plan::modify::{modify_parent, modify_size, modify_zero};
use vhd_files::execute::OpenFiles;

use super::image::{self, Reading};
use super::making::ParentNames;
use super::perform::{self, Watch, errno_of, perform};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "modify",
    short: "n:s:p:mzh",
    long: &["--no-lock"],
    usage: "*** Dangerous operations, use with care ***\noptions: <-n name> [-p NEW_PARENT \
            set parent [-m raw]] [-s NEW_SIZE set size] [-z zero (kill data)] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "What the disk shows changes, unless the caller knows better.

  -n name    the image
  -p name    link to another parent, which must hold what the old one did
  -m         that is a raw image
  -s size    the footer is at the end of so many bytes: of a volume that was made larger or smaller
  -z         take all blocks away
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
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    drop(image.map_err(|failure| perform::say_not_open(console, path, failure))?);
    let mut files = OpenFiles::with_image(file, policy);
    if let Some(size) = options.argument(b's') {
        // As ever: what is no number is too small.
        let size = unsigned(size).unwrap_or(0);
        let plan = modify_size(&files, size).map_err(|error| image::failure(path, &error));
        let done =
            plan.and_then(|mut plan| perform(console, &mut plan, &mut files, Watch::nothing()));
        said(console, done, &format!("failed to set physical size to {size}"))?;
    }
    if let Some(parent) = options.argument(b'p').map(Path::new) {
        let done = reparent(console, path, parent, &mut files, options.has(b'm'));
        said(console, done, &format!("failed to set parent to '{}'", parent.display()))?;
    }
    if options.has(b'z') {
        let plan = modify_zero(&files).map_err(|error| image::failure(path, &error));
        let done =
            plan.and_then(|mut plan| perform(console, &mut plan, &mut files, Watch::nothing()));
        said(console, done, "failed to zero VHD")?;
    }
    Ok(())
}

fn said(console: &mut Console, done: Result<(), Failure>, what: &str) -> Result<(), Failure> {
    match done {
        Err(failure @ Failure::Errno { .. })
            if !perform::is_stop_wanted("VHD_UTIL_TEST_FAIL_REPARENT_") =>
        {
            console.print(format!("{what}: {}\n", -errno_of(&failure)))?;
            Err(failure)
        }
        done => done,
    }
}

fn reparent(
    console: &mut Console,
    path: &Path,
    parent: &Path,
    files: &mut OpenFiles,
    is_raw: bool,
) -> Result<(), Failure> {
    let failed = |error: vhd::Error| image::failure(parent, &error);
    let canonical = image::canonical(parent).map_err(failed)?;
    if !std::fs::metadata(&canonical).is_ok_and(|it| !it.is_dir()) {
        return Err(Failure::new(Errno::EINVAL, "A parent is a file or a device"));
    }
    if image::is_same_file(path, &canonical) {
        return Err(Failure::new(Errno::EINVAL, "An image cannot be its own parent"));
    }
    let image =
        if is_raw { None } else { Some(image::open(&canonical, Reading::Strict).map_err(failed)?) };
    let child = image::canonical(path).map_err(|error| image::failure(path, &error))?;
    let names = ParentNames::of(&child, &canonical, image.as_ref()).map_err(failed)?;
    let plan = modify_parent(files, &names.borrowed());
    let mut plan = plan.map_err(|error| image::failure(path, &error))?;
    perform(console, &mut plan, files, Watch::nothing())
}
