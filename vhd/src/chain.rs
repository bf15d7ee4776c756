//! An image and its ancestors, read as the one disk that they are together.
//!
//! For each sector the first image of the chain that holds it answers: the leaf, its parent, and so
//! on. A raw or fixed image holds all sectors of its size. Past the end of an image there are
//! zeros, whatever its own parents hold there: that is what the disk had when the image was its
//! leaf.

use std::path::{Path, PathBuf};

use crate::bits;
use crate::cache::Cache;
use crate::error::{ErrorKind, Result};
use crate::footer::DiskType;
use crate::gate::Gate;
use crate::host::Host;
use crate::image::{Image, LoadOptions};
use crate::paths;
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, SECTOR_SIZE};

/// How to open a chain. The default is for reading and writing its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainOptions {
    /// Of each image.
    pub load: LoadOptions,
    /// Read encrypted data as it is stored. Without this, an image with a key hash is refused.
    pub as_stored: bool,
    /// Take a parent that has not the UUID that its child wants.
    pub any_parent_uuid: bool,
}

/// Where bytes of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where they start on the disk, in bytes.
    pub start: u64,
    /// How many bytes: at least one.
    pub length: u64,
    /// `None` if they are zero and stored nowhere.
    pub stored: Option<Stored>,
}

/// A place in a file of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which image: 0 is the leaf.
    pub image: usize,
    /// Where in its file, in bytes.
    pub offset: u64,
}

/// One image of a chain.
#[derive(Debug)]
pub enum Member<F> {
    /// A VHD.
    Vhd(Image<F>),
    /// A raw parent.
    Raw(F),
}

impl<F: ReadAt> Member<F> {
    /// The size of the disk, in bytes.
    ///
    /// # Errors
    /// Storage fails.
    pub fn virtual_size(&self) -> Result<u64> {
        match self {
            Self::Vhd(image) => Ok(image.virtual_size()),
            Self::Raw(file) => file.length(),
        }
    }

    /// The file.
    pub fn source(&self) -> &F {
        match self {
            Self::Vhd(image) => image.source(),
            Self::Raw(file) => file,
        }
    }
}

/// An image and its ancestors.
///
/// ```
/// use vhd::chain::{Chain, Member};
/// use vhd::image::{Image, LoadOptions};
/// # use vhd::plan::create::{Kind, Spec, create};
/// # use vhd::plan::{File, Plan, memory::Storage};
/// # use vhd::units::{Timestamp, Uuid};
/// # let kind = Kind::Dynamic { metadata_size: None };
/// # let spec = Spec { kind, size: 10 << 20, uuid: Uuid([7; 16]), now: Timestamp(0) };
/// # let mut storage = Storage::default();
/// # let mut plan = create(&storage, &spec)?;
/// # while let Some(step) = plan.next(&storage)? {
/// #     storage.perform(&step);
/// # }
/// # let file = storage.bytes(File::Image).expect("it was made");
///
/// let image = Image::load(file, LoadOptions::default())?;
/// let mut chain = Chain::of(vec![(Member::Vhd(image), "disk.vhd".into())])?;
/// let extent = chain.locate(0, chain.virtual_size())?;
/// // An empty disk: its first block is stored nowhere.
/// assert_eq!((extent.length, extent.stored), (2 << 20, None));
/// let mut sector = [1; 512];
/// chain.read_at(4096, &mut sector)?;
/// assert_eq!(sector, [0; 512]);
/// # Ok::<(), vhd::Error>(())
/// ```
#[derive(Debug)]
pub struct Chain<F> {
    layers: Vec<Layer<F>>,
}

#[derive(Debug)]
struct Layer<F> {
    member: Member<F>,
    path: PathBuf,
    size: u64,
    cache: Box<Cache>,
}

impl<F: ReadAt> Chain<F> {
    /// Opens an image and its ancestors, through the gate.
    ///
    /// # Errors
    /// An image that cannot be loaded; a parent that is not found, not allowed, or not the one that
    /// the child wants; more images than the gate allows, or one that is its own ancestor; an
    /// encrypted image.
    pub fn open<H>(host: &H, path: &Path, gate: &Gate, options: ChainOptions) -> Result<Self>
    where
        H: Host<File = F>,
    {
        let mut path = paths::canonical(host, path)?;
        let mut known = Vec::new();
        let mut members = Vec::new();
        let mut is_raw = false;
        let mut wanted = None;
        loop {
            if u32::try_from(members.len()).unwrap_or(u32::MAX) >= gate.depth_max() {
                return Err(ErrorKind::ChainTooDeep { limit: gate.depth_max() }.into());
            }
            let file = host.open(&path)?;
            let identity = host.identity(&file)?;
            if known.contains(&identity) {
                return Err(ErrorKind::ChainLoop.into());
            }
            known.push(identity);
            if is_raw {
                members.push((Member::Raw(file), path));
                return Self::of(members);
            }
            let image = Image::load(file, options.load)?;
            if let DiskType::Other(found) = image.footer().disk_type {
                return Err(ErrorKind::DiskType(found).into());
            }
            let found = image.footer().uuid;
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found)
                && !options.any_parent_uuid
            {
                return Err(ErrorKind::ParentUuid { found, wanted }.into());
            }
            if !options.as_stored && image.is_encrypted()? {
                return Err(ErrorKind::Encrypted.into());
            }
            if !image.is_differencing() {
                members.push((Member::Vhd(image), path));
                return Self::of(members);
            }
            let parent = gate.parent(host, &path, &image)?;
            is_raw = image.has_raw_parent();
            wanted = Some(image.parent_uuid());
            members.push((Member::Vhd(image), path));
            path = parent;
        }
    }

    /// Of images that are open, the leaf first, with their paths.
    ///
    /// # Errors
    /// None at all; storage fails.
    pub fn of(members: Vec<(Member<F>, PathBuf)>) -> Result<Self> {
        let mut layers = Vec::with_capacity(members.len());
        for (member, path) in members {
            let size = member.virtual_size()?;
            layers.push(Layer { member, path, size, cache: Box::default() });
        }
        if layers.is_empty() {
            return Err(ErrorKind::NotSupported("A chain has at least one image").into());
        }
        Ok(Self { layers })
    }

    /// The size of the disk, in bytes: the leaf's.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.size)
    }

    /// The images, the leaf first, with their canonical paths.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&Member<F>, &Path)> {
        self.layers.iter().map(|layer| (&layer.member, layer.path.as_path()))
    }

    /// Reads bytes of the disk.
    ///
    /// # Errors
    /// Past the end of the disk; storage fails.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let extent = self.locate(at, u64::try_from(rest.len()).unwrap_or(u64::MAX))?;
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            match extent.stored {
                Some(stored) => self.read_stored(stored, now)?,
                None => now.fill(0),
            }
            at = at.saturating_add(extent.length);
            rest = later;
        }
        Ok(())
    }

    /// Reads bytes of the file of one image.
    ///
    /// # Errors
    /// Storage fails.
    pub fn read_stored(&self, stored: Stored, buffer: &mut [u8]) -> Result<()> {
        let layer = self.layers.get(stored.image).expect("a place that this chain named");
        layer.member.source().read_at(stored.offset, buffer)
    }

    /// Where the bytes from `offset` on are, as many as are in one piece, at most `length`.
    ///
    /// # Errors
    /// Past the end of the disk; storage fails.
    ///
    /// # Panics
    /// `length` is 0.
    pub fn locate(&mut self, offset: u64, length: u64) -> Result<Extent> {
        assert_ne!(length, 0, "there is no place of no bytes");
        let size = self.virtual_size();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ErrorKind::PastEnd { found: offset.saturating_add(length), size }.into());
        }
        let mut length = length;
        for (image, layer) in self.layers.iter_mut().enumerate() {
            let Some(left) = layer.size.checked_sub(offset).filter(|left| *left > 0) else { break };
            // What is past the end of this image is another piece.
            length = length.min(left);
            let piece = layer.piece(offset, length)?;
            length = piece.length;
            if let Some(offset_in_file) = piece.offset {
                let stored = Some(Stored { image, offset: offset_in_file });
                return Ok(Extent { start: offset, length, stored });
            }
        }
        Ok(Extent { start: offset, length, stored: None })
    }
}

/// Bytes that one image holds, or does not.
struct Piece {
    length: u64,
    offset: Option<u64>,
}

impl<F: ReadAt> Layer<F> {
    /// The bytes from `offset` on that are all here or all not, at most `length`.
    fn piece(&mut self, offset: u64, length: u64) -> Result<Piece> {
        let Member::Vhd(image) = &self.member else {
            return Ok(Piece { length, offset: Some(offset) });
        };
        let Some(header) = image.header() else {
            return Ok(Piece { length, offset: Some(offset) });
        };
        let size = header.block_size;
        let block = u32::try_from(offset >> size.shift()).unwrap_or(u32::MAX);
        let in_block = offset & size.bytes().saturating_sub(1);
        let length = length.min(size.bytes().saturating_sub(in_block));
        let Some(place) = self.cache.entry(image, BlockIndex(block))? else {
            return Ok(Piece { length, offset: None });
        };
        let bitmap = self.cache.bitmap(image, BlockIndex(block), place)?;
        let first = u32::try_from(in_block >> 9).expect("a block has at most 4096 sectors");
        let run = bits::first_run(bitmap, first..size.sectors()).expect("an offset in the block");
        let in_sector = in_block & SECTOR_SIZE.saturating_sub(1);
        let there = (u64::from(run.count) << 9).saturating_sub(in_sector);
        let data = place.offset().saturating_add(u64::from(size.bitmap_sectors()) << 9);
        let offset = run.is_set.then(|| data.saturating_add(in_block));
        Ok(Piece { length: length.min(there), offset })
    }
}

impl Extent {
    /// One behind the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

#[cfg(test)]
mod tests;
