//! One thing that is wrong with an image, in the words that scripts know.

use std::fmt;

use crate::error::{Error, errno};
use crate::units::{BlockIndex, Sector};

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FindingKind {
    /// The file is empty, or its length cannot be told.
    EndOfFile,
    /// The footer at the end cannot be read.
    ReadEndFooter,
    /// The footer at the end has this fault.
    EndFooter(&'static str),
    /// The copy at the start cannot be read.
    ReadFooterCopy,
    /// The copy at the start has this fault.
    FooterCopy(&'static str),
    /// The two are not the same.
    FootersDiffer,
    /// The header cannot be read.
    ReadHeader,
    /// It has this fault.
    Header(&'static str),
    /// The image is of a kind that is not read at all: an old bit order, blocks larger than 2 MiB,
    /// locators of unknown platforms. The first programs of this family printed nothing here.
    Load,
    /// What it says of a parent has this fault.
    ParentFields(&'static str),
    /// The batmap, behind which the blocks begin, cannot be read or is damaged.
    EndOfMetadata,
    /// The table cannot be read, or the disk has more blocks than it has entries.
    ReadTable,
    /// The file ends inside the metadata, after this many bytes.
    FileSize(u64),
    /// A block lies over what is in front of the blocks.
    OverHeaders {
        /// Which block.
        block: BlockIndex,
        /// Where.
        place: Sector,
    },
    /// A block reaches past the end of the file, or over the footer there.
    OverFooter {
        /// Which block.
        block: BlockIndex,
        /// Where.
        place: Sector,
    },
    /// Two blocks lie over each other.
    OverBlock {
        /// The first in the order of the disk.
        block: BlockIndex,
        /// Where.
        place: Sector,
        /// The other.
        other: BlockIndex,
        /// Where.
        other_place: Sector,
    },
    /// So many blocks more lie over each other.
    MoreOverlaps(u32),
    /// The bitmap of a block cannot be read.
    ReadBitmap(BlockIndex),
    /// The data of a block cannot be read.
    ReadData(BlockIndex),
    /// There is data where the bitmap says that there is none.
    DataWhereClear {
        /// Which block.
        block: BlockIndex,
        /// Which sector of it.
        sector: u32,
    },
    /// The batmap has this fault.
    Batmap(&'static str),
    /// The batmap says that a block is full that is not there.
    FullButAbsent(BlockIndex),
    /// The batmap says that a block is full whose bitmap says otherwise: who believes the batmap
    /// reads something else than who believes the bitmap.
    FullButNotFull(BlockIndex),
    /// A locator has this fault.
    Locator(u8, &'static str),
    /// A locator of a platform that an earlier one has.
    DuplicateLocator(u8, u32),
    /// A locator names another file than the header.
    LocatorName {
        /// Which.
        number: u8,
        /// The last part of its path.
        name: String,
        /// The name in the header.
        header: String,
    },
    /// A locator's text cannot be read.
    ReadLocator(u8),
    /// A path in a locator leads to nothing that may be opened.
    Unresolved(String),
    /// The parent has this fault.
    Parent(String, &'static str),
    /// No locator leads to a parent of this name.
    NoParent(String),
}

/// What is wrong, how badly, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    kind: FindingKind,
    errno: i32,
    is_note: bool,
    cause: Option<Box<Error>>,
}

impl Finding {
    /// Of how an image is made.
    pub(super) fn new(kind: FindingKind) -> Self {
        Self { kind, errno: errno::EINVAL, is_note: false, cause: None }
    }

    /// Of what could not be read.
    pub(super) fn caused(kind: FindingKind, error: Error) -> Self {
        Self { kind, errno: error.errno(), is_note: false, cause: Some(Box::new(error)) }
    }

    /// The same, with another error number.
    pub(super) fn with_errno(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// The same, of less weight.
    pub(super) fn into_note(self) -> Self {
        Self { is_note: true, ..self }
    }

    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> &FindingKind {
        &self.kind
    }

    /// What a tool exits with, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Is it worth knowing, but no reason to call the image invalid?
    #[must_use]
    pub fn is_note(&self) -> bool {
        self.is_note
    }

    /// The error behind it, for people: found, wanted, and where in the file.
    #[must_use]
    pub fn cause(&self) -> Option<&Error> {
        self.cause.as_deref()
    }

    /// The name of its kind, for programs: stays the same when the words change.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match &self.kind {
            FindingKind::EndOfFile => "end-of-file",
            FindingKind::ReadEndFooter => "read-end-footer",
            FindingKind::EndFooter(_) => "end-footer",
            FindingKind::ReadFooterCopy => "read-footer-copy",
            FindingKind::FooterCopy(_) => "footer-copy",
            FindingKind::FootersDiffer => "footers-differ",
            FindingKind::ReadHeader => "read-header",
            FindingKind::Header(_) => "header",
            FindingKind::Load => "load",
            FindingKind::ParentFields(_) => "parent-fields",
            FindingKind::EndOfMetadata => "end-of-metadata",
            FindingKind::ReadTable => "read-table",
            FindingKind::FileSize(_) => "file-size",
            FindingKind::OverHeaders { .. } => "block-over-headers",
            FindingKind::OverFooter { .. } => "block-over-footer",
            FindingKind::OverBlock { .. } => "block-over-block",
            FindingKind::MoreOverlaps(_) => "more-blocks-over-blocks",
            FindingKind::ReadBitmap(_) => "read-bitmap",
            FindingKind::ReadData(_) => "read-data",
            FindingKind::DataWhereClear { .. } => "data-where-bitmap-is-clear",
            FindingKind::Batmap(_) => "batmap",
            FindingKind::FullButAbsent(_) => "batmap-full-but-absent",
            FindingKind::FullButNotFull(_) => "batmap-full-but-not-full",
            FindingKind::Locator(..) => "locator",
            FindingKind::DuplicateLocator(..) => "duplicate-locator",
            FindingKind::LocatorName { .. } => "locator-name",
            FindingKind::ReadLocator(_) => "read-locator",
            FindingKind::Unresolved(_) => "unresolved-parent",
            FindingKind::Parent(..) => "parent",
            FindingKind::NoParent(_) => "no-parent",
        }
    }

    /// The block that it is about.
    #[must_use]
    pub fn block(&self) -> Option<BlockIndex> {
        match &self.kind {
            FindingKind::OverHeaders { block, .. }
            | FindingKind::OverFooter { block, .. }
            | FindingKind::OverBlock { block, .. }
            | FindingKind::ReadBitmap(block)
            | FindingKind::ReadData(block)
            | FindingKind::DataWhereClear { block, .. }
            | FindingKind::FullButAbsent(block)
            | FindingKind::FullButNotFull(block) => Some(*block),
            _ => None,
        }
    }
}

/// The words of the first programs of this family: scripts look for some of them.
impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = self.errno;
        match &self.kind {
            FindingKind::EndOfFile => write!(out, "error calculating end of file: -{errno}"),
            FindingKind::ReadEndFooter => write!(out, "error reading primary footer: -{errno}"),
            FindingKind::EndFooter(what) => write!(out, "primary footer invalid: {what}"),
            FindingKind::ReadFooterCopy => write!(out, "error reading backup footer: -{errno}"),
            FindingKind::FooterCopy(what) => write!(out, "backup footer invalid: {what}"),
            FindingKind::FootersDiffer => out.write_str("primary and backup footers do not match"),
            FindingKind::ReadHeader => write!(out, "error reading header: -{errno}"),
            FindingKind::Header(what) => write!(out, "header is invalid: {what}"),
            FindingKind::Load => write!(out, "error opening: -{errno}"),
            FindingKind::ParentFields(what) => {
                write!(out, "differencing header is invalid: {what}")
            }
            FindingKind::EndOfMetadata => {
                write!(out, "error calculating end of metadata: -{errno}")
            }
            FindingKind::ReadTable => write!(out, "error reading bat: -{errno}"),
            FindingKind::FileSize(size) => write!(out, "invalid file size: {size:#x}"),
            FindingKind::OverHeaders { block, place } => {
                write!(out, "block {} (offset {:#x}) clobbers headers", block.0, place.0)
            }
            FindingKind::OverFooter { block, place } => {
                write!(out, "block {} (offset {:#x}) clobbers footer", block.0, place.0)
            }
            FindingKind::OverBlock { block, place, other, other_place } => {
                write!(out, "block {} (offset {:#x}) clobbers ", block.0, place.0)?;
                write!(out, "block {} (offset {:#x})", other.0, other_place.0)
            }
            FindingKind::MoreOverlaps(count) => {
                write!(out, "{count} more blocks clobber each other")
            }
            FindingKind::ReadBitmap(block) => write!(out, "error reading bitmap {:#x}", block.0),
            FindingKind::ReadData(block) => write!(out, "error reading data block {:#x}", block.0),
            FindingKind::DataWhereClear { block, sector } => {
                let block = block.0;
                write!(out, "sector {sector:#x} of block {block:#x} has data where bitmap is clear")
            }
            FindingKind::Batmap(what) => write!(out, "batmap is invalid: {what}"),
            FindingKind::FullButAbsent(block) => {
                write!(out, "batmap shows unallocated block {} full", block.0)
            }
            FindingKind::FullButNotFull(block) => {
                write!(out, "batmap shows block {} full where its bitmap is not", block.0)
            }
            FindingKind::Locator(number, what) => {
                write!(out, "invalid parent locator {number}: {what}")
            }
            FindingKind::DuplicateLocator(number, code) => {
                write!(out, "duplicate platform code in locator {number}: {code:#x}")
            }
            FindingKind::LocatorName { number, name, header } => {
                write!(out, "parent locator {number} name ({name}) ")?;
                write!(out, "does not match header name ({header})")
            }
            FindingKind::ReadLocator(number) => {
                write!(out, "error reading parent locator {number}: -{errno}")
            }
            FindingKind::Unresolved(name) => write!(out, "error resolving {name}: -{errno}"),
            FindingKind::Parent(path, what) => write!(out, "invalid parent {path}: {what}"),
            FindingKind::NoParent(name) => write!(out, "could not find parent {name}"),
        }
    }
}
