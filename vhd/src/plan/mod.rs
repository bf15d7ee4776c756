//! Operations as plans: which bytes go where, in which order, and what must be durable before what.
//!
//! A plan names steps; somebody else performs them, on files or in a simulator, so the rules that
//! keep an image whole when the power fails are data, and [`crash`] tries every way to break them.
//! Steps between two [`Step::Barrier`]s may reach the storage in any order, in part or not at all.
//! What each operation relies on is written down in `docs/vhd-operations.md`.

pub mod crash;
pub mod memory;

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
}

/// The most that one [`Step::Write`] or [`Step::Copy`] moves, so that an executor's memory is
/// bounded: the largest block with its bitmap.
pub const PIECE_BYTES_MAX: u64 = (2 << 20) + 512;
