//! Checksums that are right again after somebody changed what they are of.

use crate::{batmap, footer, header};

/// Gives footers, header and batmap of an image the checksums that let it through to the checks
/// behind. The fuzzer changes bytes, and would rarely get these right.
pub fn mend(file: &mut [u8]) {
    let end = file.len().saturating_sub(footer::FOOTER_SIZE);
    for at in [0, end] {
        mend_footer(file, at);
    }
    let data_offset = number(file, 16, 8);
    let Some(raw) = piece::<1024>(file, data_offset) else { return };
    let sum = header::checksum(raw);
    put(file, data_offset.saturating_add(36), &sum.to_be_bytes());
    let table_offset = number(file, data_offset.saturating_add(16), 8);
    let entries = u32::try_from(number(file, data_offset.saturating_add(28), 4)).unwrap_or(0);
    let at = batmap::header_offset(table_offset, entries);
    let Some(Ok(parsed)) = piece(file, at).map(batmap::BatmapHeader::parse) else { return };
    let size = usize::try_from(batmap::summed_size(number(file, 48, 8))).unwrap_or(usize::MAX);
    let start = usize::try_from(parsed.offset).unwrap_or(usize::MAX);
    let map = file.get(start..).and_then(|rest| rest.get(..size));
    if let Some(sum) = map.map(|map| parsed.checksum_of(map)) {
        put(file, at.saturating_add(24), &sum.to_be_bytes());
    }
}

fn mend_footer(file: &mut [u8], at: usize) {
    let at = at as u64;
    let Some(raw) = piece::<512>(file, at) else { return };
    if raw.starts_with(&footer::COOKIE) || raw.starts_with(&footer::COOKIE_POISONED) {
        let sum = footer::checksum(raw);
        put(file, at.saturating_add(64), &sum.to_be_bytes());
    }
}

fn piece<const N: usize>(file: &[u8], at: u64) -> Option<&[u8; N]> {
    file.get(usize::try_from(at).ok()?..)?.first_chunk()
}

fn number(file: &[u8], at: u64, size: usize) -> u64 {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = file.get(start..).and_then(|rest| rest.get(..size)).unwrap_or_default();
    bytes.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}

fn put(file: &mut [u8], at: u64, field: &[u8]) {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    let room = file.get_mut(start..).and_then(|rest| rest.get_mut(..field.len()));
    if let Some(room) = room {
        room.copy_from_slice(field);
    }
}
