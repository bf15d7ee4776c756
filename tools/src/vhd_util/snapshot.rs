//! `vhd-util snapshot`: a differencing image on a parent.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use vhd::footer::DiskType;
use vhd::plan::create::{Kind, Spec, create, whole_blocks};
use vhd::units::Uuid;

use super::image::{self, Image, Reading};
use super::making::{self, ParentNames, now};
use super::perform::{self, Watch, perform};
use crate::console::{Console, Failure};
use crate::number::{atoi, unsigned};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "snapshot",
    short: "n:p:S:l:meh",
    long: &["--no-lock"],
    usage: "options: <-n name> <-p parent name> [-l snapshot depth limit] [-m parent_is_raw] \
            [-S size (MB) for metadata preallocation (see vhd-util resize)] [-e link to \
            supplied parent name even if it's empty] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 0,
    help: HELP,
    run,
};
const HELP: &str =
    "A new image that holds what is written from now on; the parent must not be written any more.

  -n name    the new image; a file of this name loses its contents
  -p name    the parent
  -m         the parent is a raw image
  -e         link to this parent, though it is a differencing image without a block of its own;
             without -e its own parent is taken then
  -l limit   refuse a chain of more than this many images
  -S size    make the tables large enough for this size in MB, for 'resize -f'
  --no-lock  although another process has the image open for writing
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let arguments = (options.argument(b'n'), options.argument(b'p'), has_operands);
    let (Some(name), Some(parent), false) = arguments else {
        return COMMAND.refuse(console, "Options -n and -p are needed");
    };
    let table = match options.argument(b'S').map(unsigned).transpose() {
        Ok(table) => table.unwrap_or(0).saturating_mul(1 << 20),
        Err(why) => return COMMAND.refuse(console, &format!("Option -S has {why}")),
    };
    let limit = options.argument(b'l').and_then(atoi).unwrap_or(0);
    make(console, Path::new(name), Path::new(parent), table, limit, options)
}

/// The image or raw file that becomes the parent.
struct Parent {
    path: PathBuf,
    image: Option<Image>,
    size: u64,
}

fn open_parent(path: &Path, is_raw: bool) -> Result<Parent, Failure> {
    let failed = |error| image::failure(path, &error);
    let path = image::canonical(path).map_err(failed)?;
    if is_raw {
        let size = image::length(&path).map_err(failed)?;
        return Ok(Parent { path, image: None, size });
    }
    let image = image::open(&path, Reading::Strict).map_err(failed)?;
    if image.footer().uuid.is_nil() {
        return Err(Failure::new(
            Errno::EINVAL,
            "The parent has no identity: 'repair' gives it one",
        ));
    }
    let size = image.virtual_size();
    Ok(Parent { path, image: Some(image), size })
}

/// The parent, or its own first ancestor that is not an empty differencing image.
fn skip_empty(mut parent: Parent) -> Result<Parent, Failure> {
    // A chain has an end, or opening it fails.
    for _ in 0..vhd::gate::DEPTH_MAX {
        let Some(image) = &parent.image else { break };
        let is_child = image.footer().disk_type == DiskType::Differencing;
        let is_empty = || image.allocated().map(|blocks| blocks == 0);
        if !is_child || !is_empty().map_err(|error| image.failure(&error))? {
            break;
        }
        let above = image.parent().map_err(|error| image.failure(&error))?;
        let size = parent.size;
        let is_raw = image.has_raw_parent();
        parent = Parent { size, ..open_parent(&above, is_raw)? };
    }
    Ok(parent)
}

/// Makes a child; `table_size` in bytes.
pub(crate) fn make(
    console: &mut Console,
    path: &Path,
    parent: &Path,
    table_size: u64,
    limit: i32,
    options: &Options,
) -> Result<(), Failure> {
    let mut parent = open_parent(parent, options.has(b'm'))?;
    if !options.has(b'e') {
        parent = skip_empty(parent)?;
    }
    let mut keyhash = None;
    if let Some(image) = &parent.image {
        let depth = image.depth().map_err(|error| image.failure(&error))?;
        if limit > 0 && i64::from(depth) >= i64::from(limit) {
            let text = format!("snapshot depth exceeded: current depth: {depth}, limit: {limit}\n");
            console.print(text)?;
            return Err(Failure::new(Errno::ENOSPC, "The chain would be too deep"));
        }
        keyhash = image.keyhash().map_err(|error| image.failure(&error))?;
    }
    if table_size > 0 && table_size < parent.size {
        let (found, wanted) = (table_size, parent.size);
        let why = format!("Tables for {found} bytes are too small for a disk of {wanted}");
        return Err(Failure::new(Errno::EINVAL, why));
    }
    if image::is_same_file(path, &parent.path) {
        return Err(Failure::new(Errno::EINVAL, "An image cannot be its own parent"));
    }
    let child =
        canonical_place(path).map_err(|error| making::say(console, path, error.errno(), &error))?;
    let names = ParentNames::of(&child, &parent.path, parent.image.as_ref());
    let names = names.map_err(|error| image::failure(path, &error))?;
    let size = whole_blocks(parent.size).map_err(|error| image::failure(path, &error))?;
    let metadata_size = (table_size > 0).then_some(table_size);
    let kind = Kind::Differencing { metadata_size, parent: names.into_spec(keyhash) };
    let spec = Spec { kind, size, uuid: Uuid::from_random(perform::random()?), now: now() };
    let mut files = making::place(console, path, perform::policy(options)?)?;
    let plan = create(&files, &spec);
    let mut plan = plan.map_err(|error| making::say(console, path, error.errno(), &error))?;
    let done = perform(console, &mut plan, &mut files, Watch::nothing());
    making::told(console, path, done)
}

/// The canonical path of a file that may not be there yet.
fn canonical_place(path: &Path) -> vhd::Result<PathBuf> {
    if path.exists() {
        return image::canonical(path);
    }
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = std::fs::canonicalize(directory.unwrap_or(Path::new(".")))?;
    Ok(directory.join(path.file_name().unwrap_or_default()))
}
