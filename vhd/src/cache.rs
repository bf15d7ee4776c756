//! The part of an image's metadata that was read last, for who goes through a disk in order.

use crate::bat;
use crate::error::Result;
use crate::image::{BITMAP_SIZE_MAX, Image};
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, Sector};

/// Entries of a table that are kept in memory for each image: 2 GiB of disk.
const WINDOW_ENTRIES: u32 = 1024;
const WINDOW_SIZE: usize = 4096;

/// The part of an image's metadata that was read last.
#[derive(Debug)]
pub(crate) struct Cache {
    /// The first entry of `entries`, if they were read.
    window: Option<u32>,
    entries: [u8; WINDOW_SIZE],
    /// The block of `bitmap`, if it was read.
    block: Option<BlockIndex>,
    bitmap: [u8; BITMAP_SIZE_MAX],
}

impl Default for Cache {
    fn default() -> Self {
        let (entries, bitmap) = ([0; WINDOW_SIZE], [0; BITMAP_SIZE_MAX]);
        Self { window: None, entries, block: None, bitmap }
    }
}

impl Cache {
    /// Where a block is; a block past the end of the disk is not there.
    pub(crate) fn entry<F: ReadAt>(
        &mut self,
        image: &Image<F>,
        block: BlockIndex,
    ) -> Result<Option<Sector>> {
        let first = block.0 & !WINDOW_ENTRIES.saturating_sub(1);
        if self.window != Some(first) {
            self.window = None;
            let count = image.block_count()?.saturating_sub(first).min(WINDOW_ENTRIES);
            let size = usize::try_from(count << 2).expect("at most a window");
            self.entries.fill(0xff);
            image.read_table(first, self.entries.get_mut(..size).unwrap_or_default())?;
            self.window = Some(first);
        }
        let index = usize::try_from(block.0.saturating_sub(first)).expect("inside the window");
        let entry =
            self.entries.as_chunks::<4>().0.get(index).map(|word| u32::from_be_bytes(*word));
        Ok(entry.filter(|entry| *entry != bat::UNUSED).map(Sector))
    }

    /// The bitmap of a block that is at `place`.
    pub(crate) fn bitmap<F: ReadAt>(
        &mut self,
        image: &Image<F>,
        block: BlockIndex,
        place: Sector,
    ) -> Result<&[u8; BITMAP_SIZE_MAX]> {
        if self.block != Some(block) {
            self.block = None;
            self.bitmap = image.bitmap(block, place)?;
            self.block = Some(block);
        }
        Ok(&self.bitmap)
    }
}
