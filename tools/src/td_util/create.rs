//! `td-util create`: a new image.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;

use super::{Command, Kind, Run};
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::Command as VhdCommand;
use crate::vhd_util::create::{COMMAND as VHD_CREATE, make};

pub(super) const COMMAND: Command = Command {
    name: "create",
    short: "hrb",
    usage: "[-h help] [-r reserve] [-b file_is_fixed_size] <SIZE(MB)> <FILENAME>",
    usage_status: 22,
    repeats: true,
    not_of_aio: None,
    run: Run::Two(run),
};

fn run(
    console: &mut Console,
    kind: Kind,
    options: &Options,
    [size, path]: [&OsStr; 2],
) -> Result<(), Failure> {
    if kind == Kind::Vhd && options.has(b'b') {
        return unknown_b(console, &VHD_CREATE);
    }
    let size = match unsigned(size) {
        Ok(megabytes @ 1..=0xfff_ffff_ffff) => megabytes << 20,
        _ => {
            console.complain(format!("The size is {size:?}, want a number of MB\n"));
            return Err(Failure::new(Errno::EINVAL, "No size that an image can have"));
        }
    };
    let path = Path::new(path);
    if kind == Kind::Vhd {
        return make(console, path, size, None, options.has(b'r'), options);
    }
    if !options.has(b'r') {
        console.complain("Cannot create sparse aio image\n");
        return Err(Failure::Status(22));
    }
    create_raw(path, size)
}

/// As ever, vhd-util does not know this option.
pub(super) fn unknown_b(console: &mut Console, command: &VhdCommand) -> Result<(), Failure> {
    console.complain(format!("{}: invalid option -- 'b'\n", command.name));
    command.refuse(console, "Option -b is for no image")
}

/// A raw file of zeros, which are stored: no space is missing later.
fn create_raw(path: &Path, size: u64) -> Result<(), Failure> {
    use vhd_files::file::ImageFile;
    use vhd_files::lock::Policy;
    let failed = |error: std::io::Error| Failure::io(&path.display().to_string(), &error);
    let (file, _) = match ImageFile::create(path, Policy::Auto) {
        Err(error) if error.errno() == Errno::EEXIST as i32 => {
            ImageFile::open_for_writing(path, Policy::Auto)
        }
        created => created,
    }
    .map_err(|error| Failure::io(&path.display().to_string(), &os_error(error.errno())))?;
    file.set_length(0).map_err(failed)?;
    file.set_length(size).map_err(failed)?;
    file.zero(0, size).map_err(failed)?;
    file.sync().map_err(failed)
}

fn os_error(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}
