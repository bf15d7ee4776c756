//! Small images, made byte by byte from the format layer's parts.

use vhd::batmap::{self, BatmapHeader, KeyHash};
use vhd::bits;
use vhd::footer::{DiskType, Footer};
use vhd::header::{BlockSize, Header, ParentName};
use vhd::layout::Placement;
use vhd::locator::{self, Locator, Platform};
use vhd::units::{BlockIndex, Timestamp, Uuid};

use crate::view;

/// Of every image here: 8 sectors, so that one bitmap has one byte.
pub(crate) const BLOCK: u64 = 4096;

pub(crate) const UUID: Uuid = Uuid([7; 16]);
pub(crate) const PARENT_UUID: Uuid = Uuid([8; 16]);

/// What is in an image.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) uuid: Uuid,
    /// Blocks of the disk.
    pub(crate) blocks: u32,
    /// Entries of the table.
    pub(crate) entries: u32,
    /// Block and bitmap; in the order of the file.
    pub(crate) allocated: Vec<(u32, u8)>,
    /// The first byte of each sector that is there.
    pub(crate) tag: u8,
    pub(crate) has_batmap: bool,
    /// Path and UUID of a parent.
    pub(crate) parent: Option<(String, Uuid)>,
    /// Bytes between the data and the footer.
    pub(crate) slack: u64,
    /// The data are in the key with this hash: in that of disks in memory, whatever the hash.
    pub(crate) keyhash: Option<KeyHash>,
}

/// The hash of the key of encrypted images here, with one of several nonces.
pub(crate) fn keyhash(nonce: u8) -> KeyHash {
    KeyHash { nonce: [nonce; 32], hash: [0x6b; 32] }
}

/// That key opens whatever has its hash.
pub(crate) fn opens(found: &KeyHash) -> bool {
    found.hash == [0x6b; 32]
}

impl Spec {
    pub(crate) fn new(blocks: u32, allocated: &[(u32, u8)]) -> Self {
        Self {
            uuid: UUID,
            blocks,
            entries: blocks,
            allocated: allocated.to_vec(),
            tag: b'I',
            has_batmap: true,
            parent: None,
            slack: 0,
            keyhash: None,
        }
    }

    pub(crate) fn encrypted(self) -> Self {
        Self { keyhash: Some(keyhash(1)), ..self }
    }

    pub(crate) fn child(self) -> Self {
        Self { parent: Some(("./parent.vhd".to_owned(), PARENT_UUID)), ..self }
    }

    pub(crate) fn to_be_parent(&self) -> Self {
        Self { uuid: PARENT_UUID, tag: b'P', ..self.clone() }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let block_size = BlockSize::new(4096).expect("a power of two");
        let mut header = Header::new(1536, self.entries, block_size);
        let mut end = batmap::header_offset(1536, self.entries);
        let mut batmap = BatmapHeader::new(1536, self.entries);
        if self.has_batmap {
            end = batmap.end();
        }
        let mut texts = Vec::new();
        if let Some((path, uuid)) = &self.parent {
            header.parent_uuid = *uuid;
            header.parent_timestamp = Timestamp(5);
            let name = path.rsplit('/').next().unwrap_or_default();
            header.parent_name = ParentName::encode(name).expect("short");
            let platforms = [Platform::MacX, Platform::W2ku, Platform::W2ru];
            for (locator, platform) in header.locators.iter_mut().zip(platforms) {
                let text = locator::encode(platform, path);
                let length = u32::try_from(text.len()).expect("short");
                *locator = Locator { platform, space: 512, length, reserved: 0, offset: end };
                texts.push((end, text));
                end += 512;
            }
        }
        let mut bat = vhd::bat::Bat::new(self.entries).expect("few");
        let mut placement = Placement::new(block_size, end);
        let mut map = vec![0; usize::try_from(batmap.sectors * 512).expect("few")];
        let mut file = Vec::new();
        for (block, bitmap) in &self.allocated {
            let place = placement.allocate().expect("there is room");
            bat.set(BlockIndex(*block), Some(place));
            if *bitmap == 0xff {
                bits::set(&mut map, *block, true);
            }
            put(&mut file, place.offset(), &[*bitmap]);
            for sector in (0..8).filter(|sector| bitmap & (0x80 >> sector) != 0) {
                let at = place.offset() + 512 + u64::from(sector) * 512;
                let mut data = content(self.tag, *block, sector);
                if self.keyhash.is_some() {
                    view::encrypt(u64::from(*block) * 8 + u64::from(sector), &mut data);
                }
                put(&mut file, at, &data);
            }
        }
        put(&mut file, placement.end_of_data() + self.slack, &[]);
        batmap.keyhash = self.keyhash;
        batmap.checksum = batmap.checksum_of(&map[..512]);
        let kind = if self.parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let footer = Footer::new(kind, u64::from(self.blocks) * BLOCK, self.uuid, Timestamp(9));
        put(&mut file, 0, &footer.emit());
        put(&mut file, 512, &header.emit());
        put(&mut file, 1536, &bat.emit());
        if self.has_batmap {
            put(&mut file, batmap.offset - 512, &batmap.emit());
            put(&mut file, batmap.offset, &map);
        }
        texts.iter().for_each(|(at, text)| put(&mut file, *at, text));
        put(&mut file, placement.end_of_data() + self.slack, &footer.emit());
        file
    }
}

/// A fixed disk.
pub(crate) fn fixed(sectors: u8) -> Vec<u8> {
    let mut file: Vec<u8> = (0..sectors).flat_map(|sector| content(b'F', 0, sector)).collect();
    let size = u64::from(sectors) * 512;
    file.extend(Footer::new(DiskType::Fixed, size, UUID, Timestamp(9)).emit());
    file
}

/// A sector that says where it is from.
pub(crate) fn content(tag: u8, block: u32, sector: u8) -> [u8; 512] {
    let mut bytes = [tag; 512];
    bytes[1..5].copy_from_slice(&block.to_be_bytes());
    bytes[5] = sector;
    bytes
}

fn put(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).expect("small");
    file.resize(file.len().max(start + bytes.len()), 0);
    file[start..start + bytes.len()].copy_from_slice(bytes);
}

/// What a guest could write into a sector: a footer of an image, with another size.
pub(crate) fn crafted_footer(image: &[u8]) -> [u8; 512] {
    Footer { current_size: BLOCK, ..footer_of(image) }.emit()
}

/// The copy of the footer at the start.
pub(crate) fn footer_of(image: &[u8]) -> Footer {
    Footer::parse(image[..512].try_into().expect("512 bytes")).expect("it is whole")
}

/// The disk has another size from now on: both footers say so.
pub(crate) fn set_size(image: &mut [u8], size: u64) {
    let footer = Footer { current_size: size, ..footer_of(image) }.emit();
    let end = image.len() - 512;
    image[..512].copy_from_slice(&footer);
    image[end..].copy_from_slice(&footer);
}
