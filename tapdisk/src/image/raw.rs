//! `aio:/path`: a file or block device whose bytes are the disk's bytes.
//!
//! Opened with O_DIRECT where the file system takes it in units of 512 bytes; else through the page
//! cache, which is slower and no less durable: a flush is an fdatasync either way. The flag `-D`
//! asks for the page cache. A block device with larger sectors (4096, a CD: 2048) gives the disk
//! such sectors; a file never does, whatever it lies on, because a guest's partition table would
//! not survive the move.
//!
//! An image that is written is locked ([`vhd_files::lock`]) for as long as it is open: not while
//! the disk is paused, when others may snapshot, coalesce or move it.

use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::claim::Claim;
use super::{Image, ImageInfo, Mapping, OpenFlags};
use crate::error::DiskError;
use crate::queue::{FileId, Queue};
use crate::request::Op;

/// What close does with what was written and not flushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AtClose {
    Sync,
    Forget,
}

/// A file whose offset `n` is the disk's byte `n`.
pub(super) struct Raw {
    file: FileId,
    handle: Arc<File>,
    info: ImageInfo,
    at_close: AtClose,
    claim: Option<Claim>,
    is_shared_storage: bool,
}

pub(super) fn open(
    path: &Path,
    flags: OpenFlags,
    queue: &mut Queue,
) -> Result<Box<dyn Image>, DiskError> {
    let Storage { file, claim, info } = open_storage(path, flags, None)?;
    let at_close = if flags.read_only { AtClose::Forget } else { AtClose::Sync };
    Raw::register(Arc::new(file), info, at_close, Some(claim), queue)
}

/// An open file or device, ready for the queue.
pub(super) struct Storage {
    pub(super) file: File,
    pub(super) claim: Claim,
    pub(super) info: ImageInfo,
}

/// Opens it, locks it if it is to be written, and leaves direct I/O where that does not work in
/// units of `sector_size`, or else in its own.
pub(super) fn open_storage(
    path: &Path,
    flags: OpenFlags,
    sector_size: Option<u32>,
) -> Result<Storage, DiskError> {
    let (file, direct) = open_file(path, flags)?;
    let claim = Claim::lay(&file, path, flags)?;
    let info = size_of(&file)?;
    let unit = ImageInfo { sector_size: sector_size.unwrap_or(info.sector_size), ..info };
    if direct && !takes_direct_sectors(&file, unit) {
        use_page_cache(&file)
            .map_err(|errno| DiskError::new(errno, "Cannot leave direct I/O for the page cache"))?;
    }
    Ok(Storage { file, claim, info })
}

/// The file, and whether it is open for direct I/O.
pub(super) fn open_file(path: &Path, flags: OpenFlags) -> Result<(File, bool), DiskError> {
    let error = |error: io::Error| DiskError::io(&error, "Cannot open the image");
    check_kind(std::fs::metadata(path).map_err(error)?.file_type())?;
    if flags.buffered {
        return open_with(path, flags, 0).map(|file| (file, false)).map_err(error);
    }
    match open_with(path, flags, libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(refused) if refused.raw_os_error() == Some(libc::EINVAL) => {
            open_with(path, flags, 0).map(|file| (file, false)).map_err(error)
        }
        Err(other) => Err(error(other)),
    }
}

/// What may be an image. Asked before it is opened: to open a FIFO is to wait for a writer.
/// O_NONBLOCK would not wait, but then a drive without a medium opens too, instead of saying
/// ENOMEDIUM, and io_uring gives up on what would wait.
fn check_kind(kind: FileType) -> Result<(), DiskError> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    // What opening would have said.
    let errno = match kind {
        kind if kind.is_dir() => Errno::EISDIR,
        kind if kind.is_socket() => Errno::ENXIO,
        _ => Errno::EINVAL,
    };
    Err(DiskError::new(
        errno,
        "Found neither a file nor a block device where a disk image was wanted",
    ))
}

fn open_with(path: &Path, flags: OpenFlags, custom: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!flags.read_only)
        .custom_flags(custom | libc::O_LARGEFILE)
        .open(path)
}

/// Ends direct I/O. The open file stays the same, and with it the lock.
fn use_page_cache(file: &File) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT)).map(drop)
}

/// Size and sector size of a file or block device, in whole sectors: a tail is ignored.
pub(super) fn size_of(file: &File) -> Result<ImageInfo, DiskError> {
    let metadata =
        file.metadata().map_err(|error| DiskError::io(&error, "Cannot stat the image"))?;
    let kind = metadata.file_type();
    let (bytes, sector_size) = if kind.is_block_device() {
        let bytes = nix::unistd::lseek64(file.as_fd(), 0, nix::unistd::Whence::SeekEnd)
            .map_err(|errno| DiskError::new(errno, "Cannot find the size of the device"))?;
        (u64::try_from(bytes).unwrap_or(0), sector_size_of(file)?)
    } else {
        check_kind(kind)?;
        (metadata.len(), 512)
    };
    let size = bytes - bytes % u64::from(sector_size);
    if size == 0 {
        return Err(DiskError::new(
            Errno::EINVAL,
            format!("Found {bytes} bytes where at least one sector of {sector_size} was wanted"),
        ));
    }
    Ok(ImageInfo { size, sector_size })
}

fn sector_size_of(file: &File) -> Result<u32, DiskError> {
    let found = crate::sys::logical_block_size(file.as_fd())
        .map_err(|errno| DiskError::new(errno, "Cannot find the sector size of the device"))?;
    // 2048: optical media.
    if found.is_power_of_two() && (512..=4096).contains(&found) {
        return Ok(found);
    }
    Err(DiskError::new(
        Errno::EINVAL,
        format!("Found sectors of {found} bytes where a power of two, 512 to 4096, was wanted"),
    ))
}

/// Whether direct I/O works in the disk's own unit. A file on storage with larger blocks says
/// EINVAL.
fn takes_direct_sectors(file: &File, info: ImageInfo) -> bool {
    let mut page = crate::sys::AlignedPage::default();
    let sector = info.sector_size as usize;
    // The second sector: the first is aligned to everything.
    let offset =
        if info.size >= 2 * u64::from(info.sector_size) { u64::from(info.sector_size) } else { 0 };
    match file.read_at(&mut page.bytes_mut()[..sector], offset) {
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
        Ok(_) => true,
    }
}

impl Raw {
    /// An open file as an image.
    pub(super) fn register(
        handle: Arc<File>,
        info: ImageInfo,
        at_close: AtClose,
        claim: Option<Claim>,
        queue: &mut Queue,
    ) -> Result<Box<dyn Image>, DiskError> {
        let file = queue.add_file(Arc::clone(&handle)).ok_or_else(|| {
            DiskError::new(Errno::EMFILE, "This disk has as many files open as its queue can hold")
        })?;
        let is_shared_storage = vhd_files::lock::is_shared_between_hosts(&handle);
        Ok(Box::new(Self { file, handle, info, at_close, claim, is_shared_storage }))
    }
}

impl Image for Raw {
    fn info(&self) -> ImageInfo {
        self.info
    }

    fn flat(&self) -> Option<FileId> {
        Some(self.file)
    }

    fn map(&mut self, _: usize, _: Op, offset: u64, len: u64) -> Mapping {
        Mapping::Data { file: self.file, offset, len, layer: 0 }
    }

    fn file(&self) -> Option<FileId> {
        Some(self.file)
    }

    fn is_shared_storage(&self) -> bool {
        self.is_shared_storage
    }

    fn warning(&self) -> Option<&str> {
        self.claim.as_ref()?.warning()
    }

    fn close(self: Box<Self>, queue: &mut Queue) -> Result<(), DiskError> {
        queue.remove_file(self.file);
        let synced = match self.at_close {
            AtClose::Forget => Ok(()),
            AtClose::Sync => nix::unistd::fdatasync(self.handle.as_fd())
                .map_err(|errno| DiskError::new(errno, "Cannot make the image durable at close")),
        };
        if let Some(claim) = &self.claim {
            claim.release(&self.handle);
        }
        synced
    }
}
