//! One open file or device: read and written at any place, whatever the storage is content with.
//!
//! It is opened for direct I/O where that is possible: the host's cache of a device that several
//! hosts share may be stale, and copying an image should not push everything else out of memory.
//! Direct I/O wants memory, offsets and lengths in multiples of the storage's sectors. What is not
//! goes through an aligned buffer; a write then reads the rest of its first and last sector first.
//! So nobody else may write them meanwhile, for which there is the [lock].
//!
//! Nothing says in advance which multiples a storage wants, so it is tried: 512 bytes first. When
//! that is refused, a file is read and written through the page cache from then on, a device in
//! multiples of 4096.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::libc;
use vhd::{ReadAt, read_at};

use crate::buffer::{ALIGNMENT, AlignedBuffer, is_aligned};
use crate::lock::{self, LockError, Outcome, Policy};

/// What goes through an aligned buffer at once, in bytes.
const PIECE: usize = 1 << 20;

/// Where a footer, a header or a bitmap is read to, without taking memory for it.
const SMALL: usize = 2048;
const SMALL_ALIGNMENT: usize = 512;
#[repr(align(512))]
struct Small([u8; SMALL]);
const _: () = assert!(align_of::<Small>() == SMALL_ALIGNMENT);

/// An open file or device.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    path: PathBuf,
    is_device: bool,
    /// What memory, offsets and lengths are multiples of: 1 without direct I/O.
    alignment: Cell<usize>,
    /// The length of a file when it was opened, for the first who asks.
    first_length: Cell<Option<u64>>,
}

/// Why a file could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The system says so.
    Io(io::Error),
    /// Somebody else writes it.
    Locked(LockError),
    /// Neither a file nor a block device.
    Type,
}

impl OpenError {
    /// The error number by which scripts know it, positive.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Self::Locked(error) => error.errno() as i32,
            Self::Type => libc::EINVAL,
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => error.fmt(out),
            Self::Locked(error) => out.write_str(&error.reason()),
            Self::Type => out.write_str("Neither a regular file nor a block device"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<OpenError> for vhd::Error {
    fn from(error: OpenError) -> Self {
        vhd::ErrorKind::Io { errno: error.errno() }.into()
    }
}

impl ImageFile {
    /// Opens a file or device for reading.
    ///
    /// # Errors
    /// It does not exist, may not be read, or is something else.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, OpenOptions::new().read(true))
    }

    /// Opens a file or device for reading and writing, and locks it as `policy` says.
    ///
    /// # Errors
    /// As for [`ImageFile::open`]; somebody else has the lock.
    pub fn open_for_writing(path: &Path, policy: Policy) -> Result<(Self, Outcome), OpenError> {
        let file = Self::open_with(path, OpenOptions::new().read(true).write(true))?;
        let outcome =
            lock::lock_for_writing(&file.file, path, policy).map_err(OpenError::Locked)?;
        // Who had the lock may have changed it meanwhile.
        file.first_length.set(None);
        Ok((file, outcome))
    }

    /// Makes a new file for reading and writing, and locks it as `policy` says.
    ///
    /// # Errors
    /// There is something of this name; as for [`ImageFile::open_for_writing`].
    pub fn create(path: &Path, policy: Policy) -> Result<(Self, Outcome), OpenError> {
        let mut options = OpenOptions::new();
        let file = Self::open_with(path, options.read(true).write(true).create_new(true))?;
        let outcome =
            lock::lock_for_writing(&file.file, path, policy).map_err(OpenError::Locked)?;
        Ok((file, outcome))
    }

    fn open_with(path: &Path, options: &mut OpenOptions) -> Result<Self, OpenError> {
        // A pipe would wait for somebody to open its other end.
        let flags = libc::O_DIRECT | libc::O_NONBLOCK | libc::O_NOCTTY;
        let (file, alignment) = match options.custom_flags(flags).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
                (options.create_new(false).custom_flags(flags).open(path)?, 1)
            }
            opened => (opened?, 512),
        };
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Type);
        }
        let is_device = kind.is_block_device();
        let first_length = Cell::new((!is_device).then_some(metadata.len()));
        let (path, alignment) = (path.to_owned(), Cell::new(alignment));
        Ok(Self { file, path, is_device, alignment, first_length })
    }

    /// As it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Is it a block device?
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle to the same open file, with its lock and its errors.
    ///
    /// # Errors
    /// The process has too many.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
            is_device: self.is_device,
            alignment: self.alignment.clone(),
            first_length: Cell::new(None),
        })
    }

    /// Another handle may make it longer.
    pub(crate) fn forget_length(&self) {
        self.first_length.set(None);
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The storage fails; the end of a device.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.first_length.set(None);
        self.adapt(|alignment| self.write_aligned(alignment, bytes, offset))
    }

    /// Makes bytes zero; a file that is too short grows.
    ///
    /// # Errors
    /// As for [`ImageFile::write_all_at`].
    pub fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut end = offset.checked_add(length).ok_or_else(past_all_files)?;
        if !self.is_device {
            // Behind the end, zeros are there already once the file is longer.
            let file_size = self.file_size()?;
            if end > file_size {
                self.file.set_len(end)?;
                end = file_size;
            }
        }
        let length = end.saturating_sub(offset);
        if length == 0 || self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, length)? {
            return Ok(());
        }
        let zeros = AlignedBuffer::new(usize::try_from(length).unwrap_or(PIECE).min(PIECE));
        let mut at = offset;
        while at < end {
            let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let piece = zeros.get(..left.min(zeros.len())).unwrap_or(&zeros);
            self.write_all_at(piece, at)?;
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Gives the storage a place back, if it takes it: it then reads as zeros, or as before.
    ///
    /// # Errors
    /// The storage fails.
    pub fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.fallocate(flags, offset, length).map(drop)
    }

    /// Cuts the file, or makes it longer, with zeros. A device stays as it is.
    ///
    /// # Errors
    /// The storage fails.
    pub fn set_length(&self, length: u64) -> io::Result<()> {
        self.first_length.set(None);
        if self.is_device { Ok(()) } else { self.file.set_len(length) }
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The storage fails. What was written before may be lost, also when this succeeds later.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Returns false where the storage does not know how.
    fn fallocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<bool> {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
            return Err(past_all_files());
        };
        loop {
            match fallocate(&self.file, flags, offset, length) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                // EINVAL: a device whose sectors are larger than what was asked for.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENODEV) => {
                    return Ok(false);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Does I/O, with a larger alignment or without one where this one is refused.
    fn adapt<T>(&self, mut action: impl FnMut(usize) -> io::Result<T>) -> io::Result<T> {
        loop {
            let alignment = self.alignment.get();
            match action(alignment) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && alignment == 512 => {
                    if self.is_device {
                        self.alignment.set(ALIGNMENT);
                    } else {
                        let flags =
                            OFlag::from_bits_truncate(fcntl(&self.file, FcntlArg::F_GETFL)?);
                        let without = flags.difference(OFlag::O_DIRECT);
                        fcntl(&self.file, FcntlArg::F_SETFL(without))?;
                        self.alignment.set(1);
                    }
                }
                result => return result,
            }
        }
    }

    /// Fills `buffer`, or as much of it as there is. Returns how much.
    fn read_aligned(&self, alignment: usize, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if fits(alignment, buffer, offset) {
            return self.read_up_to(buffer, offset);
        }
        let mut done = 0;
        let in_front = remainder(offset, alignment);
        let mut at = offset.saturating_sub(in_front as u64);
        let mut skip = in_front;
        let wanted = buffer.len().saturating_add(in_front).next_multiple_of(alignment);
        let (mut small, mut large) = (Small([0; SMALL]), None);
        let bounce = if wanted <= SMALL && alignment <= SMALL_ALIGNMENT {
            small.0.as_mut_slice()
        } else {
            &mut **large.insert(AlignedBuffer::new(wanted.min(PIECE)))
        };
        while done < buffer.len() {
            let left = buffer.len().saturating_sub(done).saturating_add(skip);
            let size = left.next_multiple_of(alignment).min(bounce.len());
            let piece = bounce.get_mut(..size).unwrap_or_default();
            let got = self.read_up_to(piece, at)?;
            let found = piece.get(skip..got).unwrap_or_default();
            let room = buffer.get_mut(done..).unwrap_or_default();
            let count = found.len().min(room.len());
            let (now, found) = (room.split_at_mut(count).0, found.split_at(count).0);
            now.copy_from_slice(found);
            done = done.saturating_add(count);
            if got < size {
                break;
            }
            at = at.saturating_add(size as u64);
            skip = 0;
        }
        Ok(done)
    }

    fn write_aligned(&self, alignment: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
        if fits(alignment, bytes, offset) {
            return self.write_up(bytes, offset);
        }
        let mut rest = bytes;
        let mut at = offset;
        let mut bounce = AlignedBuffer::new(
            bytes.len().saturating_add(2 * alignment).next_multiple_of(alignment).min(PIECE),
        );
        while !rest.is_empty() {
            let in_front = remainder(at, alignment);
            let start = at.saturating_sub(in_front as u64);
            let (now, later) = rest.split_at(rest.len().min(bounce.len().saturating_sub(in_front)));
            let used = in_front.saturating_add(now.len());
            let size = used.next_multiple_of(alignment);
            let piece = bounce.get_mut(..size).unwrap_or_default();
            if in_front > 0 || used < size {
                self.read_edges(piece, start, alignment, used)?;
            }
            piece.get_mut(in_front..used).unwrap_or_default().copy_from_slice(now);
            let file_size = if used < size { self.file_size()? } else { u64::MAX };
            self.write_up(piece, start)?;
            at = at.saturating_add(now.len() as u64);
            if start.saturating_add(size as u64) > file_size.max(at) {
                // The file ends inside of what was written.
                self.set_length(file_size.max(at))?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Reads the first and the last unit of a piece that is written in part.
    fn read_edges(
        &self,
        piece: &mut [u8],
        start: u64,
        alignment: usize,
        used: usize,
    ) -> io::Result<()> {
        let last = piece.len().saturating_sub(alignment);
        if used < piece.len() && last > 0 {
            let unit = piece.get_mut(last..).unwrap_or_default();
            let got = self.read_up_to(unit, start.saturating_add(last as u64))?;
            unit.get_mut(got..).unwrap_or_default().fill(0);
        }
        let unit = piece.get_mut(..alignment).unwrap_or_default();
        let got = self.read_up_to(unit, start)?;
        unit.get_mut(got..).unwrap_or_default().fill(0);
        Ok(())
    }

    /// Reads until the buffer is full or the file ends.
    fn read_up_to(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let room = buffer.get_mut(done..).unwrap_or_default();
            match self.file.read_at(room, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => {
                    done = done.saturating_add(count);
                    // Direct I/O that ends elsewhere than at a sector has come to the end.
                    if self.alignment.get() > 1 && !count.is_multiple_of(512) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_up(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Finishes short writes and begins again after a signal.
        self.file.write_all_at(bytes, offset)
    }

    fn file_size(&self) -> io::Result<u64> {
        match self.first_length.take() {
            Some(length) => Ok(length),
            None if self.is_device => (&self.file).seek(SeekFrom::End(0)),
            None => Ok(self.file.metadata()?.len()),
        }
    }
}

fn past_all_files() -> io::Error {
    Errno::EFBIG.into()
}

fn remainder(offset: u64, alignment: usize) -> usize {
    let alignment = alignment as u64;
    usize::try_from(offset % alignment.max(1)).expect("less than an alignment")
}

fn fits(alignment: usize, bytes: &[u8], offset: u64) -> bool {
    let is_whole = bytes.len().is_multiple_of(alignment) && remainder(offset, alignment) == 0;
    alignment == 1 || (is_whole && is_aligned(bytes, alignment))
}

impl ReadAt for ImageFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> vhd::Result<()> {
        let read = self.adapt(|alignment| self.read_aligned(alignment, buffer, offset));
        let got = read.map_err(|error| vhd::Error::from(error).or_at(offset))?;
        if got < buffer.len() {
            return Err(read_at::truncated(offset, got, buffer.len()));
        }
        Ok(())
    }

    fn length(&self) -> vhd::Result<u64> {
        Ok(self.file_size()?)
    }
}

#[cfg(test)]
mod tests;
