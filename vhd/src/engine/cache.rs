//! Sector bitmaps in memory: a fixed number of slots for all layers of a chain, of which those that
//! were not used for longest, nearly, make room (the clock method).
//!
//! The memory is taken at open, but touched only as slots are used. A slot that is pinned stays: a
//! turn of changes or a read of the bitmap needs it.

/// Bytes of a bitmap: that of the largest block fills a sector.
const BYTES: usize = 512;

/// The bits of one block, for [`bits`](crate::bits).
pub(super) type Bitmap = [u8; BYTES];

/// Whose bitmap a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) layer: u16,
    pub(super) block: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Pinned,
    /// Not used since the hand passed.
    Idle,
    Used,
}

/// The slots.
pub(super) struct Cache {
    bytes: Vec<u8>,
    states: Vec<State>,
    owners: Vec<Owner>,
    free: Vec<u32>,
    /// Slots that were taken at least once: those behind are untouched memory.
    touched: usize,
    hand: usize,
}

impl Cache {
    /// So many slots.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            bytes: vec![0; slots * BYTES],
            states: vec![State::Free; slots],
            owners: vec![Owner { layer: 0, block: 0 }; slots],
            free: Vec::with_capacity(slots),
            touched: 0,
            hand: 0,
        }
    }

    /// A slot, pinned, with old contents, and whose bitmap it held until now. `None` when all are
    /// pinned.
    pub(super) fn take(&mut self, owner: Owner) -> Option<(u32, Option<Owner>)> {
        let (slot, evicted) = if let Some(slot) = self.free.pop() {
            (slot as usize, None)
        } else if self.touched < self.states.len() {
            self.touched += 1;
            (self.touched - 1, None)
        } else {
            let slot = self.find_victim()?;
            (slot, Some(self.owners[slot]))
        };
        self.states[slot] = State::Pinned;
        self.owners[slot] = owner;
        Some((u32::try_from(slot).expect("fewer slots than blocks"), evicted))
    }

    /// Twice around: the first time takes the mark of use away.
    fn find_victim(&mut self) -> Option<usize> {
        for _ in 0..self.states.len() * 2 {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.states.len();
            match self.states[slot] {
                State::Idle => return Some(slot),
                State::Used => self.states[slot] = State::Idle,
                State::Free | State::Pinned => {}
            }
        }
        None
    }

    /// Keeps a slot.
    pub(super) fn pin(&mut self, slot: u32) {
        assert!(self.states[slot as usize] != State::Free, "a slot in use is pinned");
        self.states[slot as usize] = State::Pinned;
    }

    /// Lets a slot go when room is needed.
    pub(super) fn unpin(&mut self, slot: u32) {
        assert!(self.states[slot as usize] == State::Pinned, "a pinned slot is let go");
        self.states[slot as usize] = State::Used;
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, slot: u32) {
        assert!(self.states[slot as usize] != State::Free, "a slot in use is released");
        self.states[slot as usize] = State::Free;
        self.free.push(slot);
    }

    /// The bits, for a reader: the slot counts as used.
    #[inline]
    pub(super) fn read(&mut self, slot: u32) -> &Bitmap {
        let state = &mut self.states[slot as usize];
        if *state == State::Idle {
            *state = State::Used;
        }
        self.get(slot)
    }

    /// The bits.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> &Bitmap {
        let at = slot as usize * BYTES;
        self.bytes[at..].first_chunk().expect("BYTES for each slot")
    }

    /// The bits, to change them.
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Bitmap {
        let at = slot as usize * BYTES;
        self.bytes[at..].first_chunk_mut().expect("BYTES for each slot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(block: u32) -> Owner {
        Owner { layer: 0, block }
    }

    #[test]
    fn evicts_what_was_not_read_and_never_what_is_pinned() {
        let mut cache = Cache::new(3);
        for block in 0..3 {
            let (slot, evicted) = cache.take(owner(block)).unwrap();
            assert_eq!((slot, evicted), (block, None));
        }
        assert_eq!(cache.take(owner(9)), None);
        cache.unpin(0);
        cache.unpin(2);
        // Both lose their mark, the first is taken.
        assert_eq!(cache.take(owner(3)), Some((0, Some(owner(0)))));
        cache.unpin(0);
        cache.read(0);
        assert_eq!(cache.take(owner(4)), Some((2, Some(owner(2)))));
    }

    #[test]
    fn a_released_slot_is_taken_without_eviction() {
        let mut cache = Cache::new(1);
        let (slot, _) = cache.take(owner(0)).unwrap();
        cache.release(slot);
        assert_eq!(cache.take(owner(1)), Some((slot, None)));
    }
}
