//! The statistics of a disk in shared memory: one page, `/dev/shm/td3-<pid>/vdi-<minor>`, of which
//! the first 96 bytes are used. Written by the daemon without locks, read by monitoring at any
//! time; so each counter is exact, and two of them are from slightly different moments.
//!
//! Beside it one for each door, of what came through it: `nbd-<minor>`, and `blktap-<minor>` where
//! there is a ring. xcp-rrdd and xentop read those of Xen guests, `vbd-<domain>-<device>`.
//!
//! The layout is that of blktap's `struct stats`, host-endian, every counter a `u64`.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{ControlError, ErrorKind};

/// What is used of the page, in bytes.
pub const STATISTICS_SIZE: usize = 96;

/// The size of the file, in bytes.
pub const STATISTICS_FILE_SIZE: usize = 4096;

/// The value of the first field, a `u32` at offset 0; four bytes of padding follow it.
pub const STATISTICS_VERSION: u32 = 1;

/// Offset of the version, a `u32`, in bytes.
pub const VERSION_AT: usize = 0;

/// The counters. The discriminant is the offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Requests that were taken and not yet answered when the page was last written.
    Outstanding = 8,
    /// Reads that were started.
    ReadsSubmitted = 16,
    /// Reads that were answered.
    ReadsCompleted = 24,
    /// What was read, in sectors of 512 bytes.
    ReadSectors = 32,
    /// The sum of the times of all reads, in microseconds.
    ReadTicksUs = 40,
    /// Writes that were started.
    WritesSubmitted = 48,
    /// Writes that were answered.
    WritesCompleted = 56,
    /// What was written, in sectors of 512 bytes.
    WriteSectors = 64,
    /// The sum of the times of all writes, in microseconds.
    WriteTicksUs = 72,
    /// Requests that were answered with an error.
    IoErrors = 80,
    /// Bits; bit 0 is low-memory mode in blktap.
    Flags = 88,
}

impl Counter {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 11] = [
        Self::Outstanding,
        Self::ReadsSubmitted,
        Self::ReadsCompleted,
        Self::ReadSectors,
        Self::ReadTicksUs,
        Self::WritesSubmitted,
        Self::WritesCompleted,
        Self::WriteSectors,
        Self::WriteTicksUs,
        Self::IoErrors,
        Self::Flags,
    ];

    /// Where the `u64` is, in bytes.
    #[must_use]
    pub const fn offset(self) -> usize {
        self as usize
    }
}

const _: () = {
    let mut index = 0;
    while index < Counter::ALL.len() {
        assert!(Counter::ALL[index].offset() == 8 * (index + 1));
        index += 1;
    }
    assert!(Counter::Flags.offset() + 8 == STATISTICS_SIZE);
};

/// A copy of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    bytes: [u8; STATISTICS_SIZE],
}

impl Statistics {
    /// Takes bytes of the current version.
    #[must_use]
    pub fn from_bytes(bytes: [u8; STATISTICS_SIZE]) -> Option<Self> {
        let version = bytes.first_chunk().map(|version| u32::from_ne_bytes(*version));
        (version == Some(STATISTICS_VERSION)).then_some(Self { bytes })
    }

    /// Reads a disk's statistics. Links are not followed and nothing but a regular file is read.
    ///
    /// # Errors
    /// ENOENT when the disk has none, EPROTO when it is not such a file; else what the system says.
    pub fn read(path: &Path) -> Result<Self, ControlError> {
        let attempt = || format!("Reading the statistics {}", path.display());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ControlError::new(
                ErrorKind::Protocol,
                Errno::EPROTO,
                format!("{}: it has less than {STATISTICS_SIZE} bytes", attempt()),
            ),
            _ => ControlError::system(ErrorKind::System, &error, attempt()),
        };
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file =
            OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
        let protocol = |what| {
            let attempt = format!("{}: {what}", attempt());
            ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt)
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(protocol("it is not a regular file"));
        }
        let mut bytes = [0; STATISTICS_SIZE];
        file.read_exact(&mut bytes).map_err(failed)?;
        Self::from_bytes(bytes).ok_or_else(|| protocol("its version is not 1"))
    }

    /// A counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        let bytes = self.bytes.get(counter.offset()..).and_then(<[u8]>::first_chunk);
        u64::from_ne_bytes(*bytes.expect("every counter lies inside, asserted above"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::test_dir::TestDir;

    fn page() -> [u8; STATISTICS_SIZE] {
        let mut bytes = [0; STATISTICS_SIZE];
        bytes[..4].copy_from_slice(&STATISTICS_VERSION.to_ne_bytes());
        for (counter, value) in Counter::ALL.into_iter().zip(1_u64..) {
            bytes[counter.offset()..][..8].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn counters_are_where_blktap_has_them() {
        let statistics = Statistics::from_bytes(page()).unwrap();
        for (counter, value) in Counter::ALL.into_iter().zip(1_u64..) {
            assert_eq!(statistics.get(counter), value);
        }
        assert_eq!(Counter::WriteSectors.offset(), 64);
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = page();
        bytes[0] = 2;
        assert_eq!(Statistics::from_bytes(bytes), None);
    }

    #[test]
    fn a_file_that_is_short_or_no_file_is_refused() {
        let dir = TestDir::new("statistics");
        let path = dir.paths().run_dir().to_owned();
        dir.paths().create_run_dir().unwrap();
        assert_eq!(Statistics::read(&path).unwrap_err().errno(), Errno::EPROTO as i32);
        let file = path.join("vdi-1");
        assert_eq!(Statistics::read(&file).unwrap_err().errno(), Errno::ENOENT as i32);
        fs::write(&file, &page()[..95]).unwrap();
        assert_eq!(Statistics::read(&file).unwrap_err().errno(), Errno::EPROTO as i32);
        fs::write(&file, page()).unwrap();
        assert_eq!(Statistics::read(&file).unwrap().get(Counter::Outstanding), 1);
        let link = path.join("vdi-2");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(Statistics::read(&link).unwrap_err().errno(), Errno::ELOOP as i32);
    }
}
