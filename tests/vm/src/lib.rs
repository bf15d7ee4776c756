//! Virtual machines for tests: a plain Linux, and Xen with a dom0 and guests.
//!
//! A machine is QEMU with a kernel from Debian's packages and a file system in memory that holds
//! our programs, what a test asks for, and an agent that runs commands. Nothing is installed but
//! QEMU. `docs/vm.md` says how it works and how a test is written.
//!
//! ```no_run
//! # fn main() -> tapdisk_vm::Result<()> {
//! let machine = tapdisk_vm::Machine::plain().with_disk("sr", 256 << 20).boot()?;
//! let listed = machine.run(["tap-ctl", "list"])?;
//! assert_eq!(listed.status, 0, "{listed:?}");
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod bench;
mod cpio;
mod debug_kernel;
mod files;
mod guest;
mod host;
mod kernel;
mod machine;
mod modules;
mod packages;
mod plan;
mod qemu;
mod remote;
mod shared;
mod warnings;
pub mod wire;
mod xen;

pub use debug_kernel::{build_debug_kernel, is_debug_kernel};
pub use guest::Guest;
pub use kernel::{build_module, build_test};
pub use machine::Machine;
pub use plan::{INSTRUCTION_NS, Plan};
pub use remote::{Remote, Running};
pub use shared::{Lent, Shared};
pub use tapdisk_tests::{Ran, skip};

/// Where a program of this machine is, if it has it.
#[must_use]
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    host::find(name)
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmError {
    /// Something that a machine needs cannot be had here: a test that needs it is skipped.
    Unavailable(String),
    /// Something failed.
    Failed(String),
}

impl std::fmt::Display for VmError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(what) | Self::Failed(what) => formatter.write_str(what),
        }
    }
}

impl std::error::Error for VmError {}

/// A result with our error.
pub type Result<T> = std::result::Result<T, VmError>;
