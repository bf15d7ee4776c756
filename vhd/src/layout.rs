//! Where the parts of an image are, and where the next block goes.
//!
//! ```text
//! 0 footer copy | header | table | batmap header | batmap | locators | blocks ... | footer
//! ```
//!
//! That is the order of a new image; of others, only the table of contents is sure: the footer says
//! where the header is, the header where table and locators are, the table where the blocks are.
//!
//! A block's data starts at a multiple of 4096 bytes and its bitmap in the sectors before. Of the
//! seven sectors that this leaves free before a block nothing is ever read.

use crate::bat;
use crate::batmap::{self, BatmapHeader};
use crate::error::{ErrorKind, Result};
use crate::footer::{FOOTER_SIZE, HEADER_OFFSET};
use crate::header::{BlockSize, HEADER_SIZE, Header};
use crate::units::{SECTOR_SIZE, Sector};

/// What a block's data is aligned to, in sectors: 4096 bytes.
pub const BLOCK_ALIGNMENT_SECTORS: u64 = 8;

/// The largest virtual size of a dynamic or differencing disk, in bytes: 2040 GiB.
///
/// The table names sectors with 32 bits, which end at 2 TiB of file; each block takes 4 KiB more
/// than its 2 MiB, and metadata of up to 4.2 MiB are in front. This is the limit that storage
/// managers and other programs have agreed on.
pub const DYNAMIC_SIZE_MAX: u64 = 2040 << 30;

/// The largest disk whose metadata may be made in advance, in bytes: 2 TiB, which the table's
/// numbers can name at most.
pub const METADATA_SIZE_MAX: u64 = 2 << 40;

/// The room of one new locator, in bytes.
pub const LOCATOR_SPACE: u64 = 512;

/// Where the parts in front of the blocks are, in bytes from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The header.
    pub header_offset: u64,
    /// The table.
    pub table_offset: u64,
    /// Entries of the table.
    pub table_entries: u32,
    /// Of each block.
    pub block_size: BlockSize,
    /// The batmap's header, where there is a batmap.
    pub batmap_header_offset: Option<u64>,
    /// The end of all parts in front of the blocks, and where the first block may begin.
    pub end_of_headers: u64,
}

impl Layout {
    /// Of a new image of `table_entries` blocks, with `locators` of one sector each.
    ///
    /// ```
    /// use vhd::layout::Layout;
    ///
    /// // 2 TiB of 2 MiB blocks, three locators and the footer: what storage managers reserve.
    /// let layout = Layout::new(1 << 20, 3);
    /// assert_eq!(layout.end_of_headers + 512, 4_329_472);
    /// ```
    #[must_use]
    pub fn new(table_entries: u32, locators: u8) -> Self {
        let table_offset = HEADER_OFFSET.saturating_add(HEADER_SIZE as u64);
        let batmap = BatmapHeader::new(table_offset, table_entries);
        Self {
            header_offset: HEADER_OFFSET,
            table_offset,
            table_entries,
            block_size: BlockSize::DEFAULT,
            batmap_header_offset: Some(batmap::header_offset(table_offset, table_entries)),
            end_of_headers: batmap
                .end()
                .saturating_add(LOCATOR_SPACE.saturating_mul(locators.into())),
        }
    }

    /// Of an image that was read.
    #[must_use]
    pub fn of(header_offset: u64, header: &Header, batmap: Option<&BatmapHeader>) -> Self {
        let (table_offset, table_entries) = (header.table_offset, header.table_entries);
        let own = batmap.map(|_| batmap::header_offset(table_offset, table_entries));
        let mut end = header_offset.saturating_add(HEADER_SIZE as u64).max(FOOTER_SIZE as u64);
        end = end.max(table_offset.saturating_add(bat::size_on_disk(table_entries)));
        if let (Some(own), Some(batmap)) = (own, batmap) {
            end = end.max(own.saturating_add(512)).max(batmap.end());
        }
        let used = header.locators.iter().filter(|locator| locator.space != 0);
        end = used.map(crate::locator::Locator::end).fold(end, u64::max);
        Self {
            header_offset,
            table_offset,
            table_entries,
            block_size: header.block_size,
            batmap_header_offset: own,
            end_of_headers: end,
        }
    }
}

/// Hands out places for new blocks, behind all that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    block_size: BlockSize,
    end: u64,
}

impl Placement {
    /// Behind the headers; `end_of_headers` in bytes.
    #[must_use]
    pub fn new(block_size: BlockSize, end_of_headers: u64) -> Self {
        Self { block_size, end: end_of_headers.div_ceil(SECTOR_SIZE) }
    }

    /// Of an image that was read.
    #[must_use]
    pub fn of(layout: &Layout, blocks: impl IntoIterator<Item = Sector>) -> Self {
        let mut placement = Self::new(layout.block_size, layout.end_of_headers);
        blocks.into_iter().for_each(|block| placement.take(block));
        placement
    }

    /// Counts a block that is there.
    pub fn take(&mut self, block: Sector) {
        self.end = self.end.max(self.end_of(block));
    }

    /// Where the data ends, in bytes: the place of the footer.
    #[must_use]
    pub fn end_of_data(&self) -> u64 {
        self.end.saturating_mul(SECTOR_SIZE)
    }

    /// Where the next block would begin.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`], past the 2 TiB that the table can name.
    pub fn peek(&self) -> Result<Sector> {
        let bitmap = u64::from(self.block_size.bitmap_sectors());
        let data = self.end.checked_add(bitmap);
        let data = data.and_then(|data| data.checked_next_multiple_of(BLOCK_ALIGNMENT_SECTORS));
        let start = data.and_then(|data| data.checked_sub(bitmap)).unwrap_or(u64::MAX);
        match u32::try_from(start) {
            Ok(sector) if sector != bat::UNUSED => Ok(Sector(sector)),
            _ => Err(ErrorKind::NoSpace { sector: start }.into()),
        }
    }

    /// Takes the place of the next block.
    ///
    /// # Errors
    /// As for [`Placement::peek`].
    pub fn allocate(&mut self) -> Result<Sector> {
        let place = self.peek()?;
        self.take(place);
        Ok(place)
    }

    fn end_of(&self, block: Sector) -> u64 {
        u64::from(block.0).saturating_add(self.block_size.total_sectors().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locator::{Locator, Platform};
    use proptest::prelude::*;

    #[test]
    fn a_new_image_has_its_parts_one_behind_the_other() {
        let layout = Layout::new(10, 0);
        assert_eq!((layout.header_offset, layout.table_offset), (512, 1536));
        assert_eq!(layout.batmap_header_offset, Some(2048));
        assert_eq!(layout.end_of_headers, 3072);
        assert_eq!(Layout::new(10, 3).end_of_headers, 3072 + 3 * 512);
    }

    #[test]
    fn what_is_read_ends_where_its_last_part_does() {
        let mut header = Header::new(1536, 10, BlockSize::DEFAULT);
        assert_eq!(Layout::of(512, &header, None).end_of_headers, 2048);
        let batmap = BatmapHeader::new(1536, 10);
        assert_eq!(Layout::of(512, &header, Some(&batmap)).end_of_headers, 3072);
        header.locators[7] =
            Locator { platform: Platform::MacX, space: 2, length: 9, reserved: 0, offset: 4096 };
        assert_eq!(Layout::of(512, &header, Some(&batmap)).end_of_headers, 5120);
        assert_eq!(Layout::of(8192, &header, None).end_of_headers, 9216);
        header.table_offset = u64::MAX - 5;
        assert_eq!(Layout::of(512, &header, None).end_of_headers, u64::MAX);
    }

    #[test]
    fn the_first_block_follows_the_headers_and_the_next_4104_sectors_later() {
        let mut placement = Placement::new(BlockSize::DEFAULT, 3072);
        assert_eq!(placement.allocate(), Ok(Sector(7)));
        assert_eq!(placement.end_of_data(), (7 + 4097) * 512);
        assert_eq!(placement.allocate(), Ok(Sector(7 + 4104)));
    }

    #[test]
    fn there_is_no_place_for_a_block_past_2_tib() {
        let mut placement = Placement::new(BlockSize::DEFAULT, 0);
        placement.take(Sector(u32::MAX - 4096 - 8));
        assert_eq!(placement.allocate(), Err(ErrorKind::NoSpace { sector: (1 << 32) - 1 }.into()));
        let mut placement = Placement::new(BlockSize::DEFAULT, 0);
        placement.take(Sector(u32::MAX - 4096 - 9));
        assert_eq!(placement.allocate(), Ok(Sector(u32::MAX - 8)));
        assert!(placement.allocate().is_err());
        assert!(Placement::new(BlockSize::DEFAULT, u64::MAX).allocate().is_err());
    }

    #[test]
    fn the_largest_disk_fits_below_2_tib_when_it_is_full() {
        let blocks = u32::try_from(DYNAMIC_SIZE_MAX >> 21).unwrap();
        let layout = Layout::new(1 << 20, 3);
        let mut placement = Placement::of(&layout, []);
        for _ in 0..blocks {
            placement.allocate().unwrap();
        }
    }

    proptest! {
        #[test]
        fn data_is_aligned_and_blocks_do_not_overlap(
            exponent in 9..=21_u32, headers in 0..1_u64 << 24, taken in 0..1_u32 << 20,
        ) {
            let block_size = BlockSize::new(1 << exponent).unwrap();
            let mut placement = Placement::new(block_size, headers);
            placement.take(Sector(taken));
            let mut end = headers.max(Sector(taken + block_size.total_sectors()).offset());
            for _ in 0..10 {
                let place = placement.allocate().unwrap();
                let data = place.offset() + u64::from(block_size.bitmap_sectors()) * 512;
                prop_assert_eq!(data % 4096, 0);
                prop_assert!(place.offset() >= end && place.offset() < end + 4096 + 512);
                end = data + block_size.bytes();
                prop_assert_eq!(placement.end_of_data(), end);
            }
        }
    }
}
