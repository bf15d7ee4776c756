//! The system calls of a process's life for which neither std nor nix has a safe form.
//!
//! A room with `unsafe`. Each function says what it needs; what it can check, it checks: `fork`
//! that there is no other thread. The one promise that its callers keep is that of [`close_from`].
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The process that called.
    Parent,
    /// Its copy.
    Child,
}

/// Splits the process.
///
/// # Errors
/// `Unsupported` when this process has other threads, or it cannot be told; otherwise what fork
/// says.
pub(super) fn split() -> io::Result<Side> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let text = format!("Cannot fork with {threads} threads, expected 1");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    // SAFETY: the danger of fork is that the child finds locks held by threads that it does not
    // have; there is one thread, the caller (checked above), and nobody else could start another.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => Ok(Side::Parent),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Ends the process at once: no destructors, no exit handlers, no buffers written twice.
pub(super) fn exit_now(status: u8) -> ! {
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Closes every descriptor from `first` on. The caller promises that nothing in this process owns
/// one of them.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub(super) fn close_from(first: u32) -> Result<(), Errno> {
    let (first, last) = (libc::c_long::from(first), libc::c_long::from(u32::MAX));
    // SAFETY: close_range takes three integers and touches no memory; nobody uses the descriptors
    // afterwards (the caller's promise).
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result).map(drop)
}

/// Closes one descriptor, under the same promise. One that is not open is none of ours to mind.
pub(super) fn close_one(fd: RawFd) {
    // SAFETY: close takes an integer; nobody uses the descriptor afterwards (the caller's promise).
    // Its errors leave the descriptor closed, on Linux, or say that it was.
    let _ = unsafe { libc::close(fd) };
}

/// Sets a signal to be ignored.
pub(super) fn ignore(which: Signal) -> io::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours, so there is nothing that would have to be safe in a
    // signal handler.
    unsafe { signal(which, SigHandler::SigIgn) }?;
    Ok(())
}

/// `PR_SET_IO_FLUSHER` of linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread is a part of the block layer: its own allocations do not wait
/// for dirty pages to be written, which could be pages that only it can write.
///
/// # Errors
/// `EINVAL` before Linux 5.6, `EPERM` without CAP_SYS_RESOURCE.
pub(super) fn set_io_flusher() -> Result<(), Errno> {
    let (on, zero): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this option takes integers only, of this width; the kernel wants the last three zero.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, zero, zero, zero) };
    Errno::result(result).map(drop)
}

/// A time of day where this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// 0 is January.
    pub(crate) month: u8,
    /// 1 to 31.
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    /// 60 in a leap second.
    pub(crate) second: u8,
}

/// The local time of `seconds` since 1970; `None` when the C library cannot say.
pub(crate) fn local_time(seconds: i64) -> Option<LocalTime> {
    // SAFETY: `tm` is a C struct of integers and a pointer that may be null: zeros are a valid
    // value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type, and the function keeps neither.
    // It reads the environment, which this process never changes.
    let result = unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
    if result.is_null() {
        return None;
    }
    Some(LocalTime {
        month: u8::try_from(tm.tm_mon).ok()?,
        day: u8::try_from(tm.tm_mday).ok()?,
        hour: u8::try_from(tm.tm_hour).ok()?,
        minute: u8::try_from(tm.tm_min).ok()?,
        second: u8::try_from(tm.tm_sec).ok()?,
    })
}

/// Runs `case` in a copy of this process that has this thread only, and exits as it does: for
/// tests, whose harness has a thread of its own.
#[cfg(test)]
pub(super) fn alone(case: impl FnOnce() + std::panic::UnwindSafe) -> ! {
    use nix::sys::wait::{WaitStatus, waitpid};
    // SAFETY: the harness waits for this test and holds no lock that the copy takes; the
    // allocator's are looked after by the C library.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => exit_now(std::panic::catch_unwind(case).map_or(101, |()| 0)),
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, status) => exit_now(u8::try_from(status).unwrap()),
            other => panic!("{other:?}"),
        },
    }
}
