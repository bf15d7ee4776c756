//! The laws of the blktap2 ABI: one list, two kernels.
//!
//! Without more the kernel is the simulated one. With `BLKTAP_KERNEL=driver` it is the running
//! one, whose driver has to be there: the same program, started in a virtual machine, one law at a
//! time (`--test-threads=1`). A law that only one of them can keep says why and passes on the
//! other.
// All of this crate is tests, its helpers too.
#![allow(clippy::unwrap_used)]

mod create;
mod data;
mod events;
mod kernel;
mod nodes;
mod raw;
mod requests;
mod teardown;
