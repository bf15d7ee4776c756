//! Runs tap-ctl against sockets that misbehave, and against recorded transcripts.
//!
//! Each test has directories of its own; nothing outside them is touched.

// Helpers of tests fail by panicking, like tests.
#![allow(clippy::unwrap_used)]

mod bench;
mod composites;
mod exchange;
mod golden;
mod listing;
mod output;
mod snapshots;
mod usage;
