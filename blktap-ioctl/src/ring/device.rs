//! Creating and removing the block device of a tap.

use std::ffi::c_ulong;
use std::io;

use nix::errno::Errno;

use super::door::Door;
use super::mapped::MappedRing;
use crate::abi::{
    DEVICE_FLAG_FLUSH, DEVICE_FLAG_PHYSICAL_SIZE, DEVICE_FLAG_READ_ONLY, DEVICE_FLAG_TRIM,
    DEVICE_FLAG_TRIM_READS_ZERO, DeviceInfoBoth, ENOIOCTLCMD, NAME_SIZE, Params, SECTOR_SIZE,
    SECTOR_SIZE_MAX, SECTOR_SIZE_MIN,
};

/// A flag that no driver knows. One that writes back the flags it accepted takes it away; one that
/// does not write back leaves it, and then the flags that are left say nothing.
const FLAG_PROBE: c_ulong = 1 << 30;

/// What trimming the device means (dkms).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimParams {
    /// In bytes.
    pub granularity: u32,
    /// In bytes.
    pub alignment: u32,
    /// What was trimmed reads as zeros.
    pub reads_zero: bool,
}

/// The block device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceParams {
    /// In sectors of 512 bytes, whatever `sector_size` is; not 0.
    pub capacity: u64,
    /// The logical sector size in bytes: 512, 1024, 2048 or 4096.
    pub sector_size: u32,
    /// In bytes: a power of two, at least `sector_size`. A hint: not every driver takes it.
    pub physical_sector_size: u32,
    /// The kernel refuses writes, where the driver knows this; see [`CreatedDevice::read_only`].
    pub read_only: bool,
    /// Ask for flushes.
    pub flush: bool,
    /// Ask for trims.
    pub trim: Option<TrimParams>,
    /// Shown in sysfs by drivers of 2009; cut at 255 bytes. Later ones take names elsewhere.
    pub name: Vec<u8>,
}

impl DeviceParams {
    /// A writable device of `capacity` sectors of 512 bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            sector_size: SECTOR_SIZE,
            physical_sector_size: SECTOR_SIZE,
            read_only: false,
            flush: false,
            trim: None,
            name: Vec::new(),
        }
    }

    /// The rules of every generation, so that EINVAL of the driver has one meaning less.
    fn check(&self) -> io::Result<()> {
        let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        let bytes = self.capacity.checked_mul(u64::from(SECTOR_SIZE));
        if self.capacity == 0 || bytes.and_then(|bytes| i64::try_from(bytes).ok()).is_none() {
            return invalid(format!("Capacity {} sectors, wanted 1 to 2^54 - 1", self.capacity));
        }
        let sector_size = self.sector_size;
        let range = SECTOR_SIZE_MIN..=SECTOR_SIZE_MAX;
        if !sector_size.is_power_of_two() || !range.contains(&sector_size) {
            return invalid(format!(
                "Sector size {sector_size}, wanted a power of two, 512 to 4096"
            ));
        }
        let physical = self.physical_sector_size;
        if !physical.is_power_of_two() || physical < sector_size {
            return invalid(format!(
                "Physical sector size {physical}, wanted a power of two, {sector_size} or more"
            ));
        }
        Ok(())
    }

    fn to_info(&self) -> DeviceInfoBoth {
        let mut info = DeviceInfoBoth {
            capacity: self.capacity,
            sector_size: self.sector_size,
            physical_sector_size: self.physical_sector_size,
            ..DeviceInfoBoth::default()
        };
        if self.read_only {
            info.flags |= DEVICE_FLAG_READ_ONLY;
        }
        // Beyond read-only and the fields common to both drivers nothing is set unless it was asked
        // for: without that the buffer is the plain one, with zeros in what is reserved.
        if !self.flush && self.trim.is_none() {
            return info;
        }
        info.flags |= FLAG_PROBE | DEVICE_FLAG_PHYSICAL_SIZE;
        info.physical_block_size = self.physical_sector_size;
        if self.flush {
            info.flags |= DEVICE_FLAG_FLUSH;
        }
        if let Some(trim) = self.trim {
            info.flags |= DEVICE_FLAG_TRIM;
            info.trim_block_size = trim.granularity;
            info.trim_block_offset = trim.alignment;
            if trim.reads_zero {
                info.flags |= DEVICE_FLAG_TRIM_READS_ZERO;
            }
        }
        info
    }

    fn to_params(&self) -> Params {
        let mut name = [0; NAME_SIZE];
        let (text, _nul) = name.split_at_mut(NAME_SIZE - 1);
        for (target, source) in text.iter_mut().zip(&self.name) {
            *target = *source;
        }
        Params { name, capacity: self.capacity, sector_size: c_ulong::from(self.sector_size) }
    }
}

/// What the driver made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedDevice {
    /// Flushes will come. Without them nothing orders writes but their answers.
    pub flush: bool,
    /// Trims will come.
    pub trim: bool,
    /// The kernel refuses writes. Not so, although asked for, with a driver of 2009: the server
    /// must.
    pub read_only: bool,
}

/// What became of the wish to remove the block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// There is no device any more.
    Removed,
    /// It is open. Keep serving and ask again: the last close is an event of the ring, and the
    /// closer may still be busy for a moment after it.
    Busy,
}

impl MappedRing {
    /// Creates the block device. Its first requests may come at once.
    ///
    /// Tries the ioctl of later drivers, and the one of 2009 where the driver does not know that:
    /// ENOTTY, or ENOIOCTLCMD, or EINVAL, which kernels before 3.3 make of it. Should EINVAL have
    /// meant the parameters it comes back from the second one, too.
    ///
    /// # Errors
    /// `InvalidInput` for parameters that no driver takes; EEXIST when there is a device.
    pub fn create_device(&mut self, params: &DeviceParams) -> io::Result<CreatedDevice> {
        params.check()?;
        create(self.door(), params)
    }

    /// Removes the block device. Fine when there is none.
    ///
    /// # Errors
    /// What the driver says; that it is open is no error.
    pub fn remove_device(&mut self) -> io::Result<Removal> {
        match self.door().remove_device() {
            Ok(()) => Ok(Removal::Removed),
            Err(Errno::EBUSY) => Ok(Removal::Busy),
            Err(errno) => Err(errno.into()),
        }
    }

    /// While paused (2009): the size and the name from now on.
    ///
    /// # Errors
    /// `InvalidInput` as in [`MappedRing::create_device`]; EINVAL when not paused; ENOTTY where the
    /// driver has no such call.
    pub fn set_params(&mut self, params: &DeviceParams) -> io::Result<()> {
        params.check()?;
        self.door().set_params(&params.to_params())
    }
}

fn create(door: &Door, params: &DeviceParams) -> io::Result<CreatedDevice> {
    let mut info = params.to_info();
    let first = match door.create_device(&mut info) {
        Ok(()) => return Ok(accepted(&info, params)),
        Err(errno) => errno,
    };
    if !matches!(first, Errno::ENOTTY | Errno::EINVAL) && first as i32 != ENOIOCTLCMD {
        return Err(first.into());
    }
    match door.create_device_compat(&params.to_params()) {
        Ok(()) => Ok(CreatedDevice { flush: false, trim: false, read_only: false }),
        // It knows only the first one, and so what that said counts.
        Err(Errno::ENOTTY) => Err(first.into()),
        Err(errno) => Err(errno.into()),
    }
}

fn accepted(info: &DeviceInfoBoth, params: &DeviceParams) -> CreatedDevice {
    let written_back = info.flags & FLAG_PROBE == 0;
    let has = |flag| written_back && info.flags & flag != 0;
    CreatedDevice {
        flush: params.flush && has(DEVICE_FLAG_FLUSH),
        trim: params.trim.is_some() && has(DEVICE_FLAG_TRIM),
        read_only: params.read_only,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_features_only_the_common_fields_are_set() {
        let params = DeviceParams { read_only: true, ..DeviceParams::new(77) };
        let expected = DeviceInfoBoth {
            capacity: 77,
            sector_size: 512,
            physical_sector_size: 512,
            flags: DEVICE_FLAG_READ_ONLY,
            ..DeviceInfoBoth::default()
        };
        assert_eq!(params.to_info(), expected);
    }

    #[test]
    fn flags_that_nobody_wrote_back_are_not_accepted() {
        let params = DeviceParams { flush: true, ..DeviceParams::new(8) };
        let mut info = params.to_info();
        assert!(!accepted(&info, &params).flush);
        info.flags &= DEVICE_FLAG_FLUSH | DEVICE_FLAG_PHYSICAL_SIZE;
        assert!(accepted(&info, &params).flush);
    }

    #[test]
    fn a_long_name_is_cut_before_its_nul() {
        let params = DeviceParams { name: vec![b'x'; 300], ..DeviceParams::new(8) };
        let name = params.to_params().name;
        assert_eq!(name[254], b'x');
        assert_eq!(name[255], 0);
    }

    #[test]
    fn refuses_what_no_driver_takes() {
        let good = DeviceParams::new(8);
        assert!(good.check().is_ok());
        for capacity in [0, 1 << 54, u64::MAX] {
            assert!(DeviceParams { capacity, ..good.clone() }.check().is_err(), "{capacity}");
        }
        for sector_size in [0, 1, 256, 513, 8192] {
            assert!(DeviceParams { sector_size, ..good.clone() }.check().is_err(), "{sector_size}");
        }
        for physical_sector_size in [0, 256, 768] {
            assert!(DeviceParams { physical_sector_size, ..good.clone() }.check().is_err());
        }
    }
}
