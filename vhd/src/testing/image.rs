//! Images in memory, of several creators, and random ones.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(test)]
use proptest::prelude::*;

use crate::bat::{self, Bat};
use crate::batmap::BatmapHeader;
use crate::bits;
use crate::footer::{DiskType, Footer};
use crate::header::{BlockSize, Header, ParentName};
use crate::layout::Placement;
use crate::locator::{self, Locator, Platform};
use crate::units::{BlockIndex, Timestamp, Uuid};

/// Who made an image: what they do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creator {
    /// A batmap behind the table.
    Tap,
    /// No batmap, whole bitmaps, blocks right behind each other.
    Qemu,
    /// A header elsewhere, and a table elsewhere still.
    Microsoft,
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a footer.
    Footer,
    /// With one of 511 bytes.
    ShortFooter,
    /// As after a crash: a block was written over it.
    Nothing,
}

/// An image to be made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Whose habits it has.
    pub creator: Creator,
    /// What is behind the blocks.
    pub end: End,
    /// Of all blocks.
    pub block_size: BlockSize,
    /// Of the disk, in bytes.
    pub size: u64,
    /// Entries of the table, if more than the size needs.
    pub table_entries: u32,
    /// Its identity.
    pub uuid: Uuid,
    /// Its UUID, and its path relative to the child.
    pub parent: Option<(Uuid, String)>,
    /// Each is full of one byte.
    pub sectors: BTreeMap<u64, u8>,
    /// The last block comes first in the file.
    pub is_descending: bool,
}

impl Spec {
    /// An empty dynamic one of so many bytes, without a parent.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            creator: Creator::Tap,
            end: End::Footer,
            block_size: BlockSize::DEFAULT,
            size,
            table_entries: 0,
            uuid: Uuid([7; 16]),
            parent: None,
            sectors: BTreeMap::new(),
            is_descending: false,
        }
    }

    /// An empty child of 4 MiB, of a parent in the same directory.
    #[must_use]
    pub fn child_of(parent: &Spec, name: &str) -> Self {
        let parent = Some((parent.uuid, format!("./{name}")));
        Self { parent, uuid: Uuid([8; 16]), ..Self::new(4 << 20) }
    }

    /// With sectors from `first` on, each full of one byte.
    #[must_use]
    pub fn with(mut self, first: u64, count: u64, byte: u8) -> Self {
        self.sectors.extend((first..first + count).map(|sector| (sector, byte)));
        self
    }

    /// What the disk shows, without its parent.
    ///
    /// # Panics
    /// A disk that is larger than memory.
    #[must_use]
    pub fn disk(&self) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(self.size).expect("a small disk")];
        for (sector, byte) in &self.sectors {
            let start = usize::try_from(sector * 512).expect("it is in the disk");
            let end = disk.len().min(start + 512);
            disk[start..end].fill(*byte);
        }
        disk
    }

    /// Its footer.
    #[must_use]
    pub fn footer(&self) -> Footer {
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

    /// The bytes of the file.
    ///
    /// # Panics
    /// More than a file can hold, or a name that no header has room for.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one part after another, as they are in the file")]
    pub fn make(&self) -> Vec<u8> {
        let footer = self.footer();
        let blocks = self.size.div_ceil(self.block_size.bytes());
        let blocks = u32::try_from(blocks).expect("a table has room").max(self.table_entries);
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
            header.parent_name =
                ParentName::encode(path.rsplit('/').next().expect("a small image"))
                    .expect("a small image");
            for (slot, platform) in
                [Platform::MacX, Platform::W2ku, Platform::W2ru].into_iter().enumerate()
            {
                let text = locator::encode(platform, path);
                let length = u32::try_from(text.len()).expect("a small image");
                // Microsoft counts sectors in some versions, bytes in others.
                let space = if self.creator == Creator::Microsoft { 1 } else { 512 };
                header.locators[slot] =
                    Locator { platform, space, length, reserved: 0, offset: end };
                put(&mut file, end, &text);
                end += 512;
            }
        }
        let mut bat = Bat::new(blocks).expect("a small image");
        let mut placement = Placement::new(self.block_size, end);
        let used = self.sectors.keys().map(|sector| sector * 512 / self.block_size.bytes());
        let mut used: Vec<u64> = used.collect::<BTreeSet<_>>().into_iter().collect();
        if self.is_descending {
            used.reverse();
        }
        let mut map = vec![0; usize::try_from(batmap.sectors).expect("a small image") * 512];
        for block in used {
            let place = placement.allocate().expect("a small image");
            bat.set(BlockIndex(u32::try_from(block).expect("a small image")), Some(place));
            let bitmap = self.write_block(&mut file, block, place.offset());
            if bits::is_full(&bitmap, self.block_size.sectors()) {
                bits::set(&mut map, u32::try_from(block).expect("a small image"), true);
            }
        }
        put(&mut file, 0, &footer.emit());
        put(&mut file, footer.data_offset, &header.emit());
        put(&mut file, table_offset, &bat.emit());
        if self.creator == Creator::Tap {
            let summed =
                usize::try_from(crate::batmap::summed_size(self.size)).expect("a small image");
            batmap.checksum = batmap.checksum_of(&map[..summed.min(map.len())]);
            put(&mut file, batmap.offset - 512, &batmap.emit());
            put(&mut file, batmap.offset, &map);
        }
        let end = usize::try_from(placement.end_of_data()).expect("a small image");
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
///
/// # Panics
/// An offset that is larger than memory.
pub fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).expect("a small image");
    let end = start + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[start..end].copy_from_slice(bytes);
}

/// Random images of up to `size_max` bytes, of all creators, ends and small block sizes.
#[cfg(test)]
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
            let block_size = BlockSize::new(1 << exponent).expect("a small image");
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
