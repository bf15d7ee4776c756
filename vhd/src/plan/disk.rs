//! What an operation knows of an image before its first step: everything but the blocks.

use std::ops::Range;

use super::{File, Files, Opens, Steps};
use crate::bat::{self, Bat};
use crate::batmap::{self, BATMAP_HEADER_SIZE, BatmapHeader, KeyHash};
use crate::bits;
use crate::error::{Error, ErrorKind, Part, Result};
use crate::footer::{FOOTER_SIZE, FOOTER_SIZE_SHORT, Footer};
use crate::header::{BlockSize, HEADER_SIZE, Header};
use crate::image::{FooterPlace, Image, LoadOptions};
use crate::layout::{Layout, Placement};
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, Sector};

const FOOTER_BYTES: u64 = FOOTER_SIZE as u64;

/// So many bytes are taken before the file turns out to be shorter: bitmaps and headers.
const SMALL: u64 = 4096;

/// An image, opened for an operation: not poisoned, and its parts make sense.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) is_device: bool,
    /// Of the file, in bytes.
    pub(super) length: u64,
    pub(super) footer: Footer,
    /// Where the footer at the end is; none if only its copy was readable.
    pub(super) footer_offset: Option<u64>,
    /// Of all but fixed disks.
    pub(super) sparse: Option<Sparse>,
    /// Of an encrypted disk. It counts though the batmap, whose header has it, be damaged.
    pub(super) keyhash: Option<KeyHash>,
}

/// What dynamic and differencing disks have.
#[derive(Clone, Debug)]
pub(super) struct Sparse {
    pub(super) header: Header,
    pub(super) layout: Layout,
    /// All entries of the table, also those past the end of the disk.
    pub(super) bat: Bat,
    /// Blocks of the disk.
    pub(super) blocks: u32,
    pub(super) batmap: Option<Batmap>,
}

/// A batmap's header, and those of its bits that the checksum covers. The first programs put other
/// parts behind these, whatever the header says about the size.
#[derive(Clone, Debug)]
pub(super) struct Batmap {
    pub(super) header_offset: u64,
    pub(super) header: BatmapHeader,
    pub(super) map: Vec<u8>,
    /// Is the checksum right? If not, no bit counts.
    pub(super) is_valid: bool,
}

/// The footers that can be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footers {
    /// At the end, and its offset.
    pub(super) end: Option<(u64, Footer)>,
    /// At the start, of all but fixed disks.
    pub(super) copy: Option<Footer>,
}

/// Reads both footers, as far as they are there.
pub(super) fn read_footers(file: &dyn ReadAt) -> Result<Footers> {
    let length = file.length()?;
    let read = |offset: Option<u64>| -> Result<Option<(u64, Footer)>> {
        let Some(offset) = offset else { return Ok(None) };
        let mut bytes = [0; FOOTER_SIZE];
        file.read_at(offset, &mut bytes)?;
        Ok(Footer::parse(&bytes).ok().map(|footer| (offset, footer)))
    };
    let mut end = read(length.checked_sub(FOOTER_BYTES))?;
    if end.is_none()
        && let Some(offset) = length.checked_sub(FOOTER_SIZE_SHORT as u64)
    {
        let mut bytes = [0; FOOTER_SIZE_SHORT];
        file.read_at(offset, &mut bytes)?;
        end = Footer::parse_short(&bytes).ok().map(|footer| (offset, footer));
    }
    let copy = read((length >= FOOTER_BYTES).then_some(0))?.map(|(_, footer)| footer);
    // A fixed disk has no copy: what is at its start is data, also of a disk inside the disk.
    let copy = copy.filter(|footer| footer.disk_type != crate::footer::DiskType::Fixed);
    Ok(Footers { end, copy })
}

impl Disk {
    /// Opens an image.
    ///
    /// # Errors
    /// What [`Image::load`] gives; parts that make no sense for writing into it.
    pub(super) fn open(files: &dyn Files, file: File) -> Result<Self> {
        let bytes = files.open(file)?;
        let image = Image::load(bytes, LoadOptions::default())?;
        let (length, footer) = (image.file_size(), *image.footer());
        let footer_offset = match image.footer_place() {
            FooterPlace::End => length.checked_sub(FOOTER_BYTES),
            FooterPlace::EndShort => length.checked_sub(FOOTER_SIZE_SHORT as u64),
            FooterPlace::Start => None,
        };
        let header = image.header();
        let sparse = header.map(|header| Sparse::open(bytes, &footer, header)).transpose()?;
        let (is_device, keyhash) = (files.is_device(file), image.keyhash()?);
        Ok(Self { file, is_device, length, footer, footer_offset, sparse, keyhash })
    }

    /// Whether it is encrypted; if so, it must be in the key of whoever performs the plan.
    ///
    /// # Errors
    /// EACCES, without a key; EINVAL, with another one, or with one for a disk that is in none.
    pub(super) fn open_with(&self, opens: Opens<'_>) -> Result<bool> {
        match (&self.keyhash, opens) {
            (None, None) => Ok(false),
            (Some(keyhash), Some(opens)) if opens(keyhash) => Ok(true),
            (Some(_), None) => Err(ErrorKind::Encrypted.into()),
            (_, Some(_)) => Err(ErrorKind::OtherKey.into()),
        }
    }

    /// What dynamic and differencing disks have.
    ///
    /// # Errors
    /// EINVAL, for a fixed one.
    pub(super) fn sparse(&self) -> Result<&Sparse> {
        let field = Field { part: Part::Footer, field: "type", wanted: "dynamic or differencing" };
        self.sparse.as_ref().ok_or_else(|| field.error(self.footer.disk_type.code().into()))
    }

    /// Where the data ends and a footer may be, in bytes: at its new end when blocks are added.
    pub(super) fn footer_place(&self, end_of_data: u64) -> Result<u64> {
        if !self.is_device {
            return Ok(end_of_data);
        }
        let place = self.footer_offset.or(self.length.checked_sub(FOOTER_BYTES)).unwrap_or(0);
        if end_of_data > place {
            let enospc = ErrorKind::Io { errno: crate::error::errno::ENOSPC };
            return Err(Error::at(end_of_data, enospc));
        }
        Ok(place)
    }

    /// Where the footer at the end is, or will be when it is lost.
    pub(super) fn footer_at_end(&self) -> Result<u64> {
        match (self.footer_offset, &self.sparse) {
            (Some(place), _) => Ok(place),
            (None, Some(sparse)) => self.footer_place(sparse.placement().end_of_data()),
            (None, None) => Ok(self.footer.current_size),
        }
    }

    /// Nothing is behind the footer at `place`. The steps end with a barrier.
    pub(super) fn cut_behind(&self, steps: &mut Steps, place: u64) {
        let length = place.saturating_add(FOOTER_BYTES);
        if !self.is_device && self.length > length {
            steps.set_length(self.file, length);
            steps.barrier();
        }
    }

    /// Both footers, at their places; a fixed disk has one.
    pub(super) fn write_footers(&self, steps: &mut Steps, place: u64, footer: &Footer) {
        if self.sparse.is_some() {
            steps.write(self.file, 0, &footer.emit());
        }
        steps.write(self.file, place, &footer.emit());
    }
}

/// A part's field that is not what it must be.
pub(super) struct Field {
    pub(super) part: Part,
    pub(super) field: &'static str,
    pub(super) wanted: &'static str,
}

impl Field {
    pub(super) fn error(&self, found: u64) -> Error {
        let Self { part, field, wanted } = *self;
        ErrorKind::Field { part, field, found, wanted }.into()
    }
}

impl Sparse {
    fn open(file: &dyn ReadAt, footer: &Footer, header: &Header) -> Result<Self> {
        let (at, header) = (footer.data_offset, *header);
        let blocks = header.hold(footer.block_count(header.block_size))?;
        let table = u64::from(header.table_entries.min(bat::ENTRIES_MAX)) << 2;
        let bat = Bat::parse(&read(file, header.table_offset, table)?, header.table_entries)?;
        let batmap = Batmap::open(file, footer, &header)?;
        let layout = Layout::of(at, &header, batmap.as_ref().map(|batmap| &batmap.header));
        let sparse = Self { header, layout, bat, blocks, batmap };
        sparse.refuse_blocks_over_metadata()?;
        Ok(sparse)
    }

    pub(super) fn block_size(&self) -> BlockSize {
        self.layout.block_size
    }

    /// The blocks of the disk that are there.
    pub(super) fn allocated(&self) -> impl Iterator<Item = (u32, Sector)> + '_ {
        let all = self.bat.allocated().map(|(block, place)| (block.0, place));
        all.filter(|(block, _)| *block < self.blocks)
    }

    /// Where the blocks of the disk are, with their bitmaps, in bytes.
    pub(super) fn block_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let size = u64::from(self.block_size().total_sectors()) << 9;
        let range = move |place: Sector| place.offset()..place.offset().saturating_add(size);
        self.allocated().map(move |(_, place)| range(place))
    }

    /// Behind everything that is there.
    pub(super) fn placement(&self) -> Placement {
        Placement::of(&self.layout, self.allocated().map(|(_, place)| place))
    }

    /// Where a block of the disk is.
    pub(super) fn block(&self, block: u32) -> Option<Sector> {
        self.bat.get(BlockIndex(block)).filter(|_| block < self.blocks)
    }

    /// Where the data of a block is, in bytes, when its bitmap is at `place`.
    pub(super) fn data_offset(&self, place: Sector) -> u64 {
        place.offset().saturating_add(u64::from(self.block_size().bitmap_sectors()) << 9)
    }

    /// A block's bitmap: whole sectors.
    pub(super) fn read_bitmap(&self, file: &dyn ReadAt, place: Sector) -> Result<Vec<u8>> {
        read(file, place.offset(), u64::from(self.block_size().bitmap_sectors()) << 9)
    }

    /// One sector of the table, from entry `number` times 128.
    pub(super) fn write_table_sector(&self, steps: &mut Steps, file: File, number: u32) {
        let offset = self.layout.table_offset.saturating_add(u64::from(number) << 9);
        // Behind the last entry of a table is padding, which is zero.
        let mut bytes = self.bat.sector(number);
        let first = number.saturating_mul(bat::ENTRIES_PER_SECTOR);
        let entries = self.bat.len().saturating_sub(first).min(bat::ENTRIES_PER_SECTOR);
        let used = usize::try_from(entries << 2).expect("at most a sector");
        bytes.get_mut(used..).unwrap_or_default().fill(0);
        steps.write(file, offset, &bytes);
    }

    /// The parts in front of the blocks, or wherever they are, in bytes.
    pub(super) fn parts(&self) -> Vec<(Part, Range<u64>)> {
        let part = |part, start: u64, size: u64| (part, start..start.saturating_add(size));
        let table = bat::size_on_disk(self.bat.len());
        let mut parts = vec![
            part(Part::FooterCopy, 0, FOOTER_BYTES),
            part(Part::Header, self.layout.header_offset, HEADER_SIZE as u64),
            part(Part::Bat, self.layout.table_offset, table),
        ];
        if let Some(batmap) = &self.batmap {
            parts.push(part(Part::BatmapHeader, batmap.header_offset, 512));
            let size = u64::try_from(batmap.map.len()).unwrap_or(u64::MAX);
            parts.push(part(Part::Batmap, batmap.header.offset, size));
        }
        let locators =
            (0_u8..).zip(&self.header.locators).filter(|(_, locator)| locator.space != 0);
        parts.extend(locators.map(|(n, at)| (Part::Locator(n), at.offset..at.end())));
        parts
    }

    /// Where the last part ends, in bytes.
    pub(super) fn end_of_parts(&self) -> u64 {
        self.parts().into_iter().fold(0, |end, (_, range)| end.max(range.end))
    }

    /// Nothing that is written into a block may change what says where the blocks are.
    fn refuse_blocks_over_metadata(&self) -> Result<()> {
        let parts = self.parts();
        let size = u64::from(self.block_size().total_sectors()) << 9;
        for (block, place) in self.allocated() {
            let (start, end) = (place.offset(), place.offset().saturating_add(size));
            let over = parts.iter().find(|(_, range)| range.start < end && start < range.end);
            if let Some((other, _)) = over {
                let (part, other) = (Part::Block(BlockIndex(block)), *other);
                return Err(Error::at(start, ErrorKind::Overlap { part, other }));
            }
        }
        Ok(())
    }
}

impl Disk {
    /// A cut can leave the bits of a batmap and their checksum apart: then the bits are made anew,
    /// from what the bitmaps say. Returns whether that was so, and they have to be written.
    ///
    /// # Errors
    /// What reading the bitmaps gives.
    pub(super) fn mend_batmap(&mut self, files: &dyn Files) -> Result<bool> {
        let size = self.footer.current_size;
        let Some(sparse) = &mut self.sparse else { return Ok(false) };
        if sparse.batmap.as_ref().is_none_or(|batmap| batmap.is_valid) {
            return Ok(false);
        }
        let (file, count) = (files.open(self.file)?, sparse.block_size().sectors());
        let mut full = Vec::new();
        for (block, place) in sparse.allocated() {
            if bits::is_full(&sparse.read_bitmap(file, place)?, count) {
                full.push(block);
            }
        }
        if let Some(batmap) = &mut sparse.batmap {
            batmap.cover(batmap::summed_size(size));
            batmap.set_all(&full);
        }
        Ok(true)
    }
}

impl Batmap {
    fn open(file: &dyn ReadAt, footer: &Footer, header: &Header) -> Result<Option<Self>> {
        if !footer.is_by_this_family() || footer.creator_version < batmap::CREATOR_VERSION_MIN {
            return Ok(None);
        }
        let header_offset = batmap::header_offset(header.table_offset, header.table_entries);
        let mut bytes = [0; BATMAP_HEADER_SIZE];
        if header_offset.saturating_add(512) > file.length()? {
            return Ok(None);
        }
        file.read_at(header_offset, &mut bytes)?;
        let Ok(batmap) = BatmapHeader::parse(&bytes) else { return Ok(None) };
        let summed = batmap::summed_size(footer.current_size);
        let end = batmap.offset.saturating_add(summed);
        if batmap.check(header).is_some() || end > batmap.end() || end > file.length()? {
            return Ok(None);
        }
        let map = read(file, batmap.offset, summed)?;
        let is_valid = batmap.checksum_of(&map) == batmap.checksum;
        Ok(Some(Self { header_offset, header: batmap, map, is_valid }))
    }

    /// The checksum covers so many bytes from now on; what did not count before is clear.
    pub(super) fn cover(&mut self, bytes: u64) {
        if !self.is_valid {
            self.map.clear();
        }
        self.map.resize(usize::try_from(bytes).expect("a map of bits fits"), 0);
        self.is_valid = true;
    }

    /// Sets bits, as far as the checksum covers them. Has that changed anything?
    pub(super) fn set_all(&mut self, blocks: &[u32]) -> bool {
        self.change(blocks, true)
    }

    /// Clears bits. Has that changed anything?
    pub(super) fn clear_all(&mut self, blocks: &[u32]) -> bool {
        self.change(blocks, false)
    }

    fn change(&mut self, blocks: &[u32], is_set: bool) -> bool {
        let mut is_changed = false;
        for block in blocks.iter().copied() {
            let is_covered = usize::try_from(block >> 3).is_ok_and(|at| at < self.map.len());
            if is_covered && bits::get(&self.map, block) != is_set {
                bits::set(&mut self.map, block, is_set);
                is_changed = true;
            }
        }
        is_changed
    }

    /// Clears bits from `first` on. Has that changed anything?
    pub(super) fn clear_from(&mut self, first: u32) -> bool {
        let bits = u32::try_from(self.map.len()).unwrap_or(u32::MAX).saturating_mul(8);
        let mut is_changed = false;
        for bit in first..bits {
            if bits::get(&self.map, bit) {
                bits::set(&mut self.map, bit, false);
                is_changed = true;
            }
        }
        is_changed
    }

    /// Bits and header.
    pub(super) fn write(&mut self, steps: &mut Steps, file: File) {
        self.header.version = batmap::BATMAP_VERSION;
        self.header.checksum = self.header.checksum_of(&self.map);
        steps.write(file, self.header.offset, &self.map);
        steps.write(file, self.header_offset, &self.header.emit());
    }
}

/// Bytes of a file, no more than there are.
pub(super) fn read(file: &dyn ReadAt, offset: u64, size: u64) -> Result<Vec<u8>> {
    if size <= SMALL {
        let mut bytes = vec![0; usize::try_from(size).expect("it is small")];
        file.read_at(offset, &mut bytes)?;
        return Ok(bytes);
    }
    let length = file.length()?;
    if offset.checked_add(size).is_none_or(|end| end > length) {
        let found = length.saturating_sub(offset);
        let kind = ErrorKind::Truncated { part: Part::Data, found, wanted: size };
        return Err(Error::at(offset, kind));
    }
    let mut bytes = vec![0; usize::try_from(size).expect("no longer than the file")];
    file.read_at(offset, &mut bytes)?;
    Ok(bytes)
}
