//! A row of waiting things: first in, first out, of fixed capacity, and always one slice.
//!
//! ```text
//!   [ taken . . . | first ... waiting ... end | free . . . ]
//! ```
//!
//! What is pushed goes behind `end`, what is taken leaves at `first`. A row that is empty starts
//! over; one that reaches the end of its table is moved to the front, which the spare half of the
//! table makes rare. Used where every request passes: all of it is compiled in place.

/// The row.
#[derive(Debug)]
pub(crate) struct Row<T> {
    /// Twice the capacity.
    table: Box<[T]>,
    first: usize,
    end: usize,
}

impl<T: Copy + Default> Row<T> {
    /// For at most `capacity` things at a time.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { table: vec![T::default(); capacity * 2].into(), first: 0, end: 0 }
    }

    /// How many wait.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.end - self.first
    }

    /// Whether none waits.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.first == self.end
    }

    /// Those that wait, oldest first.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[T] {
        &self.table[self.first..self.end]
    }

    /// The oldest.
    #[inline(always)]
    pub(crate) fn first(&self) -> Option<T> {
        if self.is_empty() { None } else { Some(self.table[self.first]) }
    }

    /// Appends one.
    ///
    /// # Panics
    /// When as many wait as may.
    #[inline(always)]
    pub(crate) fn push(&mut self, item: T) {
        // One look at the bound, and no sum above it.
        let place = match self.table.get_mut(self.end) {
            Some(place) => place,
            None => self.move_to_front(),
        };
        *place = item;
        self.end = self.end.wrapping_add(1);
    }

    /// Puts one before all that wait.
    ///
    /// # Panics
    /// When as many wait as may.
    pub(crate) fn push_first(&mut self, item: T) {
        if self.first == 0 {
            assert!(self.end < self.table.len(), "a row of this capacity is full");
            self.table.copy_within(..self.end, 1);
            self.end += 1;
        } else {
            self.first -= 1;
        }
        self.table[self.first] = item;
    }

    /// Takes the oldest out.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.first == self.end {
            return None;
        }
        let item = self.table[self.first];
        self.first = self.first.wrapping_add(1);
        if self.first == self.end {
            (self.first, self.end) = (0, 0);
        }
        Some(item)
    }

    /// Takes the `count` oldest out.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline(always)]
    pub(crate) fn drop_first(&mut self, count: usize) {
        assert!(count <= self.len(), "only what waits is taken");
        self.first += count;
        if self.first == self.end {
            (self.first, self.end) = (0, 0);
        }
    }

    /// Forgets all.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        (self.first, self.end) = (0, 0);
    }

    /// Moves all that wait to the front of the table; returns the place behind them.
    #[cold]
    #[inline(never)]
    fn move_to_front(&mut self) -> &mut T {
        assert!(self.first > 0, "a row of this capacity is full");
        self.table.copy_within(self.first.., 0);
        (self.first, self.end) = (0, self.len());
        &mut self.table[self.end]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 5;

    proptest! {
        /// Against the library's queue.
        #[test]
        fn first_in_first_out(steps in prop::collection::vec(0u8..5, 1..200)) {
            let mut row = Row::new(CAPACITY);
            let mut oracle = VecDeque::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    3 if oracle.len() > 1 => {
                        row.drop_first(2);
                        oracle.drain(..2);
                    }
                    0 | 1 if oracle.len() < CAPACITY => {
                        row.push(number);
                        oracle.push_back(number);
                    }
                    2 if oracle.len() < CAPACITY => {
                        row.push_first(number);
                        oracle.push_front(number);
                    }
                    _ => prop_assert_eq!(row.pop(), oracle.pop_front()),
                }
                prop_assert_eq!(row.as_slice(), oracle.make_contiguous());
                prop_assert_eq!((row.len(), row.is_empty()), (oracle.len(), oracle.is_empty()));
                prop_assert_eq!(row.first(), oracle.front().copied());
            }
        }
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn asserts_on_more_than_fit() {
        let mut row = Row::new(2);
        for number in 0..5 {
            row.push(number);
        }
    }
}
