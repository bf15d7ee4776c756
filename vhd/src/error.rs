//! What is wrong with an image, or with what was asked of it.
//!
//! An [`Error`] has a kind, for control flow, and an offset, for people. It does not know the name
//! of the file: who opened that, says it. [`Error::errno`] is what a tool exits with.

use std::fmt;

use crate::units::BlockIndex;

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The footer at the end.
    Footer,
    /// Its copy at the start.
    FooterCopy,
    /// The dynamic header.
    Header,
    /// A parent locator, by its number.
    Locator(u8),
    /// The block allocation table.
    Bat,
    /// The batmap's header.
    BatmapHeader,
    /// The batmap.
    Batmap,
    /// The sector bitmap of a block.
    Bitmap(BlockIndex),
    /// The data of a block.
    Block(BlockIndex),
    /// The data of a fixed or raw image.
    Data,
    /// The journal of a resize.
    Journal,
}

impl fmt::Display for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Footer => out.write_str("Footer"),
            Self::FooterCopy => out.write_str("Copy of the footer"),
            Self::Header => out.write_str("Header"),
            Self::Locator(number) => write!(out, "Parent locator {number}"),
            Self::Bat => out.write_str("Block allocation table"),
            Self::BatmapHeader => out.write_str("Batmap header"),
            Self::Batmap => out.write_str("Batmap"),
            Self::Bitmap(block) => write!(out, "Bitmap of block {}", block.0),
            Self::Block(block) => write!(out, "Block {}", block.0),
            Self::Data => out.write_str("Data"),
            Self::Journal => out.write_str("Journal"),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A part does not start with the bytes that it must start with.
    Cookie {
        /// Of what.
        part: Part,
        /// The first bytes.
        found: [u8; 8],
    },
    /// A resize was interrupted: its journal has to be reverted first.
    Poisoned,
    /// A part is damaged.
    Checksum {
        /// Which.
        part: Part,
        /// In the bytes.
        found: u32,
        /// Of the bytes.
        wanted: u32,
    },
    /// A part is of a version that is not known.
    Version {
        /// Which.
        part: Part,
        /// The version.
        found: u32,
    },
    /// Not a type that the format defines.
    DiskType(u32),
    /// Written by a version of this creator that stored bitmaps in another order.
    CreatorVersion(u32),
    /// Not a power of two from 512 bytes to 2 MiB.
    BlockSize(u32),
    /// Ends before the part does.
    Truncated {
        /// Which part.
        part: Part,
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be.
        wanted: u64,
    },
    /// A number inside a part is not one that it can be.
    Field {
        /// Of what.
        part: Part,
        /// Its name.
        field: &'static str,
        /// What it is.
        found: u64,
        /// What it must be, in words that follow "wanted".
        wanted: &'static str,
    },
    /// The disk has more blocks than its block allocation table.
    BatTooSmall {
        /// Blocks of the disk.
        blocks: u64,
        /// Entries of the table.
        entries: u32,
    },
    /// A size that the format, or a bound of this implementation, does not allow.
    TooLarge {
        /// Of what, for example "Virtual size".
        what: &'static str,
        /// What was asked for or found.
        found: u64,
        /// The largest that there can be, in the same unit.
        limit: u64,
        /// For example "bytes".
        unit: &'static str,
    },
    /// A size that is too small.
    TooSmall {
        /// Of what.
        what: &'static str,
        /// What was asked for or found.
        found: u64,
        /// The least that there can be, in the same unit.
        limit: u64,
        /// For example "bytes".
        unit: &'static str,
    },
    /// There is no place for another block below the 2 TiB that the table can name.
    NoSpace {
        /// The sector at which it would begin.
        sector: u64,
    },
    /// A place in an image that another part has.
    Overlap {
        /// Which part.
        part: Part,
        /// Whose place it takes.
        other: Part,
    },
    /// Reading or writing past the end of the disk.
    PastEnd {
        /// The offset that was asked for, in bytes.
        found: u64,
        /// The size of the disk, in bytes.
        size: u64,
    },
    /// Text that is not in the encoding of its place.
    Encoding {
        /// Where.
        part: Part,
        /// What it must be in.
        wanted: &'static str,
    },
    /// A name that does not fit in its place.
    NameTooLong {
        /// Where.
        part: Part,
        /// Its length, in bytes.
        found: u64,
        /// The room, in bytes.
        limit: u64,
    },
    /// The data is encrypted, and there is no key.
    Encrypted,
    /// The data is in another key than the one that was given, or than the data it goes to, or in
    /// none.
    OtherKey,
    /// A locator leads to no file that can be read.
    ParentNotFound {
        /// The name in the image.
        name: String,
    },
    /// A differencing image without a locator of a kind that is read.
    NoLocator,
    /// The parent is outside of the directories that may be opened.
    ParentForbidden {
        /// Its path.
        path: String,
    },
    /// The parent is not the image that the child was made of.
    ParentUuid {
        /// The parent's.
        found: crate::units::Uuid,
        /// What the child wants.
        wanted: crate::units::Uuid,
    },
    /// A chain of more images than are allowed.
    ChainTooDeep {
        /// How many are.
        limit: u32,
    },
    /// An image is its own ancestor.
    ChainLoop,
    /// Not of a type for which this can be done.
    NotSupported(&'static str),
    /// Storage failed.
    Io {
        /// The error number of the system.
        errno: i32,
    },
}

/// What is wrong, and where in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::error_impl_error, reason = "the one error of this crate: vhd::Error")]
pub struct Error {
    kind: ErrorKind,
    offset: Option<u64>,
}

/// What functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// One that concerns bytes at an offset of the file.
    #[must_use]
    pub fn at(offset: u64, kind: ErrorKind) -> Self {
        Self { kind, offset: Some(offset) }
    }

    /// The same, of another part, if it says that the file ends before a part does.
    ///
    /// Who reads bytes does not know what they are; who asked for them does.
    #[must_use]
    pub fn of(mut self, name: Part) -> Self {
        if let ErrorKind::Truncated { part, .. } = &mut self.kind {
            *part = name;
        }
        self
    }

    /// The same, at an offset of the file, unless one is known already.
    #[must_use]
    pub fn or_at(self, offset: u64) -> Self {
        Self { offset: self.offset.or(Some(offset)), ..self }
    }

    /// For control flow.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where in the file, in bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The error number by which scripts know it, positive, as of Linux on x86-64.
    #[must_use]
    pub fn errno(&self) -> i32 {
        use ErrorKind as Kind;
        match &self.kind {
            Kind::Io { errno } => *errno,
            Kind::ParentNotFound { .. } => errno::ENOENT,
            Kind::ParentForbidden { .. } | Kind::Encrypted => errno::EACCES,
            Kind::NoSpace { .. } | Kind::ChainTooDeep { .. } => errno::ENOSPC,
            // What the first programs of this family said, and scripts know.
            Kind::Truncated { found: 0, .. } => errno::EPIPE,
            Kind::Truncated { .. } => errno::EIO,
            Kind::PastEnd { .. } => errno::ERANGE,
            Kind::NameTooLong { .. } => errno::ENAMETOOLONG,
            Kind::NotSupported(_) => errno::ENOSYS,
            Kind::ChainLoop => errno::ELOOP,
            Kind::Encoding { .. } => errno::EILSEQ,
            Kind::Cookie { .. }
            | Kind::Poisoned
            | Kind::Checksum { .. }
            | Kind::Version { .. }
            | Kind::DiskType(_)
            | Kind::CreatorVersion(_)
            | Kind::BlockSize(_)
            | Kind::Field { .. }
            | Kind::BatTooSmall { .. }
            | Kind::TooLarge { .. }
            | Kind::TooSmall { .. }
            | Kind::Overlap { .. }
            | Kind::NoLocator
            | Kind::OtherKey
            | Kind::ParentUuid { .. } => errno::EINVAL,
        }
    }
}

/// The error numbers of Linux that this crate has a meaning for.
pub mod errno {
    #![allow(missing_docs, reason = "their names are those of errno.h")]
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EACCES: i32 = 13;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EPIPE: i32 = 32;
    pub const ERANGE: i32 = 34;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
    pub const ELOOP: i32 = 40;
    pub const EILSEQ: i32 = 84;
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, offset: None }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::from(ErrorKind::Io { errno: error.raw_os_error().unwrap_or(errno::EIO) })
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie { part, found } => {
                write!(out, "{part} starts with \"{}\"", found.escape_ascii())
            }
            Self::Poisoned => {
                out.write_str("A resize was interrupted: its journal must be reverted")
            }
            Self::Checksum { part, found, wanted } => {
                write!(out, "{part} has checksum {found:#x}, its bytes have {wanted:#x}")
            }
            Self::Version { part, found } => write!(out, "{part} is of unknown version {found:#x}"),
            Self::DiskType(found) => write!(out, "Disk type is {found}, not 2, 3 or 4"),
            Self::CreatorVersion(found) => {
                write!(out, "Creator's version is {found:#x}, whose bitmaps have another bit order")
            }
            Self::BlockSize(found) => {
                write!(
                    out,
                    "Block size is {found} bytes, wanted a power of two from 512 to 2097152"
                )
            }
            Self::Truncated { part, found, wanted } => {
                write!(out, "{part} has {found} bytes, wanted {wanted}: the file ends early")
            }
            Self::Field { part, field, found, wanted } => {
                write!(out, "{part}: {field} is {found:#x}, wanted {wanted}")
            }
            Self::BatTooSmall { blocks, entries } => {
                write!(out, "Disk has {blocks} blocks, its table only {entries} entries")
            }
            Self::TooLarge { what, found, limit, unit } => {
                write!(out, "{what} is {found} {unit}, at most {limit} {unit} are possible")
            }
            Self::TooSmall { what, found, limit, unit } => {
                write!(out, "{what} is {found} {unit}, wanted at least {limit} {unit}")
            }
            Self::NoSpace { sector } => {
                write!(out, "A block at sector {sector:#x} is beyond the 2 TiB that a VHD can name")
            }
            Self::Overlap { part, other } => write!(out, "{part} lies over: {other}"),
            Self::PastEnd { found, size } => {
                write!(out, "Offset {found} is past the end of the disk of {size} bytes")
            }
            Self::Encoding { part, wanted } => write!(out, "{part}: text is not {wanted}"),
            Self::NameTooLong { part, found, limit } => {
                write!(out, "{part}: name of {found} bytes does not fit in {limit}")
            }
            Self::OtherKey => out.write_str("The disk is not in this key"),
            Self::Encrypted => out.write_str("The disk is encrypted, and no key was given"),
            Self::ParentNotFound { name } => write!(out, "Parent \"{name}\" was not found"),
            Self::NoLocator => out.write_str("No parent locator names a path"),
            Self::ParentForbidden { path } => {
                write!(out, "Parent \"{path}\" is outside of the directories that may be opened")
            }
            Self::ParentUuid { found, wanted } => {
                write!(out, "Parent has UUID {found}, its child wants {wanted}")
            }
            Self::ChainTooDeep { limit } => write!(out, "The chain has more than {limit} images"),
            Self::ChainLoop => out.write_str("An image of the chain is its own ancestor"),
            Self::NotSupported(what) => out.write_str(what),
            Self::Io { errno } => {
                write!(out, "{}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(out)?;
        match self.offset {
            Some(offset) => write!(out, " (at byte {offset:#x} of the file)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
