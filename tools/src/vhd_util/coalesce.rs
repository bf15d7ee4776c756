//! `vhd-util coalesce`: what an image holds goes into its parent.

use std::path::Path;

use nix::errno::Errno;
use vhd::batmap::KeyHash;
use vhd::plan::coalesce::coalesce;
use vhd_files::execute::OpenFiles;

use super::image::{self, Reading};
use super::key;
use super::perform::{self, Watch, errno_of, perform};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "coalesce",
    // As ever three that nobody may give.
    short: "n:o:a:x:sph",
    long: &["--no-lock", "--rate=", "--key="],
    usage: "options: <-n name> [-s sparse] [-p progress] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str = "Copies the sectors of a differencing image into its direct parent, which then holds all that the
image shows. The image stays as it is, and so does what it shows: killed at any point, it can be
run again. Prints 'Coalesced N sectors'. The two are in one key, or in none; into a raw parent the data
of an encrypted image go decrypted.

  -n name    the image; nobody may write it or its parent meanwhile
  -p         progress in percent, also where there is no terminal
  -s         as ever; what is not written is not stored anyhow
  --key=FILE the key of an encrypted image: for a raw parent, or to see that it is that of both
  --rate=N   at most N bytes a second: 50M, 1G
  --no-lock  although another process has the parent open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    if [b'o', b'a', b'x'].iter().any(|option| options.has(*option)) {
        return COMMAND.refuse(console, "There are no options -o, -a and -x");
    }
    let path = Path::new(name);
    start(console, path, options).or_else(|failure| match failure {
        Failure::Output(error) => Err(Failure::Output(error)),
        failure => {
            console.print(format!("error coalescing: {}\n", -errno_of(&failure)))?;
            Err(failure)
        }
    })
}

fn start(console: &mut Console, path: &Path, options: &Options) -> Result<(), Failure> {
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    let image = image.map_err(|failure| perform::say_not_open(console, path, failure))?;
    if !image.is_differencing() {
        console.print("coalescing of non-differencing disks is not supported\n")?;
        return Err(Failure::new(Errno::EINVAL, "The image has no parent"));
    }
    let parent = image.parent().and_then(|parent| {
        // Its data are read and written at once.
        let is_loop = image::is_same_file(path, &parent);
        if is_loop { Err(vhd::ErrorKind::ChainLoop.into()) } else { Ok(parent) }
    });
    let parent = match parent {
        Ok(parent) => parent,
        Err(error) => {
            let name = path.display();
            console.print(format!("error finding {name} parent: {}\n", -error.errno()))?;
            return Err(image.failure(&error));
        }
    };
    let is_raw = image.has_raw_parent();
    let policy = perform::policy(options)?;
    let target = perform::open(&parent, policy);
    let checked = target.and_then(|target| {
        if !is_raw {
            let opened = image::open(&parent, Reading::Strict);
            opened.map_err(|error| image::failure(&parent, &error))?;
        }
        Ok(target)
    });
    let target = checked.map_err(|failure| {
        if is_raw {
            let text =
                format!("failed to open parent {}: {}\n", parent.display(), -errno_of(&failure));
            console.print(text).err().unwrap_or(failure)
        } else {
            perform::say_not_open(console, &parent, failure)
        }
    })?;
    if options.has(b's') && !is_raw {
        console.print("opening for sparse writes\n")?;
    }
    let block = image.block_size().map_or(1, |size| size.bytes());
    drop(image);
    let source = perform::open_for_reading(path)?;
    let mut files = OpenFiles::with_image(source, policy).and_ancestor(target);
    let key = key::of_options(options)?;
    if let Some(key) = &key {
        files = files.and_key(key);
    }
    let opens = key.as_ref().map(|key| |keyhash: &KeyHash| key.opens(keyhash));
    let opens = opens.as_ref().map(|opens| opens as &dyn Fn(&KeyHash) -> bool);
    let mut plan = coalesce(&files, opens).map_err(|error| image::failure(path, &error))?;
    let mut watch = Watch::long("coalesce", options, block)?;
    if options.has(b'p') {
        watch = watch.with_percent();
    }
    perform(console, &mut plan, &mut files, watch)?;
    // As ever without the end of the line.
    console.print(format!("Coalesced {} sectors", plan.sectors()))
}
