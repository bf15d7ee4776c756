//! `vhd-util read`: parts of an image, and what is in the disk, for people and for scripts.

mod forms;

use std::path::Path;

use super::dump::{self, Numbers};
use super::image::{self, Image, Reading};
use super::summary;
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};
use forms::{Asked, FORMS};

pub(crate) const COMMAND: Command = Command {
    name: "read",
    short: "n:pt:b:Bm:i:e:aj:d:c:r:R:xCh",
    long: &["--json"],
    usage: "options:\n\
            -h          help\n\
            -n          name\n\
            -p          print VHD headers\n\
            -t sec      translate logical sector to VHD location\n\
            -b blk      print bat entry\n\
            -B          print entire bat as a bitmap\n\
            -m blk      print bitmap\n\
            -i sec      test bitmap for logical sector\n\
            -e sec      output extent list of allocated logical sectors\n\
            -a          print batmap\n\
            -j blk      test batmap for block\n\
            -d blk      print data\n\
            -c num      num units\n\
            -r sec      read num sectors at sec\n\
            -R byte     read num bytes at byte\n\
            -x          print in hex\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};

const HELP: &str =
    "Sectors of 512 bytes and blocks count from 0. What is asked for comes in the order of the list
above; -c applies to all of it.

  vhd-util read -p -n a.vhd                    footer, header, locators, batmap, damaged or not
  vhd-util read -r 0 -c 2048 -n a.vhd > mib    the first MiB of the disk, parents included
  vhd-util read -B -n a.vhd | xxd              a bit for each block that is allocated here
  vhd-util read -e 0 -c 1000000 -n a.vhd       runs of sectors that are in this image: start, count

  -C       by the copy of the footer at the start, where there is one
  --json   footer, header, locators and batmap as one object, with the checksums that were found and
           that their bytes have
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let path = Path::new(name);
    let number = |option: u8, default| {
        let parsed = options.argument(option).map_or(Ok(default), unsigned);
        parsed.map_err(|why| format!("Option -{} has {why}", char::from(option)))
    };
    let asked = FORMS.iter().filter(|(option, _)| options.has(*option));
    let needs_table =
        FORMS.iter().any(|(option, _)| options.has(*option) && !b"rR".contains(option));
    let asked = asked.map(|(option, form)| Ok((form, number(*option, 0)?)));
    let (forms, count) = match (asked.collect::<Result<Vec<_>, String>>(), number(b'c', 1)) {
        (Ok(forms), Ok(count)) => (forms, count),
        (Err(why), _) | (_, Err(why)) => return COMMAND.refuse(console, &why),
    };
    let numbers = Numbers { hex: options.has(b'x') };
    let copy = options.has(b'C').then(|| image::open(path, Reading::LenientCopy).ok()).flatten();
    let image = match copy.map_or_else(|| image::open(path, Reading::Lenient), Ok) {
        Ok(image) => image,
        Err(error) => {
            not_open(console, path, error.errno(), numbers)?;
            return Err(image::failure(path, &error));
        }
    };
    if let Err(error) = image.check_table(needs_table) {
        let errno = error.errno();
        console.print(format!("Failed to get bat for {}: {}\n", path.display(), -errno))?;
        return Err(image::failure(path, &error));
    }
    if options.has_long("--json") {
        return console.print(format!("{:#}\n", summary::object(&image)));
    }
    if options.has(b'p') {
        headers(console, &image, numbers)?;
    }
    for (form, first) in forms {
        form(&mut Asked { console, image: &image, count, numbers, first })?;
    }
    Ok(())
}

/// Opened, and not an image: what its first bytes say all the same.
pub(super) fn not_open(
    console: &mut Console,
    path: &Path,
    errno: i32,
    numbers: Numbers,
) -> Result<(), Failure> {
    let name = path.display();
    console.print(format!("Failed to open {name}: {}\n", -errno))?;
    console.print(format!("\n{name} appears invalid; dumping headers\n\n"))?;
    if let Some((footer, header)) = image::remains(path) {
        console.print(dump::footer(&footer, numbers))?;
        console.print(dump::header(&header, numbers))?;
    }
    Ok(())
}

/// `-p`, and what `check` shows of an image that it refuses.
pub(super) fn headers(
    console: &mut Console,
    image: &Image,
    numbers: Numbers,
) -> Result<(), Failure> {
    console.print(dump::footer(image.raw_footer(), numbers))?;
    let Some(raw) = image.raw_header() else { return Ok(()) };
    console.print(dump::header(raw, numbers))?;
    if image.is_differencing() {
        console.print(dump::locators(&image.locators(), numbers))?;
    }
    if image.may_have_batmap() {
        match image.batmap() {
            Ok(Some(map)) => {
                let (_, raw) = image.raw_batmap_header().map_err(|it| image.failure(&it))?;
                let computed = map.header.checksum_of(&map.map);
                console.print(dump::batmap(&raw, computed, numbers))?;
            }
            Ok(None) => {}
            Err(_) => console.print("failed to get batmap header\n")?,
        }
    }
    Ok(())
}
