//! `vhd-util resize`: another virtual size.

use std::path::Path;

use nix::errno::Errno;
use vhd::footer::DiskType;
use vhd::plan::Plan;
use vhd::plan::resize::{resize, resize_in_table, shrink};
use vhd_files::execute::OpenFiles;

use super::image::{self, Reading};
use super::perform::{self, Watch, errno_of, perform};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "resize",
    short: "n:s:j:fh",
    long: &["--no-lock", "--shrink"],
    usage: "options: <-n name> <-s size (in MB)> (<-j journal>|<-f fast>) [-h help]\n\nThe \
            resize operation can only be performed offline and must be journaled because \
            resizing the metadata might require moving data blocks. However, if a VHD was \
            created with -S <msize> option (during vhd-util create/snapshot), which \
            preallocates the metadata for growing the VHD up to size <msize>, then resizing \
            such a VHD up to <msize> can be performed online without journaling (-f \
            option).\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "A disk grows in whole blocks of 2 MB. A fixed one may also shrink.

  -n name     the image, which nobody may use meanwhile
  -s size     its new virtual size, in MB
  -f          as far as its table allows: 'query -S' says how far that is
  -j journal  a new file: what is overwritten is kept there until all is done. After a crash
              'revert' with it brings back what was; without that the image cannot be opened
  --shrink    a dynamic disk, too: the data past its new end are gone
  --no-lock   although another process has the image open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let (fast, journal) = (options.has(b'f'), options.argument(b'j'));
    let arguments = (options.argument(b'n'), options.argument(b's'), has_operands);
    let (Some(name), Some(size), false) = arguments else {
        return COMMAND.refuse(console, "Options -n and -s are needed");
    };
    if fast == journal.is_some() {
        return COMMAND.refuse(console, "Either -f or -j is needed");
    }
    let size = match unsigned(size).map(|size| size.checked_mul(1 << 20)) {
        Ok(Some(size)) if size > 0 => size,
        Ok(_) => return COMMAND.refuse(console, "Option -s has no size that a disk can have"),
        Err(why) => return COMMAND.refuse(console, &format!("Option -s has {why}")),
    };
    let path = Path::new(name);
    let policy = perform::policy(options)?;
    let file = perform::open(path, policy)
        .map_err(|failure| perform::say_not_open(console, path, failure))?;
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    let image = image.map_err(|failure| perform::say_not_open(console, path, failure))?;
    if !image.footer().is_by_this_family() {
        let name = path.display();
        console.print(format!("{name} not created by xen; resize not supported\n"))?;
        return Err(Failure::new(Errno::EINVAL, "Its creator may have metadata of its own"));
    }
    let (current, is_fixed) = (image.virtual_size(), image.footer().disk_type == DiskType::Fixed);
    drop(image);
    if fast && size < current {
        let name = path.display();
        console.print(format!("{name}: size ({size}) < curr size ({current})\n"))?;
        return Err(Failure::new(Errno::EINVAL, "A fast resize only grows a disk"));
    }
    let files = OpenFiles::with_image(file, policy);
    let Some(journal) = journal.map(Path::new) else {
        let mut files = files;
        let plan = resize_in_table(&files, size).map_err(|error| image::failure(path, &error));
        return perform(console, &mut plan?, &mut files, Watch::nothing());
    };
    if let Err(failure) = check_journal(journal) {
        console.print(format!("creating journal failed: {}\n", -errno_of(&failure)))?;
        return Err(failure);
    }
    let mut files = files.and_new_journal(journal);
    let is_smaller = size < current && !is_fixed;
    if is_smaller && !options.has_long("--shrink") {
        console.print("dynamic shrink not fully implemented\nresize failed: -38\n")?;
        return Err(Failure::new(
            Errno::ENOSYS,
            "What is past the new end would be lost: --shrink",
        ));
    }
    let plan: vhd::Result<Box<dyn Plan>> = if is_smaller {
        shrink(&files, size).map(|steps| Box::new(steps) as Box<dyn Plan>)
    } else {
        resize(&files, size)
    };
    let plan = plan.map_err(|error| image::failure(path, &error));
    let watch = Watch::long("resize", options, 1)?;
    let done = plan.and_then(|mut plan| perform(console, plan.as_mut(), &mut files, watch));
    match done {
        // A stop that was asked for has said so already.
        Err(failure @ Failure::Errno { .. })
            if !perform::is_stop_wanted("VHD_UTIL_TEST_FAIL_RESIZE_") =>
        {
            console.print(format!("resize failed: {}\n", -errno_of(&failure)))?;
            Err(failure)
        }
        done => done,
    }
}

/// A journal is a new file in a directory that there is.
fn check_journal(path: &Path) -> Result<(), Failure> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    if let Err(error) = std::fs::metadata(directory) {
        return Err(Failure::io(&directory.display().to_string(), &error));
    }
    match std::fs::metadata(path) {
        Ok(it) if std::os::unix::fs::FileTypeExt::is_block_device(&it.file_type()) => Ok(()),
        Ok(_) => {
            let why = format!("{} is there already: a journal that is needed?", path.display());
            Err(Failure::new(Errno::EEXIST, why))
        }
        Err(_) => Ok(()),
    }
}
