//! Two things about storage that no safe library offers: a room with `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

nix::ioctl_read_bad!(
    /// BLKSSZGET of linux/fs.h: the logical sector size of a block device, in bytes.
    blksszget,
    0x1268,
    libc::c_int
);

/// The logical sector size of a block device, in bytes.
///
/// # Errors
/// What the ioctl says: ENOTTY for what is no block device.
pub(crate) fn logical_block_size(device: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET stores one int at the address, which is that of a live int.
    unsafe { blksszget(device.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(|_| Errno::EINVAL)
}

/// A page that direct I/O takes.
#[repr(C, align(4096))]
pub(crate) struct AlignedPage([u8; 4096]);

impl AlignedPage {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        &mut self.0
    }
}

impl Default for AlignedPage {
    fn default() -> Self {
        Self([0; 4096])
    }
}
