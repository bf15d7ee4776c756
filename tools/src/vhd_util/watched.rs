//! A host whose files show a person how much of them was read.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use vhd::Result;
use vhd::host::Host;
use vhd::read_at::ReadAt;
use vhd_files::file::ImageFile;
use vhd_files::host::LocalHost;

use crate::progress::Progress;

/// This host; who watches sees each file go by.
#[derive(Debug)]
pub(super) struct WatchedHost {
    progress: Option<Rc<RefCell<Progress>>>,
}

impl WatchedHost {
    /// With a line about it, for what reads all of its files; without for what is done at once.
    pub(super) fn new(what: Option<&'static str>) -> Self {
        Self { progress: what.map(|what| Rc::new(RefCell::new(Progress::new(what)))) }
    }

    /// Wipes the line away: something is about to be printed.
    pub(super) fn finish(&self) {
        if let Some(progress) = &self.progress {
            progress.borrow_mut().finish();
        }
    }
}

/// An open file of it.
#[derive(Debug)]
pub(super) struct WatchedFile {
    file: ImageFile,
    size: u64,
    read: Cell<u64>,
    progress: Option<Rc<RefCell<Progress>>>,
}

impl ReadAt for WatchedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_at(offset, buffer)?;
        if let Some(progress) = &self.progress {
            let read = self.read.get().saturating_add(buffer.len() as u64).min(self.size);
            self.read.set(read);
            progress.borrow_mut().update(read, self.size);
        }
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        self.file.length()
    }
}

impl Host for WatchedHost {
    type File = WatchedFile;

    fn open(&self, path: &Path) -> Result<WatchedFile> {
        let file = LocalHost.open(path)?;
        let size = if self.progress.is_some() { file.length()? } else { 0 };
        Ok(WatchedFile { file, size, read: Cell::new(0), progress: self.progress.clone() })
    }

    fn identity(&self, file: &WatchedFile) -> Result<(u64, u64)> {
        LocalHost.identity(&file.file)
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf> {
        LocalHost.real_path(path)
    }

    fn is_readable(&self, path: &Path) -> bool {
        LocalHost.is_readable(path)
    }

    fn exists(&self, path: &Path) -> bool {
        LocalHost.exists(path)
    }

    fn current_directory(&self) -> Result<PathBuf> {
        LocalHost.current_directory()
    }
}
