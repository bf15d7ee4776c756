//! What the process asks of the kernel for itself: memory that stays, files enough, a core dump.
//!
//! Memory is locked because a server of disks must not wait for a disk: a page of its code that was
//! dropped, or of its data that was swapped out, could come back only through a disk that it
//! serves.
//!
//! * What is mapped at the start (code, libraries, the heap so far) is brought in at once and
//!   locked.
//! * What is mapped later is locked page by page as it is touched (`MCL_ONFAULT`), not at once: a
//!   stack of 2 MiB per thread and an arena per disk would otherwise be resident in full, in
//!   hundreds of processes. What is touched for the first time under load comes out of free memory,
//!   and never waits for a disk: the I/O threads are I/O flushers.
//! * Later memory is locked only when the limit is infinite: under a finite one the mapping that
//!   goes over it *fails*, and a disk would be lost to save it from swapping.

use std::fmt;

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Something that the kernel denied and that can be lived without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What was asked for.
    pub what: &'static str,
    /// The answer.
    pub errno: Errno,
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Cannot {}: {}", self.what, self.errno.desc())
    }
}

/// Raises the limits of this process and locks its memory; returns what was denied. Nothing of it
/// is needed to serve, so none is an error.
#[must_use]
pub fn raise_limits() -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut attempt = |what, result: Result<(), Errno>| {
        if let Err(errno) = result {
            warnings.push(Warning { what, errno });
        }
    };
    attempt("raise RLIMIT_MEMLOCK to infinity", raise(Resource::RLIMIT_MEMLOCK));
    attempt("lock the memory mapped so far", mlockall(MlockAllFlags::MCL_CURRENT));
    if is_infinite(Resource::RLIMIT_MEMLOCK) {
        let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
        attempt("lock the memory mapped later", mlockall(MlockAllFlags::MCL_FUTURE | on_fault));
    }
    attempt("raise RLIMIT_CORE to infinity", raise(Resource::RLIMIT_CORE));
    attempt("raise RLIMIT_NOFILE to its hard limit", raise_to_hard(Resource::RLIMIT_NOFILE));
    warnings
}

fn is_infinite(resource: Resource) -> bool {
    getrlimit(resource).is_ok_and(|(soft, _)| soft == RLIM_INFINITY)
}

/// To infinity, or else as far as it goes.
fn raise(resource: Resource) -> Result<(), Errno> {
    if is_infinite(resource) {
        return Ok(());
    }
    let raised = setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY);
    if raised.is_err() {
        raise_to_hard(resource)?;
    }
    if is_infinite(resource) { Ok(()) } else { raised }
}

fn raise_to_hard(resource: Resource) -> Result<(), Errno> {
    let (_, hard) = getrlimit(resource)?;
    setrlimit(resource, hard, hard)
}
