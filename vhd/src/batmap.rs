//! The batmap: one bit for each block, set when all of its sectors are in this image.
//!
//! An extension of this family of programs. It is only a hint that saves reading bitmaps: other
//! programs write blocks without it, QEMU writes over it. Its header is one sector behind the
//! table:
//!
//! ```text
//!  0 cookie[8]    8 offset of the map (u64)   16 size in sectors   20 version   24 checksum
//! 28 marker u8   29 has keyhash u8            30 nonce[32]         62 hash[32]  94 reserved
//! ```
//!
//! The checksum covers not the whole map but [`summed_size`] bytes of it: the first programs
//! rounded the number of blocks down, and what they wrote has to stay readable.

use crate::bytes::{be32, be64, byte_sum, put, take};
use crate::error::{ErrorKind, Part, Result};
use crate::header::Header;

/// Bytes in a batmap header.
pub const BATMAP_HEADER_SIZE: usize = 512;

/// The first eight bytes.
pub const COOKIE: [u8; 8] = *b"tdbatmap";

/// The version that is written, 1.2.
pub const BATMAP_VERSION: u32 = 0x0001_0002;

/// The version before, 1.1: it summed the map's bytes as signed ones.
pub const BATMAP_VERSION_SIGNED: u32 = 0x0001_0001;

/// Creators of this family since 1.1 may have written a batmap.
pub const CREATOR_VERSION_MIN: u32 = 0x0001_0001;

/// What the key of an encrypted disk is recognised by: the SHA-256 of nonce and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// Random.
    pub nonce: [u8; 32],
    /// Of the nonce followed by the key.
    pub hash: [u8; 32],
}

/// A batmap header's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatmapHeader {
    /// Where the map is, in bytes.
    pub offset: u64,
    /// The size of the map, in sectors.
    pub sectors: u32,
    /// 1.1 or 1.2.
    pub version: u32,
    /// Of the map's bytes.
    pub checksum: u32,
    /// Free for a storage manager.
    pub marker: u8,
    /// Of an encrypted disk.
    pub keyhash: Option<KeyHash>,
}

impl BatmapHeader {
    /// Of an empty map behind a table.
    #[must_use]
    pub fn new(table_offset: u64, table_entries: u32) -> Self {
        let size = map_size(table_entries);
        Self {
            offset: header_offset(table_offset, table_entries).saturating_add(512),
            sectors: u32::try_from(size >> 9).expect("a 4096th of a number of 32 bits"),
            version: BATMAP_VERSION,
            checksum: u32::MAX,
            marker: 0,
            keyhash: None,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// Not the cookie; a version that is not known.
    pub fn parse(bytes: &[u8; BATMAP_HEADER_SIZE]) -> Result<Self> {
        let part = Part::BatmapHeader;
        let found = take::<8>(bytes, 0);
        if found != COOKIE {
            return Err(ErrorKind::Cookie { part, found }.into());
        }
        let version = be32(bytes, 20);
        if version > BATMAP_VERSION {
            return Err(ErrorKind::Version { part, found: version }.into());
        }
        let [marker, has_keyhash] = take(bytes, 28);
        let keyhash = KeyHash { nonce: take(bytes, 30), hash: take(bytes, 62) };
        Ok(Self {
            offset: be64(bytes, 8),
            sectors: be32(bytes, 16),
            version,
            checksum: be32(bytes, 24),
            marker,
            keyhash: (has_keyhash == 1).then_some(keyhash),
        })
    }

    /// The bytes; what is reserved is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; BATMAP_HEADER_SIZE] {
        let mut bytes = [0; BATMAP_HEADER_SIZE];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.offset.to_be_bytes());
        put(&mut bytes, 16, &self.sectors.to_be_bytes());
        put(&mut bytes, 20, &self.version.to_be_bytes());
        put(&mut bytes, 24, &self.checksum.to_be_bytes());
        put(&mut bytes, 28, &[self.marker, u8::from(self.keyhash.is_some())]);
        if let Some(keyhash) = &self.keyhash {
            put(&mut bytes, 30, &keyhash.nonce);
            put(&mut bytes, 62, &keyhash.hash);
        }
        bytes
    }

    /// The checksum of the part of a map that it covers.
    #[must_use]
    pub fn checksum_of(&self, summed: &[u8]) -> u32 {
        checksum(summed, self.version)
    }

    /// Where the map ends, in bytes; past the end of the numbers, their end.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.sectors) << 9)
    }

    /// The first complaint that a checking tool has, in its words; but for the checksum.
    #[must_use]
    pub fn check(&self, header: &Header) -> Option<&'static str> {
        let own = header_offset(header.table_offset, header.table_entries);
        let complaints = [
            (self.version > BATMAP_VERSION, "unsupported batmap version"),
            (self.sectors == 0, "invalid size zero"),
            (
                (u64::from(self.sectors) << 12) < u64::from(header.table_entries),
                "batmap-BAT size mismatch",
            ),
            (self.offset < own.saturating_add(512), "invalid batmap offset"),
        ];
        complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
    }
}

/// Where a batmap header is, if there is one: behind the table.
#[must_use]
pub fn header_offset(table_offset: u64, table_entries: u32) -> u64 {
    table_offset.saturating_add(crate::bat::size_on_disk(table_entries))
}

/// Bytes that a map takes in the file: a bit for each entry of the table, whole sectors.
#[must_use]
pub fn map_size(table_entries: u32) -> u64 {
    u64::from(table_entries).div_ceil(8).next_multiple_of(512).max(512)
}

/// Bytes of the map that the checksum covers, of a disk of `size` bytes.
///
/// The size is divided by 2^24, rounding down: with 1 to 7 blocks more than a multiple of 4096 this
/// is a sector less than the bits need. Bits behind it count as clear.
#[must_use]
pub fn summed_size(size: u64) -> u64 {
    (size >> 24).max(1).next_multiple_of(512)
}

/// The complement of the sum of bytes, which version 1.1 took as signed ones.
#[must_use]
pub fn checksum(summed: &[u8], version: u32) -> u32 {
    let sum = byte_sum(summed);
    if version != BATMAP_VERSION_SIGNED {
        return !sum;
    }
    // A byte from 128 on counts 256 less.
    let high = summed.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(byte >> 7)));
    !sum.wrapping_sub(high.wrapping_mul(256))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::BlockSize;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_covers_the_size_divided_by_2_to_the_24_rounded_down() {
        for (mib, summed, map) in [
            (2, 512, 512),
            (8192, 512, 512),
            (8194, 512, 1024),
            (8206, 512, 1024),
            (8208, 1024, 1024),
            (2 << 20, 131_072, 131_072),
        ] {
            assert_eq!(summed_size(mib << 20), summed, "{mib} MiB");
            assert_eq!(map_size(u32::try_from(mib / 2).unwrap()), map, "{mib} MiB");
        }
    }

    #[test]
    fn version_1_1_sums_signed_bytes() {
        assert_eq!(checksum(&[0xff, 1], BATMAP_VERSION), !0x100);
        assert_eq!(checksum(&[0xff, 1, 0x80], BATMAP_VERSION_SIGNED), !(-128_i32).cast_unsigned());
    }

    #[test]
    fn rejects_what_is_no_batmap_header_and_what_comes_later() {
        let new = BatmapHeader::new(1536, 4);
        let mut bytes = new.emit();
        bytes[23] = 3;
        let error = BatmapHeader::parse(&bytes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Version { found: 0x0001_0003, .. }));
        bytes[0] = b'T';
        let error = BatmapHeader::parse(&bytes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Cookie { .. }));
    }

    #[test]
    fn check_names_the_first_complaint() {
        let header = Header::new(1536, 5000, BlockSize::DEFAULT);
        let new = BatmapHeader::new(1536, 5000);
        assert_eq!((new.offset, new.sectors), (1536 + 20_480 + 512, 2));
        assert_eq!(new.check(&header), None);
        let complaint = |change: fn(&mut BatmapHeader)| {
            let mut changed = new;
            change(&mut changed);
            changed.check(&header)
        };
        // A bit for each entry, and none to spare.
        let full = Header::new(1536, 2 * 4096, BlockSize::DEFAULT);
        let exact = BatmapHeader::new(1536, 2 * 4096);
        assert_eq!((exact.sectors, exact.check(&full)), (2, None));
        assert_eq!(complaint(|map| map.version += 1), Some("unsupported batmap version"));
        assert_eq!(complaint(|map| map.sectors = 0), Some("invalid size zero"));
        assert_eq!(complaint(|map| map.sectors = 1), Some("batmap-BAT size mismatch"));
        assert_eq!(complaint(|map| map.offset -= 512), Some("invalid batmap offset"));
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_as_the_same(
            offset: u64, sectors: u32, version in 0..=BATMAP_VERSION, checksum: u32, marker: u8,
            keyhash: Option<([u8; 32], [u8; 32])>,
        ) {
            let keyhash = keyhash.map(|(nonce, hash)| KeyHash { nonce, hash });
            let header = BatmapHeader { offset, sectors, version, checksum, marker, keyhash };
            prop_assert_eq!(BatmapHeader::parse(&header.emit()), Ok(header));
        }
    }
}
