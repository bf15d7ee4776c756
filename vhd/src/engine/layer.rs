//! One image of a chain, as the engine knows it: its block allocation table, and what is known of
//! each block's bitmap. Eight bytes for each block; those of parts of the disk that were never
//! written are never touched.

use super::setup::{LayerFormat, LayerSetup, SetupError};

/// What is known of the bits of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing: the bitmap has to be read. Also of a block that has no place.
    Nothing,
    /// All are set.
    Whole,
    /// The bitmap could not be read: the next who asks is told, then it is read again.
    Unreadable,
    /// Its bitmap is being read.
    Loading,
    /// In this slot of the cache.
    Slot(u32),
    /// The block changes: in this entry of the table of changes.
    Busy(u16),
}

const WHOLE: u32 = 1;
const UNREADABLE: u32 = 2;
const LOADING: u32 = 3;
const SLOTS: u32 = 4;
const BUSY: u32 = 1 << 31;

/// Place and knowledge of one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Block(u64);

impl Block {
    pub(super) fn new(place: u32, known: Known) -> Self {
        let known = match known {
            Known::Nothing => 0,
            Known::Whole => WHOLE,
            Known::Unreadable => UNREADABLE,
            Known::Loading => LOADING,
            Known::Slot(slot) => slot + SLOTS,
            Known::Busy(index) => BUSY | u32::from(index),
        };
        Self(u64::from(known) << 32 | u64::from(place))
    }

    /// The sector of its bitmap; 0 when it has no place: there is the footer.
    #[inline]
    pub(super) fn place(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// Whether it has a place, all of its bits are set, and it does not change.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        self.0 >> 32 == u64::from(WHOLE)
    }

    #[inline]
    pub(super) fn known(self) -> Known {
        match (self.0 >> 32) as u32 {
            0 => Known::Nothing,
            WHOLE => Known::Whole,
            UNREADABLE => Known::Unreadable,
            LOADING => Known::Loading,
            busy if busy & BUSY != 0 => Known::Busy((busy & 0xffff) as u16),
            slot => Known::Slot(slot - SLOTS),
        }
    }
}

/// One image.
pub(super) struct Layer {
    /// Sectors of the disk that it is.
    pub(super) size: u64,
    /// Sectors of its file; what is past them reads as zeros.
    pub(super) file_sectors: u64,
    /// Sectors of a block, as a power of two.
    pub(super) shift: u32,
    /// Sectors of a block.
    pub(super) block_sectors: u64,
    /// The bits of a sector's number that say where in its block it is.
    pub(super) inside_block: u64,
    /// Empty when its sectors lie in the file as on the disk.
    pub(super) table: Vec<Block>,
}

impl Layer {
    pub(super) fn new(setup: &LayerSetup) -> Result<Self, SetupError> {
        setup.check()?;
        let (size, file_sectors) = (setup.size_sectors, setup.file_sectors);
        let LayerFormat::Blocks { block_sectors, bat, whole, .. } = &setup.format else {
            let (shift, block_sectors, inside_block, table) = (0, 1, 0, Vec::new());
            return Ok(Self { size, file_sectors, shift, block_sectors, inside_block, table });
        };
        let mut table = vec![Block::default(); bat.len()];
        for (index, entry) in setup.used() {
            let is_whole =
                whole.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
            let known = if is_whole { Known::Whole } else { Known::Nothing };
            table[index] = Block::new(entry, known);
        }
        let (shift, block_sectors) = (block_sectors.trailing_zeros(), u64::from(*block_sectors));
        let inside_block = block_sectors - 1;
        Ok(Self { size, file_sectors, shift, block_sectors, inside_block, table })
    }

    pub(super) fn is_flat(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn block_sectors(&self) -> u32 {
        1 << self.shift
    }

    /// The block of a sector, the sector inside it, and how many of `count` sectors are in it.
    #[inline]
    pub(super) fn split(&self, sector: u64, count: u64) -> (usize, u32, u64) {
        let within = sector & self.inside_block;
        let left = self.block_sectors - within;
        let block = usize::try_from(sector >> self.shift).expect("64 bits");
        (block, within as u32, count.min(left))
    }

    /// The sector of the file where sector `within` of a block at `place` is.
    #[inline]
    pub(super) fn data(place: u32, within: u32) -> u64 {
        u64::from(place) + 1 + u64::from(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bat::UNUSED;

    #[test]
    fn a_block_keeps_place_and_knowledge() {
        for known in [
            Known::Nothing,
            Known::Whole,
            Known::Unreadable,
            Known::Loading,
            Known::Slot(0),
            Known::Slot(1 << 20),
            Known::Busy(0),
            Known::Busy(u16::MAX),
        ] {
            let block = Block::new(0xffff_fffe, known);
            assert_eq!((block.place(), block.known()), (0xffff_fffe, known));
            assert_eq!(block.is_plain(), known == Known::Whole);
        }
        assert_eq!(Block::default().place(), 0);
    }

    fn setup(bat: Vec<u32>) -> LayerSetup {
        let whole = vec![0b0100_0000];
        let format = LayerFormat::Blocks { block_sectors: 8, bat, data_sector: 3, whole };
        LayerSetup { size_sectors: 20, file_sectors: 100, format }
    }

    #[test]
    fn rejects_what_no_opened_image_has() {
        assert!(Layer::new(&setup(vec![UNUSED; 3])).is_ok());
        for (bat, wanted) in [
            (vec![UNUSED; 2], SetupError::TableTooSmall { blocks: 3, entries: 2 }),
            (vec![5, 100, UNUSED], SetupError::Place { block: 1, sector: 100 }),
            (vec![0, UNUSED, UNUSED], SetupError::Overlap { sector: 0 }),
            (vec![5, 13, UNUSED], SetupError::Overlap { sector: 13 }),
        ] {
            assert_eq!(Layer::new(&setup(bat)).err(), Some(wanted));
        }
    }

    #[test]
    fn entries_behind_the_end_of_the_disk_are_no_blocks_unless_they_can_be() {
        let layer = Layer::new(&setup(vec![5, 15, UNUSED, 0, 100, 30])).unwrap();
        let places: Vec<u32> = layer.table.iter().map(|block| block.place()).collect();
        assert_eq!(places, [5, 15, 0, 0, 0, 30]);
    }

    #[test]
    fn the_batmap_says_which_blocks_are_whole() {
        let layer = Layer::new(&setup(vec![5, 15, UNUSED])).unwrap();
        assert_eq!(layer.table[0].known(), Known::Nothing);
        assert_eq!(layer.table[1].known(), Known::Whole);
        assert_eq!(layer.table[2], Block::default());
    }
}
