//! tapdisk: serves virtual disks to Xen guests and NBD clients from raw and VHD images.
//!
//! ```text
//!   server ──> vbd ──> frontend      a door: kernel ring, NBD, ... (never names an image)
//!                └───> chain ──> layer, image   what answers "where" (never names a door)
//!                └───> queue     the one place that does file I/O
//! ```
//!
//! ARCHITECTURE.md at the top of the tree has the map, the life of a request and the glossary.

pub mod chain;
pub mod disk;
pub mod error;
pub mod frontend;
pub mod image;
pub mod layer;
pub mod log;
pub mod memory;
pub mod process;
pub mod queue;
pub mod request;
mod row;
pub mod server;
pub mod statistics;
pub mod status;
mod sys;
pub mod time;
pub mod vbd;
