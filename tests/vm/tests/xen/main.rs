//! Xen in QEMU, with a dom0 and guests: a guest's disk through our programs.

mod harness;

use tapdisk_vm::{Machine, Result, Shared};

/// One start serves all tests of this program.
static MACHINE: Shared = Shared::new(boot);

const STORAGE_BYTES: u64 = 1 << 30;

fn boot() -> Result<Machine> {
    Machine::xen().with_storage(STORAGE_BYTES).boot()
}
