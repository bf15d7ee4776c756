//! Errors of the control path: what a person reads when a disk cannot be opened, paused, closed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// What failed, on what, and why: found and wanted.
///
/// The `errno` is for control flow and for the exit status of `tap-ctl`; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    errno: Errno,
    what: String,
    path: Option<PathBuf>,
}

impl DiskError {
    /// An error with its text; the text starts with a capital and does not repeat the errno.
    #[must_use]
    pub fn new(errno: Errno, what: impl Into<String>) -> Self {
        Self { errno, what: what.into(), path: None }
    }

    /// A failed system call.
    #[must_use]
    pub fn io(error: &io::Error, what: impl Into<String>) -> Self {
        let errno = match (error.raw_os_error(), error.kind()) {
            (Some(raw), _) => Errno::from_raw(raw),
            // Our own, with a text: no room for another AIO context, a path too long for a socket.
            (None, io::ErrorKind::WouldBlock) => Errno::EAGAIN,
            (None, io::ErrorKind::Unsupported) => Errno::EOPNOTSUPP,
            (None, io::ErrorKind::InvalidInput) => Errno::EINVAL,
            (None, io::ErrorKind::NotFound) => Errno::ENOENT,
            (None, io::ErrorKind::PermissionDenied) => Errno::EACCES,
            (None, _) => Errno::EIO,
        };
        Self::new(errno, what)
    }

    /// The same, about a file.
    #[must_use]
    pub fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// What failed, and on what, without the words for the errno: for who gets that beside it.
    #[must_use]
    pub fn what(&self) -> String {
        match &self.path {
            Some(path) => format!("{} ({})", self.what, path.display()),
            None => self.what.clone(),
        }
    }

    /// The errno that stands for it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.what(), self.errno.desc())
    }
}

impl std::error::Error for DiskError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_where_and_why() {
        let error = DiskError::new(Errno::ENOENT, "Cannot open the image").at(Path::new("/x/y"));
        assert_eq!(error.to_string(), "Cannot open the image (/x/y): No such file or directory");
    }

    #[test]
    fn an_io_error_without_a_number_is_eio() {
        let error = io::Error::other("odd");
        assert_eq!(DiskError::io(&error, "Cannot read").errno(), Errno::EIO);
        let error = io::Error::new(io::ErrorKind::WouldBlock, "No AIO context");
        assert_eq!(DiskError::io(&error, "Cannot make").errno(), Errno::EAGAIN);
    }
}
