//! The simulated block device: how it is created, what it takes, who has it open.

use nix::errno::Errno;

use super::Driver;
use super::queue::BlockRequest;
use super::state::State;
use crate::abi::{
    DEVICE_FLAG_FLUSH, DEVICE_FLAG_PHYSICAL_SIZE, DEVICE_FLAG_READ_ONLY, DEVICE_FLAG_TRIM,
    DEVICE_FLAG_TRIM_READS_ZERO, DeviceInfoBoth, Params, SECTOR_SIZE, SECTOR_SIZE_MAX,
    SECTOR_SIZE_MIN,
};
use crate::ring::Op;

/// The block device, as the server created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// In bytes.
    pub sector_size: u32,
    /// In bytes.
    pub physical_sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Flushes are passed on.
    pub flush: bool,
    /// Trims are passed on.
    pub trim: bool,
}

impl Disk {
    pub(super) fn from_params(params: &Params) -> Result<Self, Errno> {
        let sector_size = u32::try_from(params.sector_size).map_err(|_| Errno::EINVAL)?;
        Ok(Self {
            capacity: params.capacity,
            sector_size,
            physical_sector_size: sector_size,
            read_only: false,
            flush: false,
            trim: false,
        })
    }

    pub(super) fn check(&self) -> Result<(), Errno> {
        let size = self.sector_size;
        let physical = self.physical_sector_size;
        let is_valid = self.capacity != 0
            && size.is_power_of_two()
            && (SECTOR_SIZE_MIN..=SECTOR_SIZE_MAX).contains(&size)
            && physical.is_power_of_two()
            && physical >= SECTOR_SIZE_MIN;
        if is_valid { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl State {
    /// Whether the block layer takes a request.
    pub(super) fn accepts(&self, request: &BlockRequest) -> Result<(), Errno> {
        let disk = self.disk.ok_or(Errno::ENXIO)?;
        if disk.read_only && matches!(request.op, Op::Write | Op::Trim) {
            return Err(Errno::EPERM);
        }
        if (request.op == Op::Flush && !disk.flush) || (request.op == Op::Trim && !disk.trim) {
            return Err(Errno::EOPNOTSUPP);
        }
        let length = request.segments.bytes() as u64 / u64::from(SECTOR_SIZE) + request.sectors;
        match request.sector.checked_add(length) {
            Some(end) if end <= disk.capacity => Ok(()),
            _ => Err(Errno::EIO),
        }
    }

    pub(super) fn create_device(&mut self, info: &mut DeviceInfoBoth) -> Result<(), Errno> {
        self.check_mapped()?;
        let driver = self.options.driver;
        let known = match driver {
            Driver::Legacy => return Err(Errno::ENOTTY),
            Driver::Xcp => DEVICE_FLAG_READ_ONLY,
            Driver::Dkms => {
                DEVICE_FLAG_READ_ONLY
                    | DEVICE_FLAG_PHYSICAL_SIZE
                    | DEVICE_FLAG_FLUSH
                    | DEVICE_FLAG_TRIM
                    | DEVICE_FLAG_TRIM_READS_ZERO
            }
        };
        let has = |flag| info.flags & known & flag != 0;
        let disk = Disk {
            capacity: info.capacity,
            sector_size: info.sector_size,
            physical_sector_size: match driver {
                Driver::Xcp => info.physical_sector_size,
                _ if has(DEVICE_FLAG_PHYSICAL_SIZE) => info.physical_block_size,
                _ => info.sector_size,
            },
            read_only: has(DEVICE_FLAG_READ_ONLY),
            flush: has(DEVICE_FLAG_FLUSH),
            trim: has(DEVICE_FLAG_TRIM),
        };
        if driver == Driver::Dkms {
            // Written back before anything is checked, as the driver does.
            info.flags &= known;
        }
        self.add_disk(disk)
    }

    pub(super) fn create_device_compat(&mut self, params: &Params) -> Result<(), Errno> {
        self.check_mapped()?;
        self.add_disk(Disk::from_params(params)?)?;
        self.pause.set_name(params.name);
        Ok(())
    }

    fn add_disk(&mut self, disk: Disk) -> Result<(), Errno> {
        if self.disk.is_some() {
            return Err(Errno::EEXIST);
        }
        disk.check()?;
        self.disk = Some(disk);
        Ok(())
    }

    pub(super) fn remove_device(&mut self) -> Result<(), Errno> {
        self.check_mapped()?;
        if self.openers != 0 {
            return Err(Errno::EBUSY);
        }
        self.disk = None;
        Ok(())
    }
}
