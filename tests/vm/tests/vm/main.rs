//! A plain Linux in QEMU: our programs on a kernel of Debian's.
// All of this crate is tests, its helpers too.
#![allow(clippy::unwrap_used)]

mod bench;
mod blktap;
mod harness;
