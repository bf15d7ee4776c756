//! One image, read: its footer and header, and whatever else is asked for, piece by piece.
//!
//! Nothing is kept but footer and header, so the memory is the same for an image of 2 MiB and one
//! of 2 TiB. The image may change between two calls when somebody else writes it; each call sees
//! what is there then.
//!
//! The footer is looked for at the end, a byte later (old Microsoft programs left one out), and in
//! the copy at the start. A program that was killed, or a host that lost power, can leave a dynamic
//! image without a footer at the end: a new block was written over it. The last 512 bytes of such a
//! file are data, which is why the place of the footer has no part in reading blocks.

use crate::bat::{self, Bat};
use crate::batmap::{self, BatmapHeader, KeyHash};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::footer::{self, DiskType, FOOTER_SIZE, FOOTER_SIZE_SHORT, Footer};
use crate::header::{BlockSize, HEADER_SIZE, Header};
use crate::layout::{Layout, Placement};
use crate::locator::Locator;
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, Sector, Uuid};

/// Bytes of the table that are read at once when all of it is gone through.
const TABLE_PIECE: usize = 64 << 10;

/// The longest sector bitmap, in bytes: of a block of 2 MiB.
pub const BITMAP_SIZE_MAX: usize = 512;

/// Where a footer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterPlace {
    /// In the last 512 bytes.
    End,
    /// In the last 511 bytes.
    EndShort,
    /// In the first 512 bytes: the copy.
    Start,
}

/// How to load an image. The default is for reading and writing its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Look at the copy at the start only: one place to read fewer, when many images are listed.
    pub footer_copy_only: bool,
    /// Load what cannot be served too, for a tool that shows it: an image whose resize was
    /// interrupted, another version or type.
    pub for_inspection: bool,
    /// With that, also one whose bitmaps are in the old bit order, which nobody reads any more: all
    /// but its data can be told.
    pub any_bit_order: bool,
}

/// An image.
#[derive(Clone, Debug)]
pub struct Image<R> {
    source: R,
    length: u64,
    place: FooterPlace,
    raw_footer: Box<[u8; FOOTER_SIZE]>,
    footer: Footer,
    header: Option<Box<Headers>>,
}

#[derive(Clone, Debug)]
struct Headers {
    raw: [u8; HEADER_SIZE],
    header: Header,
}

/// A batmap whose checksum was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap {
    /// Its header.
    pub header: BatmapHeader,
    /// The bits that the checksum covers, for [`bits`](crate::bits); those behind count as clear.
    pub map: Vec<u8>,
}

impl<R: ReadAt> Image<R> {
    /// Finds the footer and the header.
    ///
    /// ```
    /// use vhd::footer::{DiskType, Footer};
    /// use vhd::image::{Image, LoadOptions};
    /// use vhd::units::{Timestamp, Uuid};
    ///
    /// let mut file = vec![0; 4096];
    /// let footer = Footer::new(DiskType::Fixed, 4096, Uuid([7; 16]), Timestamp(0));
    /// file.extend(footer.emit());
    /// let image = Image::load(&file, LoadOptions::default())?;
    /// assert_eq!(image.footer().current_size, 4096);
    /// # Ok::<(), vhd::Error>(())
    /// ```
    ///
    /// # Errors
    /// No footer, or a header that cannot be understood; storage fails; unless for inspection, an
    /// image that cannot be served.
    pub fn load(source: R, options: LoadOptions) -> Result<Self> {
        let length = source.length()?;
        // The copy and what is behind it, mostly the header: one read fewer. Where there is not so
        // much, or it cannot be read, what is wrong is told part by part.
        let mut start = [0; FOOTER_SIZE + HEADER_SIZE];
        let has_start = options.footer_copy_only && source.read_at(0, &mut start).is_ok();
        let found = match start.first_chunk() {
            Some(raw) if has_start => footer_copy(raw),
            _ => find_footer(&source, length, options.footer_copy_only),
        };
        let Found { place, raw: raw_footer, footer } = found?;
        match options {
            LoadOptions { for_inspection: false, .. } => footer.refuse_unservable()?,
            LoadOptions { any_bit_order: false, .. } => footer.refuse_other_bit_order()?,
            _ => {}
        }
        let mut header = None;
        if footer.disk_type.has_blocks() {
            let offset = footer.data_offset;
            let raw = match start.last_chunk() {
                Some(raw) if has_start && offset == FOOTER_SIZE as u64 => *raw,
                _ => read_header(&source, offset)?,
            };
            let parsed = Header::parse(&raw).map_err(|error| error.or_at(offset))?;
            header = Some(Box::new(Headers { raw, header: parsed }));
        }
        Ok(Self { source, length, place, raw_footer: Box::new(raw_footer), footer, header })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn source(&self) -> &R {
        &self.source
    }

    /// Gives the file back.
    #[must_use]
    pub fn into_source(self) -> R {
        self.source
    }

    /// The length of the file when it was loaded, in bytes.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.length
    }

    /// The footer.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Its bytes.
    #[must_use]
    pub fn raw_footer(&self) -> &[u8; FOOTER_SIZE] {
        &self.raw_footer
    }

    /// Where the footer was.
    #[must_use]
    pub fn footer_place(&self) -> FooterPlace {
        self.place
    }

    /// The header of a dynamic or differencing image.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_deref().map(|headers| &headers.header)
    }

    /// Its bytes.
    #[must_use]
    pub fn raw_header(&self) -> Option<&[u8; HEADER_SIZE]> {
        self.header.as_deref().map(|headers| &headers.raw)
    }

    /// The size of the disk, in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.footer.current_size
    }

    /// Does it need a parent?
    #[must_use]
    pub fn is_differencing(&self) -> bool {
        self.footer.disk_type == DiskType::Differencing
    }

    /// Is the parent a raw image? The only sign of that is that it has no UUID.
    #[must_use]
    pub fn has_raw_parent(&self) -> bool {
        self.is_differencing() && self.parent_uuid().is_nil()
    }

    /// The UUID that the parent must have; nil without a parent, or with a raw one.
    #[must_use]
    pub fn parent_uuid(&self) -> Uuid {
        self.header().map_or(Uuid::NIL, |header| header.parent_uuid)
    }

    /// Not 0: a tool will remove it.
    ///
    /// Old creators changed only the copy at the start, and not its checksum.
    ///
    /// # Errors
    /// Storage fails.
    pub fn hidden(&self) -> Result<u8> {
        if self.footer.is_of_old_hidden() && self.footer.disk_type.has_blocks() {
            let copy = read_footer(&self.source, 0)?;
            return Ok(Footer::fields(&copy).hidden);
        }
        Ok(self.footer.hidden)
    }

    /// The header; an image without blocks has none.
    fn blocks(&self) -> Result<&Header> {
        self.header().ok_or_else(|| {
            ErrorKind::NotSupported("The image is not dynamic or differencing: it has no table")
                .into()
        })
    }

    /// The size of its blocks.
    ///
    /// # Errors
    /// It has no blocks.
    pub fn block_size(&self) -> Result<BlockSize> {
        Ok(self.blocks()?.block_size)
    }

    /// How many blocks the disk has, there or not.
    ///
    /// # Errors
    /// It has no blocks, or more than its table has entries.
    pub fn block_count(&self) -> Result<u32> {
        let header = self.blocks()?;
        header.hold(self.footer.block_count(header.block_size))
    }

    /// The whole table, as far as the disk uses it.
    ///
    /// # Errors
    /// It has no blocks, or too many; storage fails.
    pub fn bat(&self) -> Result<Bat> {
        let count = self.block_count()?;
        // No memory is taken for a table that the file has no room for.
        let offset = self.blocks()?.table_offset;
        let (wanted, there) = (u64::from(count) << 2, self.source.length()?.saturating_sub(offset));
        if there < wanted {
            let kind = ErrorKind::Truncated { part: Part::Bat, found: there, wanted };
            return Err(Error::at(offset, kind));
        }
        let mut bat = Bat::new(count)?;
        self.for_each_block(|block, place| bat.set(block, Some(place)))?;
        Ok(bat)
    }

    /// Goes through the blocks that are there, in the order of the disk.
    ///
    /// # Errors
    /// It has no blocks, or more than its table has entries; storage fails.
    pub fn for_each_block(&self, mut visit: impl FnMut(BlockIndex, Sector)) -> Result<()> {
        let count = self.block_count()?;
        let wanted = usize::try_from(u64::from(count) << 2).unwrap_or(usize::MAX);
        let mut bytes = vec![0; wanted.min(TABLE_PIECE)];
        let mut first = 0_u32;
        while first < count {
            let left = count.saturating_sub(first);
            let entries = usize::try_from(left).unwrap_or(usize::MAX).min(TABLE_PIECE / 4);
            let piece = bytes.get_mut(..entries.saturating_mul(4)).unwrap_or_default();
            self.read_table(first, piece)?;
            // Most of a large disk is not there: sixteen entries at a time.
            for (at, sixteen) in (first..).step_by(16).zip(piece.chunks(64)) {
                if sixteen == [0xff; 64] {
                    continue;
                }
                for (at, word) in (at..).zip(sixteen.as_chunks::<4>().0) {
                    let entry = u32::from_be_bytes(*word);
                    if entry != bat::UNUSED {
                        visit(BlockIndex(at), Sector(entry));
                    }
                }
            }
            first = first.saturating_add(u32::try_from(entries).unwrap_or(u32::MAX));
        }
        Ok(())
    }

    /// Reads entries of the table, as they are in the file, from entry `first` on.
    ///
    /// # Errors
    /// It has no blocks; storage fails.
    pub fn read_table(&self, first: u32, bytes: &mut [u8]) -> Result<()> {
        let offset = self.blocks()?.table_offset.saturating_add(u64::from(first) << 2);
        self.source.read_at(offset, bytes).map_err(|error| error.of(Part::Bat).or_at(offset))
    }

    /// Where one block is.
    ///
    /// # Errors
    /// Past the end of the disk; it has no blocks; storage fails.
    pub fn bat_entry(&self, block: BlockIndex) -> Result<Option<Sector>> {
        let count = self.block_count()?;
        if block.0 >= count {
            let size = self.virtual_size();
            let found = u64::from(block.0).saturating_mul(self.block_size()?.bytes());
            return Err(ErrorKind::PastEnd { found, size }.into());
        }
        let mut word = [0; 4];
        self.read_table(block.0, &mut word)?;
        let entry = u32::from_be_bytes(word);
        Ok((entry != bat::UNUSED).then_some(Sector(entry)))
    }

    /// How many blocks are there.
    ///
    /// # Errors
    /// As for [`Image::for_each_block`].
    pub fn allocated_count(&self) -> Result<u32> {
        let mut count = 0_u32;
        self.for_each_block(|_, _| count = count.saturating_add(1))?;
        Ok(count)
    }

    /// Reads the bitmap of a block that is at `place`.
    ///
    /// # Errors
    /// It has no blocks; storage fails.
    pub fn bitmap(&self, block: BlockIndex, place: Sector) -> Result<[u8; BITMAP_SIZE_MAX]> {
        let mut bitmap = [0; BITMAP_SIZE_MAX];
        let part = Part::Bitmap(block);
        let read = self.source.read_at(place.offset(), &mut bitmap);
        read.map_err(|error| error.of(part).or_at(place.offset()))?;
        Ok(bitmap)
    }

    /// May there be a batmap behind the table? Since creator version 1.2 there is one.
    #[must_use]
    pub fn may_have_batmap(&self) -> bool {
        self.header.is_some()
            && self.footer.is_by_this_family()
            && self.footer.creator_version >= batmap::CREATOR_VERSION_MIN
    }

    /// Where the batmap's header is, and its bytes.
    ///
    /// # Errors
    /// It has no blocks; storage fails.
    pub fn raw_batmap_header(&self) -> Result<(u64, [u8; batmap::BATMAP_HEADER_SIZE])> {
        let header = self.blocks()?;
        let offset = batmap::header_offset(header.table_offset, header.table_entries);
        let mut raw = [0; batmap::BATMAP_HEADER_SIZE];
        let read = self.source.read_at(offset, &mut raw);
        read.map_err(|error| error.of(Part::BatmapHeader).or_at(offset))?;
        Ok((offset, raw))
    }

    /// The batmap's header, where there is one.
    ///
    /// # Errors
    /// There should be one and is not; storage fails.
    pub fn batmap_header(&self) -> Result<Option<BatmapHeader>> {
        if !self.may_have_batmap() {
            return Ok(None);
        }
        let (offset, raw) = self.raw_batmap_header()?;
        match BatmapHeader::parse(&raw) {
            Ok(header) => Ok(Some(header)),
            Err(_) if self.footer.creator_version == batmap::CREATOR_VERSION_MIN => Ok(None),
            Err(error) => Err(error.or_at(offset)),
        }
    }

    /// Has it the hash of a key, so that its data is encrypted?
    ///
    /// # Errors
    /// Storage fails.
    pub fn is_encrypted(&self) -> Result<bool> {
        Ok(self.keyhash()?.is_some())
    }

    /// The hash of the key in which its data is, if it has one.
    ///
    /// # Errors
    /// Storage fails.
    pub fn keyhash(&self) -> Result<Option<KeyHash>> {
        match self.batmap_header() {
            Ok(header) => Ok(header.and_then(|header| header.keyhash)),
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The batmap, where there is one.
    ///
    /// It is only a hint: without it, bitmaps say the same. So who reads data takes an error for
    /// "none"; a tool that checks reports it.
    ///
    /// # Errors
    /// There should be one and is not, or its checksum is wrong; storage fails.
    pub fn batmap(&self) -> Result<Option<Batmap>> {
        let Some(header) = self.batmap_header()? else { return Ok(None) };
        let part = Part::Batmap;
        if header.sectors == 0 {
            let (field, wanted) = ("size", "at least one sector");
            return Err(ErrorKind::Field { part, field, found: 0, wanted }.into());
        }
        let size = batmap::summed_size(self.virtual_size());
        let limit = u64::from(bat::ENTRIES_MAX / 8);
        if size > limit {
            let (what, unit) = ("Batmap", "bytes");
            return Err(ErrorKind::TooLarge { what, found: size, limit, unit }.into());
        }
        // The file may have grown since it was loaded.
        let end = header.offset.saturating_add(size);
        let length = if end <= self.length { self.length } else { self.source.length()? };
        let there = length.saturating_sub(header.offset);
        if there < size {
            let kind = ErrorKind::Truncated { part, found: there, wanted: size };
            return Err(Error::at(header.offset, kind));
        }
        let mut map = vec![0; usize::try_from(size).expect("bounded above")];
        let read = self.source.read_at(header.offset, &mut map);
        read.map_err(|error| error.of(part).or_at(header.offset))?;
        let (found, wanted) = (header.checksum, header.checksum_of(&map));
        if found != wanted {
            return Err(Error::at(header.offset, ErrorKind::Checksum { part, found, wanted }));
        }
        Ok(Some(Batmap { header, map }))
    }

    /// Where the parts in front of the blocks are.
    ///
    /// Where a batmap's header cannot be read there is no batmap: QEMU puts its first block there.
    ///
    /// # Errors
    /// It has no blocks; storage fails.
    pub fn layout(&self) -> Result<Layout> {
        let batmap = match self.batmap_header() {
            Ok(batmap) => batmap,
            Err(error) if matches!(error.kind(), ErrorKind::Io { .. }) => return Err(error),
            Err(_) => None,
        };
        self.layout_around(batmap.as_ref())
    }

    /// The same for who has read the batmap's header already.
    ///
    /// # Errors
    /// It has no blocks.
    pub fn layout_around(&self, batmap: Option<&BatmapHeader>) -> Result<Layout> {
        Ok(Layout::of(self.footer.data_offset, self.blocks()?, batmap))
    }

    /// Where new blocks go, behind all that is there.
    ///
    /// # Errors
    /// As for [`Image::for_each_block`].
    pub fn placement(&self) -> Result<Placement> {
        let mut placement = Placement::of(&self.layout()?, []);
        self.for_each_block(|_, place| placement.take(place))?;
        Ok(placement)
    }

    /// Where the data ends, in bytes: the place of the footer in a file. Of an image without
    /// blocks, where its disk does.
    ///
    /// # Errors
    /// As for [`Image::for_each_block`].
    pub fn end_of_data(&self) -> Result<u64> {
        match self.header {
            Some(_) => Ok(self.placement()?.end_of_data()),
            None => Ok(self.virtual_size()),
        }
    }

    /// Reads the text of a locator, for [`Locator::decode`].
    ///
    /// # Errors
    /// Storage fails.
    pub fn locator_text(&self, number: u8, locator: &Locator) -> Result<Vec<u8>> {
        let size = usize::try_from(locator.text_size()).expect("at most 64 KiB");
        let mut text = vec![0; size];
        let read = self.source.read_at(locator.offset, &mut text);
        read.map_err(|error| error.of(Part::Locator(number)).or_at(locator.offset))?;
        Ok(text)
    }

    /// The parent's path in locator `number`; `None` if its platform is not one that is read.
    ///
    /// # Errors
    /// Text that is not in the platform's encoding; storage fails.
    pub fn locator_path(&self, number: u8) -> Result<Option<String>> {
        let locators = self.header().map(|header| header.locators);
        let locator = locators.as_ref().and_then(|all| all.get(usize::from(number)));
        let Some(locator) = locator else { return Ok(None) };
        if !locator.platform.is_read() {
            return Ok(None);
        }
        let text = self.locator_text(number, locator)?;
        locator.decode(number, &text).transpose()
    }
}

fn read_footer<R: ReadAt>(source: &R, offset: u64) -> Result<[u8; FOOTER_SIZE]> {
    let part = if offset == 0 { Part::FooterCopy } else { Part::Footer };
    let mut bytes = [0; FOOTER_SIZE];
    let read = source.read_at(offset, &mut bytes);
    read.map_err(|error| error.of(part).or_at(offset))?;
    Ok(bytes)
}

/// A footer, and where it was.
struct Found {
    place: FooterPlace,
    raw: [u8; FOOTER_SIZE],
    footer: Footer,
}

/// The first good footer of the three places, else what was wrong with the last that was looked at.
fn find_footer<R: ReadAt>(source: &R, length: u64, copy_only: bool) -> Result<Found> {
    if !copy_only {
        if let Some(offset) = length.checked_sub(FOOTER_SIZE as u64) {
            let raw = read_footer(source, offset)?;
            if let Ok(footer) = Footer::parse(&raw) {
                return Ok(Found { place: FooterPlace::End, raw, footer });
            }
        }
        if let Some(offset) = length.checked_sub(FOOTER_SIZE_SHORT as u64) {
            let mut short = [0; FOOTER_SIZE_SHORT];
            let read = source.read_at(offset, &mut short);
            read.map_err(|error| error.of(Part::Footer).or_at(offset))?;
            if let Ok(footer) = Footer::parse_short(&short) {
                let raw = footer::widened(&short);
                return Ok(Found { place: FooterPlace::EndShort, raw, footer });
            }
        }
    }
    footer_copy(&read_footer(source, 0)?)
}

/// What is at the start, where the copy of a dynamic image is.
fn footer_copy(raw: &[u8; FOOTER_SIZE]) -> Result<Found> {
    let footer = Footer::parse(raw).map_err(|error| error.or_at(0))?;
    if footer.disk_type == DiskType::Fixed {
        // Its first sector belongs to whoever writes the disk: not a place to take a footer from.
        let part = Part::FooterCopy;
        let (field, wanted) = ("type", "3 or 4: a fixed image has no copy of its footer");
        return Err(Error::at(0, ErrorKind::Field { part, field, found: 2, wanted }));
    }
    Ok(Found { place: FooterPlace::Start, raw: *raw, footer })
}

fn read_header<R: ReadAt>(source: &R, offset: u64) -> Result<[u8; HEADER_SIZE]> {
    let mut raw = [0; HEADER_SIZE];
    let read = source.read_at(offset, &mut raw);
    read.map_err(|error| error.of(Part::Header).or_at(offset))?;
    Ok(raw)
}

#[cfg(test)]
mod tests;
