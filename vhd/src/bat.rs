//! The block allocation table: for each block, the sector of the file where its bitmap starts.
//!
//! Entries are `u32`, big-endian, [`UNUSED`] for a block that is not there. The data follow the
//! bitmap. The table is padded to whole sectors with zero bytes, which are never looked at: only
//! [`Bat::len`] entries have a meaning.

use crate::error::{ErrorKind, Part, Result};
use crate::units::{BlockIndex, Sector};

/// The entry of a block that is not there.
pub const UNUSED: u32 = u32::MAX;

/// Entries in one sector of the table: what is written at once when a block is added.
pub const ENTRIES_PER_SECTOR: u32 = 128;

/// The most entries that are held in memory, 32 MiB of them: eight times what 2 TiB of 2 MiB need.
pub const ENTRIES_MAX: u32 = 1 << 23;

/// Bytes that a table takes in the file.
#[must_use]
pub fn size_on_disk(entries: u32) -> u64 {
    (u64::from(entries) << 2).next_multiple_of(512)
}

/// Decodes entries, as many as there are whole ones in `bytes` and room for in `entries`.
///
/// Returns how many.
pub fn decode(bytes: &[u8], entries: &mut [u32]) -> usize {
    let (words, _) = bytes.as_chunks::<4>();
    for (entry, word) in entries.iter_mut().zip(words) {
        *entry = u32::from_be_bytes(*word);
    }
    words.len().min(entries.len())
}

/// A table in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Bat {
    entries: Box<[u32]>,
}

impl Bat {
    /// One with no block.
    ///
    /// # Errors
    /// More than [`ENTRIES_MAX`] entries.
    pub fn new(entries: u32) -> Result<Self> {
        if entries > ENTRIES_MAX {
            return Err(ErrorKind::TooLarge {
                what: "Block allocation table",
                found: entries.into(),
                limit: ENTRIES_MAX.into(),
                unit: "entries",
            }
            .into());
        }
        let count = usize::try_from(entries).expect("a usize has 32 bits");
        Ok(Self { entries: vec![UNUSED; count].into_boxed_slice() })
    }

    /// Reads the first `entries` of a table.
    ///
    /// # Errors
    /// Fewer bytes than that; more than [`ENTRIES_MAX`] entries.
    pub fn parse(bytes: &[u8], entries: u32) -> Result<Self> {
        let mut bat = Self::new(entries)?;
        if decode(bytes, &mut bat.entries) < bat.entries.len() {
            return Err(ErrorKind::Truncated {
                part: Part::Bat,
                found: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                wanted: u64::from(entries) << 2,
            }
            .into());
        }
        Ok(bat)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("bounded when it was made")
    }

    /// Are there no entries?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where a block's bitmap starts; `None` if it is not there, or past the end.
    #[must_use]
    pub fn get(&self, block: BlockIndex) -> Option<Sector> {
        let entry = self.entries.get(usize::try_from(block.0).ok()?)?;
        (*entry != UNUSED).then_some(Sector(*entry))
    }

    /// Puts a block somewhere, or nowhere.
    ///
    /// # Panics
    /// Past the end of the table, or at the sector whose number means unused.
    pub fn set(&mut self, block: BlockIndex, place: Option<Sector>) {
        assert_ne!(place, Some(Sector(UNUSED)), "a block is not at the sector that means unused");
        let index = usize::try_from(block.0).expect("a usize has 32 bits");
        let entry = self.entries.get_mut(index).expect("the block is inside the table");
        *entry = place.map_or(UNUSED, |place| place.0);
    }

    /// The blocks that are there, in order.
    pub fn allocated(&self) -> impl Iterator<Item = (BlockIndex, Sector)> + '_ {
        let all = (0_u32..).zip(&self.entries);
        let there = all.filter(|(_, entry)| **entry != UNUSED);
        there.map(|(block, entry)| (BlockIndex(block), Sector(*entry)))
    }

    /// How many blocks are there.
    #[must_use]
    pub fn allocated_count(&self) -> u32 {
        let is_there = |entry: &u32| u32::from(*entry != UNUSED);
        self.entries.iter().fold(0, |sum, entry| sum.wrapping_add(is_there(entry)))
    }

    /// One sector of the table: entries from `number` times [`ENTRIES_PER_SECTOR`].
    ///
    /// Past the end of the table entries are [`UNUSED`], which is right for those that a later
    /// growth of the disk will use.
    #[must_use]
    pub fn sector(&self, number: u32) -> [u8; 512] {
        let mut bytes = [0xff; 512];
        let first = u64::from(number).saturating_mul(ENTRIES_PER_SECTOR.into());
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        self.emit_into(first, &mut bytes);
        bytes
    }

    /// The whole table, padded to whole sectors with zero bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let size = usize::try_from(size_on_disk(self.len())).expect("bounded when it was made");
        let mut bytes = vec![0; size];
        self.emit_into(0, &mut bytes);
        bytes
    }

    fn emit_into(&self, first: usize, bytes: &mut [u8]) {
        let entries = self.entries.get(first..).unwrap_or_default();
        for (word, entry) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(entries) {
            *word = entry.to_be_bytes();
        }
    }
}

/// The bytes of a table without a block, for a new image.
///
/// # Panics
/// More than [`ENTRIES_MAX`] entries.
#[must_use]
pub fn emit_unused(entries: u32) -> Vec<u8> {
    assert!(entries <= ENTRIES_MAX, "the header was refused");
    let size = usize::try_from(size_on_disk(entries)).expect("bounded above");
    let mut bytes = vec![0xff; size];
    let used = usize::try_from(u64::from(entries) << 2).expect("bounded above");
    bytes.get_mut(used..).unwrap_or_default().fill(0);
    bytes
}

impl std::fmt::Debug for Bat {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Bat of {} entries, {} allocated", self.len(), self.allocated_count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_is_printed_by_its_counts_and_not_entry_by_entry() {
        let mut bat = Bat::new(5000).unwrap();
        bat.set(BlockIndex(7), Some(Sector(9)));
        assert_eq!(format!("{bat:?}"), "Bat of 5000 entries, 1 allocated");
    }

    #[test]
    fn a_table_without_a_block_is_that_of_a_new_one() {
        for entries in [1, 127, 128, 129, 5000] {
            assert_eq!(emit_unused(entries), Bat::new(entries).unwrap().emit());
        }
    }

    #[test]
    fn the_table_is_padded_to_whole_sectors_with_zeros() {
        let mut bat = Bat::new(3).unwrap();
        bat.set(BlockIndex(1), Some(Sector(0x0102_0304)));
        let bytes = bat.emit();
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..12], [0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff]);
        assert!(bytes[12..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn only_a_table_without_entries_is_empty() {
        assert!(Bat::new(0).unwrap().is_empty());
        assert!(!Bat::new(1).unwrap().is_empty());
    }

    #[test]
    fn a_sector_of_the_table_has_unused_entries_past_the_end() {
        let mut bat = Bat::new(130).unwrap();
        bat.set(BlockIndex(129), Some(Sector(7)));
        let mut wanted = [0xff; 512];
        wanted[4..8].copy_from_slice(&[0, 0, 0, 7]);
        assert_eq!(bat.sector(1), wanted);
        assert_eq!(bat.sector(2), [0xff; 512]);
        assert_eq!(bat.sector(u32::MAX), [0xff; 512]);
    }

    #[test]
    fn rejects_a_table_of_fewer_bytes_than_entries() {
        let error = Bat::parse(&[0; 11], 3).unwrap_err();
        let wanted = ErrorKind::Truncated { part: Part::Bat, found: 11, wanted: 12 };
        assert_eq!(error.kind(), &wanted);
    }

    #[test]
    fn rejects_more_entries_than_are_held_in_memory() {
        let error = Bat::parse(&[], ENTRIES_MAX + 1).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooLarge { found: 8_388_609, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_as_the_same(entries: Vec<u32>) {
            let count = u32::try_from(entries.len()).unwrap();
            let mut bat = Bat::new(count).unwrap();
            for (block, entry) in (0..).zip(&entries) {
                bat.set(BlockIndex(block), (*entry != UNUSED).then_some(Sector(*entry)));
            }
            prop_assert_eq!(&Bat::parse(&bat.emit(), count).unwrap(), &bat);
            prop_assert_eq!(bat.allocated().count(), bat.allocated_count() as usize);
            for (block, entry) in (0..).zip(entries) {
                prop_assert_eq!(bat.get(BlockIndex(block)).map_or(UNUSED, |place| place.0), entry);
            }
            prop_assert_eq!(bat.get(BlockIndex(count)), None);
        }
    }
}
