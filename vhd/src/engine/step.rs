//! Steps: the I/O on metadata that the engine wants, one at a time, and their ends.

use crate::bat::UNUSED;
use crate::bits;

use super::changes::Stage;
use super::table::{Block, Known};
use super::{Engine, Errno};

/// The name of a step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId {
    pub(super) what: What,
    pub(super) index: u32,
}

/// What a step is for; the index says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Read a bitmap: index of the load.
    Load,
    /// A new block's bitmap, that nothing points at: index of the change.
    NewBitmap,
    /// The end footer.
    Footer,
    /// Zeros over the batmap.
    BatmapZero,
    /// The header of an empty batmap.
    BatmapHeader,
    /// The fdatasync of a turn.
    Order,
    /// A bitmap that an entry points at: index of the change.
    Bitmap,
    /// A sector of the table: its number.
    Bat,
    /// Zeros over a free place: index of the cleaning.
    Clean,
    /// Ones for a place that is being made ready: its index in the round.
    ReadyBitmap,
    /// The end footer, of a round.
    ReadyFooter,
    /// The fdatasync of a round.
    ReadyOrder,
}

/// I/O that the engine wants; of the leaf, but for reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Comes back with [`Engine::ended`].
    pub id: StepId,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "it is used up at once, never kept")]
pub enum Action {
    /// Read one sector of a layer's file.
    Read {
        /// Which layer.
        layer: usize,
        /// The sector.
        sector: u64,
    },
    /// Write one sector, or zeros and that sector.
    Write {
        /// The first sector.
        sector: u64,
        /// Sectors of zeros, at most [`ZEROS_MAX`], before the one with bytes.
        zeros: u32,
        /// What.
        bytes: [u8; 512],
    },
    /// fdatasync.
    Flush,
    /// Make sectors zeros.
    Zero {
        /// The first.
        sector: u64,
        /// How many.
        count: u64,
        /// They may become a hole.
        may_punch: bool,
    },
}

/// With the sector behind them these are 4096 bytes.
pub const ZEROS_MAX: u32 = 7;

/// Entries in a sector of the table.
const ENTRIES_PER_SECTOR: u32 = 128;

impl Engine {
    /// The next step, when there is one; its I/O has to begin before that of later ones only where
    /// the engine waits for its end.
    pub fn next_step(&mut self) -> Option<Step> {
        let id = self.steps.pop_front()?;
        Some(Step { id, action: self.action(id) })
    }

    /// Whether there are steps to do.
    #[must_use]
    #[inline]
    pub fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    fn action(&self, id: StepId) -> Action {
        let index = id.index as usize;
        if id.what == What::Load {
            let owner = self.loads[index].expect("a load under way").owner;
            let layer = usize::from(owner.layer);
            let place = self.layers[layer].table.get(owner.block as usize).place();
            return Action::Read { layer, sector: u64::from(place) };
        }
        let write = self.write.as_ref().expect("only a leaf that is changed has such steps");
        match id.what {
            What::NewBitmap | What::Bitmap => {
                let change = self.changes.get(id.index as u16);
                self.write_bitmap(change.place, self.bitmap_of(id.index as u16))
            }
            What::Footer => {
                let (sector, bytes) = write.turn.footer.expect("decided when the turn began");
                Action::Write { sector, zeros: 0, bytes }
            }
            What::BatmapZero => {
                let batmap = write.batmap.as_ref().expect("not emptied yet");
                let (sector, count) = (batmap.map_sector, batmap.map_sectors);
                Action::Zero { sector, count, may_punch: false }
            }
            What::BatmapHeader => {
                let batmap = write.batmap.as_ref().expect("not emptied yet");
                let (sector, bytes) = (batmap.header_sector, batmap.empty_header);
                Action::Write { sector, zeros: 0, bytes }
            }
            What::Order | What::ReadyOrder => Action::Flush,
            What::ReadyBitmap => self.write_bitmap(write.ready.place(index), self.bitmap_of_ones()),
            What::ReadyFooter => {
                let (sector, bytes) = write.ready.footer.expect("decided when the round began");
                Action::Write { sector, zeros: 0, bytes }
            }
            What::Bat => {
                let sector = write.table_sector + u64::from(id.index);
                Action::Write { sector, zeros: 0, bytes: self.table_sector_of(id.index) }
            }
            What::Clean => {
                let place = write.cleaning[index].expect("a place being cleaned");
                let count = u64::from(self.layers[0].table.block_sectors()) + 1;
                Action::Zero { sector: u64::from(place), count, may_punch: true }
            }
            What::Load => unreachable!("handled above"),
        }
    }

    /// Writes a bitmap; with what lies before it where nothing does. A file system waits for all
    /// other direct I/O of a file before it writes a part of one of its blocks where it has to take
    /// room for it, older ones always, and has the caller wait, too.
    fn write_bitmap(&self, place: u32, bytes: [u8; 512]) -> Action {
        let space = &self.write.as_ref().expect("a leaf that is changed").space;
        let zeros = if space.has_gap_before(place) { ZEROS_MAX } else { 0 };
        Action::Write { sector: u64::from(place - zeros), zeros, bytes }
    }

    fn bitmap_of_ones(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        bits::set_range(&mut bytes, 0..self.layers[0].table.block_sectors());
        bytes
    }

    /// The bitmap of a changing block with the bits of this turn.
    fn bitmap_of(&self, index: u16) -> [u8; 512] {
        let change = self.changes.get(index);
        if change.is_whole || change.known == Known::Whole {
            return self.bitmap_of_ones();
        }
        let mut bytes = match change.known {
            Known::Slot(slot) => *self.cache.get(slot),
            known => unreachable!("the bits of a changing block are known: {known:?}"),
        };
        for (_, claim) in self.changes.of(index) {
            if matches!(claim.stage, Stage::InTurn | Stage::Answered) {
                bits::set_range(&mut bytes, claim.from..claim.from + claim.count);
            }
        }
        bytes
    }

    /// A sector of the table as this turn wants it.
    fn table_sector_of(&self, number: u32) -> [u8; 512] {
        let write = self.write.as_ref().expect("a leaf that is changed");
        let first = number * ENTRIES_PER_SECTOR;
        let mut entries = [0_u32; ENTRIES_PER_SECTOR as usize];
        for (entry, block) in entries.iter_mut().zip(first..) {
            let table = &self.layers[0].table;
            let is_there = (block as usize) < table.len();
            *entry = match is_there.then(|| table.get(block as usize).place()) {
                Some(0) => UNUSED,
                Some(place) => place,
                // Behind the table's end: zeros, as whoever made the image wrote.
                None if block >= write.table_entries => 0,
                None => UNUSED,
            };
        }
        for member in &write.turn.members {
            let change = self.changes.get(*member);
            if change.block / ENTRIES_PER_SECTOR == number
                && let Some(entry) = change.entry_after_turn()
            {
                entries[(change.block % ENTRIES_PER_SECTOR) as usize] = entry;
            }
        }
        let mut bytes = [0; 512];
        for (room, entry) in bytes.as_chunks_mut().0.iter_mut().zip(entries) {
            *room = entry.to_be_bytes();
        }
        bytes
    }

    /// A step has ended; `bytes` is what a read found.
    pub fn ended(&mut self, id: StepId, result: Result<Option<&[u8; 512]>, Errno>) {
        if self.shut_down {
            let is_order = matches!(id.what, What::Order | What::ReadyOrder);
            if let Err(errno) = result
                && is_order
                && errno != Errno::ECANCELED
            {
                self.lost.get_or_insert(errno);
            }
            return;
        }
        match (id.what, result) {
            (What::Load, Ok(Some(bytes))) => self.loaded(id.index as u16, Ok(bytes)),
            (What::Load, Ok(None)) => panic!("a read brings bytes"),
            (What::Load, Err(errno)) => self.loaded(id.index as u16, Err(errno)),
            (What::Clean, result) => self.cleaned(id.index, result.is_ok()),
            (What::ReadyBitmap | What::ReadyFooter | What::ReadyOrder, result) => {
                self.ready_step_ended(id, result.map(|_| ()));
            }
            (_, result) => self.turn_step_ended(id, result.map(|_| ())),
        }
    }

    fn loaded(&mut self, index: u16, result: Result<&[u8; 512], Errno>) {
        let load = self.loads[usize::from(index)].take().expect("a load under way");
        self.free_loads.push(index);
        let table = &self.layers[usize::from(load.owner.layer)].table;
        let (number, sectors) = (load.owner.block as usize, table.block_sectors());
        let block = table.get(number);
        assert!(block.known() == Known::Loading, "a block stays as it is while it is loaded");
        let known = match result {
            Ok(bytes) => {
                self.cache.get_mut(load.slot).copy_from_slice(bytes);
                if bits::is_full(bytes, sectors) { Known::Whole } else { Known::Slot(load.slot) }
            }
            Err(_) => Known::Unreadable,
        };
        if known == Known::Slot(load.slot) {
            self.cache.unpin(load.slot);
        } else {
            self.cache.release(load.slot);
        }
        table.set(number, Block::new(block.place(), known));
        self.wake();
    }
}
