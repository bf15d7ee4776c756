//! `vhd-util convert`: a disk from one format into another.

use std::path::Path;

use super::key::read_key;
use super::source::{Format, Source};
use super::writer::{Job, Target, write};
use crate::console::{Console, Failure, exit_status};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "convert",
    short: "n:N:f:O:k:h",
    long: &[],
    usage: "options: <-n name> <-N new name> [-f vhd|raw|qcow2 format of name] [-O dynamic|fixed|raw \
            format of new name] [-k key file of name] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};

const HELP: &str = "Reads a disk, a VHD with all its parents, and writes it into a new file, without what is zero. The
file has its name when all of it is durable, and not before.

  -n name    what is read: 'vhd' unless -f says 'raw' or 'qcow2'; formats are never guessed
  -N name    what is made: 'dynamic' unless -O says 'fixed' or 'raw'; must not be there yet
  -k file    the key of an encrypted VHD; what is made is not encrypted

A qcow2 image must not have a backing file: whoever made it chose the name of that.

  vhd-util convert -f qcow2 -n debian.qcow2 -N debian.vhd
  vhd-util convert -n leaf.vhd -N disk.raw -O raw
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let arguments = (options.argument(b'n'), options.argument(b'N'), has_operands);
    let (Some(name), Some(new), false) = arguments else {
        return COMMAND.refuse(console, "Options -n and -N are needed");
    };
    let format = match options.argument(b'f').map(|format| format.to_str()) {
        None | Some(Some("vhd")) => Format::Vhd,
        Some(Some("raw")) => Format::Raw,
        Some(Some("qcow2")) => Format::Qcow2,
        Some(_) => return COMMAND.refuse(console, "Option -f has none of vhd, raw, qcow2"),
    };
    let target = match options.argument(b'O').map(|format| format.to_str()) {
        None | Some(Some("dynamic")) => Target::Dynamic,
        Some(Some("fixed")) => Target::Fixed,
        Some(Some("raw")) => Target::Raw,
        Some(_) => return COMMAND.refuse(console, "Option -O has none of dynamic, fixed, raw"),
    };
    let (path, new) = (Path::new(name), Path::new(new));
    let key = options.argument(b'k').map(Path::new);
    if key.is_some() && format != Format::Vhd {
        return COMMAND.refuse(console, "Option -k is for VHDs");
    }
    let opened = match key {
        Some(key) => read_key(key).and_then(|key| Source::open_encrypted(path, &key)),
        None => Source::open(path, format),
    };
    let done = opened.and_then(|mut source| {
        let what = "convert";
        let job = Job { target, keep: None, metadata_size: None, encryption: None, what };
        write(&mut source, new, &job)
    });
    done.map_err(|failure| match failure {
        Failure::Errno { errno, explanation } => {
            // A command of ours: nobody compares what it says.
            console.complain(format!("vhd-util convert: {explanation}\n"));
            Failure::Status(exit_status(errno))
        }
        failure => failure,
    })
}
