//! The engine of a VHD under a live guest: a state machine without I/O.
//!
//! ```text
//!   request ──map──> where its bytes are                           (no state)
//!                    Wait: a bitmap is being read, or the block changes
//!                    First: write there, then `wrote`; ends with `settled`
//!   owner   ──next_step──> reads and writes of metadata ──ended──> back
//! ```
//!
//! Its owner (the daemon, a simulator) opens and checks the images of a chain, tells the engine of
//! them in a [`Setup`], asks it for each run of a request where that is, does the I/O, and feeds
//! the ends back. What is written in which order, and why, is docs/durability.md; rules R1 to R8
//! are named as there.
//!
//! Invariants:
//! * Layer 0 is the leaf; only it is written.
//! * A block is in the table of changes as long as memory and disk may differ about it. All others
//!   are as the table in memory says, and their metadata needs no write.
//! * At most one turn of changes runs.
//! * Nothing is allocated after [`Engine::new`].
//!
//! The owner owes:
//! * each [`Answer::First`] one [`Engine::wrote`], each [`Step`] one [`Engine::ended`];
//! * [`Engine::advance`], then the steps, after these calls and before it sleeps;
//! * requests that got [`Answer::Wait`] ask again when [`Engine::take_woken`] says so.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "the numbers here are the engine's own: foreign ones were checked by Layer::new"
)]

mod cache;
mod changes;
mod layer;
mod lowest;
mod map;
mod ready;
mod session;
mod setup;
mod space;
mod step;
mod table;
mod turn;

use std::collections::VecDeque;

use cache::{Cache, Owner};
use changes::{CHANGES_MAX, CLAIMS_MAX, Change, Changes, Kind, Stage};
use layer::Layer;
use ready::Ready;
pub use session::{FileStep, Found, opening};
pub use setup::{
    BatmapSetup, Growth, LayerFormat, LayerSetup, Rule, Setup, SetupError, WriteSetup,
};
use space::Space;
pub use step::{Action, Step, StepId, ZEROS_MAX};
pub use table::Table;
use table::{Block, Known};
use turn::Turn;

/// Bitmaps that are read at the same time.
const LOADS_MAX: usize = 64;

/// Bitmaps kept in memory at least: more than can be pinned.
const CACHE_SLOTS_MIN: usize = 512;

/// An error number of the storage, or of the engine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The storage cannot read or write.
    pub const EIO: Self = Self(5);
    /// No place for another block.
    pub const ENOSPC: Self = Self(28);
    /// No place that an entry could name.
    pub const EFBIG: Self = Self(27);
    /// The I/O was given up before it was done.
    pub const ECANCELED: Self = Self(125);
}

/// What a request wants with a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Make it zeros.
    WriteZeroes,
    /// It may lose its contents.
    Trim,
    /// Say what it holds.
    Status,
}

/// Where a run is. `count` is how many sectors of it, from its start, the answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// In the file of a layer.
    Data {
        /// Which layer: 0 for everything that changes something.
        layer: usize,
        /// Sector of its file.
        sector: u64,
        /// Sectors.
        count: u64,
    },
    /// Nowhere: it reads as zeros, and there is nothing to trim or to make zeros.
    Zero {
        /// Sectors.
        count: u64,
    },
    /// A write to where nothing is stored and the disk reads zeros: if it is one of zeros it is
    /// done, else ask again with [`Engine::store`].
    Fresh {
        /// Sectors.
        count: u64,
    },
    /// In the file of the leaf, for the first time: when the I/O has ended, [`Engine::wrote`].
    First {
        /// Its name.
        claim: ClaimId,
        /// Sector of the leaf's file.
        sector: u64,
        /// Sectors.
        count: u64,
    },
    /// Only metadata changes, no I/O.
    Change {
        /// Its name.
        claim: ClaimId,
        /// Sectors.
        count: u64,
    },
    /// Not now: ask again when the engine says so.
    Wait,
    /// It cannot be done.
    Fail(Errno),
}

/// A part of a request that ends when [`Engine::take_settled`] says so. Used again afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimId(pub u16);

/// The end of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Who had it: as given to [`Engine::map`].
    pub waiter: u16,
    /// How it ended.
    pub result: Result<(), Errno>,
}

/// A bitmap that is being read.
#[derive(Clone, Copy, Debug)]
struct Load {
    owner: Owner,
    slot: u32,
}

/// The engine of one chain.
pub struct Engine {
    layers: Vec<Layer>,
    cache: Cache,
    changes: Changes,
    /// `None`: nothing changes.
    write: Option<Write>,
    drop_zeros: bool,
    without: Option<Rule>,
    loads: Vec<Option<Load>>,
    free_loads: Vec<u16>,
    steps: VecDeque<StepId>,
    settled: VecDeque<Settled>,
    /// Somebody was told to wait since somebody was woken last.
    is_awaited: bool,
    is_woken: bool,
    /// Sequence of metadata writes that have ended, and of those that are durable.
    written: u64,
    durable: u64,
    /// An fdatasync failed: what had ended before may be lost, and no later one can tell.
    lost: Option<Errno>,
    /// Whether anything was changed since the open.
    is_changed: bool,
    shut_down: bool,
}

/// What a leaf needs that is changed.
struct Write {
    table_sector: u64,
    /// Entries of the table on the disk.
    table_entries: u32,
    batmap: Option<BatmapSetup>,
    space: Space,
    turn: Turn,
    ready: Ready,
    /// Places being punched, by the index of their step.
    cleaning: Vec<Option<u32>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        self.describe(&mut text)?;
        out.write_str(text.trim_end())
    }
}

impl Engine {
    /// An engine for a chain that was opened.
    ///
    /// # Errors
    /// What the checks at open should have found: see [`SetupError`].
    ///
    /// # Panics
    /// Without a leaf, or for a flat leaf with a way to change its blocks.
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let is_written = |index| index == 0 && setup.write.is_some();
        let layers = setup.layers.iter().enumerate();
        let layers: Vec<Layer> = layers
            .map(|(index, layer)| Layer::new(layer, is_written(index)))
            .collect::<Result<_, _>>()?;
        let leaf = layers.first().expect("a chain has a leaf");
        let without = setup.without;
        let data_sector = match setup.layers.first().map(|leaf| &leaf.format) {
            Some(LayerFormat::Blocks { data_sector, .. }) => *data_sector,
            _ => 0,
        };
        let has_parent = setup.layers.len() > 1;
        let write =
            setup.write.map(|write| Write::new(write, leaf, has_parent, without, data_sector));
        let slots = (setup.bitmap_memory_bytes / 512).max(CACHE_SLOTS_MIN);
        // No more than there are blocks.
        let blocks: usize = layers.iter().map(|layer| layer.table.len()).sum();
        Ok(Self {
            layers,
            cache: Cache::new(slots.min(blocks.max(CACHE_SLOTS_MIN))),
            changes: Changes::new(),
            write,
            drop_zeros: setup.drop_zeros,
            without,
            loads: vec![None; LOADS_MAX],
            free_loads: (0..LOADS_MAX as u16).rev().collect(),
            steps: VecDeque::with_capacity(turn::STEPS_MAX + ready::STEPS_MAX + LOADS_MAX),
            settled: VecDeque::with_capacity(usize::from(CLAIMS_MAX)),
            is_awaited: false,
            is_woken: false,
            written: 0,
            durable: 0,
            lost: None,
            is_changed: false,
            shut_down: false,
        })
    }

    /// The I/O of a claim has ended.
    pub fn wrote(&mut self, claim: ClaimId, result: Result<(), Errno>) {
        let change = self.changes.claim_of(claim.0).change;
        if let Err(errno) = result {
            return self.settle(claim.0, Err(errno));
        }
        let Change { kind, known, in_doubt, .. } = *self.changes.get(change);
        if kind == Kind::Partial && known == Known::Whole && !in_doubt {
            // The block became whole while the data was on its way: nothing more to write.
            return self.settle(claim.0, Ok(()));
        }
        if self.shut_down {
            return self.settle(claim.0, Err(SHUT_DOWN));
        }
        self.changes.written(claim.0);
    }

    /// Ends a claim, and lets the block go when it was the last.
    fn settle(&mut self, claim: u16, result: Result<(), Errno>) {
        let ended = self.changes.release(claim);
        if ended.stage != Stage::Answered {
            self.settled.push_back(Settled { waiter: ended.waiter, result });
        }
        self.wake();
        self.let_go(ended.change);
    }

    /// Takes a block out of the table of changes, if nothing keeps it there.
    fn let_go(&mut self, index: u16) {
        let change = self.changes.get(index);
        if change.claims > 0 || change.in_turn || change.in_doubt {
            return;
        }
        let change = self.changes.end(index);
        let block = match change.kind {
            Kind::New => {
                if let Known::Slot(slot) = change.known {
                    self.cache.release(slot);
                }
                self.leaf_space().give_back(change.place);
                Block::default()
            }
            Kind::Partial | Kind::Free => {
                if let Known::Slot(slot) = change.known {
                    self.cache.unpin(slot);
                }
                Block::new(change.place, change.known)
            }
        };
        self.layers[0].table.set(change.block as usize, block);
        self.wake();
    }

    fn leaf_space(&mut self) -> &mut Space {
        &mut self.write.as_mut().expect("a leaf that is changed").space
    }

    fn wake(&mut self) {
        self.is_woken |= std::mem::take(&mut self.is_awaited);
    }

    /// Whether requests that wait should ask again; they are told once.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.is_woken)
    }

    /// A claim that has ended since this was asked last.
    pub fn take_settled(&mut self) -> Option<Settled> {
        self.settled.pop_front()
    }

    /// Whether metadata was written that is not durable: a write with FUA needs a flush then.
    #[must_use]
    #[inline]
    pub fn needs_flush(&self) -> bool {
        let is_dirty = self.durable < self.written || self.lost.is_some();
        is_dirty && self.without != Some(Rule::DurableBeforeFua)
    }

    /// An fdatasync of the leaf begins, for a request; what it makes durable when it ends.
    #[must_use]
    pub fn flush_began(&self) -> u64 {
        self.written
    }

    /// It ended. Returns how, for the request: once an fdatasync has failed, its own or one of the
    /// engine's, none succeeds until the image is opened again. The kernel reports what it lost
    /// only once, and what ended before may be among it.
    ///
    /// # Errors
    /// Its own, or that of the first that failed.
    pub fn flush_ended(&mut self, began: u64, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Ok(()) => self.durable = self.durable.max(began),
            // It was not done: the close does its own.
            Err(Errno::ECANCELED) if self.shut_down => return result,
            Err(errno) => self.lose(errno),
        }
        let lost = self.lost.filter(|_| self.keeps(Rule::LossBeforeFlush));
        result.and(lost.map_or(Ok(()), Err))
    }

    /// How the first fdatasync failed that did: what had ended before it may be lost.
    #[must_use]
    pub fn lost(&self) -> Option<Errno> {
        self.lost
    }

    /// An fdatasync has failed.
    fn lose(&mut self, errno: Errno) {
        self.lost.get_or_insert(errno);
        if let Some(write) = &mut self.write {
            write.space.order_failed();
            write.turn.spoil(errno);
            write.ready.spoil(errno);
            let is_ordered = write.turn.is_ordered();
            for change in self.changes.all_mut() {
                // Zeros that were punched into its place may be lost too. Those of a turn that
                // has passed its own fdatasync were made durable by that, those of a ready place
                // before.
                let is_durable = change.is_whole || change.in_turn && is_ordered;
                if change.kind == Kind::New && !change.in_doubt && !is_durable {
                    change.is_untouched = false;
                }
            }
        }
        // Data that had ended before: no later fdatasync makes it durable.
        for index in 0..CHANGES_MAX {
            while self.changes.is_used(index)
                && let Some(claim) = self.changes.find(index, &[Stage::Written])
            {
                self.settle(claim, Err(errno));
            }
        }
        // Who waited for a place may have to hear that there is none.
        self.wake();
    }

    /// Whether places wait until requests have ended: then [`Engine::requests`] is wanted.
    #[must_use]
    pub fn wants_requests(&self) -> bool {
        self.write.as_ref().is_some_and(|write| write.space.is_waiting())
    }

    /// The number of the newest request, and of the oldest with I/O under way (one more than the
    /// newest when there is none). Numbers only grow.
    pub fn requests(&mut self, newest: u64, oldest: u64) {
        if let Some(write) = &mut self.write {
            write.space.requests(newest, oldest);
        }
    }

    /// Ends everything that waits: no more steps are given out, and those under way count no more.
    pub fn shut_down(&mut self) {
        self.shut_down = true;
        self.steps.clear();
        let waiting: Vec<u16> =
            (0..CLAIMS_MAX).filter(|claim| self.changes.waits(*claim)).collect();
        for claim in waiting {
            self.settle(claim, Err(SHUT_DOWN));
        }
        self.is_awaited = true;
        self.wake();
    }

    /// Whether the leaf's metadata was changed.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The first sector behind the last block, of a leaf that is changed: where the footer of a
    /// file belongs.
    #[must_use]
    pub fn end_sector(&self) -> Option<u64> {
        let write = self.write.as_ref()?;
        let blocks = u64::from(self.layers[0].table.block_sectors());
        let bound = self.changes.all().map(|(_, change)| change.place);
        let places = self.layers[0].table.blocks().map(Block::place).chain(bound);
        let last = places.filter(|place| *place != 0).max();
        Some(last.map_or(write.space.start(), |place| u64::from(place) + 1 + blocks))
    }

    /// Whether a block of the leaf is known to be whole: for the batmap, at close.
    #[must_use]
    pub fn is_whole(&self, block: u32) -> bool {
        let table = &self.layers[0].table;
        (block as usize) < table.len() && table.get(block as usize).is_plain()
    }

    /// A person's view.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        for (index, layer) in self.layers.iter().enumerate() {
            let used = layer.table.blocks().filter(|block| block.place() != 0).count();
            let (size, blocks) = (layer.size, layer.table.len());
            writeln!(out, "  layer {index}: {size} sectors, {used} of {blocks} blocks")?;
        }
        for (_, change) in self.changes.all() {
            writeln!(out, "  {change:?}")?;
        }
        let loads = LOADS_MAX - self.free_loads.len();
        let steps = self.steps.len();
        writeln!(out, "  {loads} bitmaps being read, {steps} steps to do, lost {:?}", self.lost)?;
        match &self.write {
            Some(Write { turn, space, ready, .. }) => {
                writeln!(out, "  turn {turn:?}, places {space:?}, being made ready {ready:?}")
            }
            None => Ok(()),
        }
    }
}

/// What waits is told this when the disk is closed by force: ESHUTDOWN.
const SHUT_DOWN: Errno = Errno(108);
