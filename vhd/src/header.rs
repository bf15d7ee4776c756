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
use crate::locator::{LOCATOR_COUNT, LOCATOR_SIZE, Locator, Platform};
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

    /// The power of two that it is: 9 to 21.
    #[must_use]
    pub fn shift(self) -> u32 {
        self.0.trailing_zeros()
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

/// All fields of a header, whatever is in them: for a dump of what may be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// [`COOKIE`].
    pub cookie: [u8; 8],
    /// All bits set.
    pub data_offset: u64,
    /// Where the table is, in bytes.
    pub table_offset: u64,
    /// [`HEADER_VERSION`].
    pub version: u32,
    /// Entries of the table.
    pub table_entries: u32,
    /// In bytes.
    pub block_size: u32,
    /// As it is written.
    pub checksum: u32,
    /// Of a differencing disk's parent.
    pub parent_uuid: Uuid,
    /// When the parent was last changed.
    pub parent_timestamp: Timestamp,
    /// Of a differencing disk's parent.
    pub parent_name: ParentName,
    /// Where to look for the parent.
    pub locators: [Locator; LOCATOR_COUNT],
}

impl Fields {
    /// Reads them.
    #[must_use]
    pub fn of(bytes: &[u8; HEADER_SIZE]) -> Self {
        let raw: [u8; LOCATOR_SIZE * LOCATOR_COUNT] = take(bytes, LOCATORS_AT);
        let mut locators = [Locator::NONE; LOCATOR_COUNT];
        for (locator, raw) in locators.iter_mut().zip(raw.as_chunks().0) {
            *locator = Locator::parse(raw);
        }
        Self {
            cookie: take(bytes, 0),
            data_offset: be64(bytes, 8),
            table_offset: be64(bytes, 16),
            version: be32(bytes, 24),
            table_entries: be32(bytes, 28),
            block_size: be32(bytes, 32),
            checksum: be32(bytes, CHECKSUM_AT),
            parent_uuid: Uuid(take(bytes, 40)),
            parent_timestamp: Timestamp(be32(bytes, 56)),
            parent_name: ParentName(take(bytes, NAME_AT)),
            locators,
        }
    }
}

/// A header's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
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
    /// Not the cookie, a wrong checksum, another version, a block size that there cannot be, a
    /// data offset, a locator of a platform that the format does not define.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self> {
        let part = Part::Header;
        let fields = Fields::of(bytes);
        if fields.cookie != COOKIE {
            return Err(ErrorKind::Cookie { part, found: fields.cookie }.into());
        }
        let (found, wanted) = (fields.checksum, checksum(bytes));
        if found != wanted {
            return Err(ErrorKind::Checksum { part, found, wanted }.into());
        }
        if fields.version != HEADER_VERSION {
            return Err(ErrorKind::Version { part, found: fields.version }.into());
        }
        if fields.data_offset != u64::MAX {
            let (field, wanted) = ("data offset", "all bits set");
            return Err(ErrorKind::Field { part, field, found: fields.data_offset, wanted }.into());
        }
        for (number, locator) in (0..).zip(&fields.locators) {
            if let Platform::Unknown(code) = locator.platform {
                let (part, wanted) = (Part::Locator(number), "one that the format defines");
                let (field, found) = ("platform code", code.into());
                return Err(ErrorKind::Field { part, field, found, wanted }.into());
            }
        }
        Ok(Self {
            table_offset: fields.table_offset,
            table_entries: fields.table_entries,
            block_size: BlockSize::new(fields.block_size)?,
            parent_uuid: fields.parent_uuid,
            parent_timestamp: fields.parent_timestamp,
            parent_name: fields.parent_name,
            locators: fields.locators,
        })
    }

    /// The bytes, with their checksum; what is reserved is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &u64::MAX.to_be_bytes());
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
///
/// What it is silent on, [`Header::parse`] still may not understand.
/// `file_size` in bytes: the table has to begin inside.
#[must_use]
pub fn check(bytes: &[u8; HEADER_SIZE], file_size: u64) -> Option<&'static str> {
    let (_, reserved) = bytes.split_at(RESERVED_AT);
    let fields = Fields::of(bytes);
    let offset = fields.table_offset;
    let complaints = [
        (fields.cookie != COOKIE, "invalid cookie"),
        (fields.checksum != checksum(bytes), "invalid checksum"),
        (fields.version != HEADER_VERSION, "invalid header version"),
        (fields.data_offset != u64::MAX, "invalid data offset"),
        (offset == 0 || !offset.is_multiple_of(512) || offset >= file_size, "invalid table offset"),
        (!fields.block_size.is_power_of_two(), "invalid block size"),
        (reserved.iter().any(|byte| *byte != 0), "invalid reserved bits"),
    ];
    complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
}

#[cfg(test)]
mod tests;
