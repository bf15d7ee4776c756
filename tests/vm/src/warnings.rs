//! What a kernel says when something is wrong with it.

use crate::debug_kernel::is_debug_kernel;
use crate::remote::Remote;
use crate::{Result, VmError};

/// Words of such lines: of every kernel, and of the checks of the debug kernel.
const WORDS: &str = "WARNING:|BUG |BUG:|INFO:|Oops|Call Trace|general protection|corruption|\
                     refcount_t|blocked for more than|stuck for|ODEBUG|KASAN";

impl Remote {
    /// Lines of the kernel's log that say that something is wrong with the kernel, none when all is
    /// well. The debug kernel has to watch its locks still: it stops with the first error.
    ///
    /// # Errors
    /// When the machine is gone, or the debug kernel does not watch any more.
    pub fn kernel_warnings(&self) -> Result<String> {
        let said = self.sh(&format!("dmesg | grep -E '{WORDS}'"))?.stdout;
        let watches = "grep -q 'debug_locks: *1' /proc/lockdep_stats";
        if said.is_empty() && is_debug_kernel() && self.sh(watches)?.status != 0 {
            return Err(VmError::Failed("The kernel does not watch its locks any more".into()));
        }
        Ok(said)
    }
}
