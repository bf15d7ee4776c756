//! Ready places: zeros with a bitmap of ones, durable before a block needs them. See
//! docs/durability.md, "A first write".
//!
//! Only of a file without a parent. A round makes some, beside the turns: bitmaps and the end
//! footer, then one fdatasync.

use super::setup::{Growth, Rule};
use super::step::{StepId, What};
use super::{Engine, Errno, Write};

/// Ready places at first, and at most.
const TARGET_MIN: usize = 4;
pub(super) const READY_MAX: usize = 256;

/// Steps of a round at most: a bitmap for each place, the footer or the fdatasync.
pub(super) const STEPS_MAX: usize = READY_MAX + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Grow,
    Prepare,
    Order,
}

/// How many places shall be ready.
///
/// Twice as many as were ever taken, so that a round, with its fdatasync, comes the more seldom the
/// more is written to new blocks; twice as many again when somebody had to wait.
#[derive(Clone, Copy, Debug)]
struct Target {
    places: usize,
    /// As far as it matters.
    taken: usize,
}

impl Target {
    const fn new() -> Self {
        Self { places: TARGET_MIN, taken: 0 }
    }

    /// One was taken.
    fn took(&mut self) {
        self.taken = (self.taken + 1).min(READY_MAX);
        self.places = self.places.max((2 * self.taken).min(READY_MAX));
    }

    /// There was none to take.
    fn missed(&mut self) {
        self.places = (2 * self.places).min(READY_MAX);
    }

    /// Whether so few are left that a round shall make some.
    fn is_short(self, ready: usize) -> bool {
        ready < self.places / 2
    }
}

/// The rounds.
pub(super) struct Ready {
    /// Whether this leaf has ready places.
    is_used: bool,
    phase: Phase,
    /// Steps of this phase that have not ended.
    left: u32,
    /// The places of this round; `None`: its bitmap could not be written.
    making: Vec<Option<u32>>,
    /// The footer that the round writes, and where.
    pub(super) footer: Option<(u64, [u8; 512])>,
    /// Sequence of metadata writes that the fdatasync covers.
    covers: u64,
    target: Target,
    /// Some were taken since the last round.
    is_taken: bool,
    /// Somebody has waited since the last round began.
    has_waited: bool,
    /// Why the last round made none: for those who waited for it, and for so many calls of
    /// [`Engine::advance`]. They ask again after the first.
    failed: Option<(Errno, u8)>,
    /// What a bitmap of the round failed with.
    first_failed: Option<Errno>,
    /// An fdatasync failed meanwhile: what the round wrote may be lost.
    spoiled: Option<Errno>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { phase, target, making, failed, .. } = self;
        let (making, wanted) = (making.len(), target.places);
        write!(out, "{phase:?} of {making}, {wanted} wanted, failed {failed:?}")
    }
}

impl Ready {
    pub(super) fn new(growth: &Growth, has_parent: bool) -> Self {
        Self {
            is_used: matches!(growth, Growth::File { .. }) && !has_parent,
            phase: Phase::Idle,
            left: 0,
            making: Vec::with_capacity(READY_MAX),
            footer: None,
            covers: 0,
            target: Target::new(),
            is_taken: false,
            has_waited: false,
            failed: None,
            first_failed: None,
            spoiled: None,
        }
    }

    /// Whether no round is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// An fdatasync failed, its own, a turn's or that of a request.
    pub(super) fn spoil(&mut self, errno: Errno) {
        if !self.is_idle() {
            self.spoiled = Some(errno);
        }
    }

    /// The place of a step.
    pub(super) fn place(&self, index: usize) -> u32 {
        self.making[index].expect("a place that is being made ready")
    }
}

/// Where a new block goes.
pub(super) enum Place {
    /// There.
    At(u32),
    /// One is being made.
    Wait,
    /// None could be made.
    Fail(Errno),
    /// Not in a ready place.
    Other,
}

impl Write {
    /// A ready place for a new block.
    pub(super) fn take_ready(&mut self) -> Place {
        let Self { space, ready, .. } = self;
        if !ready.is_used {
            return Place::Other;
        }
        if let Some(place) = space.take_ready() {
            ready.is_taken = true;
            ready.target.took();
            return Place::At(place);
        }
        if ready.is_idle() && !space.can_make_ready() {
            return Place::Other;
        }
        if let Some((errno, _)) = ready.failed {
            return Place::Fail(errno);
        }
        ready.has_waited = true;
        Place::Wait
    }
}

impl Engine {
    /// Begins a round, when one is wanted and nothing else makes the file longer.
    pub(super) fn make_ready(&mut self) {
        let Some(write) = &mut self.write else { return };
        let Write { space, ready, turn, .. } = write;
        ready.failed = ready.failed.and_then(|(errno, left)| Some((errno, left.checked_sub(1)?)));
        let is_wanted = ready.has_waited || ready.is_taken && ready.target.is_short(space.ready());
        if !is_wanted || !ready.is_idle() || turn.has_new() {
            return;
        }
        let has_waited = std::mem::take(&mut ready.has_waited);
        (ready.is_taken, ready.first_failed, ready.spoiled) = (false, None, None);
        if has_waited {
            ready.target.missed();
        }
        let is_needed = has_waited && space.ready() == 0;
        ready.making.clear();
        while space.ready() + ready.making.len() < ready.target.places
            && let Some(place) = space.take_to_make_ready(is_needed && ready.making.is_empty())
        {
            ready.making.push(Some(place));
        }
        if ready.making.is_empty() {
            return;
        }
        self.is_changed = true;
        ready.footer = space.footer_to_write();
        if ready.footer.is_none() {
            return self.prepare_round();
        }
        // First: file systems take writes behind the end of a file one by one, and have the caller
        // wait for each.
        (ready.phase, ready.left) = (Phase::Grow, 1);
        self.steps.push_back(StepId { what: What::ReadyFooter, index: 0 });
    }

    /// The file is as long as it has to be.
    fn prepare_round(&mut self) {
        let ready = &mut self.write.as_mut().expect("a leaf that is changed").ready;
        ready.phase = Phase::Prepare;
        let bitmaps = 0..ready.making.len() as u32;
        self.steps.extend(bitmaps.map(|index| StepId { what: What::ReadyBitmap, index }));
        ready.left = ready.making.len() as u32;
    }

    pub(super) fn ready_step_ended(&mut self, id: StepId, result: Result<(), Errno>) {
        let write = self.write.as_mut().expect("only a leaf that is changed has ready places");
        let Write { space, ready, .. } = write;
        match (id.what, result) {
            (What::ReadyFooter, Ok(())) => {
                let (sector, _) = ready.footer.expect("it was written");
                space.footer_written(sector);
                if ready.spoiled.is_none() {
                    return self.prepare_round();
                }
            }
            (What::ReadyBitmap, Err(errno)) => {
                let place = ready.making[id.index as usize].take();
                space.give_back(place.expect("a place that is being made ready"));
                ready.first_failed.get_or_insert(errno);
            }
            // The file is not as long as it has to be.
            (What::ReadyFooter, Err(errno)) => ready.spoiled = Some(errno),
            _ => {}
        }
        ready.left -= 1;
        if ready.left > 0 {
            return;
        }
        if ready.phase == Phase::Order {
            if let Err(errno) = result {
                self.lose(errno);
            }
            return self.end_round();
        }
        let is_empty = ready.making.iter().all(Option::is_none);
        if is_empty || ready.spoiled.is_some() || self.without == Some(Rule::BlockBeforeEntry) {
            return self.end_round();
        }
        (ready.phase, ready.left, ready.covers) = (Phase::Order, 1, self.written);
        self.steps.push_back(StepId { what: What::ReadyOrder, index: 0 });
    }

    /// The places of the round are ready, or hold anything.
    fn end_round(&mut self) {
        let write = self.write.as_mut().expect("only a leaf that is changed has ready places");
        let Write { space, ready, .. } = write;
        let is_ordered = ready.phase == Phase::Order;
        ready.phase = Phase::Idle;
        for place in ready.making.drain(..).flatten() {
            match ready.spoiled {
                None => space.add_ready(place),
                Some(_) => space.give_back(place),
            }
        }
        if is_ordered && ready.spoiled.is_none() {
            self.durable = self.durable.max(ready.covers);
        }
        let failed = ready.spoiled.or(ready.first_failed);
        if self.is_awaited && space.ready() == 0 {
            ready.failed = failed.map(|errno| (errno, 1));
        }
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One after the other is taken, and nobody ever waits.
    #[test]
    fn rounds_come_the_more_seldom_the_more_is_written() {
        let (mut target, mut ready, mut rounds) = (Target::new(), TARGET_MIN, [0; 2]);
        for block in 0..2048 {
            ready -= 1;
            target.took();
            if target.is_short(ready) {
                ready = target.places;
                rounds[usize::from(block >= 1024)] += 1;
            }
        }
        assert_eq!(rounds, [16, 8], "one for 128 blocks, in the end");
        assert_eq!(target.places, READY_MAX);
    }

    #[test]
    fn who_has_to_wait_has_twice_as_many_made_but_never_too_many() {
        let mut target = Target::new();
        target.missed();
        assert_eq!(target.places, 2 * TARGET_MIN);
        (0..READY_MAX).for_each(|_| target.missed());
        assert_eq!(target.places, READY_MAX);
        assert!(target.is_short(READY_MAX / 2 - 1) && !target.is_short(READY_MAX / 2));
    }
}
