//! Opening a chain: every image is loaded and checked by the `vhd` crate, parents through its gate;
//! then its numbers go to the engine and its files to the queue.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use vhd::batmap::{self, BatmapHeader};
use vhd::chain::{Chain, ChainOptions, Member};
use vhd::engine::{
    BatmapSetup, Engine, Found, Growth, LayerFormat, LayerSetup, Setup, WriteSetup, opening,
};
use vhd::gate::Gate;
use vhd::image::Image as VhdImage;
use vhd::{ErrorKind, Part, ReadAt, bat};
use vhd_files::file::ImageFile;
use vhd_files::host::LocalHost;
use vhd_files::lock::Policy;

use super::session::{self, Session};
use super::{Layer, Vhd, flights, no_flushes};
use crate::error::DiskError;
use crate::image::{Image, ImageInfo, OpenFlags, raw, type_named};
use crate::queue::Queue;

/// Memory for sector bitmaps of a chain: 16,384 of them, the blocks of 32 GiB that are neither
/// empty nor whole. Only what is used is touched.
const BITMAP_MEMORY_BYTES: usize = 8 << 20;

/// The unit of a VHD.
const SECTOR_SIZE: u32 = 512;

pub(crate) fn open(
    path: &Path,
    flags: OpenFlags,
    queue: &mut Queue,
) -> Result<Box<dyn Image>, DiskError> {
    // The leaf always by direct I/O: `-D` is about what parents have in common.
    let leaf_flags = OpenFlags { buffered: false, ..flags };
    let leaf = raw::open_storage(path, leaf_flags, Some(SECTOR_SIZE))?;
    let chain = open_chain(path)?;
    let layers = layers_of(&chain)?;
    // Nothing is written to what cannot be served.
    let session = if flags.read_only { None } else { begin_session(path, &chain, &leaf.file)? };
    let setup = setup_of(&chain, layers, session.as_ref())?;
    let engine = Engine::new(setup)
        .map_err(|error| DiskError::new(Errno::EINVAL, error.to_string()).at(path))?;
    let info = ImageInfo { size: chain.virtual_size() & !511, sector_size: SECTOR_SIZE };
    if info.size == 0 {
        let what = "Found a disk of no sectors where at least one was wanted";
        return Err(DiskError::new(Errno::EINVAL, what).at(path));
    }
    let mut handles = vec![(leaf.file, path.to_owned(), type_named("vhd"))];
    let parent_flags = OpenFlags { read_only: true, lock: Policy::Never, ..flags };
    for (index, (member, place)) in chain.members().enumerate() {
        let kind = type_named(if matches!(member, Member::Vhd(_)) { "vhd" } else { "aio" });
        if index > 0 {
            let storage = raw::open_storage(place, parent_flags, Some(SECTOR_SIZE))?;
            handles.push((storage.file, place.to_owned(), kind));
        }
        let (file, path, _) = &handles[index];
        require_same(member.source().file(), file, path)?;
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(handles.len());
    for (handle, path, kind) in handles {
        let handle = Arc::new(handle);
        let Some(file) = queue.add_file(Arc::clone(&handle)) else {
            layers.iter().for_each(|layer| queue.remove_file(layer.file));
            let what = "This disk has as many files open as its queue can hold";
            return Err(DiskError::new(Errno::EMFILE, what));
        };
        layers.push(Layer { file, handle, path, kind });
    }
    let (flights, free_flights) = flights();
    let began = no_flushes();
    let (claim, leaf) = (leaf.claim, layers[0].file);
    Ok(Box::new(Vhd { engine, layers, leaf, info, claim, session, flights, free_flights, began }))
}

/// A file is opened by its name more than once: each time it has to be the same.
fn require_same(known: &File, found: &File, path: &Path) -> Result<(), DiskError> {
    let place = |file: &File| file.metadata().map(|of| (of.dev(), of.ino(), of.rdev()));
    let places = place(known).and_then(|known| Ok((known, place(found)?)));
    let (known, found) =
        places.map_err(|error| DiskError::io(&error, "Cannot stat the image").at(path))?;
    if known == found {
        return Ok(());
    }
    let what = "The image was replaced while it was opened";
    Err(DiskError::new(Errno::EAGAIN, what).at(path))
}

fn refused(error: &vhd::Error, path: &Path) -> DiskError {
    DiskError::new(Errno::from_raw(error.errno()), error.to_string()).at(path)
}

fn open_chain(path: &Path) -> Result<Chain<ImageFile>, DiskError> {
    let gate = Gate::of_child(&LocalHost, path).map_err(|error| refused(&error, path))?;
    Chain::open(&LocalHost, path, &gate, ChainOptions::default())
        .map_err(|error| refused(&error, path))
}

/// The leaf, which is a VHD.
fn leaf_of(chain: &Chain<ImageFile>) -> Result<&VhdImage<ImageFile>, DiskError> {
    match chain.members().next() {
        Some((Member::Vhd(image), _)) => Ok(image),
        _ => Err(DiskError::new(Errno::EINVAL, "Found a raw image where a VHD was wanted")),
    }
}

/// Restores what a crash left, and keeps what the close needs. `None` for a fixed leaf, whose data
/// is all that changes.
///
/// It is `leaf` that is locked: no other file is written.
fn begin_session(
    path: &Path,
    chain: &Chain<ImageFile>,
    leaf: &File,
) -> Result<Option<Session>, DiskError> {
    let image = leaf_of(chain)?;
    let file = ImageFile::open_for_writing(path, Policy::Never);
    let (file, _) = file.map_err(|error| {
        DiskError::new(Errno::from_raw(error.errno()), error.to_string()).at(path)
    })?;
    require_same(image.source().file(), leaf, path)?;
    require_same(file.file(), leaf, path)?;
    let footer = *image.raw_footer();
    let virtual_size = image.virtual_size();
    if image.header().is_none() {
        let session = Session { file, footer, virtual_size, blocks: 0, batmap: None };
        return Ok(Some(session));
    }
    let refused = |error: vhd::Error| refused(&error, path);
    let end_sector = image.end_of_data().map_err(refused)? >> 9;
    let length = file.length().map_err(refused)?;
    let (mut copy, mut last) = ([0; 512], [0; 512]);
    file.read_at(0, &mut copy).map_err(refused)?;
    file.read_at(length.saturating_sub(512), &mut last).map_err(refused)?;
    let steps = opening(&Found {
        footer: &footer,
        copy: &copy,
        last: &last,
        length,
        is_device: file.is_device(),
        end_sector,
    });
    session::run(&file, &steps)?;
    let blocks = image.block_count().map_err(refused)?;
    let batmap = batmap_of(image);
    Ok(Some(Session { file, footer, virtual_size, blocks, batmap }))
}

/// The batmap's place and header, when there is one that can be written.
fn batmap_of(image: &VhdImage<ImageFile>) -> Option<(u64, BatmapHeader)> {
    let header = image.batmap_header().ok().flatten()?;
    let (offset, _) = image.raw_batmap_header().ok()?;
    let is_usable = header.sectors > 0 && header.offset.is_multiple_of(512);
    (is_usable && offset.is_multiple_of(512)).then_some((offset, header))
}

fn layers_of(chain: &Chain<ImageFile>) -> Result<Vec<LayerSetup>, DiskError> {
    let mut layers = Vec::new();
    for (member, path) in chain.members() {
        let layer = layer_of(member).map_err(|error| refused(&error, path))?;
        layer.check().map_err(|error| DiskError::new(Errno::EINVAL, error.to_string()).at(path))?;
        layers.push(layer);
    }
    Ok(layers)
}

fn setup_of(
    chain: &Chain<ImageFile>,
    mut layers: Vec<LayerSetup>,
    session: Option<&Session>,
) -> Result<Setup, DiskError> {
    let leaf = leaf_of(chain)?;
    let write = match session {
        Some(session) if leaf.header().is_some() => {
            let path = session.file.path();
            // As the opening left it.
            let length = session.file.length().map_err(|error| refused(&error, path))?;
            layers[0].file_sectors = length >> 9;
            Some(write_of(leaf, session).map_err(|error| refused(&error, path))?)
        }
        _ => None,
    };
    Ok(Setup {
        layers,
        write,
        bitmap_memory_bytes: BITMAP_MEMORY_BYTES,
        drop_zeros: true,
        without: None,
    })
}

fn layer_of(member: &Member<ImageFile>) -> vhd::Result<LayerSetup> {
    let size_sectors = member.virtual_size()? >> 9;
    let file_sectors = member.source().length()? >> 9;
    let image = match member {
        Member::Vhd(image) if image.header().is_some() => image,
        // What is past the end of a fixed one is its footer.
        _ => {
            let file_sectors = file_sectors.min(size_sectors);
            return Ok(LayerSetup { size_sectors, file_sectors, format: LayerFormat::Flat });
        }
    };
    let count = image.block_count()?;
    // To the end of the last sector of the table: what is written again must be what was there.
    let entries = image.header().map_or(0, |header| header.table_entries);
    let entries = count.next_multiple_of(bat::ENTRIES_PER_SECTOR).min(entries);
    let mut bytes = vec![0; usize::try_from(entries).expect("64 bits") * 4];
    image.read_table(0, &mut bytes)?;
    let mut bat = vec![bat::UNUSED; usize::try_from(entries).expect("64 bits")];
    bat::decode(&bytes, &mut bat);
    // A hint: without it bitmaps say the same.
    let whole = image.batmap().ok().flatten().map(|batmap| batmap.map).unwrap_or_default();
    let block_sectors = image.block_size()?.sectors();
    let data_sector = image.layout()?.end_of_headers.div_ceil(512);
    let format = LayerFormat::Blocks { block_sectors, bat, data_sector, whole };
    Ok(LayerSetup { size_sectors, file_sectors, format })
}

fn write_of(image: &VhdImage<ImageFile>, session: &Session) -> vhd::Result<WriteSetup> {
    let layout = image.layout()?;
    if !layout.table_offset.is_multiple_of(512) {
        let (part, field, wanted) = (Part::Header, "table offset", "a multiple of 512");
        let found = layout.table_offset;
        return Err(ErrorKind::Field { part, field, found, wanted }.into());
    }
    let growth = if session.file.is_device() {
        Growth::Device { end_sector: (session.file.length()? >> 9).saturating_sub(1) }
    } else {
        Growth::File { footer: Box::new(session.footer) }
    };
    let has_bits =
        image.batmap().ok().flatten().is_some_and(|map| map.map.iter().any(|byte| *byte != 0));
    let batmap = session.batmap.filter(|_| has_bits).map(|(offset, header)| {
        let summed = batmap::summed_size(session.virtual_size);
        let zeros = vec![0; usize::try_from(summed).expect("64 bits")];
        let empty = BatmapHeader { checksum: header.checksum_of(&zeros), ..header };
        BatmapSetup {
            header_sector: offset >> 9,
            empty_header: empty.emit(),
            map_sector: header.offset >> 9,
            map_sectors: u64::from(header.sectors).min(batmap::map_size(layout.table_entries) >> 9),
        }
    });
    Ok(WriteSetup {
        table_sector: layout.table_offset >> 9,
        table_entries: layout.table_entries,
        growth,
        batmap,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_took_the_name_of_the_locked_one_is_not_written() {
        let folder = std::env::temp_dir().join(format!("vhd-replaced-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, locked) = (folder.join("leaf.vhd"), folder.join("locked.vhd"));
        let bytes = vhd::testing::Spec::new(1 << 20).make();
        // A crash left it without an end: whoever opens it for writing restores that.
        let cut = &bytes[..bytes.len() - 512];
        std::fs::write(&path, cut).unwrap();
        std::fs::write(&locked, cut).unwrap();
        let chain = open_chain(&path).unwrap();
        let error = begin_session(&path, &chain, &File::open(&locked).unwrap()).err().unwrap();
        assert_eq!(error.errno(), Errno::EAGAIN);
        assert_eq!(std::fs::read(&path).unwrap(), cut);
        assert!(begin_session(&path, &chain, &File::open(&path).unwrap()).unwrap().is_some());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
