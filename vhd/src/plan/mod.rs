//! Operations as plans: which bytes go where, in which order, and what must be durable before what.
//!
//! A plan names steps; somebody else performs them, on files or in a simulator, so the rules that
//! keep an image whole when the power fails are data, and [`crash`] tries every way to break them.
//! Steps between two [`Step::Barrier`]s may reach the storage in any order, in part or not at all.
//! What each operation relies on is written down in `docs/vhd-operations.md`.

pub mod coalesce;
pub mod compact;
pub mod crash;
pub mod create;
mod disk;
pub mod fill;
pub mod journal;
pub mod memory;
pub mod modify;
pub mod repair;
pub mod resize;
pub mod revert;
pub mod set;
mod steps;
mod writer;

use crate::batmap::KeyHash;
use crate::error::{Error, Result};
use crate::read_at::ReadAt;
pub use steps::Steps;

/// Which file of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// The image that the operation is about.
    Image,
    /// The journal of a resize.
    Journal,
    /// An ancestor of the image; 0 is its parent.
    Ancestor(u16),
}

/// One change to a file, or a point in their order. Offsets and lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new empty file, which must not exist; an existing one is for the caller to decide about.
    Create {
        /// Which.
        file: File,
    },
    /// Bytes; a file that is too short grows.
    Write {
        /// Into which file.
        file: File,
        /// At which offset.
        offset: u64,
        /// At most [`PIECE_BYTES_MAX`].
        bytes: Vec<u8>,
    },
    /// Zeros in place of whatever is there; a file that is too short grows.
    Zero {
        /// In which file.
        file: File,
        /// At which offset.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Bytes from one place to another; the two do not overlap.
    Copy {
        /// The file that is read.
        from: File,
        /// Where.
        from_offset: u64,
        /// The file that is written; one that is too short grows.
        to: File,
        /// Where.
        to_offset: u64,
        /// At most [`PIECE_BYTES_MAX`].
        length: u64,
    },
    /// Sectors of a disk from one place to another, encrypted or decrypted on their way; the two
    /// places do not overlap.
    Code {
        /// Which of the two.
        coding: Coding,
        /// The file that is read.
        from: File,
        /// Where.
        from_offset: u64,
        /// So many bytes of `length` are there; the rest of them are zeros, before coding.
        there: u64,
        /// The file that is written; one that is too short grows.
        to: File,
        /// Where.
        to_offset: u64,
        /// Whole sectors, at most [`PIECE_BYTES_MAX`].
        length: u64,
        /// The number of the first sector in the disk.
        sector: u64,
    },
    /// Cuts a file, or makes it longer, with zeros. A device stays as it is.
    SetLength {
        /// Which.
        file: File,
        /// Its new length.
        length: u64,
    },
    /// The storage may have this place back: nothing refers to it. Reads as zeros or as before.
    PunchHole {
        /// In which file.
        file: File,
        /// At which offset.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// The name goes away. A device stays as it is.
    Remove {
        /// Which.
        file: File,
    },
    /// Everything before this is durable before anything after it starts: in all files, and names.
    Barrier,
    /// Nothing to do: the plan has come to a point that has a name.
    Reached(Milestone),
}

/// What becomes of sectors in the key of a disk. The plan does not know it: who performs it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// They are stored in the key.
    Encrypt,
    /// They are stored as the guest sees them.
    Decrypt,
}

/// Whether the key of whoever performs a plan is that of an image. Without a key there is none.
pub type Opens<'a> = Option<&'a dyn Fn(&KeyHash) -> bool>;

/// Points of a plan by which storage managers know them: they test what happens when it ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// A resize has its journal, and the image is poisoned.
    ResizeBegin,
    /// The blocks that are in the way are copied.
    ResizeDataMoved,
    /// The place of the new metadata is free.
    ResizeMetadataMoved,
    /// The new metadata is there, the image still poisoned.
    ResizeEnd,
    /// Nothing is changed yet.
    ReparentBegin,
    /// The new locators are there, nothing refers to them.
    ReparentLocator,
    /// All is there but for the last step.
    ReparentEnd,
}

/// The files of an operation, to read from. Everything that was performed can be read.
pub trait Files {
    /// One of them.
    ///
    /// # Errors
    /// ENOENT when it does not exist.
    fn open(&self, file: File) -> Result<&dyn ReadAt>;

    /// Has it a fixed length, and no name to create or remove?
    fn is_device(&self, file: File) -> bool;
}

/// How far a plan has come, in units of its own: sectors, or steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// Of how many; 0 when that is not known.
    pub total: u64,
}

/// An operation as steps that are made when they are asked for, so that none is large in memory.
///
/// Who performs it asks for a step, performs it, and asks for the next, until there is none:
///
/// ```
/// use vhd::plan::{Files, Plan, Step};
///
/// fn perform(
///     plan: &mut dyn Plan,
///     files: &dyn Files,
///     step: &mut dyn FnMut(&Step) -> vhd::Result<()>,
/// ) -> vhd::Result<()> {
///     while let Some(next) = plan.next(files)? {
///         if let Err(error) = step(&next) {
///             plan.failed(error)?;
///         }
///     }
///     Ok(())
/// }
/// ```
pub trait Plan {
    /// Steps that are made and not asked for yet.
    fn queue(&mut self) -> &mut Steps;

    /// Makes steps. Returns false when the operation is at its end and there are none.
    ///
    /// # Errors
    /// What was found in the files, or the error that [`Plan::failed`] was given.
    fn advance(&mut self, files: &dyn Files) -> Result<bool>;

    /// Whether a copy may be under way while the next steps are made, and the next copy read: the
    /// plan reads nothing that its copies write, copies nothing of it, and has no answer to a copy
    /// that fails.
    fn copies_are_apart(&self) -> bool {
        false
    }

    /// The next step; `None` at the end. All steps before it have been performed, but for a copy of
    /// a plan that says so.
    ///
    /// # Errors
    /// As for [`Plan::advance`].
    fn next(&mut self, files: &dyn Files) -> Result<Option<Step>> {
        loop {
            if let Some(step) = self.queue().pop() {
                return Ok(Some(step));
            }
            if !self.advance(files)? {
                return Ok(self.queue().pop());
            }
        }
    }

    /// The last step could not be performed. When this returns Ok, the plan goes on: it has another
    /// way, or something to put in order before its `next` returns that error.
    ///
    /// # Errors
    /// `error`, when there is nothing to be done about it.
    fn failed(&mut self, error: Error) -> Result<()> {
        Err(error)
    }

    /// For people who wait.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}

/// The most that one [`Step::Write`], [`Step::Copy`] or [`Step::Code`] moves, so that an executor's
/// memory is bounded: the largest block with its bitmap.
pub const PIECE_BYTES_MAX: u64 = (2 << 20) + 512;
