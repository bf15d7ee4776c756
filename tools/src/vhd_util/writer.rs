//! Writes a whole disk into a new image, once, from its start to its end.
//!
//! The image has another name until all of it is durable, so that nobody takes half of it for the
//! whole. Blocks come in the order of the disk; the table is written when all of them are.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use vhd::bat::Bat;
use vhd::batmap::{KeyHash, summed_size};
use vhd::bits;
use vhd::image::{Image, LoadOptions};
use vhd::layout::Placement;
use vhd::plan::create::{Kind, Spec, create};
use vhd::plan::set::set_keyhash;
use vhd::units::{BlockIndex, Uuid};
use vhd_files::buffer::AlignedBuffer;
use vhd_files::encryption::Encryption;
use vhd_files::execute::{OpenFiles, Unwatched, execute};
use vhd_files::file::ImageFile;
use vhd_files::lock::Policy;

use super::image;
use super::making::now;
use super::perform;
use super::source::{Source, is_zero};
use crate::console::Failure;
use crate::progress::Progress;

/// Bytes in a block of a new image.
pub(super) const BLOCK_SIZE: u64 = 2 << 20;
/// Its bitmap is in the sector before its data, which start at a page.
const BITMAP_SIZE: usize = 512;
const PAGE_SIZE: usize = 4096;

/// What the new image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Raw,
    Fixed,
    Dynamic,
}

/// A file that takes its name when it is done, and goes away when it is not.
struct Unfinished {
    path: PathBuf,
    name: PathBuf,
    is_done: bool,
}

impl Unfinished {
    fn new(name: &Path) -> Self {
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{}.part", std::process::id()));
        Self { path: path.into(), name: name.to_owned(), is_done: false }
    }

    /// Everything is durable: takes the name, if nobody has it.
    fn finish(mut self) -> Result<(), Failure> {
        let failed = |error| Failure::io(&self.name.display().to_string(), &error);
        // A link, which does not take the place of what is there, as a renaming would.
        std::fs::hard_link(&self.path, &self.name).map_err(failed)?;
        std::fs::remove_file(&self.path).map_err(failed)?;
        let directory = self.name.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = std::fs::File::open(directory.unwrap_or(Path::new("."))).map_err(failed)?;
        directory.sync_all().map_err(failed)?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_done {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// What is written, and how.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) target: Target,
    /// Blocks that are there though they are zero: those of an image that is copied as it is.
    pub(super) keep: Option<&'a Bat>,
    /// The table of a dynamic image is at least for so many bytes.
    pub(super) metadata_size: Option<u64>,
    /// The new image is encrypted.
    pub(super) encryption: Option<(&'a Encryption, KeyHash)>,
    pub(super) what: &'static str,
}

/// Writes all of `source` into a new image `path`.
pub(super) fn write(source: &mut Source, path: &Path, job: &Job<'_>) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        let why = format!("{} is there already", path.display());
        return Err(Failure::new(Errno::EEXIST, why));
    }
    let size = source.size()?;
    if size == 0 {
        return Err(Failure::new(Errno::EINVAL, "A disk of no bytes cannot be an image"));
    }
    let unfinished = Unfinished::new(path);
    match job.target {
        Target::Dynamic => write_dynamic(source, &unfinished.path, size, job)?,
        Target::Raw | Target::Fixed => write_flat(source, &unfinished.path, size, job)?,
    }
    unfinished.finish()
}

fn spec(kind: Kind, size: u64) -> Result<Spec, Failure> {
    let size = size.checked_next_multiple_of(512);
    let size = size.ok_or_else(|| Failure::new(Errno::EFBIG, "The disk is too large"))?;
    Ok(Spec { kind, size, uuid: Uuid::from_random(perform::random()?), now: now() })
}

fn make(path: &Path, spec: &Spec, keyhash: Option<KeyHash>) -> Result<ImageFile, Failure> {
    let failed = |error: vhd::Error| image::failure(path, &error);
    let mut files = OpenFiles::with_new_image(path, Policy::Auto);
    let mut plan = create(&files, spec).map_err(failed)?;
    let done = execute(&mut plan, &mut files, &mut Unwatched);
    done.map_err(|error| perform::failure(&error))?;
    if let Some(keyhash) = keyhash {
        let mut plan = set_keyhash(&files, Some(keyhash)).map_err(failed)?;
        let done = execute(&mut plan, &mut files, &mut Unwatched);
        done.map_err(|error| perform::failure(&error))?;
    }
    drop(files);
    let (file, _) = ImageFile::open_for_writing(path, Policy::Auto)
        .map_err(|error| perform::not_open(path, &error))?;
    Ok(file)
}

fn write_dynamic(
    source: &mut Source,
    path: &Path,
    size: u64,
    job: &Job<'_>,
) -> Result<(), Failure> {
    let failed = |error: vhd::Error| image::failure(path, &error);
    let kind = Kind::Dynamic { metadata_size: job.metadata_size };
    let keyhash = job.encryption.as_ref().map(|(_, keyhash)| *keyhash);
    let file = make(path, &spec(kind, size)?, keyhash)?;
    let image = Image::load(&file, LoadOptions::default()).map_err(failed)?;
    let mut placement = Placement::of(&image.layout().map_err(failed)?, []);
    let mut bat = Bat::new(image.block_count().map_err(failed)?).map_err(failed)?;
    let io = |error: std::io::Error| failed(error.into());
    let length = usize::try_from(BLOCK_SIZE).expect("a block is smaller than memory");
    let mut buffer = AlignedBuffer::new(PAGE_SIZE + length);
    buffer[PAGE_SIZE - BITMAP_SIZE..PAGE_SIZE].fill(0xff);
    let mut progress = Progress::new(job.what);
    for block in 0..bat.len() {
        let block = BlockIndex(block);
        let offset = u64::from(block.0) * BLOCK_SIZE;
        progress.update(offset, size);
        let is_kept = job.keep.is_some_and(|keep| keep.get(block).is_some());
        if !is_kept && source.is_hole(offset, BLOCK_SIZE)? {
            continue;
        }
        let data = &mut buffer[PAGE_SIZE..];
        source.read(offset, data)?;
        if !is_kept && is_zero(data) {
            continue;
        }
        if let Some((encryption, _)) = &job.encryption {
            encryption.encrypt(offset >> 9, data);
        }
        let place = placement.allocate().map_err(failed)?;
        bat.set(block, Some(place));
        file.write_all_at(&buffer[PAGE_SIZE - BITMAP_SIZE..], place.offset()).map_err(io)?;
    }
    let end = placement.end_of_data();
    file.write_all_at(&image.footer().emit(), end).map_err(io)?;
    file.set_length(end + 512).map_err(io)?;
    file.sync().map_err(io)?;
    let header = image.header().expect("it was made with one");
    let table = bat.emit();
    file.write_all_at(&table, header.table_offset).map_err(io)?;
    write_batmap(&file, &image, &bat)?;
    file.sync().map_err(io)
}

/// Every block that is there is full.
fn write_batmap(file: &ImageFile, image: &Image<&ImageFile>, bat: &Bat) -> Result<(), Failure> {
    let failed = |error: vhd::Error| image::failure(file.path(), &error);
    let Some(mut batmap) = image.batmap_header().map_err(failed)? else { return Ok(()) };
    let mut map = vec![0; usize::try_from(u64::from(batmap.sectors) << 9).expect("a small map")];
    for (block, _) in bat.allocated() {
        bits::set(&mut map, block.0, true);
    }
    let summed = usize::try_from(summed_size(image.virtual_size())).expect("a small map");
    batmap.checksum = batmap.checksum_of(&map[..summed.min(map.len())]);
    let (offset, _) = image.raw_batmap_header().map_err(failed)?;
    let io = |error: std::io::Error| failed(error.into());
    file.write_all_at(&map, batmap.offset).map_err(io)?;
    file.write_all_at(&batmap.emit(), offset).map_err(io)
}

fn write_flat(source: &mut Source, path: &Path, size: u64, job: &Job<'_>) -> Result<(), Failure> {
    let failed = |error: vhd::Error| image::failure(path, &error);
    let io = |error: std::io::Error| failed(error.into());
    let file = if job.target == Target::Fixed {
        make(path, &spec(Kind::Fixed, size)?, None)?
    } else {
        let (file, _) = ImageFile::create(path, Policy::Auto)
            .map_err(|error| perform::not_open(path, &error))?;
        file.set_length(size).map_err(io)?;
        file
    };
    let length = usize::try_from(BLOCK_SIZE).expect("a block is smaller than memory");
    let mut buffer = AlignedBuffer::new(length);
    let mut progress = Progress::new(job.what);
    let mut offset = 0;
    while offset < size {
        progress.update(offset, size);
        let length = usize::try_from(size - offset).unwrap_or(length).min(length);
        if !source.is_hole(offset, length as u64)? {
            let data = &mut buffer[..length];
            source.read(offset, data)?;
            if !is_zero(data) {
                file.write_all_at(data, offset).map_err(io)?;
            }
        }
        offset += length as u64;
    }
    file.sync().map_err(io)
}
