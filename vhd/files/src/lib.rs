//! Image files and devices of this host: what the tools and the daemon both do with them, and what
//! the `vhd` crate, which knows no files, leaves to others.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "what cannot be set up is a failed test"))]

pub mod buffer;
pub mod encryption;
pub mod execute;
pub mod file;
pub mod host;
pub mod lock;
