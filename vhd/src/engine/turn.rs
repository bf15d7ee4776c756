//! A turn of changes: all that waits, with one fdatasync. See docs/durability.md, "A turn of
//! changes": prepare, order, commit, answer.

use crate::bat::UNUSED;
use crate::bits;

use super::changes::{CHANGES_MAX, Change, Kind, Stage};
use super::layer::Layer;
use super::ready::Ready;
use super::setup::{Growth, Rule, WriteSetup};
use super::space::Space;
use super::step::{StepId, What};
use super::table::{Block, Known};
use super::{Engine, Errno, Write};

/// Places that are being punched at the same time.
const CLEANING_MAX: usize = 8;

/// Entries of the table in a sector of it.
const ENTRIES_PER_SECTOR: u32 = 128;

/// Steps that wait to be done at most, besides loads: a bitmap and a sector of the table for each
/// change, footer, batmap (2), order, cleaning.
pub(super) const STEPS_MAX: usize = 2 * CHANGES_MAX as usize + 4 + CLEANING_MAX;

/// What the turn waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Prepare,
    Order,
    Commit,
}

/// The turn.
pub(super) struct Turn {
    phase: Phase,
    /// Steps of this phase that have not ended.
    left: u32,
    /// The changes that take part.
    pub(super) members: Vec<u16>,
    /// Sectors of the table that it writes.
    sectors: Vec<u32>,
    /// The footer that it writes, and where.
    pub(super) footer: Option<(u64, [u8; 512])>,
    /// Its blocks with exact bits may lie where the file has to grow.
    has_new: bool,
    /// It empties the batmap.
    empties_batmap: bool,
    /// Sequence of metadata writes that its fdatasync covers.
    covers: u64,
    /// An fdatasync failed meanwhile: what this turn has written so far may be lost.
    spoiled: Option<Errno>,
    /// A turn is wanted for entries in doubt alone.
    pub(super) retry: bool,
    /// Punching failed once: free places stay as they are.
    pub(super) cannot_clean: bool,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { phase, left, members, .. } = self;
        write!(out, "{phase:?} of {} changes, {left} steps left", members.len())
    }
}

impl Turn {
    /// Whether its fdatasync has ended well.
    pub(super) fn is_ordered(&self) -> bool {
        self.phase == Phase::Commit
    }

    /// Whether it may make the file longer.
    pub(super) fn has_new(&self) -> bool {
        self.phase != Phase::Idle && self.has_new
    }

    /// An fdatasync failed, its own or that of a request.
    pub(super) fn spoil(&mut self, errno: Errno) {
        if matches!(self.phase, Phase::Prepare | Phase::Order) {
            self.spoiled = Some(errno);
        }
    }
}

impl Write {
    pub(super) fn new(
        setup: WriteSetup,
        leaf: &Layer,
        has_parent: bool,
        without: Option<Rule>,
        data_sector: u64,
    ) -> Self {
        assert!(!leaf.is_flat(), "a flat image has no blocks to change");
        let mut places: Vec<u32> =
            leaf.table.blocks().map(Block::place).filter(|place| *place != 0).collect();
        places.sort_unstable();
        let blocks = leaf.table.len();
        // What a device does with a hole is its own affair: its places hold anything.
        let cannot_clean = matches!(setup.growth, Growth::Device { .. });
        let most = usize::from(CHANGES_MAX);
        Self {
            table_sector: setup.table_sector,
            table_entries: setup.table_entries,
            batmap: setup.batmap,
            ready: Ready::new(&setup.growth, has_parent),
            space: Space::new(
                &places,
                blocks,
                data_sector,
                leaf.table.block_sectors(),
                setup.growth,
                without,
            ),
            turn: Turn {
                phase: Phase::Idle,
                left: 0,
                members: Vec::with_capacity(most),
                sectors: Vec::with_capacity(most),
                footer: None,
                has_new: false,
                empties_batmap: false,
                covers: 0,
                spoiled: None,
                retry: false,
                cannot_clean,
            },
            cleaning: vec![None; CLEANING_MAX],
        }
    }
}

impl Change {
    /// A new block whose bitmap the next turn writes, where nothing points at it.
    fn is_new_and_exact(&self) -> bool {
        self.kind == Kind::New && !self.is_whole && !self.in_doubt
    }

    /// The entry that the table gets from this turn; `None` when it stays.
    pub(super) fn entry_after_turn(&self) -> Option<u32> {
        match self.kind {
            Kind::New if self.failed.is_none() || self.in_doubt => Some(self.place),
            Kind::Free if self.failed.is_none() => Some(UNUSED),
            _ => None,
        }
    }
}

impl Engine {
    /// Begins what can begin. Its steps come with [`Engine::next_step`].
    pub fn advance(&mut self) {
        if self.shut_down || self.write.is_none() {
            return;
        }
        if self.is_changed {
            self.clean();
        }
        self.make_ready();
        let has_written = self.changes.written > 0;
        let write = self.writer();
        let wanted = has_written || write.turn.retry || write.space.needs_order();
        // A round under way may make the file longer, and so may a turn.
        let is_free = write.ready.is_idle() || !self.has_new_in_wait();
        if self.writer().turn.phase == Phase::Idle && wanted && is_free {
            self.begin_turn();
        }
    }

    /// Whether a turn that began now would have a new block with exact bits.
    fn has_new_in_wait(&self) -> bool {
        self.changes.all().any(|(_, change)| change.written > 0 && change.is_new_and_exact())
    }

    fn writer(&mut self) -> &mut Write {
        self.write.as_mut().expect("a leaf that is changed")
    }

    /// Whether a turn runs, or steps are under way that it or others wait for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        if self.shut_down {
            // A turn that was cut short has no end.
            return true;
        }
        let is_reading = self.free_loads.len() < self.loads.len();
        let is_writing = self.write.as_ref().is_some_and(|write| {
            let is_cleaning = write.cleaning.iter().any(Option::is_some);
            write.turn.phase != Phase::Idle || !write.ready.is_idle() || is_cleaning
        });
        !is_reading && !is_writing && self.changes.is_unclaimed()
    }

    /// Punches places that are free now, and, without a parent, those that may hold anything.
    fn clean(&mut self) {
        let has_parent = self.layers.len() > 1;
        let write = self.writer();
        for index in 0..CLEANING_MAX {
            if write.cleaning[index].is_some() {
                continue;
            }
            let cleans = !write.turn.cannot_clean;
            let gone = write.space.take_free();
            let place = match gone {
                Some(place) if !cleans => {
                    write.space.cleaned(place, false);
                    self.wake();
                    return self.clean();
                }
                Some(place) => Some(place),
                None if cleans && !has_parent => write.space.take_dirty(),
                None => None,
            };
            let Some(place) = place else { break };
            write.cleaning[index] = Some(place);
            self.steps.push_back(StepId { what: What::Clean, index: index as u32 });
            return self.clean();
        }
    }

    pub(super) fn cleaned(&mut self, index: u32, is_clean: bool) {
        let write = self.writer();
        let place = write.cleaning[index as usize].take().expect("a place being cleaned");
        write.turn.cannot_clean |= !is_clean;
        write.space.cleaned(place, is_clean);
        self.wake();
    }

    fn push(&mut self, what: What, index: u32) {
        self.steps.push_back(StepId { what, index });
        self.writer().turn.left += 1;
    }

    /// Step 0 and 1: gather, prepare.
    fn begin_turn(&mut self) {
        let mut members = std::mem::take(&mut self.writer().turn.members);
        members.clear();
        let takes_part = |change: &Change| change.written > 0 || change.in_doubt;
        members.extend(
            self.changes.all().filter(|(_, change)| takes_part(change)).map(|(index, _)| index),
        );
        let (mut has_new, mut has_free) = (false, false);
        for member in &members {
            self.changes.move_all(*member, Stage::Written, Stage::InTurn);
            let change = self.changes.get_mut(*member);
            change.in_turn = true;
            change.is_named = false;
            change.bits_failed = false;
            change.failed = None;
            has_new |= change.is_new_and_exact();
            has_free |= change.kind == Kind::Free;
        }
        let empties_batmap =
            has_free && self.keeps(Rule::BatmapBeforeFree) && self.writer().batmap.is_some();
        let turn = &mut self.writer().turn;
        turn.members = members;
        turn.retry = false;
        turn.empties_batmap = empties_batmap;
        turn.phase = Phase::Prepare;
        turn.left = 0;
        turn.spoiled = None;
        turn.has_new = has_new;
        self.prepare(has_new);
        if self.writer().turn.left == 0 {
            self.order();
        }
    }

    fn prepare(&mut self, has_new: bool) {
        for at in 0..self.writer().turn.members.len() {
            let member = self.writer().turn.members[at];
            let change = self.changes.get(member);
            // An entry in doubt may be on the disk: then R1 counts for the block's bitmap.
            if change.is_new_and_exact() {
                self.push(What::NewBitmap, u32::from(member));
            } else if change.kind == Kind::Partial && !self.keeps(Rule::DataBeforeBits) {
                self.push(What::Bitmap, u32::from(member));
            }
        }
        let write = self.writer();
        write.turn.footer = if has_new { write.space.footer_to_write() } else { None };
        if write.turn.footer.is_some() {
            self.push(What::Footer, 0);
        }
        if self.writer().turn.empties_batmap {
            self.push(What::BatmapZero, 0);
            self.push(What::BatmapHeader, 0);
        }
        if !self.keeps(Rule::BlockBeforeEntry) {
            self.push_table();
        }
    }

    /// Step 2: what was written up to here is made durable, if anything is to point at it.
    fn order(&mut self) {
        let covers = self.written;
        let write = self.write.as_mut().expect("a leaf that is changed");
        let points = write.turn.members.iter().any(|member| {
            let change = self.changes.get(*member);
            match change.kind {
                // All that its entry points at was durable when the place was ready.
                Kind::New => !change.is_whole || change.in_doubt,
                Kind::Partial => true,
                Kind::Free => false,
            }
        });
        if !points && !write.turn.empties_batmap && !write.space.needs_order() {
            return self.commit();
        }
        write.space.order_began();
        write.turn.phase = Phase::Order;
        write.turn.covers = covers;
        self.push(What::Order, 0);
    }

    fn ordered(&mut self, result: Result<(), Errno>) {
        let covers = self.writer().turn.covers;
        match result.and(self.writer().turn.spoiled.map_or(Ok(()), Err)) {
            Ok(()) => {
                self.writer().space.order_ended();
                self.durable = self.durable.max(covers);
                if self.writer().turn.empties_batmap {
                    self.writer().batmap = None;
                }
                self.commit();
            }
            Err(errno) => {
                self.lose(errno);
                self.fail_members(errno, |_| true);
                self.finish();
            }
        }
    }

    fn fail_members(&mut self, errno: Errno, which: impl Fn(&Change) -> bool) {
        for member in &self.write.as_ref().expect("a leaf that is changed").turn.members {
            let change = self.changes.get_mut(*member);
            if which(change) {
                change.failed.get_or_insert(errno);
            }
        }
    }

    /// The sectors of the table that change, each once.
    fn push_table(&mut self) {
        let write = self.write.as_mut().expect("a leaf that is changed");
        write.turn.sectors.clear();
        for member in &write.turn.members {
            let change = self.changes.get(*member);
            let sector = change.block / ENTRIES_PER_SECTOR;
            if change.entry_after_turn().is_some() && !write.turn.sectors.contains(&sector) {
                write.turn.sectors.push(sector);
            }
        }
        for at in 0..write.turn.sectors.len() {
            let sector = self.writer().turn.sectors[at];
            self.push(What::Bat, sector);
        }
    }

    /// Step 3.
    fn commit(&mut self) {
        self.writer().turn.phase = Phase::Commit;
        for at in 0..self.writer().turn.members.len() {
            let member = self.writer().turn.members[at];
            let Change { kind, in_doubt, failed, .. } = *self.changes.get(member);
            let is_pointed_at = match kind {
                Kind::Partial => self.keeps(Rule::DataBeforeBits),
                Kind::New => in_doubt,
                Kind::Free => false,
            };
            if is_pointed_at && failed.is_none() {
                self.push(What::Bitmap, u32::from(member));
            }
            if !self.keeps(Rule::EntryBeforeAnswer) {
                self.answer_early(member);
            }
        }
        if self.keeps(Rule::BlockBeforeEntry) {
            self.push_table();
        }
        if self.writer().turn.left == 0 {
            self.finish();
        }
    }

    /// Without R7.
    fn answer_early(&mut self, member: u16) {
        while let Some(claim) = self.changes.find(member, &[Stage::InTurn]) {
            let waiter = self.changes.claim_of(claim).waiter;
            self.settled.push_back(super::Settled { waiter, result: Ok(()) });
            self.changes.set_answered(claim);
        }
    }

    pub(super) fn turn_step_ended(&mut self, id: StepId, result: Result<(), Errno>) {
        match (id.what, result) {
            (What::NewBitmap, Err(errno)) => {
                self.changes.get_mut(id.index as u16).failed.get_or_insert(errno);
            }
            (What::Footer, Ok(())) => {
                let (sector, _) = self.writer().turn.footer.expect("it was written");
                self.writer().space.footer_written(sector);
            }
            (What::Footer, Err(errno)) => {
                self.fail_members(errno, |change| change.kind == Kind::New && !change.in_doubt);
            }
            (What::BatmapZero | What::BatmapHeader, Err(errno)) => {
                self.writer().turn.empties_batmap = false;
                self.fail_members(errno, |change| change.kind == Kind::Free);
            }
            (What::Bitmap, Err(errno)) => {
                let change = self.changes.get_mut(id.index as u16);
                change.failed.get_or_insert(errno);
                change.bits_failed = true;
            }
            (What::Bitmap, Ok(())) => self.written += 1,
            (What::Bat, result) => self.table_written(id.index, result),
            _ => {}
        }
        let turn = &mut self.writer().turn;
        turn.left -= 1;
        if turn.left > 0 {
            return;
        }
        match turn.phase {
            Phase::Prepare => self.order(),
            Phase::Order => self.ordered(result),
            Phase::Commit => self.finish(),
            Phase::Idle => unreachable!("a step of no turn"),
        }
    }

    /// A sector of the table was written, or may have been.
    fn table_written(&mut self, sector: u32, result: Result<(), Errno>) {
        self.written += 1;
        for member in &self.write.as_ref().expect("a leaf that is changed").turn.members {
            let change = self.changes.get_mut(*member);
            if change.block / ENTRIES_PER_SECTOR != sector || change.entry_after_turn().is_none() {
                continue;
            }
            match result {
                Ok(()) => change.is_named = true,
                Err(errno) => {
                    change.failed.get_or_insert(errno);
                    // A block that was to go stays: it has to get its entry back.
                    change.kind = Kind::New;
                    change.in_doubt = true;
                }
            }
        }
    }

    /// Step 4: memory says what the disk says, and requests end.
    fn finish(&mut self) {
        let members = std::mem::take(&mut self.writer().turn.members);
        for member in &members {
            self.adopt(*member);
            let failed = self.changes.get(*member).failed;
            let result = failed.map_or(Ok(()), Err);
            // It stays in the table until all are settled: it is in the turn.
            while let Some(claim) = self.changes.find(*member, &[Stage::InTurn, Stage::Answered]) {
                self.settle(claim, result);
            }
            let Change { kind, known, in_doubt, .. } = *self.changes.get(*member);
            if kind == Kind::Partial && known == Known::Whole && !in_doubt {
                while let Some(claim) = self.changes.find(*member, &[Stage::Written]) {
                    self.settle(claim, Ok(()));
                }
            }
            self.changes.get_mut(*member).in_turn = false;
            self.let_go(*member);
        }
        let turn = &mut self.writer().turn;
        turn.members = members;
        turn.members.clear();
        turn.phase = Phase::Idle;
        turn.left = 0;
    }

    /// What the turn wrote for a block is so now.
    fn adopt(&mut self, member: u16) {
        let change = *self.changes.get(member);
        let block = change.block as usize;
        let mut known = change.known;
        match change.kind {
            Kind::Free if change.is_named => {
                if let Known::Slot(slot) = known {
                    self.cache.release(slot);
                }
                self.leaf_space().free(change.place);
                let gone = self.changes.get_mut(member);
                (gone.place, gone.known) = (0, Known::Nothing);
                self.layers[0].table.set(block, Block::new(0, Known::Busy(member)));
                return;
            }
            Kind::New if change.is_named => {
                self.layers[0].table.set(block, Block::new(change.place, Known::Busy(member)));
                let named = self.changes.get_mut(member);
                (named.kind, named.is_untouched) = (Kind::Partial, false);
                named.in_doubt = change.bits_failed;
                if change.is_whole {
                    known = Known::Whole;
                }
            }
            Kind::Partial => {
                let is_in_doubt = change.in_doubt && change.failed.is_some();
                self.changes.get_mut(member).in_doubt = is_in_doubt || change.bits_failed;
            }
            Kind::New | Kind::Free => return,
        }
        if change.failed.is_none()
            && let Known::Slot(slot) = known
        {
            let bitmap = self.cache.get_mut(slot);
            for (_, claim) in self.changes.of(member) {
                if matches!(claim.stage, Stage::InTurn | Stage::Answered) {
                    bits::set_range(bitmap, claim.from..claim.from + claim.count);
                }
            }
            if bits::is_full(bitmap, self.layers[0].table.block_sectors()) {
                self.cache.release(slot);
                known = Known::Whole;
            }
        }
        self.changes.get_mut(member).known = known;
    }
}
