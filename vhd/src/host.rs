//! What a chain asks of the host that it is on: names, and the files behind them.
//!
//! The crate touches no file system; `vhd-files` implements this for the one of this host, tests
//! for one in memory.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::read_at::ReadAt;

/// Files of a host, to be opened for reading.
pub trait Host {
    /// An open file.
    type File: ReadAt;

    /// Opens a file or device for reading. It is not changed by that.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) with the system's error number.
    fn open(&self, path: &Path) -> Result<Self::File>;

    /// Which file it is, whatever its name: device and inode.
    ///
    /// # Errors
    /// As for [`Host::open`].
    fn identity(&self, file: &Self::File) -> Result<(u64, u64)>;

    /// The path without links, `.` and `..`, as of realpath(3).
    ///
    /// # Errors
    /// As for [`Host::open`]: above all when there is no such file.
    fn real_path(&self, path: &Path) -> Result<PathBuf>;

    /// Is there something of this name that may be read?
    fn is_readable(&self, path: &Path) -> bool;

    /// Is there something of this name?
    fn exists(&self, path: &Path) -> bool;

    /// What relative paths are relative to.
    ///
    /// # Errors
    /// As for [`Host::open`].
    fn current_directory(&self) -> Result<PathBuf>;
}
