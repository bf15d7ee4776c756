//! Chance that a seed decides.

/// Numbers of a sequence (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    #[allow(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `end`.
    ///
    /// # Panics
    /// Below zero there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in so many times.
    ///
    /// # Panics
    /// Once in no time is never and always.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A decision for each of many things: all, none, or each for itself.
    pub fn keep(&mut self) -> impl FnMut(usize) -> bool + use<> {
        let (kind, mut own) = (self.below(4), Random(self.next()));
        move |_| match kind {
            0 => false,
            1 => true,
            2 => own.one_in(4),
            _ => own.one_in(2),
        }
    }
}
