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
/// In pieces whose sum fits in 32 bits, so that the compiler can add many bytes at a time.
#[must_use]
pub fn byte_sum(bytes: &[u8]) -> u32 {
    const PIECE: usize = 4096;
    bytes
        .chunks(PIECE)
        .map(|piece| piece.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte))))
        .fold(0, u32::wrapping_add)
}

/// The complement of the sum of all bytes of a part but the four of the checksum itself.
pub(crate) fn checksum_without(part: &[u8], checksum_at: usize) -> u32 {
    let own: [u8; 4] = take(part, checksum_at);
    !byte_sum(part).wrapping_sub(byte_sum(&own))
}
