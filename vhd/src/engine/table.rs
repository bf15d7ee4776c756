//! The table of an image's blocks: where each is, and what is known of its bits. Eight bytes for
//! each block.
//!
//! The engine alone changes it. Who serves the disk has it too, and asks it first: most requests on
//! a disk that is full are in one block that is whole, and need nothing else of the engine. Both
//! are one thread; the entries are atomic so that the compiler need not be told.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// More than any place: the upper half of a block begins behind it.
const PLACE_MAX: u64 = u32::MAX as u64;

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
    pub(super) fn is_plain(self) -> bool {
        self.0 >> 32 == u64::from(WHOLE)
    }

    /// Its place, if it is plain and that is no later than `last`, which is a place too.
    #[inline(always)]
    fn plain_up_to(self, last: u64) -> Option<u64> {
        // Anything else than `WHOLE` in the upper half leaves more than any place there, below zero
        // as above.
        let place = self.0.wrapping_sub(u64::from(WHOLE) << 32);
        if place <= last { Some(place) } else { None }
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

/// Blocks by their numbers.
#[derive(Debug)]
pub struct Table {
    /// Sectors of a block, as a power of two.
    shift: u32,
    /// Sectors of a block.
    block_sectors: u64,
    /// The bits of a sector's number that say where in its block it is.
    inside_block: u64,
    /// The last place from which on a whole block lies inside the file.
    last_place: u64,
    /// [`Block`]s. Empty when the sectors lie in the file as on the disk.
    blocks: Box<[AtomicU64]>,
}

impl Table {
    /// So many blocks, without places, for a file of so many sectors. `block_sectors` is a power
    /// of two.
    pub(super) fn new(blocks: usize, block_sectors: u32, file_sectors: u64) -> Self {
        assert!(block_sectors.is_power_of_two(), "{block_sectors} sectors");
        let shift = block_sectors.trailing_zeros();
        let block_sectors = u64::from(block_sectors);
        Self {
            shift,
            block_sectors,
            inside_block: block_sectors - 1,
            // No block is at 0, where the footer is.
            last_place: file_sectors.saturating_sub(1 + block_sectors).min(PLACE_MAX),
            blocks: (0..blocks).map(|_| AtomicU64::new(Block::default().0)).collect(),
        }
    }

    /// Where all of a run of the disk is in the file, in sectors, if it is in one block that is
    /// whole and does not change: it may be read and written there, with nothing to be asked before
    /// and nothing to be told after. `None`: perhaps, but [`Engine::map`](super::Engine::map) has
    /// to look closer.
    #[must_use]
    #[inline(always)]
    pub fn find(&self, sector: u64, count: u64) -> Option<u64> {
        // As `>>`, without a check each time: a shift is that of a block's size.
        let number = usize::try_from(sector.wrapping_shr(self.shift)).ok()?;
        let block = Block(self.blocks.get(number)?.load(Ordering::Relaxed));
        let place = block.plain_up_to(self.last_place)?;
        let within = sector & self.inside_block;
        // `within` is less than the sectors of a block, which are few: nothing wraps.
        if count > self.block_sectors.wrapping_sub(within) {
            return None;
        }
        Some(place.wrapping_add(within).wrapping_add(1))
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none: the sectors lie in the file as on the disk.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Sectors of a block.
    pub(super) fn block_sectors(&self) -> u32 {
        1 << self.shift
    }

    /// A block.
    ///
    /// # Panics
    /// When there is none of this number.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Block {
        Block(self.blocks[number].load(Ordering::Relaxed))
    }

    /// Puts one in.
    ///
    /// # Panics
    /// When there is none of this number.
    #[inline]
    pub(super) fn set(&self, number: usize, block: Block) {
        self.blocks[number].store(block.0, Ordering::Relaxed);
    }

    /// All of them, in order.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.blocks.iter().map(|block| Block(block.load(Ordering::Relaxed)))
    }

    /// The block of a sector, the sector inside it, and how many of `count` sectors are in it.
    #[inline]
    pub(super) fn split(&self, sector: u64, count: u64) -> (usize, u32, u64) {
        let within = sector & self.inside_block;
        let left = self.block_sectors - within;
        let block = usize::try_from(sector >> self.shift).expect("64 bits");
        (block, within as u32, count.min(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let is_plain = known == Known::Whole;
            assert_eq!(block.is_plain(), is_plain);
            assert_eq!(block.plain_up_to(0xffff_fffe), is_plain.then_some(0xffff_fffe));
            assert_eq!(block.plain_up_to(0xffff_fffd), None);
            assert_eq!(Block::new(0, known).plain_up_to(PLACE_MAX), is_plain.then_some(0));
        }
        assert_eq!(Block::default().plain_up_to(PLACE_MAX), None);
        assert_eq!(Block::default().place(), 0);
    }

    #[test]
    fn finds_runs_in_blocks_that_are_whole_and_inside_the_file() {
        let table = Table::new(4, 8, 50);
        table.set(0, Block::new(41, Known::Whole));
        table.set(1, Block::new(42, Known::Whole));
        table.set(2, Block::new(10, Known::Whole));
        table.set(3, Block::new(20, Known::Nothing));
        for (sector, count, wanted) in [
            (0, 8, Some(42)),
            (7, 1, Some(49)),
            (7, 2, None),
            (0, u64::MAX, None),
            (8, 1, None),
            (16, 3, Some(11)),
            (19, 5, Some(14)),
            (24, 1, None),
            (32, 1, None),
            (u64::MAX, 1, None),
        ] {
            assert_eq!(table.find(sector, count), wanted, "{count} sectors from {sector}");
        }
    }
}
