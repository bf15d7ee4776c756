//! tapdisk's control plane, both halves: the messages on the control socket, the client that
//! tap-ctl is made of, the minors and their marker files, and the layout of the statistics in
//! shared memory.
//!
//! ```text
//!   tap-ctl ── client ──┐                      ┌── the daemon's control thread
//!                       ├── message (544 bytes, one request per connection)
//!   tapback ── client ──┘
//! ```
//!
//! The layouts are those of blktap 4 (struct `tapdisk_message`, x86_64), so that its tap-ctl and
//! its tapdisk can be mixed with these.

#![forbid(unsafe_code)]

pub mod client;
pub mod compose;
mod connection;
pub mod error;
pub mod list;
pub mod message;
pub mod minor;
pub mod paths;
mod process;
pub mod spawn;
pub mod statistics;
#[cfg(test)]
mod test_dir;

pub use client::Client;
pub use error::{ControlError, ErrorKind};
pub use paths::Paths;
