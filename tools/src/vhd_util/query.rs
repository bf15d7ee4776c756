//! `vhd-util query`: what a storage manager asks of an image, one line for each question.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use vhd::footer::DiskType;

use super::image::{self, Image, Reading};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "query",
    short: "n:vspfdSmauh",
    long: &["--json"],
    usage: "options: <-n name> [-v print virtual size (in MB)] [-s print physical \
            utilization (bytes)] [-p print parent] [-f print fields] [-m print marker] [-d \
            print chain depth] [-S print max virtual size (MB) for fast resize] [-a print \
            allocated block count] [-u don't resolve parent path] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 0,
    help: HELP,
    run,
};

const HELP: &str = "The lines come in this order, whatever the order of the options:

  -n name  the image
  -v       virtual size, in MB
  -s       size of the file that is in use, in bytes: where the footer ends
  -p       path of the parent, 'NAME has no parent', or 'query failed' when it is not found
  -u       with -p: as it is in the image, not looked for
  -f       'hidden: N'
  -m       'marker: N'
  -d       'chain depth: N', the image included
  -a       how many blocks of 2 MB are allocated
  -S       the virtual size, in MB, to which 'resize -f' can grow it
  --json   all of these, as one object
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let path = Path::new(name);
    let image = match image::open(path, Reading::Lenient) {
        Ok(image) => image,
        Err(error) => {
            let errno = error.errno();
            console.print(format!("error opening {}: {}\n", path.display(), -errno))?;
            return Err(image::failure(path, &error));
        }
    };
    if options.has_long("--json") {
        let object = Value::Object(object(&image));
        return console.print(format!("{object:#}\n"));
    }
    let mut first = Ok(());
    for question in b"vspfmdaS".iter().filter(|question| options.has(**question)) {
        let answered = match question {
            b'v' => console.print(format!("{}\n", image.footer().current_size >> 20)),
            b's' => size(console, &image),
            b'p' => parent(console, &image, options.has(b'u')),
            b'f' => field(console, &image, "hidden", image.hidden()),
            b'm' => field(console, &image, "marker", image.marker()),
            b'd' => depth(console, &image),
            b'a' => allocated(console, &image),
            _ => console.print(format!("{}\n", fast_resize_mb(&image))),
        };
        match answered {
            Err(Failure::Output(error)) => return Err(Failure::Output(error)),
            answered => first = first.and(answered),
        }
    }
    first
}

fn size(console: &mut Console, image: &Image) -> Result<(), Failure> {
    match image.physical_size() {
        Ok(size) => console.print(format!("{size}\n")),
        Err(error) => failed(console, image, "failed to get physical size", &error),
    }
}

fn parent(console: &mut Console, image: &Image, as_it_is: bool) -> Result<(), Failure> {
    if image.footer().disk_type != DiskType::Differencing {
        return console.print(format!("{} has no parent\n", image.path().display()));
    }
    let name = if as_it_is { image.parent_name().map(PathBuf::from) } else { image.parent() };
    match name {
        Ok(name) => console.print([name.as_os_str().as_bytes(), b"\n"].concat()),
        Err(error) => {
            console.print("query failed\n")?;
            Err(image::failure(image.path(), &error))
        }
    }
}

/// A byte; as ever, one above 127 counts as negative.
fn field(
    console: &mut Console,
    image: &Image,
    name: &str,
    value: vhd::Result<u8>,
) -> Result<(), Failure> {
    match value {
        Ok(value) => console.print(format!("{name}: {}\n", value.cast_signed())),
        Err(error) => failed(console, image, &format!("error checking '{name}' field"), &error),
    }
}

fn depth(console: &mut Console, image: &Image) -> Result<(), Failure> {
    match image.depth() {
        Ok(depth) => console.print(format!("chain depth: {depth}\n")),
        Err(error) => failed(console, image, "error checking chain depth", &error),
    }
}

fn allocated(console: &mut Console, image: &Image) -> Result<(), Failure> {
    match image.allocated() {
        Ok(blocks) => console.print(format!("{blocks}\n")),
        Err(error) => failed(console, image, "error reading bat", &error),
    }
}

fn failed(
    console: &mut Console,
    image: &Image,
    what: &str,
    error: &vhd::Error,
) -> Result<(), Failure> {
    console.print(format!("{what}: {}\n", -error.errno()))?;
    Err(image::failure(image.path(), error))
}

/// Twice the entries of the table: as ever, whatever the block size.
fn fast_resize_mb(image: &Image) -> u64 {
    image.header().map_or(0, |header| u64::from(header.table_entries) * 2)
}

fn object(image: &Image) -> Map<String, Value> {
    let footer = image.footer();
    let is_child = footer.disk_type == DiskType::Differencing;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut object = Map::new();
    object.insert("path".into(), json!(image.path().to_string_lossy()));
    object.insert("type".into(), json!(image::type_name(footer.disk_type)));
    object.insert("uuid".into(), json!(footer.uuid.to_string()));
    object.insert("virtual_size".into(), json!(footer.current_size));
    object.insert("physical_size".into(), json!(image.physical_size().ok()));
    object.insert("block_size".into(), json!(image.header().map(|it| it.block_size.bytes())));
    object.insert("allocated_blocks".into(), json!(image.allocated().ok()));
    object.insert("fast_resize_limit".into(), json!(fast_resize_mb(image) << 20));
    object.insert("hidden".into(), json!(image.hidden().ok()));
    object.insert("marker".into(), json!(image.marker().ok()));
    object.insert("encrypted".into(), json!(image.keyhash().ok().map(|keyhash| keyhash.is_some())));
    object.insert("chain_depth".into(), json!(image.depth().ok()));
    let parent = is_child.then(|| image.parent().ok().map(text)).flatten();
    object.insert("parent".into(), json!(parent));
    let name = is_child.then(|| image.parent_name().ok()).flatten();
    object.insert("parent_name".into(), json!(name));
    object
}
