//! `ram:/path`: a copy of a file in memory; changes are lost at close.
//!
//! The memory is a memfd, so the queue serves it like any file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Image, ImageInfo, OpenFlags, raw};
use crate::error::DiskError;
use crate::queue::Queue;

/// 1,024,000 sectors, as in blktap: larger files are refused, memory is not storage.
const SIZE_MAX: u64 = 1_024_000 * 512;

pub(super) fn open(
    path: &Path,
    _: OpenFlags,
    queue: &mut Queue,
) -> Result<Box<dyn Image>, DiskError> {
    let flags = OpenFlags { read_only: true, buffered: true, ..OpenFlags::default() };
    let (mut source, _) = raw::open_file(path, flags)?;
    let size = raw::size_of(&source)?.size;
    if size > SIZE_MAX {
        return Err(DiskError::new(
            Errno::EFBIG,
            format!("Found {size} bytes where at most {SIZE_MAX} can be kept in memory"),
        ));
    }
    let memory = memfd_create(c"tapdisk-ram", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| DiskError::new(errno, "Cannot make a file in memory"))?;
    let mut memory = File::from(memory);
    let copied = io::copy(&mut io::Read::take(&mut source, size), &mut memory)
        .map_err(|error| DiskError::io(&error, "Cannot copy the file into memory"))?;
    if copied != size {
        let what = format!("Found {copied} bytes where the file had {size} when it was opened");
        return Err(DiskError::new(Errno::EIO, what));
    }
    let info = ImageInfo { size, sector_size: 512 };
    // What is kept in memory is lost at close: there is nothing to make durable.
    raw::Raw::register(Arc::new(memory), info, raw::AtClose::Forget, None, queue)
}
