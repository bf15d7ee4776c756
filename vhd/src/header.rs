//! The dynamic header: 1024 bytes, of dynamic and differencing disks, where the footer says.
//!
//! ```text
//!   0 cookie[8]             8 data offset (u64, all ones)   16 table offset (u64)
//!  24 header version       28 table entries                 32 block size    36 checksum
//!  40 parent's uuid[16]    56 parent's time                 60 reserved
//!  64 parent's name[512], UTF-16BE                         576 locators[8], 24 bytes each
//! 768 reserved[256]
//! ```
//!
//! [`Header::parse`] takes what can be served; [`check`] names what a checking tool complains
//! about.

use crate::bytes::{be32, be64, checksum_without, put, take};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::locator::{LOCATOR_COUNT, LOCATOR_SIZE, Locator};
use crate::units::{Timestamp, Uuid};

/// Bytes in a header.
pub const HEADER_SIZE: usize = 1024;

/// The first eight bytes.
pub const COOKIE: [u8; 8] = *b"cxsparse";

/// The one version, 1.0.
pub const HEADER_VERSION: u32 = 0x0001_0000;

const CHECKSUM_AT: usize = 36;
const NAME_AT: usize = 64;
const LOCATORS_AT: usize = 576;
const RESERVED_AT: usize = 768;

/// A block's size: a power of two from 512 bytes to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// What nearly every VHD has, and all that are made here: 2 MiB.
    pub const DEFAULT: Self = Self(1 << 21);

    /// From bytes.
    ///
    /// # Errors
    /// Not a power of two, or outside of 512 bytes to 2 MiB.
    pub fn new(bytes: u32) -> Result<Self> {
        if !bytes.is_power_of_two() || !(512..=1 << 21).contains(&bytes) {
            return Err(ErrorKind::BlockSize(bytes).into());
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// In sectors: 1 to 4096.
    #[must_use]
    pub fn sectors(self) -> u32 {
        self.0 >> 9
    }

    /// Sectors that the bitmap in front of the data takes: one bit for each sector, whole sectors.
    #[must_use]
    pub fn bitmap_sectors(self) -> u32 {
        self.sectors().div_ceil(8 * 512)
    }

    /// Bytes of the bitmap that have a meaning.
    #[must_use]
    pub fn bitmap_bytes(self) -> u32 {
        self.sectors().div_ceil(8)
    }

    /// Sectors of bitmap and data together.
    #[must_use]
    pub fn total_sectors(self) -> u32 {
        self.sectors().saturating_add(self.bitmap_sectors())
    }
}

/// The parent's name in a header: 256 units of UTF-16BE, zero behind the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParentName(pub [u8; 512]);

impl ParentName {
    /// None.
    pub const EMPTY: Self = Self([0; 512]);

    /// From text.
    ///
    /// # Errors
    /// Longer than 255 units of UTF-16: one is left for the zero behind it.
    pub fn encode(text: &str) -> Result<Self> {
        let units = text.encode_utf16().count();
        if units > 255 {
            let found = u64::try_from(units).unwrap_or(u64::MAX).saturating_mul(2);
            let kind = ErrorKind::NameTooLong { part: Part::Header, found, limit: 510 };
            return Err(kind.into());
        }
        let mut bytes = [0; 512];
        for (room, unit) in bytes.chunks_exact_mut(2).zip(text.encode_utf16()) {
            room.copy_from_slice(&unit.to_be_bytes());
        }
        Ok(Self(bytes))
    }

    /// As text, up to the first zero.
    ///
    /// # Errors
    /// Not UTF-16.
    pub fn decode(&self) -> Result<String> {
        let units = self.0.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit));
        let text = char::decode_utf16(units.take_while(|unit| *unit != 0));
        text.collect::<std::result::Result<_, _>>()
            .map_err(|_| ErrorKind::Encoding { part: Part::Header, wanted: "UTF-16BE" }.into())
    }
}

impl std::fmt::Debug for ParentName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", self.decode())
    }
}

/// A header's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of no use: all ones.
    pub data_offset: u64,
    /// Where the block allocation table is, in bytes.
    pub table_offset: u64,
    /// How many entries the table has: at least one for each block of the disk.
    pub table_entries: u32,
    /// Of every block.
    pub block_size: BlockSize,
    /// Of a differencing disk's parent; nil if that is a raw image.
    pub parent_uuid: Uuid,
    /// When the parent was last changed before this disk was made.
    pub parent_timestamp: Timestamp,
    /// Of a differencing disk's parent, without directories.
    pub parent_name: ParentName,
    /// Where to look for the parent.
    pub locators: [Locator; LOCATOR_COUNT],
}

impl Header {
    /// Of a new dynamic disk.
    #[must_use]
    pub fn new(table_offset: u64, table_entries: u32, block_size: BlockSize) -> Self {
        Self {
            data_offset: u64::MAX,
            table_offset,
            table_entries,
            block_size,
            parent_uuid: Uuid::NIL,
            parent_timestamp: Timestamp(0),
            parent_name: ParentName::EMPTY,
            locators: [Locator::NONE; LOCATOR_COUNT],
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// Not the cookie, a wrong checksum, another version, a block size that there cannot be.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self> {
        let part = Part::Header;
        let found = take::<8>(bytes, 0);
        if found != COOKIE {
            return Err(ErrorKind::Cookie { part, found }.into());
        }
        let (found, wanted) = (be32(bytes, CHECKSUM_AT), checksum(bytes));
        if found != wanted {
            return Err(ErrorKind::Checksum { part, found, wanted }.into());
        }
        let found = be32(bytes, 24);
        if found != HEADER_VERSION {
            return Err(ErrorKind::Version { part, found }.into());
        }
        let raw: [u8; LOCATOR_SIZE * LOCATOR_COUNT] = take(bytes, LOCATORS_AT);
        let mut locators = [Locator::NONE; LOCATOR_COUNT];
        for (locator, raw) in locators.iter_mut().zip(raw.as_chunks().0) {
            *locator = Locator::parse(raw);
        }
        Ok(Self {
            data_offset: be64(bytes, 8),
            table_offset: be64(bytes, 16),
            table_entries: be32(bytes, 28),
            block_size: BlockSize::new(be32(bytes, 32))?,
            parent_uuid: Uuid(take(bytes, 40)),
            parent_timestamp: Timestamp(be32(bytes, 56)),
            parent_name: ParentName(take(bytes, NAME_AT)),
            locators,
        })
    }

    /// The bytes, with their checksum; what is reserved is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.data_offset.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &HEADER_VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.table_entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_size.0.to_be_bytes());
        put(&mut bytes, 40, &self.parent_uuid.0);
        put(&mut bytes, 56, &self.parent_timestamp.0.to_be_bytes());
        put(&mut bytes, NAME_AT, &self.parent_name.0);
        let rooms = bytes.get_mut(LOCATORS_AT..RESERVED_AT).into_iter();
        for (room, locator) in rooms.flat_map(|all| all.chunks_exact_mut(24)).zip(&self.locators) {
            room.copy_from_slice(&locator.emit());
        }
        let sum = checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }

    /// Is there a table entry for each of `blocks`?
    ///
    /// # Errors
    /// [`ErrorKind::BatTooSmall`].
    pub fn hold(&self, blocks: u64) -> Result<u32> {
        match u32::try_from(blocks) {
            Ok(count) if count <= self.table_entries => Ok(count),
            _ => {
                let entries = self.table_entries;
                Err(Error::from(ErrorKind::BatTooSmall { blocks, entries }))
            }
        }
    }
}

/// The complement of the sum of all bytes but the checksum's own.
#[must_use]
pub fn checksum(bytes: &[u8; HEADER_SIZE]) -> u32 {
    checksum_without(bytes, CHECKSUM_AT)
}

/// The first complaint that a checking tool has about any header, in its words.
#[must_use]
pub fn check(bytes: &[u8; HEADER_SIZE]) -> Option<&'static str> {
    let header = match Header::parse(bytes).map_err(|error| error.kind().clone()) {
        Ok(header) => header,
        Err(ErrorKind::Cookie { .. }) => return Some("invalid cookie"),
        Err(ErrorKind::Checksum { .. }) => return Some("invalid checksum"),
        Err(ErrorKind::Version { .. }) => return Some("invalid header version"),
        Err(_) => return Some("invalid block size"),
    };
    let (_, reserved) = bytes.split_at(RESERVED_AT);
    let complaints = [
        (header.data_offset != u64::MAX, "invalid data offset"),
        (!header.table_offset.is_multiple_of(512), "invalid table offset"),
        (reserved.iter().any(|byte| *byte != 0), "invalid reserved bits"),
    ];
    complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
}

#[cfg(test)]
mod tests;
