//! An image that is written here is written nowhere else: the lock of `vhd_files`, from open to
//! close.

use std::fs::File;
use std::path::Path;

use vhd_files::lock;

use super::OpenFlags;
use crate::error::DiskError;

/// An image's claim to be the only writer; ends with [`Claim::release`], or else with the file.
#[derive(Debug)]
pub(super) struct Claim {
    is_locked: bool,
    warning: Option<String>,
}

impl Claim {
    /// What a person should know of it: the storage has no locks.
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Locks an image that is to be written; one that is only read is everybody's.
    pub(super) fn lay(file: &File, path: &Path, flags: OpenFlags) -> Result<Self, DiskError> {
        let policy = if flags.read_only { lock::Policy::Never } else { flags.lock };
        let outcome = lock::lock_for_writing(file, path, policy)
            .map_err(|error| DiskError::new(error.errno(), error.reason()))?;
        let warning = match outcome {
            lock::Outcome::Unsupported(errno) => Some(format!(
                "Cannot lock {}: {}; nothing keeps a second writer away",
                path.display(),
                errno.desc()
            )),
            _ => None,
        };
        Ok(Self { is_locked: outcome == lock::Outcome::Locked, warning })
    }

    /// When no I/O of the file is under way: another process may open the image at once.
    pub(super) fn release(&self, file: &File) {
        if self.is_locked {
            lock::unlock(file);
        }
    }
}
