//! Where a run of sectors is: the way of every request through the engine.

use std::sync::Arc;

use super::cache::{Bitmap, Owner};
use super::changes::{Change, Kind};
use super::layer::Layer;
use super::ready::Place;
use super::step::{StepId, What};
use super::table::{Block, Known, Table};
use crate::bits;

use super::{Answer, ClaimId, Engine, Errno, Load, Op, Rule};

/// Blocks that one status of zeros covers at most: more are asked for again.
const STATUS_BLOCKS_MAX: u32 = 1 << 16;

impl Engine {
    /// Where blocks of the leaf are, for who asks that before all else.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.layers[0].table)
    }

    /// Where the run is that starts at `sector` and has `count` sectors, all inside the disk.
    /// `waiter` comes back with the end of a claim.
    #[inline]
    pub fn map(&mut self, op: Op, sector: u64, count: u64, waiter: u16) -> Answer {
        let leaf = &self.layers[0];
        if leaf.is_flat() {
            let count = count.min(leaf.size - sector);
            return Answer::Data { layer: 0, sector, count };
        }
        if matches!(op, Op::Read | Op::Write)
            && let Some(sector) = leaf.table.find(sector, count)
        {
            return Answer::Data { layer: 0, sector, count };
        }
        match op {
            Op::Read => self.locate(0, sector, count),
            Op::Status => self.status(sector, count),
            Op::Write | Op::WriteZeroes | Op::Trim => self.change(op, sector, count, waiter, false),
        }
    }

    /// As [`Engine::map`] for a write, after [`Answer::Fresh`]: its data is to be stored.
    pub fn store(&mut self, sector: u64, count: u64, waiter: u16) -> Answer {
        self.change(Op::Write, sector, count, waiter, true)
    }

    /// Where a reader finds a run, from layer `first` on.
    fn locate(&mut self, first: usize, sector: u64, mut count: u64) -> Answer {
        for index in first..self.layers.len() {
            let layer = &self.layers[index];
            if sector >= layer.size {
                continue;
            }
            count = count.min(layer.size - sector);
            if layer.is_flat() {
                return self.data(index, sector, count);
            }
            let (block, within, in_block) = layer.table.split(sector, count);
            let entry = layer.table.get(block);
            if entry.place() == 0 {
                count = in_block;
                continue;
            }
            count = in_block;
            let known = match entry.known() {
                Known::Busy(change) => self.changes.get(change).known,
                known => known,
            };
            match known {
                Known::Whole => return self.data(index, Layer::data(entry.place(), within), count),
                Known::Slot(slot) => {
                    let (is_present, run) = run_of(self.cache.read(slot), within, count as u32);
                    count = u64::from(run);
                    if is_present {
                        return self.data(index, Layer::data(entry.place(), within), count);
                    }
                }
                Known::Nothing => return self.load(index, block),
                Known::Loading => return self.wait(),
                Known::Unreadable => {
                    layer.table.set(block, Block::new(entry.place(), Known::Nothing));
                    return Answer::Fail(Errno::EIO);
                }
                Known::Busy(_) => unreachable!("what is known of a changing block is not that"),
            }
        }
        Answer::Zero { count }
    }

    /// Sectors of a file; past its end there are zeros.
    fn data(&self, layer: usize, sector: u64, count: u64) -> Answer {
        let inside = self.layers[layer].file_sectors.saturating_sub(sector);
        if inside == 0 {
            return Answer::Zero { count };
        }
        Answer::Data { layer, sector, count: count.min(inside) }
    }

    /// Joins the runs that nothing is stored of: a fresh disk is one answer, not one per block.
    fn status(&mut self, sector: u64, count: u64) -> Answer {
        let first = self.locate(0, sector, count);
        let Answer::Zero { count: mut zeros } = first else { return first };
        for _ in 0..STATUS_BLOCKS_MAX {
            if zeros == count {
                break;
            }
            match self.locate(0, sector + zeros, count - zeros) {
                Answer::Zero { count: more } => zeros += more,
                _ => break,
            }
        }
        Answer::Zero { count: zeros }
    }

    pub(super) fn wait(&mut self) -> Answer {
        self.is_awaited = true;
        Answer::Wait
    }

    /// Has the bitmap of a block read.
    fn load(&mut self, layer: usize, block: usize) -> Answer {
        let owner = Owner {
            layer: u16::try_from(layer).expect("few layers"),
            block: u32::try_from(block).expect("a table of 32 bits"),
        };
        let Some(index) = self.free_loads.last().copied() else { return self.wait() };
        let Some(slot) = self.take_slot(owner) else { return self.wait() };
        self.free_loads.pop();
        self.loads[usize::from(index)] = Some(Load { owner, slot });
        let table = &self.layers[layer].table;
        table.set(block, Block::new(table.get(block).place(), Known::Loading));
        self.steps.push_back(StepId { what: What::Load, index: u32::from(index) });
        self.wait()
    }

    /// A slot of the cache, pinned; whose bitmap it held is forgotten.
    fn take_slot(&mut self, owner: Owner) -> Option<u32> {
        let (slot, evicted) = self.cache.take(owner)?;
        if let Some(old) = evicted {
            let table = &self.layers[usize::from(old.layer)].table;
            let entry = table.get(old.block as usize);
            assert!(entry.known() == Known::Slot(slot), "a slot has one owner");
            table.set(old.block as usize, Block::new(entry.place(), Known::Nothing));
        }
        Some(slot)
    }

    /// Where a change goes. `stored`: zeros are not dropped.
    fn change(&mut self, op: Op, sector: u64, count: u64, waiter: u16, stored: bool) -> Answer {
        let leaf = &self.layers[0];
        let (block, within, count) = leaf.table.split(sector, count.min(leaf.size - sector));
        let entry = leaf.table.get(block);
        let covers =
            within == 0 && count == u64::from(leaf.table.block_sectors()).min(leaf.size - sector);
        let frees = covers && self.layers.len() == 1 && matches!(op, Op::Trim | Op::WriteZeroes);
        let run = Run { op, sector, block, within, count: count as u32, waiter, stored };
        match entry.known() {
            Known::Busy(index) => self.change_busy(&run, index),
            Known::Loading => self.wait(),
            Known::Nothing if entry.place() == 0 => self.change_absent(&run),
            Known::Whole | Known::Slot(_) if frees => self.free(&run, entry),
            Known::Whole => self.present(&run, entry.place(), run.count),
            Known::Nothing => self.load(0, block),
            Known::Slot(slot) => self.change_partial(&run, entry.place(), slot, None),
            Known::Unreadable => {
                leaf.table.set(block, Block::new(entry.place(), Known::Nothing));
                Answer::Fail(Errno::EIO)
            }
        }
    }

    fn present(&self, run: &Run, place: u32, count: u32) -> Answer {
        Answer::Data { layer: 0, sector: Layer::data(place, run.within), count: u64::from(count) }
    }

    /// A block that changes already.
    fn change_busy(&mut self, run: &Run, index: u16) -> Answer {
        let Change { kind, known, place, in_doubt, .. } = *self.changes.get(index);
        match (kind, known) {
            (Kind::Free, _) => self.wait(),
            (kind, _) if run.op == Op::Trim && (kind == Kind::New || in_doubt) => {
                Answer::Zero { count: u64::from(run.count) }
            }
            (Kind::Partial, Known::Whole) if !in_doubt => self.present(run, place, run.count),
            (Kind::Partial, Known::Slot(slot)) if !in_doubt => {
                self.change_partial(run, place, slot, Some(index))
            }
            _ => self.claim(run, index, run.count),
        }
    }

    /// A block of which some sectors are present.
    fn change_partial(&mut self, run: &Run, place: u32, slot: u32, busy: Option<u16>) -> Answer {
        let (is_present, count) = run_of(self.cache.read(slot), run.within, run.count);
        if is_present {
            return self.present(run, place, count);
        }
        // A write takes the present sectors behind along: one I/O, and bits that are set already.
        let count = match run.op {
            Op::Write => run.count,
            // A write under way sets these bits, over what is there by then: also what a write
            // that overlapped it, and failed, left.
            Op::WriteZeroes if busy.is_some_and(|index| self.is_claimed(index, run, count)) => {
                count
            }
            Op::WriteZeroes => match self.below(run, u64::from(count)) {
                Answer::Data { count, .. } => count as u32,
                other => return other,
            },
            _ => return Answer::Zero { count: u64::from(count) },
        };
        let index = match busy {
            Some(index) => index,
            None => {
                if !self.changes.has_change() || !self.changes.has_claim() {
                    return self.wait();
                }
                self.cache.pin(slot);
                self.begin(run.block, place, Kind::Partial, Known::Slot(slot))
            }
        };
        self.claim(run, index, count)
    }

    /// Whether writes under way touch the first `count` sectors of a run.
    fn is_claimed(&self, index: u16, run: &Run, count: u32) -> bool {
        self.changes.of(index).any(|(_, claim)| {
            claim.from < run.within + count && run.within < claim.from + claim.count
        })
    }

    /// What the layers below hold of the start of a run: zeros, or something.
    fn below(&mut self, run: &Run, count: u64) -> Answer {
        match self.locate(1, run.sector, count) {
            Answer::Fail(_) => Answer::Data { layer: 1, sector: 0, count },
            answer => answer,
        }
    }

    /// A block without a place.
    fn change_absent(&mut self, run: &Run) -> Answer {
        let mut count = u64::from(run.count);
        match run.op {
            Op::Trim => return Answer::Zero { count },
            Op::WriteZeroes => match self.below(run, count) {
                Answer::Data { count: some, .. } => count = some,
                other => return other,
            },
            _ if self.drop_zeros && !run.stored => {
                // A bitmap that would have to be read first is no reason to wait.
                if let Answer::Zero { count } = self.below(run, count) {
                    return Answer::Fresh { count };
                }
            }
            _ => {}
        }
        if !self.changes.has_change() || !self.changes.has_claim() {
            return self.wait_for_table();
        }
        match self.write.as_mut().expect("a leaf that is changed").take_ready() {
            Place::At(place) => {
                let index = self.begin_new(run.block, place, Known::Nothing);
                self.changes.get_mut(index).is_whole = true;
                self.changes.get_mut(index).is_untouched = true;
                self.claim(run, index, count as u32)
            }
            Place::Wait => self.wait(),
            Place::Fail(errno) => Answer::Fail(errno),
            Place::Other => self.begin_exact(run, count as u32),
        }
    }

    /// A new block that gets the bits of what is written to it, no others.
    fn begin_exact(&mut self, run: &Run, count: u32) -> Answer {
        let Some((place, is_zero)) = self.leaf_space().take() else {
            if self.wants_requests() {
                return self.wait();
            }
            let is_at_limit = self.leaf_space().is_at_limit();
            return Answer::Fail(if is_at_limit { Errno::EFBIG } else { Errno::ENOSPC });
        };
        let owner = Owner { layer: 0, block: run.block as u32 };
        let Some(slot) = self.take_slot(owner) else {
            self.leaf_space().give_back(place);
            return self.wait();
        };
        self.cache.get_mut(slot).fill(0);
        let index = self.begin_new(run.block, place, Known::Slot(slot));
        self.changes.get_mut(index).is_untouched = is_zero;
        self.claim(run, index, count)
    }

    fn begin_new(&mut self, block: usize, place: u32, known: Known) -> u16 {
        let index = self.begin(block, 0, Kind::New, known);
        self.changes.get_mut(index).place = place;
        index
    }

    /// The table of changes is full. With entries in doubt only, nobody would ever make room.
    fn wait_for_table(&mut self) -> Answer {
        if self.changes.is_unclaimed() {
            self.write.as_mut().expect("a leaf that is changed").turn.retry = true;
            return Answer::Fail(Errno::EIO);
        }
        self.wait()
    }

    /// A whole block goes.
    fn free(&mut self, run: &Run, entry: Block) -> Answer {
        let is_possible = self.changes.has_change() && self.changes.has_claim();
        if !is_possible || !self.leaf_space().has_room() {
            return self.wait();
        }
        let known = entry.known();
        if let Known::Slot(slot) = known {
            self.cache.pin(slot);
        }
        let index = self.begin(run.block, entry.place(), Kind::Free, known);
        let claim = self.changes.claim(index, run.waiter, 0, run.count);
        self.changes.written(claim);
        Answer::Change { claim: ClaimId(claim), count: u64::from(run.count) }
    }

    /// Takes a block into the table of changes. `place` is that of the entry in memory.
    fn begin(&mut self, block: usize, place: u32, kind: Kind, known: Known) -> u16 {
        self.is_changed = true;
        let number = u32::try_from(block).expect("a table of 32 bits");
        let index = self.changes.begin(number, place, kind, known);
        self.layers[0].table.set(block, Block::new(place, Known::Busy(index)));
        index
    }

    /// A part of a request waits for a block's change.
    fn claim(&mut self, run: &Run, index: u16, count: u32) -> Answer {
        if !self.changes.has_claim() {
            return self.wait();
        }
        let is_zero_already = run.op == Op::WriteZeroes && self.changes.get(index).is_untouched;
        let claim = self.changes.claim(index, run.waiter, run.within, count);
        let (id, count) = (ClaimId(claim), u64::from(count));
        let place = self.changes.get(index).place;
        if is_zero_already {
            self.changes.written(claim);
            return Answer::Change { claim: id, count };
        }
        self.changes.get_mut(index).is_untouched = false;
        Answer::First { claim: id, sector: Layer::data(place, run.within), count }
    }

    /// Whether a rule is kept.
    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}

/// A run of sectors inside one block that is to change.
struct Run {
    op: Op,
    /// Of the disk.
    sector: u64,
    block: usize,
    within: u32,
    count: u32,
    waiter: u16,
    stored: bool,
}

/// The bit of sector `from`, and how many from there on have the same: at most `limit`.
fn run_of(bitmap: &Bitmap, from: u32, limit: u32) -> (bool, u32) {
    let run = bits::first_run(bitmap, from..from + limit).expect("a run is not empty");
    (run.is_set, run.count)
}
