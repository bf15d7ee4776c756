//! What the tests of this crate share: images made in memory, and a host that holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::bat::{self, Bat};
use crate::batmap::BatmapHeader;
use crate::bits;
use crate::error::{Result, errno};
use crate::footer::{DiskType, Footer};
use crate::header::{BlockSize, Header, ParentName};
use crate::host::Host;
use crate::layout::Placement;
use crate::locator::{self, Locator, Platform};
use crate::units::{BlockIndex, Timestamp, Uuid};

/// Who made an image: what they do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creator {
    /// A batmap behind the table.
    Tap,
    /// No batmap, whole bitmaps, blocks right behind each other.
    Qemu,
    /// A header elsewhere, and a table elsewhere still.
    Microsoft,
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Footer,
    ShortFooter,
    /// As after a crash: a block was written over it.
    Nothing,
}

/// An image to be made.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) creator: Creator,
    pub(crate) end: End,
    pub(crate) block_size: BlockSize,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) uuid: Uuid,
    /// Its UUID, and its path relative to the child.
    pub(crate) parent: Option<(Uuid, String)>,
    /// Each is full of one byte.
    pub(crate) sectors: BTreeMap<u64, u8>,
    pub(crate) is_descending: bool,
}

impl Spec {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            creator: Creator::Tap,
            end: End::Footer,
            block_size: BlockSize::DEFAULT,
            size,
            uuid: Uuid([7; 16]),
            parent: None,
            sectors: BTreeMap::new(),
            is_descending: false,
        }
    }

    pub(crate) fn child_of(parent: &Spec, name: &str) -> Self {
        let parent = Some((parent.uuid, format!("./{name}")));
        Self { parent, uuid: Uuid([8; 16]), ..Self::new(4 << 20) }
    }

    pub(crate) fn footer(&self) -> Footer {
        let kind = if self.parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let mut footer = Footer::new(kind, self.size, self.uuid, Timestamp(1000));
        match self.creator {
            Creator::Tap => {}
            Creator::Qemu => footer.creator = *b"qem2",
            Creator::Microsoft => {
                footer.creator = *b"win ";
                footer.creator_host = u32::from_be_bytes(*b"Wi2k");
                footer.data_offset = 4096;
            }
        }
        footer
    }

    pub(crate) fn make(&self) -> Vec<u8> {
        let footer = self.footer();
        let blocks = u32::try_from(self.size.div_ceil(self.block_size.bytes())).unwrap();
        let table_offset = if self.creator == Creator::Microsoft { 8192 } else { 1536 };
        let mut header = Header::new(table_offset, blocks, self.block_size);
        let mut batmap = BatmapHeader::new(table_offset, blocks);
        let mut end = table_offset + bat::size_on_disk(blocks);
        let mut file = Vec::new();
        if self.creator == Creator::Tap {
            end = batmap.end();
        }
        if let Some((uuid, path)) = &self.parent {
            header.parent_uuid = *uuid;
            header.parent_name = ParentName::encode(path.rsplit('/').next().unwrap()).unwrap();
            for (slot, platform) in
                [Platform::MacX, Platform::W2ku, Platform::W2ru].into_iter().enumerate()
            {
                let text = locator::encode(platform, path);
                let length = u32::try_from(text.len()).unwrap();
                // Microsoft counts sectors in some versions, bytes in others.
                let space = if self.creator == Creator::Microsoft { 1 } else { 512 };
                header.locators[slot] =
                    Locator { platform, space, length, reserved: 0, offset: end };
                put(&mut file, end, &text);
                end += 512;
            }
        }
        let mut bat = Bat::new(blocks).unwrap();
        let mut placement = Placement::new(self.block_size, end);
        let used = self.sectors.keys().map(|sector| sector * 512 / self.block_size.bytes());
        let mut used: Vec<u64> = used.collect::<BTreeSet<_>>().into_iter().collect();
        if self.is_descending {
            used.reverse();
        }
        let mut map = vec![0; usize::try_from(batmap.sectors).unwrap() * 512];
        for block in used {
            let place = placement.allocate().unwrap();
            bat.set(BlockIndex(u32::try_from(block).unwrap()), Some(place));
            let bitmap = self.write_block(&mut file, block, place.offset());
            if bits::is_full(&bitmap, self.block_size.sectors()) {
                bits::set(&mut map, u32::try_from(block).unwrap(), true);
            }
        }
        put(&mut file, 0, &footer.emit());
        put(&mut file, footer.data_offset, &header.emit());
        put(&mut file, table_offset, &bat.emit());
        if self.creator == Creator::Tap {
            let summed = usize::try_from(crate::batmap::summed_size(self.size)).unwrap();
            batmap.checksum = batmap.checksum_of(&map[..summed.min(map.len())]);
            put(&mut file, batmap.offset - 512, &batmap.emit());
            put(&mut file, batmap.offset, &map);
        }
        let end = usize::try_from(placement.end_of_data()).unwrap();
        file.resize(file.len().max(end), 0);
        match self.end {
            End::Footer => file.extend(footer.emit()),
            End::ShortFooter => file.extend(&footer.emit()[..511]),
            End::Nothing => {}
        }
        file
    }

    /// QEMU says that all sectors of a block are there: it has zeroed them.
    fn write_block(&self, file: &mut Vec<u8>, block: u64, offset: u64) -> Vec<u8> {
        let mut bitmap = vec![0; 512];
        let data = offset + 512;
        let first = block * u64::from(self.block_size.sectors());
        for sector in 0..self.block_size.sectors() {
            if let Some(byte) = self.sectors.get(&(first + u64::from(sector))) {
                bits::set(&mut bitmap, sector, true);
                put(file, data + u64::from(sector) * 512, &[*byte; 512]);
            }
        }
        if self.creator == Creator::Qemu && self.parent.is_none() {
            bits::set_range(&mut bitmap, 0..self.block_size.sectors());
        }
        put(file, offset, &bitmap);
        put(file, data + self.block_size.bytes(), &[]);
        bitmap
    }
}

/// Writes into a file that grows.
pub(crate) fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).unwrap();
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
}

/// Random images of up to `size_max` bytes, of all creators, ends and small block sizes.
pub(crate) fn specs(size_max: u64) -> impl Strategy<Value = Spec> {
    let creators = prop_oneof![Just(Creator::Tap), Just(Creator::Qemu), Just(Creator::Microsoft)];
    let ends = prop_oneof![Just(End::Footer), Just(End::ShortFooter), Just(End::Nothing)];
    let sectors = proptest::collection::vec((0..size_max / 512, 1..40_u64, 1..=255_u8), 0..12);
    (creators, ends, 9..=14_u32, 1..=size_max / 512, any::<bool>(), sectors).prop_map(
        |(creator, end, exponent, sectors_max, is_descending, written)| {
            let mut sectors = BTreeMap::new();
            for (start, count, byte) in written {
                for sector in (start..start + count).filter(|sector| *sector < sectors_max) {
                    sectors.insert(sector, byte);
                }
            }
            let block_size = BlockSize::new(1 << exponent).unwrap();
            Spec {
                creator,
                end,
                block_size,
                sectors,
                is_descending,
                ..Spec::new(sectors_max * 512)
            }
        },
    )
}

/// Files by their real paths, and links.
#[derive(Debug, Default)]
pub(crate) struct MemoryHost {
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(crate) links: BTreeMap<PathBuf, PathBuf>,
}

impl MemoryHost {
    pub(crate) fn with(mut self, path: &str, bytes: Vec<u8>) -> Self {
        self.files.insert(PathBuf::from(path), bytes);
        self
    }

    pub(crate) fn with_link(mut self, path: &str, to: &str) -> Self {
        self.links.insert(PathBuf::from(path), PathBuf::from(to));
        self
    }

    fn find(&self, path: &Path) -> Result<(PathBuf, &Vec<u8>)> {
        let mut path = crate::paths::normalised(path);
        while let Some(to) = self.links.get(&path) {
            path = to.clone();
        }
        let missing = std::io::Error::from_raw_os_error(errno::ENOENT);
        let bytes = self.files.get(&path).ok_or(missing)?;
        Ok((path, bytes))
    }
}

impl Host for MemoryHost {
    type File = Vec<u8>;

    fn open(&self, path: &Path) -> Result<Vec<u8>> {
        Ok(self.find(path)?.1.clone())
    }

    fn identity(&self, file: &Vec<u8>) -> Result<(u64, u64)> {
        let at = self.files.values().position(|known| known == file);
        Ok((0, at.unwrap() as u64))
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.find(path)?.0)
    }

    fn is_readable(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    fn exists(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    fn current_directory(&self) -> Result<PathBuf> {
        Ok(PathBuf::from("/vhds"))
    }
}
