//! `vhd-util copy`: a dynamic image once more, encrypted if a key is given.

use std::path::Path;

use nix::errno::Errno;
use vhd::footer::DiskType;
use vhd_files::encryption::{Encryption, Key, KeyError};

use super::image::{self, Reading};
use super::perform::{self, errno_of};
use super::source::{Format, Source};
use super::writer::{Job, Target, write};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "copy",
    short: "n:N:k:Eh",
    long: &[],
    usage: "options: -n <name> -N <new VHD name> [-k <keyfile> | -E (pass encryption key on \
            stdin)] [-h help] \n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};
const HELP: &str =
    "The copy has the blocks of the image, and an identity of its own. Other images: 'convert'.

  -n name  the image
  -N name  the copy, which must not be there yet
  -k file  encrypt it with this key of 32 or 64 bytes
  -E       the same, the key comes on standard input

An encrypted image is copied only to one who has its key: that needs a program that serves it.
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let arguments = (options.argument(b'n'), options.argument(b'N'), has_operands);
    let (Some(name), Some(new), false) = arguments else {
        console.complain("Must supply both existing and new VHD names\n");
        return COMMAND.refuse(console, "Options -n and -N are needed");
    };
    let (path, new) = (Path::new(name), Path::new(new));
    if new.symlink_metadata().is_ok() {
        let new = new.display();
        console.print(format!("VHD file {new} already exists, chose a different name\n"))?;
        return Err(Failure::new(Errno::EINVAL, "A copy does not take the place of anything"));
    }
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error));
    let image = image.map_err(|failure| perform::say_not_open(console, path, failure))?;
    let key = read_key(options)?;
    let copied = (|| {
        if image.footer().disk_type != DiskType::Dynamic {
            return Err(Failure::new(
                Errno::EINVAL,
                "Only dynamic images are copied so: 'convert'",
            ));
        }
        let failed = |error: vhd::Error| image.failure(&error);
        let bat = image.bat().map_err(failed)?;
        let header = image.header().expect("a dynamic image has one");
        let encryption = match &key {
            Some(key) => Some((Encryption::new(key), key.hash(perform::random()?))),
            None => None,
        };
        let job = Job {
            target: Target::Dynamic,
            keep: Some(&bat),
            metadata_size: Some(u64::from(header.table_entries) * header.block_size.bytes()),
            encryption: encryption.as_ref().map(|(cipher, keyhash)| (cipher, *keyhash)),
            what: "copy",
        };
        write(&mut Source::open(path, Format::Vhd)?, new, &job)
    })();
    copied.or_else(|failure| match failure {
        Failure::Output(error) => Err(Failure::Output(error)),
        failure => {
            let errno = errno_of(&failure);
            console.print(format!("error creating {}: {}\n", new.display(), -errno))?;
            Err(failure)
        }
    })
}

fn read_key(options: &Options) -> Result<Option<Key>, Failure> {
    let key = match options.argument(b'k') {
        Some(path) => Key::from_file(Path::new(path)),
        None if options.has(b'E') => Key::read(std::io::stdin().lock()),
        None => return Ok(None),
    };
    let errno = |error: &KeyError| match error {
        KeyError::Io(error) => crate::console::errno_of(error),
        _ => Errno::EINVAL as i32,
    };
    let failure =
        |error: KeyError| Failure::Errno { errno: errno(&error), explanation: error.to_string() };
    key.map(Some).map_err(failure)
}
