//! An image that a command works on: opened, with errors that name it.

use std::cell::Cell;
use std::ops::Deref;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vhd::batmap::KeyHash;
use vhd::chain::{Chain, ChainOptions};
use vhd::footer::{DiskType, FOOTER_SIZE};
use vhd::gate::Gate;
use vhd::header::{BlockSize, HEADER_SIZE};
use vhd::image::LoadOptions;
use vhd::layout::Placement;
use vhd::locator::Platform;
use vhd::read_at::{ReadAt, truncated};
use vhd::{Error, ErrorKind, Part, Result};
use vhd_files::file::ImageFile;
use vhd_files::host::LocalHost;

use super::attribute;
use super::dump::{FooterBytes, HeaderBytes, NamedLocator};
use crate::console::Failure;
use crate::lvm::Segment;

/// Names a directory, or several between colons, in which raw parents may be besides the
/// directory of their child.
const PARENTS: &str = "VHD_UTIL_PARENTS";

/// Which of the footers counts, and what is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Also an image whose resize was interrupted.
    Lenient,
    /// The same, by the copy of the footer at the start.
    LenientCopy,
    /// The same, also one whose bitmaps nobody reads any more: to be listed.
    Listing,
    /// Only what can be served.
    Strict,
}

impl Reading {
    fn options(self) -> LoadOptions {
        LoadOptions {
            footer_copy_only: matches!(self, Self::LenientCopy | Self::Listing),
            for_inspection: self != Self::Strict,
            any_bit_order: self == Self::Listing,
        }
    }
}

/// Where the bytes of an image are.
#[derive(Debug)]
pub(crate) enum Store {
    /// A file or device.
    File(ImageFile),
    /// A piece of a physical volume; it says of itself how long it is.
    Segment(ImageFile, Segment),
}

impl ReadAt for Store {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::File(file) => file.read_at(offset, buffer),
            Self::Segment(file, segment) => {
                let end = offset.saturating_add(buffer.len() as u64);
                if end > segment.length {
                    let found = segment.length.saturating_sub(offset);
                    let found = usize::try_from(found).unwrap_or(0);
                    return Err(truncated(offset, found, buffer.len()));
                }
                file.read_at(segment.start.saturating_add(offset), buffer)
            }
        }
    }

    fn length(&self) -> Result<u64> {
        match self {
            Self::File(file) => file.length(),
            Self::Segment(_, segment) => Ok(segment.length),
        }
    }
}

/// An image that is open for reading.
#[derive(Debug)]
pub(crate) struct Image {
    image: vhd::image::Image<Store>,
    path: PathBuf,
    /// Blocks in the table, from going through it for something else.
    count: Cell<Option<u64>>,
}

impl Deref for Image {
    type Target = vhd::image::Image<Store>;

    fn deref(&self) -> &Self::Target {
        &self.image
    }
}

/// Opens one.
pub(crate) fn open(path: &Path, reading: Reading) -> Result<Image> {
    patiently(
        || load(path, Store::File(ImageFile::open(path)?), reading),
        || may_be_changing(path),
        pause,
    )
}

/// How often a header is read that makes no sense, and the time in between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// Who wrote a file longer ago than this is done with its header.
const RECENT: Duration = Duration::from_secs(10);

/// Another host may be giving the image another parent just now, and half of its header is there:
/// then it is read again. A header that is damaged for good costs a second.
fn patiently<T>(
    mut attempt: impl FnMut() -> Result<T>,
    may_be_changing: impl Fn() -> bool,
    mut pause: impl FnMut(),
) -> Result<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_of_header(&error) && may_be_changing() => pause(),
            result => return result,
        }
    }
    attempt()
}

fn is_of_header(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Cookie { part: Part::Header, .. }
            | ErrorKind::Checksum { part: Part::Header, .. }
            | ErrorKind::Version { part: Part::Header, .. }
    )
}

/// Of a device nobody knows when it was written.
fn may_be_changing(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    let age = metadata.modified().map(|time| time.elapsed().unwrap_or_default());
    metadata.file_type().is_block_device() || age.is_ok_and(|age| age < RECENT)
}

#[allow(clippy::disallowed_methods, reason = "another host is waited for, of which nothing tells")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Opens one to be told about, by the copy of its footer if that is asked for. Only an interrupted
/// resize is refused: until it is finished or reverted nothing is as the footer says.
pub(crate) fn open_whole(path: &Path, by_copy: bool) -> Result<Image> {
    let image = open(path, if by_copy { Reading::LenientCopy } else { Reading::Lenient })?;
    if image.footer().is_poisoned {
        return Err(ErrorKind::Poisoned.into());
    }
    Ok(image)
}

/// Opens one that starts with this piece of a physical volume.
pub(crate) fn open_segment(name: &Path, segment: &Segment, reading: Reading) -> Result<Image> {
    let file = ImageFile::open(&segment.device)?;
    load(name, Store::Segment(file, segment.clone()), reading)
}

fn load(path: &Path, store: Store, reading: Reading) -> Result<Image> {
    let image = vhd::image::Image::load(store, reading.options())?;
    Ok(Image { image, path: path.to_owned(), count: Cell::new(None) })
}

/// The length of a file or device, in bytes.
pub(crate) fn length(path: &Path) -> Result<u64> {
    ImageFile::open(path)?.length()
}

/// The failure of something that was done to a file.
pub(crate) fn failure(path: &Path, error: &Error) -> Failure {
    Failure::Errno { errno: error.errno(), explanation: format!("{}: {error}", path.display()) }
}

/// The parents that may be opened for a child: VHDs anywhere, for they must carry the identity
/// that the child names; raw ones, which are told from nothing, in its directory and below, and
/// where the operator says.
pub(crate) fn gate(child: &Path) -> Result<Gate> {
    listed(Gate::of_child(&LocalHost, child)?.with_vhd_anywhere())
}

fn listed(mut gate: Gate) -> Result<Gate> {
    let listed = std::env::var_os(PARENTS).unwrap_or_default();
    for directory in std::env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty()) {
        gate = gate.and(&LocalHost, &directory)?;
    }
    Ok(gate)
}

/// The canonical path of a file.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf> {
    vhd::paths::canonical(&LocalHost, path)
}

/// Whether two names lead to one file.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |path: &Path| std::fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// An image and its ancestors, as one disk.
pub(crate) fn chain(path: &Path, options: ChainOptions) -> Result<Chain<ImageFile>> {
    Chain::open(&LocalHost, path, &gate(path)?, options)
}

/// Whether something else is where a batmap's header should be: QEMU puts its first block there.
fn is_no_batmap(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Cookie { .. } | ErrorKind::Version { .. })
}

/// How a type is called in JSON.
pub(crate) fn type_name(disk_type: DiskType) -> &'static str {
    match disk_type {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => "differencing",
        DiskType::Other(_) => "other",
    }
}

impl Image {
    /// As it was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The failure of something that was done to it.
    pub(crate) fn failure(&self, error: &Error) -> Failure {
        failure(&self.path, error)
    }

    /// The sectors of the disk; a part of one at the end does not count.
    pub(crate) fn sector_count(&self) -> u64 {
        self.virtual_size() >> 9
    }

    /// Where the footer ends: what of the file is in use, in bytes.
    pub(crate) fn physical_size(&self) -> Result<u64> {
        if self.header().is_none() {
            return Ok(self.file_size());
        }
        // As ever: where the batmap is damaged nobody can say where the metadata end.
        let batmap = self.batmap()?.map(|batmap| batmap.header);
        let mut placement = Placement::of(&self.layout_around(batmap.as_ref())?, []);
        let mut count = 0;
        self.for_each_block(|_, place| {
            placement.take(place);
            count += 1;
        })?;
        self.count.set(Some(count));
        Ok(placement.end_of_data().saturating_add(FOOTER_SIZE as u64))
    }

    /// Blocks that are stored, of 2 MiB where the format has none.
    pub(crate) fn allocated(&self) -> Result<u64> {
        if let DiskType::Other(found) = self.footer().disk_type {
            return Err(ErrorKind::DiskType(found).into());
        }
        match self.header() {
            Some(_) => match self.count.take() {
                Some(count) => Ok(count),
                None => Ok(self.allocated_count()?.into()),
            },
            None => Ok(self.virtual_size().div_ceil(BlockSize::DEFAULT.bytes())),
        }
    }

    /// Whether the table can be read, and is long enough; and is there, if it is needed.
    pub(crate) fn check_table(&self, is_needed: bool) -> Result<()> {
        if let DiskType::Other(found) = self.footer().disk_type {
            return Err(ErrorKind::DiskType(found).into());
        }
        if self.header().is_none() && !is_needed {
            return Ok(());
        }
        if self.header().is_none() {
            let code = u64::from(self.footer().disk_type.code());
            let (part, wanted) = (vhd::Part::Footer, "3 or 4: only those have a table");
            return Err(ErrorKind::Field { part, field: "type", found: code, wanted }.into());
        }
        let count = self.block_count()?;
        let Some(last) = count.checked_sub(1) else { return Ok(()) };
        let entry = self.bat_entry(vhd::units::BlockIndex(last)).map(drop);
        // What is missing is a part of the table, or all of it: not only its last entry.
        entry.or_else(|_| self.bat().map(drop))
    }

    /// Free for a storage manager: of the batmap's header, or an attribute of the file.
    pub(crate) fn marker(&self) -> Result<u8> {
        match self.batmap_header() {
            Ok(Some(header)) => Ok(header.marker),
            // What is in its place says nothing.
            Err(error) if is_no_batmap(&error) => Ok(0),
            Err(error) => Err(error),
            Ok(None) => Ok(attribute::get(&self.path, "marker")
                .map_or(0, |it| it.first().copied().unwrap_or(0))),
        }
    }

    /// What recognises the key of an encrypted image.
    pub(crate) fn keyhash(&self) -> Result<Option<KeyHash>> {
        match self.batmap_header() {
            Err(error) if is_no_batmap(&error) => Ok(None),
            header => Ok(header?.and_then(|header| header.keyhash)),
        }
    }

    /// The path of the parent.
    pub(crate) fn parent(&self) -> Result<PathBuf> {
        let child = canonical(&self.path)?;
        gate(&child)?.parent(&LocalHost, &child, &self.image)
    }

    /// The parent's name as the header has it.
    pub(crate) fn header_parent_name(&self) -> Result<String> {
        self.header().map_or_else(|| Ok(String::new()), |header| header.parent_name.decode())
    }

    /// It and its ancestors, as one disk of data as they are stored; ENOENT and the like for those.
    pub(crate) fn chain_as_stored(&self) -> Result<Chain<ImageFile>> {
        chain(&self.path, ChainOptions { as_stored: true, ..ChainOptions::default() })
    }

    /// The same, to be shown to a person: also one whose resize was interrupted, what is encrypted
    /// as it is stored, and a parent that has not the identity that the child wants, if that is in
    /// a place where raw ones may be, too.
    pub(crate) fn chain_for_inspection(&self) -> Result<Chain<ImageFile>> {
        let load = Reading::Lenient.options();
        let options = ChainOptions { load, as_stored: true, any_parent_uuid: false };
        match chain(&self.path, options) {
            Err(error) if matches!(error.kind(), ErrorKind::ParentUuid { .. }) => {
                let gate = listed(Gate::of_child(&LocalHost, &self.path)?)?;
                let options = ChainOptions { any_parent_uuid: true, ..options };
                Chain::open(&LocalHost, &self.path, &gate, options)
            }
            result => result,
        }
    }

    /// The parent's name as the first locator that can be read has it.
    pub(crate) fn parent_name(&self) -> Result<String> {
        let mut locators = self.locators().into_iter();
        let name = locators.find_map(|locator| locator.name);
        name.ok_or_else(|| ErrorKind::NoLocator.into())
    }

    /// The locators that are in use, with their texts.
    pub(crate) fn locators(&self) -> Vec<NamedLocator> {
        let all = self.header().map(|header| header.locators);
        let numbered = (0..).zip(all.into_iter().flatten());
        numbered
            .filter(|(_, locator)| locator.platform != Platform::None)
            .map(|(number, locator)| {
                let name = self.locator_path(number).ok().flatten();
                NamedLocator { number, locator, name }
            })
            .collect()
    }

    /// How many images the chain has, this one included.
    pub(crate) fn depth(&self) -> Result<u32> {
        if !self.is_differencing() {
            return Ok(1);
        }
        let options = ChainOptions {
            load: Reading::Lenient.options(),
            as_stored: true,
            any_parent_uuid: true,
        };
        let chain = chain(&self.path, options)?;
        Ok(u32::try_from(chain.members().len()).unwrap_or(u32::MAX))
    }
}

/// The bytes where a footer and a header should be, of a file that is no image; zeros for what
/// there is not. `None` if the file cannot be read at all.
pub(crate) fn remains(path: &Path) -> Option<(FooterBytes, HeaderBytes)> {
    let file = ImageFile::open(path).ok()?;
    let length = file.length().ok()?;
    let (mut footer, mut header) = ([0; FOOTER_SIZE], [0; HEADER_SIZE]);
    let places = [length.checked_sub(FOOTER_SIZE as u64), Some(0)];
    for place in places.into_iter().flatten() {
        footer = [0; FOOTER_SIZE];
        if file.read_at(place, &mut footer).is_ok() && vhd::footer::Footer::parse(&footer).is_ok() {
            let fields = vhd::footer::Footer::fields(&footer);
            if fields.disk_type.has_blocks()
                && file.read_at(fields.data_offset, &mut header).is_err()
            {
                header = [0; HEADER_SIZE];
            }
            break;
        }
    }
    Some((footer, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Error {
        ErrorKind::Checksum { part: Part::Header, found: 1, wanted: 2 }.into()
    }

    #[test]
    fn a_header_that_somebody_writes_is_read_again() {
        let (mut attempts, mut pauses) = (0, 0);
        let attempt = || {
            attempts += 1;
            if attempts < 4 { Err(header()) } else { Ok(attempts) }
        };
        assert_eq!(patiently(attempt, || true, || pauses += 1), Ok(4));
        assert_eq!(pauses, 3);
    }

    #[test]
    fn a_header_that_is_damaged_is_given_up_at_once_or_after_a_while() {
        let mut attempts = 0;
        let mut attempt = |error: fn() -> Error, may_be_changing: bool| {
            attempts = 0;
            let failing = || {
                attempts += 1;
                Err::<(), _>(error())
            };
            assert!(patiently(failing, || may_be_changing, || {}).is_err());
            attempts
        };
        assert_eq!(attempt(header, true), ATTEMPTS);
        assert_eq!(attempt(header, false), 1);
        assert_eq!(attempt(|| ErrorKind::Poisoned.into(), true), 1);
    }

    #[test]
    fn a_file_that_was_written_long_ago_does_not_change() {
        let path = std::env::temp_dir().join(format!("image-age-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        assert!(may_be_changing(&path));
        file.set_modified(std::time::SystemTime::now() - 2 * RECENT).unwrap();
        assert!(!may_be_changing(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!may_be_changing(&path));
    }
}
