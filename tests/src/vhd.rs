//! VHDs for tests, made of the format's parts: empty ones, and children of images.

use std::os::unix::fs::FileExt;
use std::path::Path;

use vhd::bat::Bat;
use vhd::batmap::BatmapHeader;
use vhd::footer::{DiskType, FOOTER_SIZE, Footer};
use vhd::header::{BlockSize, Header, ParentName};
use vhd::layout::{LOCATOR_SPACE, Layout};
use vhd::locator::{Locator, Platform, encode};
use vhd::units::{Timestamp, Uuid};

/// Makes a dynamic disk of so many bytes.
///
/// # Panics
/// When it cannot be made.
pub fn dynamic(path: &Path, size: u64) {
    make(path, size, None);
}

/// Makes a differencing disk on a parent in the same directory: a VHD, or a raw image.
///
/// # Panics
/// When it cannot be made.
pub fn child(path: &Path, size: u64, parent: &Path) {
    let mut footer = [0; FOOTER_SIZE];
    let file = std::fs::File::open(parent).expect("the parent is there");
    file.read_exact_at(&mut footer, 0).expect("the parent has a start");
    // Only VHDs with blocks begin so; a fixed one is not made here.
    let uuid = Footer::parse(&footer).map_or(Uuid::NIL, |footer| footer.uuid);
    make(path, size, Some((parent, uuid)));
}

fn make(path: &Path, size: u64, parent: Option<(&Path, Uuid)>) {
    let blocks = u32::try_from(size.div_ceil(BlockSize::DEFAULT.bytes())).expect("a small disk");
    let kind = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
    let layout = Layout::new(blocks, u8::from(parent.is_some()));
    // Different for each path: children know their parents by it.
    let mut random = [7_u8; 16];
    for (at, byte) in path.as_os_str().as_encoded_bytes().iter().enumerate() {
        random[at % 16] = random[at % 16].wrapping_mul(31).wrapping_add(*byte);
    }
    let footer = Footer::new(kind, size, Uuid::from_random(random), Timestamp(0)).emit();
    let mut header = Header::new(layout.table_offset, blocks, BlockSize::DEFAULT);
    let mut texts = Vec::new();
    if let Some((parent, uuid)) = parent {
        let name = parent.file_name().and_then(|name| name.to_str()).expect("a plain name");
        let text = encode(Platform::MacX, &format!("./{name}"));
        let offset = layout.end_of_headers - LOCATOR_SPACE;
        header.parent_uuid = uuid;
        header.parent_name = ParentName::encode(name).expect("a short name");
        header.locators[0] = Locator {
            platform: Platform::MacX,
            space: u32::try_from(LOCATOR_SPACE).expect("512"),
            length: u32::try_from(text.len()).expect("short"),
            reserved: 0,
            offset,
        };
        texts.push((offset, text));
    }
    let batmap = BatmapHeader::new(layout.table_offset, blocks);
    let file = std::fs::File::create(path).expect("an image can be made");
    let write = |offset: u64, bytes: &[u8]| {
        file.write_all_at(bytes, offset).expect("there is room for it");
    };
    write(0, &footer);
    write(layout.header_offset, &header.emit());
    write(layout.table_offset, &Bat::new(blocks).expect("a small table").emit());
    write(layout.batmap_header_offset.expect("new images have one"), &batmap.emit());
    file.set_len(layout.end_of_headers).expect("zeros are a batmap");
    for (offset, text) in texts {
        write(offset, &text);
    }
    write(layout.end_of_headers, &footer);
}
