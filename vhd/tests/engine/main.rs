//! The engine over a simulated disk: every legal outcome of a power cut for short sequences, and
//! long random runs with cuts, kills and failing I/O. The promises are those of docs/durability.md.

#![allow(clippy::cast_possible_truncation, reason = "sizes of tiny images")]

mod exhaustive;
mod image;
mod random;
mod rig;
