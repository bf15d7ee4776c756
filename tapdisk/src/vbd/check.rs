//! The checks of a request that are the same for every door.

use nix::errno::Errno;

use crate::request::{DiskInfo, Op, Request};

/// The checks that are the same for every door.
#[inline]
pub(super) fn check(request: &Request, info: DiskInfo) -> Result<(), Errno> {
    if !is_plain(request, info) {
        check_further(request, info)?;
    }
    assert!(
        !request.op.has_data() || request.segments.bytes() == request.len,
        "a door names memory for all of its data"
    );
    Ok(())
}

/// Whether it is plainly good: inside a disk that may be written.
#[inline(always)]
pub(super) fn is_plain(request: &Request, info: DiskInfo) -> bool {
    // A power of two.
    let inside_sector = u64::from(info.sector_size) - 1;
    let end = request.offset.checked_add(request.len);
    request.len > 0
        && (request.offset | request.len) & inside_sector == 0
        && end.is_some_and(|end| end <= info.size)
        && !info.read_only
}

/// Why one that is not plainly good is refused, if so.
#[inline(never)]
fn check_further(request: &Request, info: DiskInfo) -> Result<(), Errno> {
    if request.op == Op::Flush {
        return Ok(());
    }
    if request.op.is_change() && info.read_only {
        return Err(Errno::EPERM);
    }
    let end = request.offset.checked_add(request.len).ok_or(Errno::EINVAL)?;
    let inside_sector = u64::from(info.sector_size) - 1;
    if request.len == 0 || (request.offset | request.len) & inside_sector != 0 {
        return Err(Errno::EINVAL);
    }
    if end > info.size {
        return Err(if request.op.is_change() { Errno::ENOSPC } else { Errno::EINVAL });
    }
    Ok(())
}
