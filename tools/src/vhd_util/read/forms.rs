//! The forms of `read` but `-p`: each answers one question about an image, from a first sector,
//! block or byte on.

use nix::errno::Errno;
use vhd::image::BITMAP_SIZE_MAX;
use vhd::read_at::ReadAt;
use vhd::units::{BlockIndex, Sector};

use crate::console::{Console, Failure};
use crate::vhd_util::dump::Numbers;
use crate::vhd_util::image::Image;
use crate::vhd_util::perform::errno_of;

type Done = Result<(), Failure>;
type Form = fn(&mut Asked<'_>) -> Done;

/// A question: of what, from where on, how many.
pub(super) struct Asked<'a> {
    pub(super) console: &'a mut Console,
    pub(super) image: &'a Image,
    /// `-c`: how many sectors, blocks or bytes.
    pub(super) count: u64,
    /// `-x`.
    pub(super) numbers: Numbers,
    /// The first of them.
    pub(super) first: u64,
}

/// Bytes of the disk that are read at once.
const PIECE_SIZE: usize = 2 << 20;

/// Each with its option, in the order in which they are answered, whatever that of the options.
/// A fixed image has but its data.
pub(super) const FORMS: [(u8, Form); 11] = [
    (b't', |asked| asked.translate()),
    (b'b', |asked| asked.table_entries()),
    (b'B', |asked| asked.allocated()),
    (b'm', |asked| asked.bitmaps()),
    (b'i', |asked| asked.test_bitmap()),
    (b'e', |asked| asked.extents()),
    (b'a', |asked| asked.batmap()),
    (b'j', |asked| asked.test_batmap()),
    (b'd', |asked| asked.block_data()),
    (b'r', |asked| asked.sectors()),
    (b'R', |asked| asked.bytes()),
];

/// Where a sector is: its block, its number there, and where the block is.
struct Place {
    block: BlockIndex,
    sector: u32,
    at: Option<Sector>,
}

type Bitmap = (BlockIndex, [u8; BITMAP_SIZE_MAX]);

impl Asked<'_> {
    fn show(&self, number: impl Into<u64>) -> String {
        self.numbers.show(number.into())
    }

    fn end(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    fn failure(&self, error: &vhd::Error) -> Failure {
        self.image.failure(error)
    }

    /// The number is past the end of the disk.
    fn past_end(&self, what: &str, found: u64, count: u64) -> Failure {
        let name = self.image.path().display();
        let why = format!("{what} {found} is not in {name}, which has {count}");
        Failure::new(Errno::ERANGE, why)
    }

    /// `None` past the end of the disk.
    fn place(&self, sector: u64) -> Result<Option<Place>, Failure> {
        if sector >= self.image.sector_count() {
            return Ok(None);
        }
        let block_size = self.image.block_size().map_err(|error| self.failure(&error))?;
        let sectors = u64::from(block_size.sectors());
        let block = BlockIndex(u32::try_from(sector / sectors).unwrap_or(u32::MAX));
        let within = u32::try_from(sector % sectors).unwrap_or(u32::MAX);
        let at = self.image.bat_entry(block).map_err(|error| self.failure(&error))?;
        Ok(Some(Place { block, sector: within, at }))
    }

    fn translate(&mut self) -> Done {
        let (end, count) = (self.end(), self.image.sector_count());
        if end > count {
            let line = format!("sector {} past end of file\n", self.show(end));
            self.console.complain(line);
            return Err(self.past_end("Sector", end, count));
        }
        for sector in self.first..end {
            let Some(place) = self.place(sector)? else { break };
            let offset = match place.at {
                Some(at) => {
                    let bitmap = self.image.block_size().map_or(1, |size| size.bitmap_sectors());
                    self.show(at.offset() + (u64::from(bitmap + place.sector) << 9))
                }
                None => "not allocated".to_owned(),
            };
            let line = format!(
                "logical sector {}: block number: {}, sector offset: {}, file offset: {offset}\n",
                self.show(sector),
                self.show(place.block.0),
                self.show(place.sector),
            );
            self.console.print(line)?;
        }
        Ok(())
    }

    /// Goes through blocks, all of which have to be in the disk, and says where each is.
    fn each_block(
        &mut self,
        mut visit: impl FnMut(&mut Self, BlockIndex, Option<Sector>) -> Done,
    ) -> Done {
        let blocks = u64::from(self.image.block_count().map_err(|error| self.failure(&error))?);
        let end = self.end();
        if end > blocks {
            let line = format!("block {} past end of file\n", self.show(end));
            self.console.complain(line);
            return Err(self.past_end("Block", end, blocks));
        }
        for block in self.first..end {
            let block = BlockIndex(u32::try_from(block).expect("below the number of blocks"));
            let at = self.image.bat_entry(block).map_err(|error| self.failure(&error))?;
            visit(self, block, at)?;
        }
        Ok(())
    }

    fn table_entries(&mut self) -> Done {
        self.each_block(|asked, block, at| {
            let offset = at.map_or("not allocated".to_owned(), |at| asked.show(at.offset()));
            let line = format!("block: {}: offset: {offset}\n", asked.show(block.0));
            asked.console.print(line)
        })
    }

    /// A bit for each whole block of the disk, the first block's the highest of the first byte.
    fn allocated(&mut self) -> Done {
        let block_size = self.image.block_size().map_err(|error| self.failure(&error))?;
        let blocks = self.image.footer().current_size / block_size.bytes();
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        let mut bits = vec![0_u8; blocks.div_ceil(8)];
        let each = self.image.for_each_block(|block, _| {
            let block = block.0 as usize;
            if block < blocks {
                bits[block / 8] |= 0x80 >> (block % 8);
            }
        });
        each.map_err(|error| self.failure(&error))?;
        self.console.print(bits)
    }

    fn not_allocated(&mut self, block: BlockIndex) -> Done {
        let line = format!("block {} not allocated\n", self.show(block.0));
        self.console.print(line)
    }

    fn bitmaps(&mut self) -> Done {
        self.each_block(|asked, block, at| {
            let Some(at) = at else { return asked.not_allocated(block) };
            let bitmap = asked.image.bitmap(block, at).map_err(|error| asked.failure(&error))?;
            asked.console.print(bitmap)
        })
    }

    fn test_bitmap(&mut self) -> Done {
        let mut cache = None;
        for sector in self.first..self.end() {
            let Some(place) = self.place(sector)? else {
                let line = format!("sector {} past end of file\n", self.show(sector));
                self.console.print(line)?;
                return Err(self.past_end("Sector", sector, self.image.sector_count()));
            };
            let is_set = self.is_present(&place, &mut cache)?;
            let (block, within) = (self.show(place.block.0), self.show(place.sector));
            self.console.print(format!("block {block}: sec: {within}: {}\n", u8::from(is_set)))?;
        }
        Ok(())
    }

    /// Whether a sector is in this image; remembers the bitmap for the next one.
    fn is_present(&self, place: &Place, cache: &mut Option<Bitmap>) -> Result<bool, Failure> {
        let Some(at) = place.at else { return Ok(false) };
        let known = cache.filter(|(block, _)| *block == place.block);
        let bitmap = match known {
            Some((_, bitmap)) => bitmap,
            None => {
                let read = self.image.bitmap(place.block, at);
                let read = read.map_err(|error| self.failure(&error))?;
                *cache = Some((place.block, read));
                read
            }
        };
        let byte = bitmap.get(place.sector as usize / 8).copied().unwrap_or(0);
        Ok(byte & (0x80 >> (place.sector % 8)) != 0)
    }

    /// Runs of sectors that are in this image: their first, and how many.
    fn extents(&mut self) -> Done {
        let (end, count) = (self.end(), self.image.sector_count());
        if end > count {
            let line = format!("sector {} past end of file\n", self.show(self.first));
            self.console.print(line)?;
            return Err(self.past_end("Sector", end, count));
        }
        let (mut start, mut cache, mut sector) = (None, None, self.first);
        while sector <= end {
            let place = if sector < end { self.place(sector)? } else { None };
            let is_present =
                place.as_ref().map_or(Ok(false), |it| self.is_present(it, &mut cache))?;
            match start {
                None if is_present => start = Some(sector),
                Some(from) if !is_present => {
                    let line = format!("{} {}\n", self.show(from), self.show(sector - from));
                    self.console.print(line)?;
                    start = None;
                }
                _ => {}
            }
            // A block that is not there at once: there are millions of them.
            let skip = match place {
                Some(Place { sector: within, at: None, .. }) => {
                    let size = self.image.block_size().map_err(|error| self.failure(&error))?;
                    u64::from(size.sectors() - within).min(end - sector)
                }
                _ => 1,
            };
            sector += skip;
        }
        Ok(())
    }

    fn batmap(&mut self) -> Done {
        let failure = match self.image.batmap() {
            Ok(Some(map)) => return self.console.print(map.map),
            Ok(None) => Failure::new(Errno::EINVAL, "The image has no batmap"),
            Err(error) => self.failure(&error),
        };
        self.console.print(format!("failed to read batmap: {}\n", -errno_of(&failure)))?;
        Err(failure)
    }

    fn test_batmap(&mut self) -> Done {
        // As ever: up to the end of the table, not of the disk.
        let entries = self.image.header().map_or(0, |header| header.table_entries);
        let end = self.end();
        if end > entries.into() {
            let line = format!("block {} past end of file\n", self.show(end));
            self.console.complain(line);
            return Err(self.past_end("Block", end, entries.into()));
        }
        let map = match self.image.batmap() {
            Ok(Some(map)) => map.map,
            result => {
                self.console.complain("failed to get batmap\n");
                let why =
                    result.err().map_or("There is none".to_owned(), |error| error.to_string());
                return Err(Failure::new(Errno::EINVAL, format!("No batmap: {why}")));
            }
        };
        for block in self.first..end {
            let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at));
            let bit = u8::from(byte.is_some_and(|byte| byte & (0x80 >> (block % 8)) != 0));
            let line = format!("batmap for block {}: {bit}\n", self.show(block));
            self.console.complain(line);
        }
        Ok(())
    }

    /// What is stored of a block, whether its bitmap says that it counts or not.
    fn block_data(&mut self) -> Done {
        let block_size = self.image.block_size().map_err(|error| self.failure(&error))?;
        let mut data = vec![0; usize::try_from(block_size.bytes()).expect("at most 2 MiB")];
        self.each_block(|asked, block, at| {
            let Some(at) = at else { return asked.not_allocated(block) };
            let offset = at.offset() + (u64::from(block_size.bitmap_sectors()) << 9);
            let read = asked.image.source().read_at(offset, &mut data);
            read.map_err(|error| asked.failure(&error))?;
            asked.console.print(&data)
        })
    }

    fn sectors(&mut self) -> Done {
        self.data(self.first.saturating_mul(512), self.count.saturating_mul(512))
    }

    fn bytes(&mut self) -> Done {
        self.data(self.first, self.count)
    }

    /// Bytes of the disk, through the whole chain.
    fn data(&mut self, offset: u64, length: u64) -> Done {
        let size = self.image.sector_count() << 9;
        if offset.saturating_add(length) > size {
            return Err(self.past_end("Byte", offset.saturating_add(length), size));
        }
        let mut chain = self.image.chain_for_inspection().map_err(|error| self.failure(&error))?;
        let mut piece = vec![0; PIECE_SIZE];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(PIECE_SIZE).min(PIECE_SIZE);
            let read = chain.read_at(at, &mut piece[..length]);
            read.map_err(|error| self.failure(&error))?;
            self.console.print(&piece[..length])?;
            at += length as u64;
        }
        Ok(())
    }
}
