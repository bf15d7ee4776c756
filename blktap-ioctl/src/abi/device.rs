//! ioctls and what they carry: the control device and the life of a tap's block device.

use std::ffi::{c_int, c_ulong};

/// On the control device: allocates the lowest free minor. Argument: [`TapHandle`], filled.
pub const IOCTL_ALLOC_TAP: u32 = 200;
/// On the control device: frees a minor, by value. EBUSY while its ring is open or mapped.
pub const IOCTL_FREE_TAP: u32 = 201;

/// On a ring: the driver consumes the responses published so far. 2009: `KICK_FE`.
pub const IOCTL_RESPOND: u32 = 1;
/// On a ring: creates the block device; 2009, and kept by later drivers. Argument: [`Params`].
pub const IOCTL_CREATE_DEVICE_COMPAT: u32 = 202;
/// On a ring, while paused (2009, OpenXT): new size and name. Argument: [`Params`].
pub const IOCTL_SET_PARAMS: u32 = 203;
/// On a ring (2009, OpenXT): the requested pause is reached. EINVAL when none was requested.
pub const IOCTL_PAUSE: u32 = 204;
/// On a ring, while paused (2009, OpenXT): the name to open next. Argument: [`NAME_SIZE`] bytes.
pub const IOCTL_REOPEN: u32 = 205;
/// On a ring, while paused (2009, OpenXT): 0 serves again, a negative errno, by value, stays
/// paused.
pub const IOCTL_RESUME: u32 = 206;
/// On a ring: removes the block device. EBUSY with openers; 0 when there is none.
pub const IOCTL_REMOVE_DEVICE: u32 = 207;
/// On a ring: creates the block device. Argument: [`DeviceInfo`] or [`DeviceInfoDkms`].
pub const IOCTL_CREATE_DEVICE: u32 = 208;

/// What drivers of kernels before 3.3 may let through for an unknown ioctl (`ENOIOCTLCMD`).
pub const ENOIOCTLCMD: c_int = 515;

/// Bytes of a name, with its NUL.
pub const NAME_SIZE: usize = 256;

/// The smallest sector size that a driver takes, in bytes.
pub const SECTOR_SIZE_MIN: u32 = 512;
/// The largest sector size that a driver takes, in bytes.
pub const SECTOR_SIZE_MAX: u32 = 4096;

/// Writes to the device fail. The only flag of the XCP layout.
pub const DEVICE_FLAG_READ_ONLY: c_ulong = 1;
/// dkms: the physical block size and offset are given.
pub const DEVICE_FLAG_PHYSICAL_SIZE: c_ulong = 2;
/// dkms: the device takes [`OP_FLUSH`](super::OP_FLUSH).
pub const DEVICE_FLAG_FLUSH: c_ulong = 4;
/// dkms: the device takes [`OP_TRIM`](super::OP_TRIM); the trim fields are given.
pub const DEVICE_FLAG_TRIM: c_ulong = 8;
/// dkms: what was trimmed reads as zeros.
pub const DEVICE_FLAG_TRIM_READS_ZERO: c_ulong = 16;

/// Argument of [`IOCTL_ALLOC_TAP`]: `struct blktap2_handle`, later `struct blktap_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapHandle {
    /// Major of the ring's character device.
    pub ring_major: u32,
    /// Major of the block device.
    pub block_major: u32,
    /// Minor of both.
    pub minor: u32,
}
layout!(TapHandle, 12, { ring_major @ 0, block_major @ 4, minor @ 8 });

/// Argument of [`IOCTL_CREATE_DEVICE_COMPAT`] and [`IOCTL_SET_PARAMS`]: `struct blktap2_params`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Shown in sysfs; ends with a NUL. Empty: left alone by drivers after 2009.
    pub name: [u8; NAME_SIZE],
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// In bytes.
    pub sector_size: c_ulong,
}
layout!(Params, 272, { name @ 0, capacity @ 256, sector_size @ 264 });

/// Argument of [`IOCTL_CREATE_DEVICE`], XCP: `struct blktap_device_info`. Copied in whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// In sectors of 512 bytes, also when sectors are larger; not 0.
    pub capacity: u64,
    /// In bytes: a power of two, 512 to 4096.
    pub sector_size: u32,
    /// In bytes: a power of two, 512 or more.
    pub physical_sector_size: u32,
    /// [`DEVICE_FLAG_READ_ONLY`] or 0.
    pub flags: c_ulong,
    /// Zero.
    pub reserved: [c_ulong; 4],
}
layout!(DeviceInfo, 56, {
    capacity @ 0, sector_size @ 8, physical_sector_size @ 12, flags @ 16, reserved @ 24,
});

/// Argument of [`IOCTL_CREATE_DEVICE`], dkms: `struct blktap_device_info` of blktap-dkms.
///
/// The driver copies in as far as `flags` says and writes back the flags that it knows. It has the
/// same ioctl number as [`DeviceInfo`] and another length: pass a [`DeviceInfoBoth`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfoDkms {
    /// In sectors of 512 bytes; not 0.
    pub capacity: u64,
    /// In bytes: a power of two, 512 or more.
    pub sector_size: u32,
    /// A hole for this driver.
    pub hole: u32,
    /// `DEVICE_FLAG_*`; in and out.
    pub flags: c_ulong,
    /// In bytes, with [`DEVICE_FLAG_PHYSICAL_SIZE`].
    pub physical_block_size: u32,
    /// In bytes, with [`DEVICE_FLAG_PHYSICAL_SIZE`].
    pub physical_block_offset: u32,
    /// Granularity in bytes, with [`DEVICE_FLAG_TRIM`].
    pub trim_block_size: u32,
    /// Alignment in bytes, with [`DEVICE_FLAG_TRIM`].
    pub trim_block_offset: u32,
}
layout!(DeviceInfoDkms, 40, {
    capacity @ 0, sector_size @ 8, hole @ 12, flags @ 16, physical_block_size @ 24,
    physical_block_offset @ 28, trim_block_size @ 32, trim_block_offset @ 36,
});

/// One buffer that both drivers of [`IOCTL_CREATE_DEVICE`] read as theirs: the fields of
/// [`DeviceInfoDkms`], with XCP's physical size in its hole, and as long as [`DeviceInfo`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfoBoth {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// In bytes.
    pub sector_size: u32,
    /// In bytes; read by XCP.
    pub physical_sector_size: u32,
    /// Beyond read-only understood by dkms only; in and, for dkms, out.
    pub flags: c_ulong,
    /// Read by dkms; reserved for XCP.
    pub physical_block_size: u32,
    /// Read by dkms; reserved for XCP.
    pub physical_block_offset: u32,
    /// Read by dkms; reserved for XCP.
    pub trim_block_size: u32,
    /// Read by dkms; reserved for XCP.
    pub trim_block_offset: u32,
    /// Past the end for dkms; reserved for XCP.
    pub reserved: [c_ulong; 2],
}
layout!(DeviceInfoBoth, 56, {
    capacity @ 0, sector_size @ 8, physical_sector_size @ 12, flags @ 16, physical_block_size @ 24,
    physical_block_offset @ 28, trim_block_size @ 32, trim_block_offset @ 36, reserved @ 40,
});
