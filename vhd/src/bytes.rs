//! Fields at the constant offsets of a layout, and the checksum that every part of a VHD has.
//!
//! All numbers of the format are big-endian. The offsets are those of a layout that the caller's
//! module documents, so a field outside of its part is a fault of ours and asserted.

/// `N` bytes at a constant offset of a part.
pub(crate) fn take<const N: usize>(part: &[u8], offset: usize) -> [u8; N] {
    let rest = part.get(offset..).and_then(|rest| rest.first_chunk());
    *rest.expect("every field of a layout is inside its part")
}

/// A `u32` at a constant offset of a part.
pub(crate) fn be32(part: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(take(part, offset))
}

/// A `u64` at a constant offset of a part.
pub(crate) fn be64(part: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(take(part, offset))
}

/// Writes a field at a constant offset of a part.
pub(crate) fn put(part: &mut [u8], offset: usize, field: &[u8]) {
    let room = part.get_mut(offset..).and_then(|rest| rest.get_mut(..field.len()));
    room.expect("every field of a layout is inside its part").copy_from_slice(field);
}

/// The sum of bytes, modulo 2^32.
///
/// Eight bytes at a time, in four sums of 16 bits: each takes in two bytes of a word.
#[must_use]
pub fn byte_sum(bytes: &[u8]) -> u32 {
    /// 128 times two bytes are below 2^16.
    const PIECE: usize = 128 * 8;
    const EVERY_OTHER: u64 = 0x00ff_00ff_00ff_00ff;
    let mut sum = 0_u32;
    for piece in bytes.chunks(PIECE) {
        let (words, rest) = piece.as_chunks::<8>();
        let pairs = words.iter().fold(0_u64, |pairs, word| {
            let word = u64::from_le_bytes(*word);
            let pair = (word & EVERY_OTHER).wrapping_add((word >> 8) & EVERY_OTHER);
            pairs.wrapping_add(pair)
        });
        let lanes = pairs.to_le_bytes();
        let lanes =
            lanes.as_chunks::<2>().0.iter().map(|lane| u32::from(u16::from_le_bytes(*lane)));
        sum = lanes.fold(sum, u32::wrapping_add);
        sum = rest.iter().fold(sum, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    }
    sum
}

/// The complement of the sum of all bytes of a part but the four of the checksum itself.
pub(crate) fn checksum_without(part: &[u8], checksum_at: usize) -> u32 {
    let own: [u8; 4] = take(part, checksum_at);
    !byte_sum(part).wrapping_sub(byte_sum(&own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_any_number_of_bytes_is_that_of_each_of_them() {
        for length in [0, 1, 7, 8, 9, 511, 512, 1023, 1024, 1025, 5000] {
            for bytes in [vec![255; length], (0..=255).cycle().take(length).collect::<Vec<u8>>()] {
                let wanted: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
                assert_eq!(byte_sum(&bytes), wanted, "{length}");
            }
        }
    }
}
