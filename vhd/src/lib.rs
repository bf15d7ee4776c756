//! The VHD disk image format, sans-I/O: bytes in, meaning out, and back. No files, no clocks.
//!
//! A VHD is a footer, and for all but fixed disks a header, a block allocation table, and blocks of
//! data with a bitmap each. [`layout`] says where they are in a file; each part has its module. The
//! layouts are those of Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0,
//! and for the batmap, which it does not know, those of this family of programs. All numbers on
//! disk are big-endian.
//!
//! Each part is parsed, `parse`, as leniently as it can be served; `check` has the first complaint
//! of a checking tool; `emit` gives the bytes.
//!
//! ```
//! use vhd::footer::{DiskType, Footer};
//! use vhd::units::{Timestamp, Uuid};
//!
//! let footer = Footer::new(DiskType::Fixed, 20 << 20, Uuid([7; 16]), Timestamp(0));
//! let bytes = footer.emit();
//! assert_eq!(&bytes[..8], b"conectix");
//! assert_eq!(Footer::parse(&bytes), Ok(footer));
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod bytes;
mod cache;

pub mod bat;
pub mod batmap;
pub mod bits;
pub mod chain;
pub mod check;
pub mod engine;
pub mod error;
pub mod footer;
pub mod gate;
pub mod geometry;
pub mod header;
pub mod host;
pub mod image;
pub mod layout;
pub mod locator;
pub mod paths;
pub mod plan;
pub mod read_at;
pub mod units;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use bytes::byte_sum;
pub use error::{Error, ErrorKind, Part, Result};
pub use read_at::ReadAt;
