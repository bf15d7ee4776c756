//! `vhd-util read`: parts of an image, and what is in the disk, for people and for scripts.

use std::path::Path;

use nix::errno::Errno;
use vhd::image::BITMAP_SIZE_MAX;
use vhd::read_at::ReadAt;
use vhd::units::{BlockIndex, Sector};

use super::dump::{self, Numbers};
use super::image::{self, Image, Reading};
use super::perform::errno_of;
use super::summary;
use crate::console::{Console, Failure};
use crate::number::unsigned;
use crate::options::Options;
use crate::program::{Command, Stream};

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
    let request = Request { count, numbers: Numbers { hex: options.has(b'x') } };
    let copy = options.has(b'C').then(|| image::open(path, Reading::LenientCopy).ok()).flatten();
    let image = match copy.map_or_else(|| image::open(path, Reading::Lenient), Ok) {
        Ok(image) => image,
        Err(error) => {
            not_open(console, path, error.errno(), request.numbers)?;
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
        headers(console, &image, request.numbers)?;
    }
    for (form, first) in forms {
        form(console, &image, request, first)?;
    }
    Ok(())
}

/// What all forms are told.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// `-c`: how many sectors, blocks or bytes.
    count: u64,
    /// `-x`.
    numbers: Numbers,
}

/// Bytes of the disk that are read at once.
const PIECE_SIZE: usize = 2 << 20;

type Form = fn(&mut Console, &Image, Request, u64) -> Result<(), Failure>;

/// In the order in which they are answered, whatever that of the options.
/// A fixed image has but its data.
const FORMS: [(u8, Form); 11] = [
    (b't', translate),
    (b'b', table_entries),
    (b'B', allocated),
    (b'm', bitmaps),
    (b'i', test_bitmap),
    (b'e', extents),
    (b'a', batmap),
    (b'j', test_batmap),
    (b'd', block_data),
    (b'r', sectors),
    (b'R', bytes),
];

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

/// The number is past the end of the disk.
fn past_end(image: &Image, what: &str, found: u64, count: u64) -> Failure {
    let why = format!("{what} {found} is not in {}, which has {count}", image.path().display());
    Failure::new(Errno::ERANGE, why)
}

/// Where a sector is: its block, its number there, and where the block is.
struct Place {
    block: BlockIndex,
    sector: u32,
    at: Option<Sector>,
}

/// `None` past the end of the disk.
fn place(image: &Image, sector: u64) -> Result<Option<Place>, Failure> {
    if sector >= image.sector_count() {
        return Ok(None);
    }
    let block_size = image.block_size().map_err(|error| image.failure(&error))?;
    let sectors = u64::from(block_size.sectors());
    let block = BlockIndex(u32::try_from(sector / sectors).unwrap_or(u32::MAX));
    let within = u32::try_from(sector % sectors).unwrap_or(u32::MAX);
    let at = image.bat_entry(block).map_err(|error| image.failure(&error))?;
    Ok(Some(Place { block, sector: within, at }))
}

fn translate(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let show = |number| request.numbers.show(number);
    let end = first.saturating_add(request.count);
    if end > image.sector_count() {
        console.complain(format!("sector {} past end of file\n", show(end)));
        return Err(past_end(image, "Sector", end, image.sector_count()));
    }
    for sector in first..end {
        let Some(place) = place(image, sector)? else { break };
        let offset = match place.at {
            Some(at) => {
                let bitmap = image.block_size().map_or(1, |size| size.bitmap_sectors());
                show(at.offset() + (u64::from(bitmap + place.sector) << 9))
            }
            None => "not allocated".to_owned(),
        };
        console.print(format!(
            "logical sector {}: block number: {}, sector offset: {}, file offset: {offset}\n",
            show(sector),
            show(place.block.0.into()),
            show(place.sector.into()),
        ))?;
    }
    Ok(())
}

/// Goes through blocks, all of which have to be in the disk, and says where each is.
fn each_block(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
    mut visit: impl FnMut(&mut Console, BlockIndex, Option<Sector>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let blocks = u64::from(image.block_count().map_err(|error| image.failure(&error))?);
    let end = first.saturating_add(request.count);
    if end > blocks {
        console.complain(format!("block {} past end of file\n", request.numbers.show(end)));
        return Err(past_end(image, "Block", end, blocks));
    }
    for block in first..end {
        let block = BlockIndex(u32::try_from(block).expect("below the number of blocks"));
        let at = image.bat_entry(block).map_err(|error| image.failure(&error))?;
        visit(console, block, at)?;
    }
    Ok(())
}

fn table_entries(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let show = |number| request.numbers.show(number);
    each_block(console, image, request, first, |console, block, at| {
        let offset = at.map_or("not allocated".to_owned(), |at| show(at.offset()));
        console.print(format!("block: {}: offset: {offset}\n", show(block.0.into())))
    })
}

/// A bit for each whole block of the disk, the first block's the highest of the first byte.
fn allocated(console: &mut Console, image: &Image, _: Request, _: u64) -> Result<(), Failure> {
    let block_size = image.block_size().map_err(|error| image.failure(&error))?;
    let blocks = image.footer().current_size / block_size.bytes();
    let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
    let mut bits = vec![0_u8; blocks.div_ceil(8)];
    let each = image.for_each_block(|block, _| {
        let block = block.0 as usize;
        if block < blocks {
            bits[block / 8] |= 0x80 >> (block % 8);
        }
    });
    each.map_err(|error| image.failure(&error))?;
    console.print(bits)
}

fn not_allocated(
    console: &mut Console,
    request: Request,
    block: BlockIndex,
) -> Result<(), Failure> {
    console.print(format!("block {} not allocated\n", request.numbers.show(block.0.into())))
}

fn bitmaps(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    each_block(console, image, request, first, |console, block, at| {
        let Some(at) = at else { return not_allocated(console, request, block) };
        let bitmap = image.bitmap(block, at).map_err(|error| image.failure(&error))?;
        console.print(bitmap)
    })
}

fn test_bitmap(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let show = |number| request.numbers.show(number);
    let mut cache = None;
    for sector in first..first.saturating_add(request.count) {
        let Some(place) = place(image, sector)? else {
            console.print(format!("sector {} past end of file\n", show(sector)))?;
            return Err(past_end(image, "Sector", sector, image.sector_count()));
        };
        let is_set = present(image, &place, &mut cache)?;
        let (block, within) = (show(place.block.0.into()), show(place.sector.into()));
        console.print(format!("block {block}: sec: {within}: {}\n", u8::from(is_set)))?;
    }
    Ok(())
}

type Bitmap = (BlockIndex, [u8; BITMAP_SIZE_MAX]);

/// Whether a sector is in this image; remembers the bitmap for the next one.
fn present(image: &Image, place: &Place, cache: &mut Option<Bitmap>) -> Result<bool, Failure> {
    let Some(at) = place.at else { return Ok(false) };
    let known = cache.filter(|(block, _)| *block == place.block);
    let bitmap = match known {
        Some((_, bitmap)) => bitmap,
        None => {
            let read = image.bitmap(place.block, at).map_err(|error| image.failure(&error))?;
            *cache = Some((place.block, read));
            read
        }
    };
    let byte = bitmap.get(place.sector as usize / 8).copied().unwrap_or(0);
    Ok(byte & (0x80 >> (place.sector % 8)) != 0)
}

/// Runs of sectors that are in this image: their first, and how many.
fn extents(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let show = |number| request.numbers.show(number);
    let end = first.saturating_add(request.count);
    if end > image.sector_count() {
        console.print(format!("sector {} past end of file\n", show(first)))?;
        return Err(past_end(image, "Sector", end, image.sector_count()));
    }
    let (mut start, mut cache, mut sector) = (None, None, first);
    while sector <= end {
        let place = if sector < end { place(image, sector)? } else { None };
        let is_present = place.as_ref().map_or(Ok(false), |it| present(image, it, &mut cache))?;
        match start {
            None if is_present => start = Some(sector),
            Some(from) if !is_present => {
                console.print(format!("{} {}\n", show(from), show(sector - from)))?;
                start = None;
            }
            _ => {}
        }
        // A block that is not there at once: there are millions of them.
        let skip = match place {
            Some(Place { sector: within, at: None, .. }) => {
                let size = image.block_size().map_err(|error| image.failure(&error))?;
                u64::from(size.sectors() - within).min(end - sector)
            }
            _ => 1,
        };
        sector += skip;
    }
    Ok(())
}

fn batmap(console: &mut Console, image: &Image, _: Request, _: u64) -> Result<(), Failure> {
    let failure = match image.batmap() {
        Ok(Some(map)) => return console.print(map.map),
        Ok(None) => Failure::new(Errno::EINVAL, "The image has no batmap"),
        Err(error) => image.failure(&error),
    };
    console.print(format!("failed to read batmap: {}\n", -errno_of(&failure)))?;
    Err(failure)
}

fn test_batmap(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    // As ever: up to the end of the table, not of the disk.
    let entries = image.header().map_or(0, |header| header.table_entries);
    let end = first.saturating_add(request.count);
    if end > entries.into() {
        console.complain(format!("block {} past end of file\n", request.numbers.show(end)));
        return Err(past_end(image, "Block", end, entries.into()));
    }
    let map = match image.batmap() {
        Ok(Some(map)) => map.map,
        result => {
            console.complain("failed to get batmap\n");
            let why = result.err().map_or("There is none".to_owned(), |error| error.to_string());
            return Err(Failure::new(Errno::EINVAL, format!("No batmap: {why}")));
        }
    };
    for block in first..end {
        let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at));
        let bit = u8::from(byte.is_some_and(|byte| byte & (0x80 >> (block % 8)) != 0));
        console.complain(format!("batmap for block {}: {bit}\n", request.numbers.show(block)));
    }
    Ok(())
}

/// What is stored of a block, whether its bitmap says that it counts or not.
fn block_data(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let block_size = image.block_size().map_err(|error| image.failure(&error))?;
    let mut data = vec![0; usize::try_from(block_size.bytes()).expect("at most 2 MiB")];
    each_block(console, image, request, first, |console, block, at| {
        let Some(at) = at else { return not_allocated(console, request, block) };
        let offset = at.offset() + (u64::from(block_size.bitmap_sectors()) << 9);
        image.source().read_at(offset, &mut data).map_err(|error| image.failure(&error))?;
        console.print(&data)
    })
}

fn sectors(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    let (offset, length) = (first.saturating_mul(512), request.count.saturating_mul(512));
    data(console, image, offset, length)
}

fn bytes(
    console: &mut Console,
    image: &Image,
    request: Request,
    first: u64,
) -> Result<(), Failure> {
    data(console, image, first, request.count)
}

/// Bytes of the disk, through the whole chain.
fn data(console: &mut Console, image: &Image, offset: u64, length: u64) -> Result<(), Failure> {
    let size = image.sector_count() << 9;
    if offset.saturating_add(length) > size {
        return Err(past_end(image, "Byte", offset.saturating_add(length), size));
    }
    let mut chain = image.chain_for_inspection().map_err(|error| image.failure(&error))?;
    let mut piece = vec![0; PIECE_SIZE];
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(PIECE_SIZE).min(PIECE_SIZE);
        chain.read_at(at, &mut piece[..length]).map_err(|error| image.failure(&error))?;
        console.print(&piece[..length])?;
        at += length as u64;
    }
    Ok(())
}
