//! `td-util query`: what an image is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Command, Kind, Run};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::vhd_util::image::{self, Image};

pub(super) const COMMAND: Command = Command {
    name: "query",
    short: "hvpfdb",
    usage: "[-h help] [-v virtsize] [-p parent] [-f fields] [-b don't trust the footer, use the \
            back-up one instead] <FILENAME>",
    usage_status: 0,
    repeats: false,
    not_of_aio: None,
    run: Run::One(run),
};

fn run(console: &mut Console, kind: Kind, options: &Options, path: &OsStr) -> Result<(), Failure> {
    let path = Path::new(path);
    if kind == Kind::Aio {
        return query_raw(console, options, path);
    }
    let image = match image::open_whole(path, options.has(b'b')) {
        Ok(image) => image,
        Err(error) => return not_open(console, path, &error),
    };
    let mut first = Ok(());
    if options.has(b'v') {
        console.print(format!("{}\n", image.virtual_size() >> 20))?;
    }
    if options.has(b'p') {
        first = parent(console, &image);
    }
    if options.has(b'f') {
        let hidden = image.hidden().map_err(|error| image.failure(&error))?;
        console.print(format!("hidden: {}\n", hidden.cast_signed()))?;
    }
    if options.has(b'd') {
        match image.depth() {
            Ok(depth) => console.print(format!("chain depth: {depth}\n"))?,
            Err(error) => {
                console.print(format!("failed getting chain depth: {}\n", -error.errno()))?;
                first = first.and(Err(image.failure(&error)));
            }
        }
    }
    first
}

fn not_open(console: &mut Console, path: &Path, error: &vhd::Error) -> Result<(), Failure> {
    console.print(format!("failed opening {}: {}\n", path.display(), -error.errno()))?;
    Err(image::failure(path, error))
}

fn parent(console: &mut Console, image: &Image) -> Result<(), Failure> {
    if !image.is_differencing() {
        return console.print(format!("{} has no parent\n", image.path().display()));
    }
    match image.parent() {
        Ok(parent) => console.print([parent.as_os_str().as_bytes(), b"\n"].concat()),
        Err(error) => {
            console.print(format!("failed getting parent: {}\n", -error.errno()))?;
            Err(image.failure(&error))
        }
    }
}

fn query_raw(console: &mut Console, options: &Options, path: &Path) -> Result<(), Failure> {
    let length = match image::length(path) {
        Ok(length) => length,
        Err(error) => return not_open(console, path, &error),
    };
    if options.has(b'v') {
        console.print(format!("{}\n", length >> 20))?;
    }
    if options.has(b'p') {
        console.print(format!("{} has no parent\n", path.display()))?;
    }
    if options.has(b'f') {
        console.print("hidden: 0\n")?;
    }
    if options.has(b'd') {
        console.print("chain depth: 1\n")?;
    }
    Ok(())
}
