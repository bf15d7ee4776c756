//! The fixed table of files that a queue works on.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The most files of one queue: a chain of images is far shorter.
pub const FILES_MAX: usize = 64;

/// A file of the queue that gave this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub(super) u8);

impl FileId {
    /// No file: for entries that are not in use.
    pub(super) const NOBODY: Self = Self(u8::MAX);
}

struct Slot {
    file: Arc<File>,
    /// The durable flag of a write is not supported: write, then fdatasync.
    plain_only: bool,
}

/// The table.
pub(super) struct Files {
    slots: [Option<Slot>; FILES_MAX],
}

impl Files {
    pub(super) fn new() -> Self {
        Self { slots: [const { None }; FILES_MAX] }
    }

    pub(super) fn add(&mut self, file: Arc<File>) -> Option<FileId> {
        let at = self.slots.iter().position(Option::is_none)?;
        self.slots[at] = Some(Slot { file, plain_only: false });
        Some(FileId(u8::try_from(at).expect("FILES_MAX is below 256")))
    }

    pub(super) fn remove(&mut self, id: FileId) {
        let _ = self.slot(id);
        self.slots[usize::from(id.0)] = None;
    }

    pub(super) fn count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    #[inline]
    fn slot(&mut self, id: FileId) -> &mut Slot {
        self.slots[usize::from(id.0)].as_mut().expect("an I/O names a file that was added")
    }

    /// Its durable writes are plain writes followed by fdatasync from now on.
    pub(super) fn set_plain_only(&mut self, id: FileId) {
        self.slot(id).plain_only = true;
    }

    #[inline]
    pub(super) fn is_plain_only(&self, id: FileId) -> bool {
        self.slots[usize::from(id.0)].as_ref().is_some_and(|slot| slot.plain_only)
    }

    #[inline]
    pub(super) fn get(&self, id: FileId) -> &Arc<File> {
        let slot = self.slots[usize::from(id.0)].as_ref();
        &slot.expect("an I/O names a file that was added").file
    }

    /// Whether it is open for direct I/O.
    pub(super) fn is_direct(&self, id: FileId) -> bool {
        let flags = fcntl(self.fd(id), FcntlArg::F_GETFL).unwrap_or(0);
        OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT)
    }

    #[inline]
    pub(super) fn fd(&self, id: FileId) -> BorrowedFd<'_> {
        self.get(id).as_fd()
    }
}
