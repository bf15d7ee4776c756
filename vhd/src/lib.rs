//! The VHD disk image format, sans-I/O: bytes in, meaning out, and back. No files, no clocks.
//!
//! So far the footer, which every VHD ends with. The layout is that of Microsoft's "Virtual Hard
//! Disk Image Format Specification", version 1.0; all numbers are big-endian.
//!
//! ```
//! use vhd::footer::{DiskType, Footer};
//!
//! let footer = Footer::new(DiskType::Fixed, 20 << 20, [7; 16], 0);
//! let bytes = footer.emit();
//! assert_eq!(&bytes[..8], b"conectix");
//! assert_eq!(Footer::parse(&bytes), Ok(footer));
//! ```
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod footer;
pub mod plan;
