//! A host whose files are in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::error::{Result, errno};
use crate::host::Host;
use crate::read_at::ReadAt;

/// Files by their real paths, and links.
#[derive(Debug, Default)]
pub struct MemoryHost {
    /// What files hold.
    pub files: BTreeMap<PathBuf, Rc<[u8]>>,
    /// Where links lead.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

/// An open file: a path, and what it held when it was opened.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    path: PathBuf,
    bytes: Rc<[u8]>,
}

impl ReadAt for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (*self.bytes).read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        (*self.bytes).length()
    }
}

impl MemoryHost {
    /// And a file.
    #[must_use]
    pub fn with(mut self, path: &str, bytes: impl Into<Rc<[u8]>>) -> Self {
        self.files.insert(PathBuf::from(path), bytes.into());
        self
    }

    /// And a link.
    #[must_use]
    pub fn with_link(mut self, path: &str, to: &str) -> Self {
        self.links.insert(PathBuf::from(path), PathBuf::from(to));
        self
    }

    fn find(&self, path: &Path) -> Result<MemoryFile> {
        let mut path = crate::paths::normalised(path);
        while let Some(to) = self.links.get(&path) {
            path = to.clone();
        }
        let missing = std::io::Error::from_raw_os_error(errno::ENOENT);
        let bytes = Rc::clone(self.files.get(&path).ok_or(missing)?);
        Ok(MemoryFile { path, bytes })
    }
}

impl Host for MemoryHost {
    type File = MemoryFile;

    fn open(&self, path: &Path) -> Result<MemoryFile> {
        self.find(path)
    }

    fn identity(&self, file: &MemoryFile) -> Result<(u64, u64)> {
        let at = self.files.keys().position(|known| *known == file.path);
        Ok((0, u64::try_from(at.unwrap_or(usize::MAX)).unwrap_or(u64::MAX)))
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf> {
        Ok(self.find(path)?.path)
    }

    fn is_readable(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    fn exists(&self, path: &Path) -> bool {
        self.find(path).is_ok()
    }

    fn current_directory(&self) -> Result<PathBuf> {
        Ok(PathBuf::from("/vhds"))
    }
}
