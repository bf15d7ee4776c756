//! A plain Linux in QEMU: our programs on a kernel of Debian's.
// All of this crate is tests, its helpers too.
#![allow(clippy::unwrap_used)]

mod blktap;
mod drive;
mod harness;

use tapdisk_vm::{Machine, Result, Shared};

/// One start serves all tests of this program.
static MACHINE: Shared = Shared::new(boot);

const STORAGE_BYTES: u64 = 1 << 30;

fn boot() -> Result<Machine> {
    Machine::plain().label("vm").with_storage(STORAGE_BYTES).boot()
}
