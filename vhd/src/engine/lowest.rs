//! Places of one kind, of which the lowest goes first.
//!
//! Blocks that a guest fills one after the other lie so in the file, one after the other: what it
//! reads in order later is read in order, and the file stays short.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A bag of places.
#[derive(Debug, Default)]
pub(super) struct LowestFirst(BinaryHeap<Reverse<u32>>);

impl LowestFirst {
    /// For so many without an allocation.
    pub(super) fn with_capacity(places: usize) -> Self {
        Self(BinaryHeap::with_capacity(places))
    }

    /// So many more without an allocation.
    pub(super) fn reserve(&mut self, places: usize) {
        self.0.reserve(places);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, place: u32) {
        self.0.push(Reverse(place));
    }

    /// The lowest.
    pub(super) fn pop(&mut self) -> Option<u32> {
        self.0.pop().map(|Reverse(place)| place)
    }

    /// Takes all of the other's.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}
