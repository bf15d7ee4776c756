//! What a disk holds, as simple as can be; and numbers that a seed reproduces.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(2);
        random
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        u8::try_from(1 + self.below(255)).unwrap()
    }
}

/// A disk: sectors that are full of one byte each; the others are zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) sectors: u64,
    pub(crate) bytes: BTreeMap<u64, u8>,
}

impl Model {
    /// A few random writes, which start and end at multiples of `unit` sectors.
    pub(crate) fn random(random: &mut Random, sectors: u64, unit: u64) -> Self {
        let mut model = Self { sectors, bytes: BTreeMap::new() };
        for _ in 0..random.below(7) {
            let first = random.below(sectors) / unit * unit;
            let longest = if random.below(3) == 0 { 5000 } else { 40 };
            let count = (1 + random.below(longest)).next_multiple_of(unit);
            let byte = random.byte();
            for sector in first..(first + count).min(sectors) {
                // Neighbours differ, as far as that matters.
                let own = byte.wrapping_add(u8::from(sector % 1000 == 999));
                model.bytes.insert(sector, own.max(1));
            }
        }
        model
    }

    /// With what a child holds.
    pub(crate) fn under(&self, child: &Self) -> Self {
        let mut bytes = self.bytes.clone();
        bytes.retain(|sector, _| *sector < child.sectors);
        bytes.extend(&child.bytes);
        Self { sectors: child.sectors, bytes }
    }

    pub(crate) fn resized(mut self, sectors: u64) -> Self {
        self.bytes.retain(|sector, _| *sector < sectors);
        self.sectors = sectors;
        self
    }

    /// Sectors that are alike, from the first to the last: first, how many, their byte.
    pub(crate) fn runs(&self) -> Vec<(u64, u64, u8)> {
        let mut runs: Vec<(u64, u64, u8)> = Vec::new();
        for sector in 0..self.sectors {
            let byte = self.bytes.get(&sector).copied().unwrap_or(0);
            match runs.last_mut() {
                Some((_, count, last)) if *last == byte => *count += 1,
                _ => runs.push((sector, 1, byte)),
            }
        }
        runs
    }

    pub(crate) fn data(&self) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(self.sectors * 512).unwrap()];
        for (first, count, byte) in self.runs() {
            let range = first * 512..(first + count) * 512;
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            data[range].fill(byte);
        }
        data
    }

    /// As a raw file, with holes.
    pub(crate) fn write(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.sectors * 512).unwrap();
        for (first, count, byte) in self.runs().into_iter().filter(|(_, _, byte)| *byte != 0) {
            let data = vec![byte; usize::try_from(count * 512).unwrap()];
            file.write_all_at(&data, first * 512).unwrap();
        }
    }
}
