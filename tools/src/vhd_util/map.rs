//! `vhd-util map`: what of a disk is stored where.

use std::path::Path;

use serde_json::{Value, json};
use vhd::chain::{Chain, ChainOptions, Extent};
use vhd_files::file::ImageFile;

use super::image;
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "map",
    short: "n:h",
    long: &["--json"],
    usage: "options: <-n name> [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 22,
    help: HELP,
    run,
};

const HELP: &str = "Without a terminal a line for each piece of the disk: start, length, number of the image in the chain
(0 is this one), offset in its file; '-' twice for what is stored nowhere and reads as zeros. On a
terminal a picture: a letter for each part of the disk, the image that holds most of it - '0' this
one, '1' its parent - and '.' for zeros.

  -n name  the image; its parents are looked at, too
  --json   an array of objects, and the files of the chain

  vhd-util map -n leaf.vhd
";

/// Letters in a picture: sixteen rows.
const CELLS: u64 = 64 * 16;

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    let path = Path::new(name);
    let failed = |error: vhd::Error| image::failure(path, &error);
    // Where the data are is no secret of who has the key.
    let options_of_chain = ChainOptions { as_stored: true, ..ChainOptions::default() };
    let mut chain = image::chain(path, options_of_chain).map_err(failed)?;
    let size = chain.virtual_size();
    if options.has_long("--json") {
        return print_json(console, &mut chain, failed);
    }
    if console.is_terminal() {
        let mut picture = Picture::new(size);
        each(&mut chain, |extent| {
            picture.add(extent);
            Ok(())
        })
        .map_err(failed)?;
        return console.print(picture.text());
    }
    let mut lines = Ok(());
    let walked = each(&mut chain, |extent| {
        let (image, offset) = match extent.stored {
            Some(stored) => (stored.image.to_string(), stored.offset.to_string()),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let line = format!("{} {} {image} {offset}\n", extent.start, extent.length);
        lines = console.print(line);
        Ok(())
    });
    walked.map_err(failed)?;
    lines
}

/// The pieces of a disk, in order; neighbours that continue each other are one.
fn each(
    chain: &mut Chain<ImageFile>,
    mut visit: impl FnMut(&Extent) -> vhd::Result<()>,
) -> vhd::Result<()> {
    let size = chain.virtual_size();
    let mut last: Option<Extent> = None;
    let mut at = 0;
    while at < size {
        let next = chain.locate(at, size - at)?;
        at = next.end();
        match &mut last {
            Some(last) if continues(last, &next) => last.length += next.length,
            _ => {
                if let Some(done) = last.replace(next) {
                    visit(&done)?;
                }
            }
        }
    }
    last.map_or(Ok(()), |last| visit(&last))
}

fn continues(last: &Extent, next: &Extent) -> bool {
    match (last.stored, next.stored) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            one.image == other.image && one.offset + last.length == other.offset
        }
        _ => false,
    }
}

fn print_json(
    console: &mut Console,
    chain: &mut Chain<ImageFile>,
    failed: impl Fn(vhd::Error) -> Failure,
) -> Result<(), Failure> {
    let mut extents = Vec::new();
    let walked = each(chain, |extent| {
        extents.push(json!({
            "start": extent.start,
            "length": extent.length,
            "image": extent.stored.map(|stored| stored.image),
            "offset": extent.stored.map(|stored| stored.offset),
        }));
        Ok(())
    });
    walked.map_err(failed)?;
    let images: Vec<Value> =
        chain.members().map(|(_, path)| json!(path.to_string_lossy())).collect();
    let object = json!({ "size": chain.virtual_size(), "images": images, "extents": extents });
    console.print(format!("{object:#}\n"))
}

/// For each cell how many bytes are of which image; the last entry of a cell counts zeros.
struct Picture {
    size: u64,
    cell: u64,
    cells: Vec<std::collections::BTreeMap<Option<usize>, u64>>,
}

impl Picture {
    fn new(size: u64) -> Self {
        let cell = size.div_ceil(CELLS).next_multiple_of(512).max(512);
        let count = usize::try_from(size.div_ceil(cell)).expect("few cells");
        Self { size, cell, cells: vec![std::collections::BTreeMap::new(); count] }
    }

    fn add(&mut self, extent: &Extent) {
        let mut at = extent.start;
        while at < extent.end() {
            let index = at / self.cell;
            let end = ((index + 1) * self.cell).min(extent.end());
            let cell = &mut self.cells[usize::try_from(index).expect("few cells")];
            *cell.entry(extent.stored.map(|stored| stored.image)).or_default() += end - at;
            at = end;
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{} bytes, each letter {} bytes\n", self.size, self.cell);
        for row in self.cells.chunks(64) {
            text.extend(row.iter().map(letter));
            text.push('\n');
        }
        text
    }
}

/// Of the image that holds most; zeros only where there is nothing else.
fn letter(cell: &std::collections::BTreeMap<Option<usize>, u64>) -> char {
    let stored = cell.iter().filter_map(|(image, bytes)| Some((image.as_ref()?, bytes)));
    match stored.max_by_key(|(_, bytes)| **bytes) {
        None => '.',
        Some((image, _)) => {
            char::from_digit(u32::try_from(*image).unwrap_or(35).min(35), 36).expect("below 36")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhd::chain::Stored;

    #[test]
    fn a_picture_has_the_letter_of_the_image_that_holds_most() {
        let mut picture = Picture::new(CELLS * 1024);
        let extent = |start, length, image: Option<usize>| Extent {
            start,
            length,
            stored: image.map(|image| Stored { image, offset: 0 }),
        };
        picture.add(&extent(0, 400, Some(1)));
        picture.add(&extent(400, 1136, Some(0)));
        picture.add(&extent(1536, CELLS * 1024 - 1536, None));
        let text = picture.text();
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("00.."), "{row}");
        assert_eq!(text.lines().count(), 17);
    }
}
