//! Images: what a disk is stored in. Open set, one file or folder each, one row in [`TYPES`].
//!
//! An image answers *where* the bytes of a run are; it makes no system call on the data path. The
//! chain turns its answers into I/O for the queue. Opening and closing may block: they run on the
//! disk's own thread while it serves nobody.

mod claim;
mod null;
mod ram;
mod raw;
mod vhd;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::vhd::engine::Table;
use nix::errno::Errno;
use vhd_files::lock::Policy;

use crate::error::DiskError;
use crate::memory::Memory;
use crate::queue::{FileId, Queue, Tag};
use crate::request::Op;
use crate::status::Status;

/// Facts about an image that its doors and its neighbours need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// In bytes, a multiple of `sector_size`.
    pub size: u64,
    /// Smallest I/O that the storage takes: 512, or up to 4096 for a block device with such
    /// sectors.
    pub sector_size: u32,
}

/// Where the start of a run is. `len` is how much of the run it holds for: at least 1 byte, a
/// multiple of the sector size, at most the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// In a file of the queue.
    Data {
        /// Which.
        file: FileId,
        /// Byte offset in it.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Which file of the image it is, for statistics: 0 but in a chain.
        layer: usize,
    },
    /// There for the first time: its end is the image's business first ([`Metadata::wrote`]), and
    /// the request waits for what the image makes of it.
    First {
        /// Which.
        file: FileId,
        /// Byte offset in it.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The image's name for it.
        change: u16,
    },
    /// No I/O of the request's own, but the request waits for what the image makes of it.
    Change {
        /// Bytes.
        len: u64,
    },
    /// Nothing is stored, and it reads as zeros: a write of zeros is done, another one asks for a
    /// place with [`Metadata::store`].
    Fresh {
        /// Bytes.
        len: u64,
    },
    /// The image has to read or write metadata first: ask again when it says so.
    Wait,
    /// It cannot be done.
    Fail(Errno),
    /// Nowhere: it reads as zeros, and a write is forgotten.
    Nowhere {
        /// Bytes.
        len: u64,
    },
    /// This image knows nothing of it: ask the parent.
    Below {
        /// Bytes.
        len: u64,
    },
}

/// One image of a chain.
pub trait Image: Send {
    /// Its facts; they do not change while it is open.
    fn info(&self) -> ImageInfo;

    /// Where the run is that starts at byte `offset` and has `len` bytes, all inside the image.
    /// `slot` names the request, below the number of slots.
    fn map(&mut self, slot: usize, op: Op, offset: u64, len: u64) -> Mapping;

    /// The file that must be made durable for a flush.
    fn file(&self) -> Option<FileId>;

    /// Its file, when that is all: byte `n` of the disk is byte `n` of the file, for every request.
    fn flat(&self) -> Option<FileId> {
        None
    }

    /// How the storage told that it may have lost what was written since the image was opened; of
    /// one with metadata, which alone knows of all its fdatasyncs.
    fn lost(&self) -> Option<Errno> {
        None
    }

    /// Whether its file system is one that several hosts may mount. Through the page cache such a
    /// one tells the loss of a write to the next (NFS).
    fn is_shared_storage(&self) -> bool {
        false
    }

    /// Where blocks are in its [`Image::file`], in sectors of 512 bytes, for who asks this before
    /// [`Image::map`].
    fn places(&self) -> Option<Arc<Table>> {
        None
    }

    /// Its metadata, when it has any that changes or has to be read.
    fn metadata(&mut self) -> Option<&mut dyn Metadata> {
        None
    }

    /// The files of a chain, leaf first, with their types; empty for a single image.
    fn members(&self) -> Vec<(PathBuf, &'static ImageType)> {
        Vec::new()
    }

    /// A person's view of what it has under way.
    ///
    /// # Errors
    /// Those of `out`.
    fn describe(&self, _out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        Ok(())
    }

    /// What a person should know of how it was opened, although it was.
    fn warning(&self) -> Option<&str> {
        None
    }

    /// Gives its files back. No I/O of it is under way.
    ///
    /// # Errors
    /// When what was written could not be made durable.
    fn close(self: Box<Self>, queue: &mut Queue) -> Result<(), DiskError>;
}

/// Requests of the disk, by their numbers, which only grow.
#[derive(Clone, Copy, Debug)]
pub struct Requests {
    /// The newest.
    pub newest: u64,
    /// The oldest that waits for I/O; one more than the newest when there is none.
    pub oldest: u64,
}

/// The side of an image that does I/O of its own, on metadata.
pub trait Metadata {
    /// Where the run goes that [`Mapping::Fresh`] was the answer for: its data is not zeros.
    fn store(&mut self, slot: usize, offset: u64, len: u64) -> Mapping;

    /// The I/O of a [`Mapping::First`] has ended.
    fn wrote(&mut self, change: u16, status: Status);

    /// Whether [`Metadata::work`] wants to know of requests.
    fn wants_requests(&self) -> bool;

    /// Whether it has I/O to begin for which the queue or the memory had no room: then
    /// [`Metadata::work`] is called again although nothing of its own has ended.
    fn has_steps(&self) -> bool;

    /// Begins what can begin: pushes I/O with [`own_tag`].
    fn work(&mut self, queue: &mut Queue, memory: &mut Memory, requests: Option<Requests>);

    /// An I/O of its own has ended.
    fn ended(&mut self, number: u32, status: Status, memory: &mut Memory);

    /// A [`Mapping::First`] or [`Mapping::Change`] that is through, with its slot.
    fn take_settled(&mut self) -> Option<(usize, Status)>;

    /// Whether requests that wait should ask again; said once.
    fn take_woken(&mut self) -> bool;

    /// Whether nothing is under way, of itself or of requests.
    fn is_idle(&self) -> bool;

    /// Whether a durable write of data alone would leave something behind that it needs.
    fn needs_flush(&self) -> bool;

    /// A flush of this slot's request was pushed.
    fn flush_began(&mut self, slot: usize);

    /// It has ended; returns how for the request.
    fn flush_ended(&mut self, slot: usize, status: Status) -> Status;

    /// Everything that waits ends.
    fn shut_down(&mut self);
}

/// Tags from here on are not those of requests' plain I/O.
pub const TAG_SPECIAL: u64 = 1 << 62;
const TAG_FIRST: u64 = 1 << 63;

/// The tag of an image's own I/O.
#[must_use]
pub fn own_tag(number: u32) -> Tag {
    Tag(TAG_SPECIAL | u64::from(number))
}

/// The tag of the I/O of a [`Mapping::First`].
#[must_use]
pub fn first_tag(slot: usize, change: u16) -> Tag {
    Tag(TAG_FIRST | (slot as u64) << 16 | u64::from(change))
}

/// Whose a special tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The image's own.
    Own(u32),
    /// That of a [`Mapping::First`].
    First {
        /// Of the request.
        slot: usize,
        /// The image's name for it.
        change: u16,
    },
}

/// Takes a special tag apart.
#[must_use]
pub fn special_of(tag: Tag) -> Special {
    let low = |bits: u64| u32::try_from(bits & 0xffff_ffff).expect("32 bits");
    if tag.0 & TAG_FIRST == 0 {
        return Special::Own(low(tag.0));
    }
    let change = u16::try_from(tag.0 & 0xffff).expect("16 bits");
    Special::First { slot: usize::try_from(low(tag.0) >> 16).expect("64 bits"), change }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// No changes.
    pub read_only: bool,
    /// Through the page cache, not with direct I/O.
    pub buffered: bool,
    /// Whether nobody else may write it meanwhile; nothing to one that is read only.
    pub lock: Policy,
}

type OpenFunction = fn(&Path, OpenFlags, &mut Queue) -> Result<Box<dyn Image>, DiskError>;

/// One type of image.
#[derive(Debug)]
pub struct ImageType {
    /// What stands before the colon.
    pub name: &'static str,
    /// The number of it in `tap-ctl stats`.
    pub id: u32,
    open: Option<OpenFunction>,
}

/// All types with a name. Names and numbers are those of blktap; a type without a function is known
/// and not implemented (ENOSYS), an unknown one is ENOENT.
pub const TYPES: &[ImageType] = &[
    ImageType { name: "aio", id: 0, open: Some(raw::open) },
    ImageType { name: "sync", id: 1, open: None },
    ImageType { name: "vmdk", id: 2, open: None },
    ImageType { name: "vhdsync", id: 3, open: None },
    ImageType { name: "vhd", id: 4, open: Some(vhd::open) },
    ImageType { name: "ram", id: 5, open: Some(ram::open) },
    ImageType { name: "qcow", id: 6, open: None },
    ImageType { name: "bc", id: 7, open: None },
    ImageType { name: "vhdi", id: 8, open: None },
    ImageType { name: "log", id: 9, open: None },
    ImageType { name: "remus", id: 10, open: None },
    ImageType { name: "lc", id: 11, open: None },
    ImageType { name: "lle", id: 12, open: None },
    ImageType { name: "llp", id: 13, open: None },
    ImageType { name: "valve", id: 14, open: None },
    ImageType { name: "nbd", id: 15, open: None },
    // Not blktap's: a disk without storage, to measure everything else. Its number is free there.
    ImageType { name: "null", id: 64, open: Some(null::open) },
];

/// A type that is in the table.
fn type_named(name: &str) -> &'static ImageType {
    TYPES.iter().find(|kind| kind.name == name).expect("one of the table's own names")
}

/// `type:path` taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Index into [`TYPES`].
    kind: usize,
    /// What stands after the first colon.
    pub path: PathBuf,
}

impl ImageSpec {
    /// Takes `type:path` apart at the first colon.
    ///
    /// # Errors
    /// EINVAL without a colon; ENOENT for an unknown type.
    pub fn parse(text: &std::ffi::OsStr) -> Result<Self, DiskError> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':').ok_or_else(|| {
            DiskError::new(Errno::EINVAL, format!("Found {text:?} where type:path was wanted"))
        })?;
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        let kind = TYPES.iter().position(|kind| kind.name.as_bytes() == name).ok_or_else(|| {
            let known: Vec<_> =
                TYPES.iter().filter(|kind| kind.open.is_some()).map(|kind| kind.name).collect();
            let name = String::from_utf8_lossy(name);
            DiskError::new(
                Errno::ENOENT,
                format!("Unknown image type {name:?}; there are {}", known.join(", ")),
            )
        })?;
        Ok(Self { kind, path: PathBuf::from(std::ffi::OsStr::from_bytes(path)) })
    }

    /// The path as an error names it: a relative one from the directory of this process, because
    /// whoever wrote it was in another one.
    fn named_path(&self) -> PathBuf {
        std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// Its type.
    #[must_use]
    pub fn kind(&self) -> &'static ImageType {
        &TYPES[self.kind]
    }

    /// Opens it and registers its files with the queue.
    ///
    /// # Errors
    /// ENOSYS for a type that is not implemented, ENOENT without a path, and what the storage says:
    /// ENOMEDIUM for an empty drive.
    pub fn open(&self, flags: OpenFlags, queue: &mut Queue) -> Result<Box<dyn Image>, DiskError> {
        let kind = self.kind();
        let open = kind.open.ok_or_else(|| {
            DiskError::new(Errno::ENOSYS, format!("Image type {:?} is not implemented", kind.name))
        })?;
        open(&self.path, flags, queue).map_err(|error| error.at(&self.named_path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn parse(text: &str) -> Result<ImageSpec, Errno> {
        ImageSpec::parse(OsStr::new(text)).map_err(|error| error.errno())
    }

    #[test]
    fn splits_at_the_first_colon() {
        let spec = parse("aio:/a:b").unwrap();
        assert_eq!((spec.kind().name, spec.path.to_str()), ("aio", Some("/a:b")));
    }

    #[test]
    fn rejects_what_is_not_type_and_path() {
        assert_eq!(parse("vhd"), Err(Errno::EINVAL));
        assert_eq!(parse(":/x"), Err(Errno::ENOENT));
        assert_eq!(parse("foo:/x"), Err(Errno::ENOENT));
    }

    #[test]
    fn names_and_numbers_are_unique() {
        for (index, kind) in TYPES.iter().enumerate() {
            for other in &TYPES[index + 1..] {
                assert!(kind.name != other.name && kind.id != other.id);
            }
        }
    }
}
