//! Blocks whose metadata changes, and the requests that wait for that: two tables of a fixed size.

use super::Errno;
use super::table::Known;

/// Requests' parts that change metadata: more of them wait.
pub(super) const CLAIMS_MAX: u16 = 512;

/// Blocks that change at once: more of them wait.
pub(super) const CHANGES_MAX: u16 = 256;

const NONE: u16 = u16::MAX;

/// What becomes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It gets a place.
    New,
    /// It gets bits.
    Partial,
    /// It loses its place.
    Free,
}

/// How far a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its data is being written.
    Writing,
    /// Its data has ended: the next turn takes it.
    Written,
    /// The turn under way has it.
    InTurn,
    /// The same, and its request was answered already (only without R7).
    Answered,
}

/// A part of a request that ends when metadata was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) change: u16,
    pub(super) waiter: u16,
    /// Sectors inside the block.
    pub(super) from: u32,
    pub(super) count: u32,
    pub(super) stage: Stage,
    next: u16,
}

/// A block that changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) block: u32,
    pub(super) place: u32,
    pub(super) kind: Kind,
    /// What is known of the bits that are on the disk.
    pub(super) known: Known,
    /// New, in a place that was ready: zeros and a bitmap of ones are durable.
    pub(super) is_whole: bool,
    /// New, in a place of zeros that no request was sent to.
    pub(super) is_untouched: bool,
    /// The turn under way has it.
    pub(super) in_turn: bool,
    /// A write of its entry or of its bits failed: the disk may have it or not.
    pub(super) in_doubt: bool,
    /// The turn under way wrote its entry.
    pub(super) is_named: bool,
    /// The turn under way failed to write its bits.
    pub(super) bits_failed: bool,
    /// What the turn under way failed with.
    pub(super) failed: Option<Errno>,
    first: u16,
    /// Claims of any stage.
    pub(super) claims: u16,
    /// Claims that wait for a turn.
    pub(super) written: u16,
}

/// The tables.
pub(super) struct Changes {
    claims: Vec<Option<Claim>>,
    free_claims: Vec<u16>,
    changes: Vec<Option<Change>>,
    free_changes: Vec<u16>,
    /// Claims that wait for a turn, of all changes.
    pub(super) written: u32,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self {
            claims: vec![None; usize::from(CLAIMS_MAX)],
            free_claims: (0..CLAIMS_MAX).rev().collect(),
            changes: vec![None; usize::from(CHANGES_MAX)],
            free_changes: (0..CHANGES_MAX).rev().collect(),
            written: 0,
        }
    }

    pub(super) fn has_claim(&self) -> bool {
        !self.free_claims.is_empty()
    }

    pub(super) fn has_change(&self) -> bool {
        !self.free_changes.is_empty()
    }

    /// Whether no request waits for metadata.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.free_claims.len() == usize::from(CLAIMS_MAX)
    }

    pub(super) fn is_used(&self, index: u16) -> bool {
        self.changes[usize::from(index)].is_some()
    }

    pub(super) fn get(&self, index: u16) -> &Change {
        self.changes[usize::from(index)].as_ref().expect("a change in use")
    }

    pub(super) fn get_mut(&mut self, index: u16) -> &mut Change {
        self.changes[usize::from(index)].as_mut().expect("a change in use")
    }

    /// All changes with their indices.
    pub(super) fn all(&self) -> impl Iterator<Item = (u16, &Change)> {
        (0..CHANGES_MAX)
            .zip(&self.changes)
            .filter_map(|(index, change)| change.as_ref().map(|change| (index, change)))
    }

    /// All changes.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Change> {
        self.changes.iter_mut().flatten()
    }

    /// Takes a block in.
    pub(super) fn begin(&mut self, block: u32, place: u32, kind: Kind, known: Known) -> u16 {
        let index = self.free_changes.pop().expect("the caller asked for room");
        self.changes[usize::from(index)] = Some(Change {
            block,
            place,
            kind,
            known,
            is_whole: false,
            is_untouched: false,
            in_turn: false,
            in_doubt: false,
            is_named: false,
            bits_failed: false,
            failed: None,
            first: NONE,
            claims: 0,
            written: 0,
        });
        index
    }

    /// Lets a block go.
    pub(super) fn end(&mut self, index: u16) -> Change {
        let change = self.changes[usize::from(index)].take().expect("a change in use");
        assert!(change.claims == 0, "a change with claims stays");
        self.free_changes.push(index);
        change
    }

    pub(super) fn claim_of(&self, claim: u16) -> &Claim {
        self.claims[usize::from(claim)].as_ref().expect("a claim in use")
    }

    /// A request's part waits for the change of a block.
    pub(super) fn claim(&mut self, index: u16, waiter: u16, from: u32, count: u32) -> u16 {
        let claim = self.free_claims.pop().expect("the caller asked for room");
        let change = self.get_mut(index);
        change.claims += 1;
        let next = std::mem::replace(&mut change.first, claim);
        self.claims[usize::from(claim)] =
            Some(Claim { change: index, waiter, from, count, stage: Stage::Writing, next });
        claim
    }

    /// The data of a claim has ended.
    pub(super) fn written(&mut self, claim: u16) {
        let entry = self.claims[usize::from(claim)].as_mut().expect("a claim in use");
        assert!(entry.stage == Stage::Writing, "data ends once");
        entry.stage = Stage::Written;
        let change = entry.change;
        self.get_mut(change).written += 1;
        self.written += 1;
    }

    /// The claims of a change, newest first.
    pub(super) fn of(&self, index: u16) -> impl Iterator<Item = (u16, &Claim)> {
        let mut next = self.get(index).first;
        std::iter::from_fn(move || {
            let entry = (next != NONE).then(|| (next, self.claim_of(next)))?;
            next = entry.1.next;
            Some(entry)
        })
    }

    /// Moves claims of a change from one stage to another.
    pub(super) fn move_all(&mut self, index: u16, from: Stage, to: Stage) {
        let mut next = self.get(index).first;
        while next != NONE {
            let claim = self.claims[usize::from(next)].as_mut().expect("a claim in use");
            next = claim.next;
            if claim.stage == from {
                claim.stage = to;
            }
        }
        if from == Stage::Written {
            let change = self.get_mut(index);
            let count = std::mem::take(&mut change.written);
            self.written -= u32::from(count);
        }
    }

    /// Its request is answered before its time.
    pub(super) fn set_answered(&mut self, claim: u16) {
        self.claims[usize::from(claim)].as_mut().expect("a claim in use").stage = Stage::Answered;
    }

    /// Whether a claim waits for a turn or is in one.
    pub(super) fn waits(&self, claim: u16) -> bool {
        self.claims[usize::from(claim)].is_some_and(|claim| claim.stage != Stage::Writing)
    }

    /// Ends a claim.
    pub(super) fn release(&mut self, claim: u16) -> Claim {
        let ended = self.claims[usize::from(claim)].take().expect("a claim in use");
        let is_waiting = ended.stage == Stage::Written;
        let change = self.get_mut(ended.change);
        change.claims -= 1;
        change.written -= u16::from(is_waiting);
        if change.first == claim {
            change.first = ended.next;
        } else {
            let mut at = change.first;
            loop {
                let entry = self.claims[usize::from(at)].as_mut().expect("a claim of the change");
                if entry.next == claim {
                    entry.next = ended.next;
                    break;
                }
                at = entry.next;
            }
        }
        self.written -= u32::from(is_waiting);
        self.free_claims.push(claim);
        ended
    }

    /// A claim of a change at one of these stages.
    pub(super) fn find(&self, index: u16, stages: &[Stage]) -> Option<u16> {
        self.of(index).find(|(_, claim)| stages.contains(&claim.stage)).map(|(claim, _)| claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_move_through_their_stages_and_leave_in_any_order() {
        let mut changes = Changes::new();
        let index = changes.begin(7, 100, Kind::New, Known::Nothing);
        let claims: Vec<u16> = (0..3).map(|from| changes.claim(index, 9, from, 1)).collect();
        changes.written(claims[1]);
        changes.written(claims[2]);
        assert_eq!((changes.written, changes.get(index).written), (2, 2));
        changes.move_all(index, Stage::Written, Stage::InTurn);
        assert_eq!((changes.written, changes.get(index).written), (0, 0));
        assert_eq!(changes.release(claims[1]).from, 1);
        let left: Vec<u32> = changes.of(index).map(|(_, claim)| claim.from).collect();
        assert_eq!(left, [2, 0]);
        assert_eq!(changes.find(index, &[Stage::Writing]), Some(claims[0]));
        changes.release(claims[0]);
        changes.release(claims[2]);
        assert!(changes.is_unclaimed());
        assert_eq!(changes.end(index).place, 100);
    }

    #[test]
    #[should_panic(expected = "a change with claims stays")]
    fn asserts_on_a_change_that_ends_before_its_claims() {
        let mut changes = Changes::new();
        let index = changes.begin(7, 100, Kind::New, Known::Nothing);
        changes.claim(index, 9, 0, 1);
        changes.end(index);
    }
}
