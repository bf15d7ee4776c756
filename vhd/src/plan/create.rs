//! Makes new images: fixed, dynamic, and differencing ones on top of a parent.
//!
//! What says that a file is an image - its footers and the header - is written last, behind a
//! barrier: a file of which the rest is not durable yet opens nowhere. When a step fails, a file
//! that was made is removed.
//!
//! The metadata takes no byte more than storage managers reserve for it: footer copy, header,
//! table, batmap and one sector for each locator.

use super::{File, Files, Plan, Step, Steps};
use crate::bat;
use crate::batmap::{self, BatmapHeader, KeyHash};
use crate::error::{Error, ErrorKind, Part, Result, errno};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, HEADER_OFFSET};
use crate::header::{BlockSize, HEADER_SIZE, Header, ParentName};
use crate::layout::{DYNAMIC_SIZE_MAX, Layout, METADATA_SIZE_MAX};
use crate::locator::{self, Locator, Platform};
use crate::units::{Timestamp, Uuid};

const IMAGE: File = File::Image;
const FOOTER_BYTES: u64 = FOOTER_SIZE as u64;
/// The three that are written, in their order.
const PLATFORMS: [Platform; 3] = [Platform::MacX, Platform::W2ku, Platform::W2ru];

/// What kind of image to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All sectors at once: their place is taken from the storage.
    Fixed,
    /// Blocks as they are written. With `metadata_size`, table and batmap are large enough for a
    /// disk of so many bytes, for it to grow without moving anything.
    Dynamic {
        /// In bytes; at least the size of the disk.
        metadata_size: Option<u64>,
    },
    /// The same, on top of a parent.
    Differencing {
        /// In bytes; at least the size of the disk.
        metadata_size: Option<u64>,
        /// The parent.
        parent: Parent,
    },
}

/// What a child says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Of a VHD; nil of a raw image.
    pub uuid: Uuid,
    /// When it was changed last.
    pub timestamp: Timestamp,
    /// Its path relative to the child, as of [`paths::relative`](crate::paths::relative).
    pub path: String,
    /// Of an encrypted VHD: the child is in the same key.
    pub keyhash: Option<KeyHash>,
}

/// An image to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which kind.
    pub kind: Kind,
    /// The size of the disk, in bytes: whole sectors.
    pub size: u64,
    /// Its identity: random.
    pub uuid: Uuid,
    /// The time.
    pub now: Timestamp,
}

/// The size of a disk of at least `size` bytes in whole blocks, as tools make them.
///
/// # Errors
/// Past the end of the numbers.
pub fn whole_blocks(size: u64) -> Result<u64> {
    let whole = size.checked_next_multiple_of(BlockSize::DEFAULT.bytes());
    whole.ok_or_else(|| too_large(size))
}

fn too_large(found: u64) -> Error {
    let (what, unit) = ("Virtual size", "bytes");
    ErrorKind::TooLarge { what, found, limit: DYNAMIC_SIZE_MAX, unit }.into()
}

/// Makes an image, in a new file or in place of whatever a file or device holds.
///
/// ```
/// use vhd::image::{Image, LoadOptions};
/// use vhd::plan::create::{Kind, Spec, create};
/// use vhd::plan::{File, Plan, memory::Storage};
/// use vhd::units::{Timestamp, Uuid};
///
/// let kind = Kind::Dynamic { metadata_size: None };
/// let (uuid, now) = (Uuid::from_random([7; 16]), Timestamp(0));
/// let mut storage = Storage::default();
/// let mut plan = create(&storage, &Spec { kind, size: 10 << 20, uuid, now })?;
/// while let Some(step) = plan.next(&storage)? {
///     storage.perform(&step);
/// }
/// let file = storage.bytes(File::Image).expect("it was made");
/// assert_eq!(file.len(), 3584);
/// assert_eq!(Image::load(file, LoadOptions::default())?.virtual_size(), 10 << 20);
/// # Ok::<(), vhd::Error>(())
/// ```
///
/// # Errors
/// A size that the format cannot hold, which the error names; a parent's path that is too long; a
/// device that is too small.
pub fn create(files: &dyn Files, spec: &Spec) -> Result<Create> {
    if spec.size == 0 || !spec.size.is_multiple_of(512) {
        let (part, field, found) = (Part::Footer, "virtual size", spec.size);
        let wanted = "whole sectors of 512 bytes, at least one";
        return Err(ErrorKind::Field { part, field, found, wanted }.into());
    }
    let there = match files.open(IMAGE) {
        Ok(file) => Some(file.length()?),
        Err(error) if error.errno() == errno::ENOENT => None,
        Err(error) => return Err(error),
    };
    let image = Sketch::of(spec)?;
    let device = there.filter(|_| files.is_device(IMAGE));
    let end = image.end.checked_add(FOOTER_BYTES).ok_or_else(|| too_large(spec.size))?;
    if device.is_some_and(|length| length < end) {
        return Err(Error::at(image.end, ErrorKind::Io { errno: errno::ENOSPC }));
    }
    let (mut queue, mut rest) = (Steps::default(), Steps::default());
    match (there, device) {
        (None, _) => queue.push(Step::Create { file: IMAGE }),
        // An old image must not seem to be whole while the new one is not.
        (Some(_), None) => {
            queue.set_length(IMAGE, 0);
            queue.barrier();
        }
        (Some(length), Some(_)) => {
            // Without the footer at its end a fixed one is gone, and its data do not matter; a
            // dynamic one has its copy still, and is whole.
            queue.zero(IMAGE, length.saturating_sub(FOOTER_BYTES), FOOTER_BYTES);
            queue.barrier();
            queue.zero(IMAGE, 0, HEADER_OFFSET.saturating_add(HEADER_SIZE as u64));
            queue.barrier();
        }
    }
    let footer_at = device.map_or(image.end, |length| length.saturating_sub(FOOTER_BYTES));
    image.write(&mut rest, footer_at, device.is_some());
    Ok(Create { queue, rest: Some(rest), is_new: there.is_none(), failed: None })
}

/// A new image as steps.
#[derive(Debug)]
pub struct Create {
    queue: Steps,
    /// All steps behind those that make room for them.
    rest: Option<Steps>,
    is_new: bool,
    failed: Option<Error>,
}

impl Plan for Create {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, _files: &dyn Files) -> Result<bool> {
        match (self.failed.take(), self.rest.take()) {
            (Some(error), _) => Err(error),
            (None, Some(rest)) => {
                self.queue = rest;
                Ok(true)
            }
            (None, None) => Ok(false),
        }
    }

    fn failed(&mut self, error: Error) -> Result<()> {
        // The second time it is the removal that failed; what matters is why it was tried.
        let error = self.failed.take().unwrap_or(error);
        self.queue.clear();
        // What was there before stays, and what could not be made is not there.
        if !self.is_new || self.rest.is_some() {
            return Err(error);
        }
        self.is_new = false;
        self.failed = Some(error);
        self.queue.push(Step::Remove { file: IMAGE });
        Ok(())
    }
}

/// An image before its first step.
struct Sketch {
    footer: Footer,
    sparse: Option<Sparse>,
    /// Where the footer of a file is, in bytes.
    end: u64,
}

struct Sparse {
    header: Header,
    batmap_header_at: u64,
    batmap: BatmapHeader,
    /// What the locators point to.
    texts: Vec<Vec<u8>>,
}

impl Sketch {
    fn of(spec: &Spec) -> Result<Self> {
        let (disk_type, metadata_size, parent) = match &spec.kind {
            Kind::Fixed => {
                let footer = Footer::new(DiskType::Fixed, spec.size, spec.uuid, spec.now);
                return Ok(Self { footer, sparse: None, end: spec.size });
            }
            Kind::Dynamic { metadata_size } => (DiskType::Dynamic, metadata_size, None),
            Kind::Differencing { metadata_size, parent } => {
                (DiskType::Differencing, metadata_size, Some(parent))
            }
        };
        let entries = table_entries(spec.size, metadata_size.unwrap_or(spec.size))?;
        let layout = Layout::new(entries, 0);
        let mut header = Header::new(layout.table_offset, entries, BlockSize::DEFAULT);
        let mut batmap = BatmapHeader::new(layout.table_offset, entries);
        let mut end = layout.end_of_headers;
        let mut texts = Vec::new();
        if let Some(parent) = parent {
            batmap.keyhash = parent.keyhash;
            texts = name(&mut header, parent, &mut end)?;
        }
        let batmap_header_at = batmap::header_offset(layout.table_offset, entries);
        let sparse = Some(Sparse { header, batmap_header_at, batmap, texts });
        let footer = Footer::new(disk_type, spec.size, spec.uuid, spec.now);
        Ok(Self { footer, sparse, end })
    }

    fn write(&self, queue: &mut Steps, footer_at: u64, is_device: bool) {
        let footer = self.footer.emit();
        match &self.sparse {
            None => {
                // First the length, so that the zeros take place inside of the file.
                queue.set_length(IMAGE, self.end.saturating_add(FOOTER_BYTES));
                queue.zero(IMAGE, 0, self.end);
                queue.barrier();
            }
            Some(sparse) => {
                if is_device {
                    // A reader of the table's padding, or of the batmap, never sees what was there.
                    let size = u64::from(sparse.batmap.sectors) << 9;
                    queue.zero(IMAGE, sparse.batmap.offset, size);
                } else {
                    queue.set_length(IMAGE, self.end);
                }
                sparse.write(queue);
                queue.barrier();
                queue.write(IMAGE, HEADER_OFFSET, &sparse.header.emit());
                queue.write(IMAGE, 0, &footer);
            }
        }
        queue.write(IMAGE, footer_at, &footer);
        queue.barrier();
    }
}

impl Sparse {
    fn write(&self, queue: &mut Steps) {
        queue.write(IMAGE, self.batmap_header_at, &self.batmap.emit());
        queue.write(IMAGE, self.header.table_offset, &bat::emit_unused(self.header.table_entries));
        for (locator, text) in self.header.locators.iter().zip(&self.texts) {
            let room = usize::try_from(locator.space_bytes()).expect("the length of a path");
            let mut bytes = vec![0; room];
            for (to, from) in bytes.iter_mut().zip(text) {
                *to = *from;
            }
            queue.write(IMAGE, locator.offset, &bytes);
        }
    }
}

/// How many entries a table needs.
fn table_entries(size: u64, metadata_size: u64) -> Result<u32> {
    if size > DYNAMIC_SIZE_MAX {
        return Err(too_large(size));
    }
    let (unit, found) = ("bytes", metadata_size);
    if metadata_size < size {
        let what = "Size of the metadata";
        return Err(ErrorKind::TooSmall { what, found, limit: size, unit }.into());
    }
    if metadata_size > METADATA_SIZE_MAX {
        let what = "Size of the metadata";
        return Err(ErrorKind::TooLarge { what, found, limit: METADATA_SIZE_MAX, unit }.into());
    }
    let entries = metadata_size.div_ceil(BlockSize::DEFAULT.bytes());
    let entries = u32::try_from(entries).expect("at most 2 TiB of blocks");
    debug_assert!(entries <= bat::ENTRIES_MAX);
    Ok(entries)
}

/// Writes the parent's names into a header. Returns the texts of the locators, which go to `end`
/// and behind.
fn name(header: &mut Header, parent: &Parent, end: &mut u64) -> Result<Vec<Vec<u8>>> {
    let last = parent.path.rsplit('/').next().unwrap_or_default();
    header.parent_uuid = parent.uuid;
    header.parent_timestamp = parent.timestamp;
    header.parent_name = ParentName::encode(last)?;
    let mut texts = Vec::new();
    for ((number, slot), platform) in (0_u8..).zip(&mut header.locators).zip(PLATFORMS) {
        let text = locator::encode(platform, &parent.path);
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        if length > locator::TEXT_SIZE_MAX {
            let (part, found) = (Part::Locator(number), length.into());
            let limit = locator::TEXT_SIZE_MAX.into();
            return Err(ErrorKind::NameTooLong { part, found, limit }.into());
        }
        let space = length.next_multiple_of(512).max(512);
        *slot = Locator { platform, space, length, reserved: 0, offset: *end };
        *end = end.saturating_add(space.into());
        texts.push(text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests;
