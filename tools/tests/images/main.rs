//! Runs the tools for images: vhd-util, td-util, cbt-util.
//!
//! Each test has a directory of its own; nothing outside it is touched.

// Helpers of tests fail by panicking, like tests.
#![allow(clippy::unwrap_used)]

mod bench;
mod cbt;
mod defects;
mod faults;
mod large;
mod locks;
mod making;
mod telling;
