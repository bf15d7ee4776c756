//! Xen in QEMU, with a dom0 and guests: a guest's disk is a tapdev that blkback exports.
//!
//! One start of Xen serves all of these tests; each makes its own guests and leaves no guest, no
//! tapdisk and no minor behind.
#![allow(clippy::unwrap_used, reason = "what fails in a machine is a failed test")]

mod chain;
mod crash;
mod disk;
mod errors;
mod flush;
mod life;

use std::path::Path;

use tapdisk_vm::{Machine, Result, Shared, build_module};

static MACHINE: Shared = Shared::new(boot);

const STORAGE_BYTES: u64 = 2 << 30;

fn boot() -> Result<Machine> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver = build_module(&top.join("../kernel"), "blktap")?;
    let scripts = top.join("../../tools/xen");
    let machine = Machine::xen()
        .with_storage(STORAGE_BYTES)
        .with_foreign_module(driver)
        .with_file(scripts.join("block-tap"), "/etc/xen/scripts/block-tap")
        .with_file(scripts.join("xmsnap"), "/usr/bin/xmsnap")
        .with_programs(&["strace", "e2fsck"])
        .boot()?;
    machine.run(["insmod", "/lib/modules/blktap.ko"])?.expect_success();
    Ok(machine)
}
