//! The system calls on the two kinds of device.
//!
//! A room with `unsafe`. Contract: each function here issues one fixed ioctl, whose argument's type
//! is the one that every generation of the driver defines for that number, so nothing that a safe
//! caller passes makes the kernel write outside of it. Interrupted calls are not retried: none of
//! these sleeps interruptibly.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::abi::{DeviceInfoBoth, NAME_SIZE, Params, TapHandle};

/// `BLKDISCARD`, `_IO(0x12, 119)`: offset and length in bytes.
#[cfg(feature = "sim")]
const BLKDISCARD: u32 = 0x1277;

/// The raw calls.
mod raw {
    #![allow(unreachable_pub)]
    use crate::abi::{
        DeviceInfoBoth, IOCTL_ALLOC_TAP, IOCTL_CREATE_DEVICE, IOCTL_CREATE_DEVICE_COMPAT,
        IOCTL_FREE_TAP, IOCTL_PAUSE, IOCTL_REMOVE_DEVICE, IOCTL_REOPEN, IOCTL_RESPOND,
        IOCTL_RESUME, IOCTL_SET_PARAMS, NAME_SIZE, Params, TapHandle,
    };

    nix::ioctl_read_bad!(alloc_tap, IOCTL_ALLOC_TAP, TapHandle);
    nix::ioctl_write_int_bad!(free_tap, IOCTL_FREE_TAP);
    nix::ioctl_write_int_bad!(respond, IOCTL_RESPOND);
    nix::ioctl_readwrite_bad!(create_device, IOCTL_CREATE_DEVICE, DeviceInfoBoth);
    nix::ioctl_write_ptr_bad!(create_device_compat, IOCTL_CREATE_DEVICE_COMPAT, Params);
    nix::ioctl_write_ptr_bad!(set_params, IOCTL_SET_PARAMS, Params);
    nix::ioctl_write_int_bad!(pause, IOCTL_PAUSE);
    nix::ioctl_read_bad!(reopen, IOCTL_REOPEN, [u8; NAME_SIZE]);
    nix::ioctl_write_int_bad!(resume, IOCTL_RESUME);
    nix::ioctl_write_int_bad!(remove_device, IOCTL_REMOVE_DEVICE);
    #[cfg(feature = "sim")]
    nix::ioctl_write_ptr_bad!(discard, super::BLKDISCARD, [u64; 2]);
}

/// Allocates the lowest free minor.
pub(crate) fn alloc_tap(control: BorrowedFd<'_>) -> Result<TapHandle, Errno> {
    let mut handle = TapHandle::default();
    // SAFETY: the kernel fills 12 bytes, the size of `TapHandle` (asserted beside it), any of which
    // are valid; the pointer is to a live local.
    unsafe { raw::alloc_tap(control.as_raw_fd(), &raw mut handle) }?;
    Ok(handle)
}

/// Frees a minor.
pub(crate) fn free_tap(control: BorrowedFd<'_>, minor: u32) -> Result<(), Errno> {
    let minor = i32::try_from(minor).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the argument is a number, by value; the kernel follows no pointer.
    unsafe { raw::free_tap(control.as_raw_fd(), minor) }?;
    Ok(())
}

/// Makes the driver consume the published responses.
pub(crate) fn respond(ring: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is not used; the kernel follows no pointer of ours.
    unsafe { raw::respond(ring.as_raw_fd(), 0) }?;
    Ok(())
}

/// Creates the block device, with the layout of both drivers.
pub(crate) fn create_device(ring: BorrowedFd<'_>, info: &mut DeviceInfoBoth) -> Result<(), Errno> {
    // SAFETY: XCP reads 56 bytes, dkms at most 40 and writes its flags back at 16..24; the buffer
    // has 56 (asserted beside it), is live, and any flags are valid.
    unsafe { raw::create_device(ring.as_raw_fd(), &raw mut *info) }?;
    Ok(())
}

/// Creates the block device, 2009.
pub(crate) fn create_device_compat(ring: BorrowedFd<'_>, params: &Params) -> Result<(), Errno> {
    // SAFETY: the kernel reads 272 bytes, the size of `Params` (asserted beside it), of a live
    // value.
    unsafe { raw::create_device_compat(ring.as_raw_fd(), &raw const *params) }?;
    Ok(())
}

/// Sets new parameters, 2009.
pub(crate) fn set_params(ring: BorrowedFd<'_>, params: &Params) -> io::Result<()> {
    // SAFETY: as in `create_device_compat`.
    unsafe { raw::set_params(ring.as_raw_fd(), &raw const *params) }?;
    Ok(())
}

/// Says that the pause is reached, 2009.
pub(crate) fn pause(ring: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument is not used; the kernel follows no pointer of ours.
    unsafe { raw::pause(ring.as_raw_fd(), 0) }?;
    Ok(())
}

/// Asks for the name to open next, 2009.
pub(crate) fn reopen(ring: BorrowedFd<'_>) -> io::Result<[u8; NAME_SIZE]> {
    let mut name = [0; NAME_SIZE];
    // SAFETY: the kernel writes a name with its NUL, at most 256 bytes: its own buffer has that
    // size and so has this one, which is live; any bytes are valid.
    unsafe { raw::reopen(ring.as_raw_fd(), &raw mut name) }?;
    Ok(name)
}

/// Ends the pause, or says why not by a negative errno, 2009.
pub(crate) fn resume(ring: BorrowedFd<'_>, error: i32) -> io::Result<()> {
    // SAFETY: the argument is a number, by value; the kernel follows no pointer.
    unsafe { raw::resume(ring.as_raw_fd(), error) }?;
    Ok(())
}

/// Removes the block device.
pub(crate) fn remove_device(ring: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the argument is not used; the kernel follows no pointer of ours.
    unsafe { raw::remove_device(ring.as_raw_fd(), 0) }?;
    Ok(())
}

/// Discards a range of a block device, for tests: `offset` and `len` in bytes.
///
/// # Errors
/// EOPNOTSUPP when the device has no discard; EINVAL for a range that is not in sectors.
#[cfg(feature = "sim")]
pub fn discard(device: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let range = [offset, len];
    // SAFETY: the kernel reads 16 bytes of a live value; on what is no block device the number
    // means nothing.
    unsafe { raw::discard(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}
