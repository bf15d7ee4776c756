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

/// The start of VHD time, 2000-01-01 00:00 UTC, in seconds of Unix time.
pub const EPOCH: u64 = 946_684_800;

const FEATURE_TEMPORARY: u32 = 1;
const FEATURE_RESERVED: u32 = 2;
const CREATOR: [u8; 4] = *b"tap\0";
const CREATOR_VERSION: u32 = 0x0001_0003;
/// Versions of this creator that computed the checksum before they set `hidden`.
const CREATOR_VERSIONS_HIDDEN_UNSUMMED: [u32; 2] = [0x0000_0001, 0x0001_0001];
const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;
const RESERVED_AT: usize = 86;
/// Clocks of hosts that share storage differ; so long a time ahead is no complaint, in seconds.
const FUTURE_SLACK: u32 = 1800;

/// What the data behind the footer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All sectors, in order.
    Fixed = 2,
    /// Blocks that exist once they are written.
    Dynamic = 3,
    /// The blocks that differ from a parent's.
    Differencing = 4,
}

/// Cylinders, heads and sectors per track, for systems that still ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// At most 65,535.
    pub cylinders: u16,
    /// At most 16 where it was computed.
    pub heads: u8,
    /// Per track.
    pub sectors: u8,
}

impl Geometry {
    /// What the specification's appendix computes for a size in bytes, rounded up to sectors.
    #[must_use]
    pub fn of(size: u64) -> Self {
        const SECTORS_MAX: u64 = 65_535 * 16 * 255;
        let total = size.div_ceil(512).min(SECTORS_MAX);
        let (mut sectors, mut heads) = (17, (total / 17).div_ceil(1024).max(4));
        let mut tracks = total / 17;
        if total >= 65_535 * 16 * 63 {
            (sectors, heads, tracks) = (255, 16, total / 255);
        } else {
            if tracks >= heads.saturating_mul(1024) || heads > 16 {
                (sectors, heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= heads.saturating_mul(1024) {
                (sectors, heads, tracks) = (63, 16, total / 63);
            }
        }
        let cylinders = tracks.checked_div(heads).unwrap_or(0);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    /// The sectors that it can name.
    #[must_use]
    pub fn total(self) -> u64 {
        let tracks = u64::from(self.cylinders).saturating_mul(u64::from(self.heads));
        tracks.saturating_mul(u64::from(self.sectors))
    }
}

/// Why bytes are not a footer that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterError {
    /// Not a VHD: these are its first bytes.
    Cookie([u8; 8]),
    /// A resize was interrupted; its journal has to be replayed or undone first.
    Poisoned,
    /// Damaged, or not a footer.
    Checksum {
        /// In the bytes.
        found: u32,
        /// Of the bytes.
        wanted: u32,
    },
    /// Not version 1.0 but this.
    Version(u32),
    /// Not a type that the format defines but this.
    Type(u32),
}

impl std::fmt::Display for FooterError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cookie(found) => {
                write!(out, "Footer starts with {}, not conectix", found.escape_ascii())
            }
            Self::Poisoned => write!(out, "A resize of this VHD was interrupted"),
            Self::Checksum { found, wanted } => {
                write!(out, "Footer has checksum {found:#x}, its bytes have {wanted:#x}")
            }
            Self::Version(found) => {
                write!(out, "Footer is of version {found:#x}, not {FORMAT_VERSION:#x}")
            }
            Self::Type(found) => write!(out, "Disk type is {found}, not 2, 3 or 4"),
        }
    }
}

impl std::error::Error for FooterError {}

/// A footer's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bits: 1 temporary, 2 always set.
    pub features: u32,
    /// Where the header is, in bytes; [`NO_DATA_OFFSET`] in a fixed one.
    pub data_offset: u64,
    /// Seconds since [`EPOCH`].
    pub timestamp: u32,
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
    pub uuid: [u8; 16],
    /// Not 0: a virtual machine was suspended on it.
    pub saved: u8,
    /// Not 0: a tool will remove it.
    pub hidden: u8,
}

impl Footer {
    /// A new one, of `size` bytes.
    #[must_use]
    pub fn new(disk_type: DiskType, size: u64, uuid: [u8; 16], timestamp: u32) -> Self {
        let is_fixed = disk_type == DiskType::Fixed;
        Self {
            features: FEATURE_RESERVED,
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
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`FooterError`].
    pub fn parse(bytes: &[u8; FOOTER_SIZE]) -> Result<Self, FooterError> {
        match take::<8>(bytes, 0) {
            COOKIE => {}
            COOKIE_POISONED => return Err(FooterError::Poisoned),
            found => return Err(FooterError::Cookie(found)),
        }
        let (found, wanted) = (be32(bytes, CHECKSUM_AT), checksum(bytes));
        if found != wanted && Some(found) != checksum_without_hidden(bytes) {
            return Err(FooterError::Checksum { found, wanted });
        }
        let version = be32(bytes, 12);
        if version != FORMAT_VERSION {
            return Err(FooterError::Version(version));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            found => return Err(FooterError::Type(found)),
        };
        let [heads, sectors] = take(bytes, 58);
        let [saved, hidden] = take(bytes, 84);
        Ok(Self {
            features: be32(bytes, 8),
            data_offset: be64(bytes, 16),
            timestamp: be32(bytes, 24),
            creator: take(bytes, 28),
            creator_version: be32(bytes, 32),
            creator_host: be32(bytes, 36),
            original_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            geometry: Geometry { cylinders: u16::from_be_bytes(take(bytes, 56)), heads, sectors },
            disk_type,
            uuid: take(bytes, 68),
            saved,
            hidden,
        })
    }

    /// The bytes, with their checksum; what is reserved is zero.
    #[must_use]
    pub fn emit(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.features.to_be_bytes());
        put(&mut bytes, 12, &FORMAT_VERSION.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_host.to_be_bytes());
        put(&mut bytes, 40, &self.original_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.cylinders.to_be_bytes());
        put(&mut bytes, 58, &[self.geometry.heads, self.geometry.sectors]);
        put(&mut bytes, 60, &(self.disk_type as u32).to_be_bytes());
        put(&mut bytes, 68, &self.uuid);
        put(&mut bytes, 84, &[self.saved, self.hidden]);
        let sum = checksum(&bytes);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }
}

/// The complement of the sum of all bytes but the checksum's own.
#[must_use]
pub fn checksum(bytes: &[u8; FOOTER_SIZE]) -> u32 {
    let own: [u8; 4] = take(bytes, CHECKSUM_AT);
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    !sum(bytes).wrapping_sub(sum(&own))
}

/// What old versions of this family wrote when they hid a disk.
fn checksum_without_hidden(bytes: &[u8; FOOTER_SIZE]) -> Option<u32> {
    let [hidden] = take(bytes, HIDDEN_AT);
    let is_old = take::<4>(bytes, 28) == CREATOR
        && CREATOR_VERSIONS_HIDDEN_UNSUMMED.contains(&be32(bytes, 32));
    is_old.then(|| checksum(bytes).wrapping_add(u32::from(hidden)))
}

/// The first complaint that a checking tool has, in its words; `now` in seconds since [`EPOCH`].
///
/// Stricter than [`Footer::parse`]: much of this does not keep a disk from being served.
#[must_use]
pub fn check(bytes: &[u8; FOOTER_SIZE], now: u32) -> Option<&'static str> {
    let footer = match Footer::parse(bytes) {
        Ok(footer) => footer,
        Err(FooterError::Cookie(_) | FooterError::Poisoned) => return Some("invalid cookie"),
        Err(FooterError::Checksum { .. }) => return Some("invalid checksum"),
        Err(FooterError::Version(_)) => return Some("invalid file format version"),
        Err(FooterError::Type(_)) => return Some("invalid type"),
    };
    let is_fixed = footer.disk_type == DiskType::Fixed;
    let unknown = !(FEATURE_TEMPORARY | FEATURE_RESERVED);
    let complaints = [
        (footer.features & FEATURE_RESERVED == 0, "invalid 'reserved' feature"),
        (footer.features & unknown != 0, "invalid extra features"),
        (is_fixed != (footer.data_offset == NO_DATA_OFFSET), "invalid data offset"),
        (footer.timestamp > now.saturating_add(FUTURE_SLACK), "creation time in future"),
        (
            footer.creator == CREATOR && footer.creator_version > CREATOR_VERSION,
            "unsupported tap creator version",
        ),
        (footer.geometry.total() > footer.current_size.div_ceil(512), "geometry too large"),
        (footer.saved > 1, "invalid 'saved' state"),
        (footer.hidden > 1, "invalid 'hidden' state"),
        (bytes.iter().skip(RESERVED_AT).any(|byte| *byte != 0), "invalid 'reserved' bits"),
        (footer.uuid == [0; 16], "invalid (NULL) uuid"),
    ];
    complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
}

/// `N` bytes at a constant offset of the layout.
fn take<const N: usize>(bytes: &[u8; FOOTER_SIZE], offset: usize) -> [u8; N] {
    let rest = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    *rest.expect("every field of the layout is inside the footer")
}

fn be32(bytes: &[u8; FOOTER_SIZE], offset: usize) -> u32 {
    u32::from_be_bytes(take(bytes, offset))
}

fn be64(bytes: &[u8; FOOTER_SIZE], offset: usize) -> u64 {
    u64::from_be_bytes(take(bytes, offset))
}

fn put(bytes: &mut [u8; FOOTER_SIZE], offset: usize, field: &[u8]) {
    let room = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..field.len()));
    room.expect("every field of the layout is inside the footer").copy_from_slice(field);
}

#[cfg(test)]
mod tests;
