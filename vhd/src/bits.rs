//! Maps of bits, most significant bit of the first byte first: a block's sector bitmap, the batmap.
//!
//! In a sector bitmap a set bit says that this image holds the sector; a clear one, that the parent
//! does, or that it is zero. In the batmap a set bit says that all sectors of a block are here.
//! Bits past the end of a map are clear.

use std::ops::Range;

/// Sectors or blocks that are all here, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub start: u32,
    /// How many: at least one.
    pub count: u32,
    /// Are their bits set?
    pub is_set: bool,
}

/// Is a bit set?
#[must_use]
pub fn get(map: &[u8], bit: u32) -> bool {
    byte_at(map, bit).is_some_and(|byte| byte & mask(bit) != 0)
}

/// Sets a bit, or clears it.
///
/// # Panics
/// Past the end of the map.
pub fn set(map: &mut [u8], bit: u32, is_set: bool) {
    let byte = map.get_mut(index(bit)).expect("the bit is inside the map");
    *byte = if is_set { *byte | mask(bit) } else { *byte & !mask(bit) };
}

/// Sets bits.
///
/// # Panics
/// Past the end of the map.
pub fn set_range(map: &mut [u8], bits: Range<u32>) {
    if bits.is_empty() {
        return;
    }
    let last = bits.end.saturating_sub(1);
    let bytes = map.get_mut(index(bits.start)..=index(last)).expect("the bits are inside the map");
    let head = 0xff_u8 >> (bits.start & 7);
    let tail = 0xff_u8 << (7_u32.saturating_sub(last & 7));
    match bytes {
        [] => {}
        [only] => *only |= head & tail,
        [first, middle @ .., end] => {
            *first |= head;
            middle.fill(0xff);
            *end |= tail;
        }
    }
}

/// How many of the first `bits` are set.
#[must_use]
pub fn count(map: &[u8], bits: u32) -> u32 {
    let (whole, rest) = map.split_at(index(bits).min(map.len()));
    let (words, bytes) = whole.as_chunks::<8>();
    let ones = |sum: u32, word: u64| sum.wrapping_add(word.count_ones());
    let mut sum = words.iter().map(|word| u64::from_ne_bytes(*word)).fold(0, ones);
    sum = bytes.iter().map(|byte| u64::from(*byte)).fold(sum, ones);
    let kept = !(0xff_u8 >> (bits & 7));
    sum.wrapping_add(rest.first().map_or(0, |byte| (byte & kept).count_ones()))
}

/// Are the first `bits` all set?
#[must_use]
pub fn is_full(map: &[u8], bits: u32) -> bool {
    next_change(map, 0, bits, true) >= bits
}

/// Are the first `bits` all clear?
#[must_use]
pub fn is_empty(map: &[u8], bits: u32) -> bool {
    next_change(map, 0, bits, false) >= bits
}

/// The runs of equal bits in `bits`, in order, without gaps.
pub fn runs(map: &[u8], bits: Range<u32>) -> impl Iterator<Item = Run> + '_ {
    let mut at = bits.start;
    std::iter::from_fn(move || {
        let run = first_run(map, at..bits.end)?;
        at = at.saturating_add(run.count);
        Some(run)
    })
}

/// The run that `bits` starts with; `None` when there are no bits.
#[must_use]
pub fn first_run(map: &[u8], bits: Range<u32>) -> Option<Run> {
    if bits.is_empty() {
        return None;
    }
    let is_set = get(map, bits.start);
    let end = next_change(map, bits.start, bits.end, is_set);
    Some(Run { start: bits.start, count: end.saturating_sub(bits.start), is_set })
}

/// The first bit from `from` on that is not `is_set`, at most `end`. Eight bytes at a time.
fn next_change(map: &[u8], from: u32, end: u32, is_set: bool) -> u32 {
    let mut at = from;
    while at < end {
        let rest = map.get(index(at)..).unwrap_or_default();
        let mut word = [0_u8; 8];
        match rest.first_chunk::<8>() {
            Some(chunk) => word = *chunk,
            None => word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from),
        }
        // A bit that continues the run is 0 in `word`; what came before `at` is shifted out.
        let word = u64::from_be_bytes(word) ^ if is_set { u64::MAX } else { 0 };
        let shift = at & 7;
        let same = (word << shift).leading_zeros();
        let there = 64_u32.saturating_sub(shift);
        at = at.saturating_add(same.min(there));
        if same < there {
            break;
        }
    }
    at.min(end)
}

fn index(bit: u32) -> usize {
    usize::try_from(bit >> 3).expect("a usize has 32 bits")
}

fn mask(bit: u32) -> u8 {
    0x80 >> (bit & 7)
}

fn byte_at(map: &[u8], bit: u32) -> Option<u8> {
    map.get(index(bit)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(map: &[u8], bit: u32) -> bool {
        let byte = map.get((bit / 8) as usize).copied().unwrap_or(0);
        byte & (1 << (7 - bit % 8)) != 0
    }

    /// Maps in which runs are long, as they are on disk.
    fn maps() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0_u8), Just(0xff), any::<u8>()];
        proptest::collection::vec((byte, 1..20_usize), 0..12).prop_map(|pieces| {
            pieces.into_iter().flat_map(|(byte, count)| vec![byte; count]).collect()
        })
    }

    #[test]
    fn the_first_bit_is_the_highest_of_the_first_byte() {
        let mut map = [0; 2];
        set(&mut map, 0, true);
        set(&mut map, 15, true);
        assert_eq!(map, [0x80, 1]);
        // What is set already stays so.
        set(&mut map, 0, true);
        assert_eq!(map, [0x80, 1]);
        set(&mut map, 0, false);
        assert_eq!(map, [0, 1]);
    }

    proptest! {
        #[test]
        fn runs_are_what_each_bit_says(map in maps(), from in 0..900_u32, count in 0..1200_u32) {
            let bits = from..from + count;
            let flat: Vec<bool> = runs(&map, bits.clone())
                .flat_map(|run| vec![run.is_set; run.count as usize])
                .collect();
            let wanted: Vec<bool> = bits.clone().map(|bit| naive(&map, bit)).collect();
            prop_assert_eq!(flat, wanted);
            let list: Vec<Run> = runs(&map, bits).collect();
            prop_assert!(list.windows(2).all(|pair| pair[0].is_set != pair[1].is_set));
        }

        #[test]
        fn counts_and_extremes_are_what_each_bit_says(map in maps(), bits in 0..1500_u32) {
            let ones = (0..bits).filter(|bit| naive(&map, *bit)).count();
            prop_assert_eq!(count(&map, bits) as usize, ones);
            prop_assert_eq!(is_full(&map, bits), ones == bits as usize);
            prop_assert_eq!(is_empty(&map, bits), ones == 0);
        }

        #[test]
        fn sets_what_it_was_told_only(map in maps(), from in 0..900_u32, count in 0..900_u32) {
            let end = u32::try_from(map.len() * 8).unwrap();
            let bits = from.min(end)..(from + count).min(end);
            let mut changed = map.clone();
            set_range(&mut changed, bits.clone());
            for bit in 0..end {
                let wanted = naive(&map, bit) || bits.contains(&bit);
                prop_assert_eq!(get(&changed, bit), wanted);
            }
        }
    }
}
