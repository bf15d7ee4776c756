//! The footer: the last 512 bytes of a VHD, and in all but fixed ones also the first.
//!
//! ```text
//!   0 cookie[8]      8 features     12 file format version   16 data offset (u64)
//!  24 timestamp     28 creator[4]   32 creator version       36 creator's host
//!  40 original size (u64)           48 current size (u64)
//!  56 cylinders u16, heads u8, sectors u8                    60 type    64 checksum
//!  68 uuid[16]      84 saved u8     85 hidden u8             86 reserved[426]
//! ```
//!
//! [`Footer::parse`] takes what can be served; [`check`] names what a repair tool complains about.

use crate::bytes::{be32, be64, checksum_without, put, take};
use crate::error::{ErrorKind, Part, Result};
use crate::geometry::Geometry;
use crate::units::{Timestamp, Uuid};

/// Bytes in a footer.
pub const FOOTER_SIZE: usize = 512;

/// The first eight bytes.
pub const COOKIE: [u8; 8] = *b"conectix";

/// The first eight bytes while a resize with a journal is under way: not to be served.
pub const COOKIE_POISONED: [u8; 8] = *b"v_poison";

/// The one version of the format, 1.0.
pub const FORMAT_VERSION: u32 = 0x0001_0000;

/// The data offset of a fixed VHD, which has no header to point to.
pub const NO_DATA_OFFSET: u64 = u64::MAX;

/// Where the header of the other types is put, in bytes: behind the copy of the footer.
pub const HEADER_OFFSET: u64 = 512;

/// Bytes in a footer of old Microsoft programs, which left out the last reserved one.
pub const FOOTER_SIZE_SHORT: usize = 511;

/// The creator of what this family of programs writes.
pub const CREATOR: [u8; 4] = *b"tap\0";

/// The creator's version 1.3: big-endian bitmaps, a batmap of version 1.2.
pub const CREATOR_VERSION: u32 = 0x0001_0003;

const FEATURE_TEMPORARY: u32 = 1;
const FEATURE_RESERVED: u32 = 2;
/// This creator's version 0.1 stored bitmaps in another bit order.
const CREATOR_VERSION_OTHER_ORDER: u32 = 0x0000_0001;
/// Versions of this creator that computed the checksum before they set `hidden`.
const CREATOR_VERSIONS_HIDDEN_UNSUMMED: [u32; 2] = [0x0000_0001, 0x0001_0001];
const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;
const RESERVED_AT: usize = 86;
/// Clocks of hosts that share storage differ; so long a time ahead is no complaint, in seconds.
const FUTURE_SLACK: u32 = 1800;

/// What the data in front of the footer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All sectors, in order.
    Fixed,
    /// Blocks that exist once they are written.
    Dynamic,
    /// The blocks that differ from a parent's.
    Differencing,
    /// Not one that the format defines, or a deprecated one: only its footer can be read.
    Other(u32),
}

impl DiskType {
    /// From the number on disk.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            2 => Self::Fixed,
            3 => Self::Dynamic,
            4 => Self::Differencing,
            other => Self::Other(other),
        }
    }

    /// The number on disk.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
            Self::Other(code) => code,
        }
    }

    /// Has it a header, a table and blocks?
    #[must_use]
    pub fn has_blocks(self) -> bool {
        matches!(self, Self::Dynamic | Self::Differencing)
    }
}

/// A footer's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bits: 1 temporary, 2 always set.
    pub features: u32,
    /// Of the format: [`FORMAT_VERSION`].
    pub version: u32,
    /// Where the header is, in bytes; [`NO_DATA_OFFSET`] in a fixed one.
    pub data_offset: u64,
    /// When it was made.
    pub timestamp: Timestamp,
    /// Which program.
    pub creator: [u8; 4],
    /// Its version, major in the upper half.
    pub creator_version: u32,
    /// The system that it ran on.
    pub creator_host: u32,
    /// In bytes, when it was made.
    pub original_size: u64,
    /// In bytes, now.
    pub current_size: u64,
    /// Of the current size.
    pub geometry: Geometry,
    /// What the data is.
    pub disk_type: DiskType,
    /// Its name for children.
    pub uuid: Uuid,
    /// Not 0: a virtual machine was suspended on it.
    pub saved: u8,
    /// Not 0: a tool will remove it.
    pub hidden: u8,
    /// A resize with a journal is under way, or was interrupted: not to be served. Such a footer
    /// starts with [`COOKIE_POISONED`].
    pub is_poisoned: bool,
}

impl Footer {
    /// A new one, of `size` bytes.
    #[must_use]
    pub fn new(disk_type: DiskType, size: u64, uuid: Uuid, timestamp: Timestamp) -> Self {
        let is_fixed = disk_type == DiskType::Fixed;
        Self {
            features: FEATURE_RESERVED,
            version: FORMAT_VERSION,
            data_offset: if is_fixed { NO_DATA_OFFSET } else { HEADER_OFFSET },
            timestamp,
            creator: CREATOR,
            creator_version: CREATOR_VERSION,
            creator_host: 0,
            original_size: size,
            current_size: size,
            geometry: Geometry::of(size),
            disk_type,
            uuid,
            saved: 0,
            hidden: 0,
            is_poisoned: false,
        }
    }

    /// Reads one, of which not all can be served: [`Footer::refuse_unservable`] says why not.
    ///
    /// # Errors
    /// Not the cookie, or a wrong checksum.
    pub fn parse(bytes: &[u8; FOOTER_SIZE]) -> Result<Self> {
        let part = Part::Footer;
        let found = take::<8>(bytes, 0);
        if found != COOKIE && found != COOKIE_POISONED {
            return Err(ErrorKind::Cookie { part, found }.into());
        }
        let (found, wanted) = (Self::stored_checksum(bytes), checksum(bytes));
        if found != wanted && Some(found) != checksum_without_hidden(bytes) {
            return Err(ErrorKind::Checksum { part, found, wanted }.into());
        }
        Ok(Self::fields(bytes))
    }

    /// All fields, whatever is in them and whatever the checksum: for a dump of what may be
    /// damaged.
    #[must_use]
    pub fn fields(bytes: &[u8; FOOTER_SIZE]) -> Self {
        let [heads, sectors] = take(bytes, 58);
        let [saved, hidden] = take(bytes, 84);
        Self {
            features: be32(bytes, 8),
            version: be32(bytes, 12),
            data_offset: be64(bytes, 16),
            timestamp: Timestamp(be32(bytes, 24)),
            creator: take(bytes, 28),
            creator_version: be32(bytes, 32),
            creator_host: be32(bytes, 36),
            original_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            geometry: Geometry { cylinders: u16::from_be_bytes(take(bytes, 56)), heads, sectors },
            disk_type: DiskType::from_code(be32(bytes, 60)),
            uuid: Uuid(take(bytes, 68)),
            saved,
            hidden,
            is_poisoned: take::<8>(bytes, 0) == COOKIE_POISONED,
        }
    }

    /// The checksum in the bytes.
    #[must_use]
    pub fn stored_checksum(bytes: &[u8; FOOTER_SIZE]) -> u32 {
        be32(bytes, CHECKSUM_AT)
    }

    /// Reads one of 511 bytes, as old Microsoft programs wrote them: the last byte counts as zero.
    ///
    /// # Errors
    /// As for [`Footer::parse`].
    pub fn parse_short(bytes: &[u8; FOOTER_SIZE_SHORT]) -> Result<Self> {
        Self::parse(&widened(bytes))
    }

    /// Was it written by this family of programs, which may have put a batmap behind the table?
    #[must_use]
    pub fn is_by_this_family(&self) -> bool {
        self.creator == CREATOR
    }

    /// Was it written by a version of this family that hid a disk in the copy at the start only?
    #[must_use]
    pub fn is_of_old_hidden(&self) -> bool {
        self.is_by_this_family() && CREATOR_VERSIONS_HIDDEN_UNSUMMED.contains(&self.creator_version)
    }

    /// Are its bitmaps in a bit order that nobody reads any more?
    ///
    /// # Errors
    /// [`ErrorKind::CreatorVersion`], when they are.
    pub fn refuse_other_bit_order(&self) -> Result<()> {
        if self.creator == CREATOR && self.creator_version == CREATOR_VERSION_OTHER_ORDER {
            return Err(ErrorKind::CreatorVersion(self.creator_version).into());
        }
        Ok(())
    }

    /// Is there a reason not to read or write data by it?
    ///
    /// # Errors
    /// A resize that was interrupted, another version of the format, a type that is not known, a
    /// bit order that nobody reads any more.
    pub fn refuse_unservable(&self) -> Result<()> {
        if self.is_poisoned {
            return Err(ErrorKind::Poisoned.into());
        }
        if self.version != FORMAT_VERSION {
            return Err(ErrorKind::Version { part: Part::Footer, found: self.version }.into());
        }
        if let DiskType::Other(found) = self.disk_type {
            return Err(ErrorKind::DiskType(found).into());
        }
        self.refuse_other_bit_order()
    }

    /// Blocks of `block_size` bytes that the current size needs.
    #[must_use]
    pub fn block_count(&self, block_size: crate::header::BlockSize) -> u64 {
        self.current_size.div_ceil(block_size.bytes())
    }

    /// The bytes, with their checksum; what is reserved is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        put(&mut bytes, 0, if self.is_poisoned { &COOKIE_POISONED } else { &COOKIE });
        put(&mut bytes, 8, &self.features.to_be_bytes());
        put(&mut bytes, 12, &self.version.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.0.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_host.to_be_bytes());
        put(&mut bytes, 40, &self.original_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        put(&mut bytes, 58, &[self.geometry.heads, self.geometry.sectors]);
        put(&mut bytes, 60, &self.disk_type.code().to_be_bytes());
        put(&mut bytes, 68, &self.uuid.0);
        put(&mut bytes, 84, &[self.saved, self.hidden]);
        let sum = checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }
}

/// The complement of the sum of all bytes but the checksum's own.
#[must_use]
pub fn checksum(bytes: &[u8; FOOTER_SIZE]) -> u32 {
    checksum_without(bytes, CHECKSUM_AT)
}

/// A footer of 511 bytes with the one that is missing.
#[must_use]
pub fn widened(bytes: &[u8; FOOTER_SIZE_SHORT]) -> [u8; FOOTER_SIZE] {
    let mut wide = [0; FOOTER_SIZE];
    put(&mut wide, 0, bytes);
    wide
}

/// What old versions of this family wrote when they hid a disk.
fn checksum_without_hidden(bytes: &[u8; FOOTER_SIZE]) -> Option<u32> {
    let [hidden] = take(bytes, HIDDEN_AT);
    let is_old = take::<4>(bytes, 28) == CREATOR
        && CREATOR_VERSIONS_HIDDEN_UNSUMMED.contains(&be32(bytes, 32));
    is_old.then(|| checksum(bytes).wrapping_add(u32::from(hidden)))
}

/// The first complaint that a checking tool has, in its words.
///
/// Stricter than [`Footer::parse`]: much of this does not keep a disk from being served.
#[must_use]
pub fn check(bytes: &[u8; FOOTER_SIZE], now: Timestamp) -> Option<&'static str> {
    let footer = match Footer::parse(bytes).map_err(|error| error.kind().clone()) {
        Ok(footer) if footer.is_poisoned => return Some("invalid cookie"),
        Ok(footer) => footer,
        Err(ErrorKind::Checksum { .. }) => return Some("invalid checksum"),
        Err(_) => return Some("invalid cookie"),
    };
    let is_fixed = !footer.disk_type.has_blocks();
    let unknown = !(FEATURE_TEMPORARY | FEATURE_RESERVED);
    let complaints = [
        (footer.features & FEATURE_RESERVED == 0, "invalid 'reserved' feature"),
        (footer.features & unknown != 0, "invalid extra features"),
        (footer.version != FORMAT_VERSION, "invalid file format version"),
        (is_fixed != (footer.data_offset == NO_DATA_OFFSET), "invalid data offset"),
        (footer.timestamp.0 > now.0.saturating_add(FUTURE_SLACK), "creation time in future"),
        (
            footer.creator == CREATOR && footer.creator_version > CREATOR_VERSION,
            "unsupported tap creator version",
        ),
        (is_geometry_too_large(&footer), "geometry too large"),
        (matches!(footer.disk_type, DiskType::Other(_)), "invalid type"),
        (footer.saved > 1, "invalid 'saved' state"),
        (footer.hidden > 1, "invalid 'hidden' state"),
        (bytes.iter().skip(RESERVED_AT).any(|byte| *byte != 0), "invalid 'reserved' bits"),
        (footer.uuid.is_nil(), "invalid (NULL) uuid"),
    ];
    complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
}

/// More than the size and the rest of its last cylinder: such disks are sound. The largest geometry
/// that there is says nothing in a disk of others: QEMU writes it where it was told to keep the
/// size as it is. This family of programs writes none that is too large.
fn is_geometry_too_large(footer: &Footer) -> bool {
    let sectors = footer.current_size.div_ceil(512);
    let is_largest = footer.geometry == Geometry { cylinders: 65_535, heads: 16, sectors: 255 };
    let says_nothing = is_largest && footer.creator != CREATOR;
    !says_nothing
        && footer.geometry.total() >= sectors.saturating_add(footer.geometry.cylinder().max(1))
}

#[cfg(test)]
mod tests;
