//! The laws of the offline operations: power cuts and errors everywhere, on images of a few KiB.
//!
//! `cargo test -p vhd --test operations -- --nocapture` prints how many states were tried.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod coalesce;
mod compact;
mod create;
mod fill;
mod golden;
mod hostile;
mod image;
mod law;
mod modify;
mod repair;
mod resize;
mod set;
mod view;
