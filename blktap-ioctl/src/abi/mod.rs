//! Layouts and constants of the blktap2 ABI, as the x86_64 kernel sees them. No logic.
//!
//! Source of each: the blktap2 kernel driver's public header, `linux/blktap.h` (XenServer and
//! XCP-ng kernels; blktap-dkms), and for the generation of 2009 `blktap2.h` of Xen 4.0. All
//! integers are in host order. The ioctl numbers are plain numbers, without the direction and size
//! encoding.
//!
//! Three generations of the driver are in use:
//!
//! | generation | creates with | ring messages | flush, trim |
//! |---|---|---|---|
//! | 2009 (Xen 4.0, Linux 2.6.27) | 202 | yes | no |
//! | dkms (Debian's blktap-dkms, OpenXT) | 208, 40 bytes | OpenXT only | yes |
//! | XCP (XenServer, XCP-ng) | 208, 56 bytes | no | no |

/// States the size of a layout and where each of its fields lies, checked at build time.
macro_rules! layout {
    ($type:ty, $size:literal, { $($field:ident @ $offset:literal),+ $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)+
        };
    };
}

mod device;
mod ring;

pub use device::*;
pub use ring::*;

/// Bytes in a page; the ABI is defined for this size only.
pub const PAGE_SIZE: usize = 4096;

/// Bytes in a sector: the unit of all sector numbers, also for disks with larger sectors.
pub const SECTOR_SIZE: u32 = 512;

/// Sectors in a page.
pub const SECTORS_PER_PAGE: u8 = 8;

/// The major number of misc devices, among them the control device.
pub const MISC_MAJOR: u32 = 10;

/// Names of the control device in `/proc/misc`, newest first: XCP since 2014; before, and dkms.
pub const CONTROL_NAMES: [&str; 2] = ["blktap/control", "blktap-control"];

/// The name of the block devices' major in `/proc/devices`.
pub const BLOCK_MAJOR_NAME: &str = "tapdev";

/// The name of the rings' major in `/proc/devices`.
pub const RING_MAJOR_NAME: &str = "blktap2";

/// The directory in which the user-space half keeps its own nodes.
pub const DEVICE_DIRECTORY: &str = "/dev/xen/blktap-2";

/// Name of the control device's node in [`DEVICE_DIRECTORY`].
pub const CONTROL_NODE: &str = "control";

/// Name of a ring's node, followed by the minor.
pub const RING_NODE_PREFIX: &str = "blktap";

/// Name of a block device's node, followed by the minor.
pub const BLOCK_NODE_PREFIX: &str = "tapdev";

/// More minors than any generation has (XCP: 16384; dkms: 1024; 2009: 256).
pub const MINORS_MAX: u32 = 16384;
