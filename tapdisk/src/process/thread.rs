//! What a thread sets for itself.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl;

use super::limits::Warning;
use super::sys;

/// The longest name that the kernel keeps, in bytes.
const NAME_MAX: usize = 15;

/// Names this thread, for `top` and debuggers: the first 15 bytes of `name`. (Threads that std
/// starts get the name that their builder was given.)
///
/// # Errors
/// `InvalidInput` when there is a NUL in it.
pub fn name_thread(name: &str) -> io::Result<()> {
    let bytes = name.as_bytes();
    let kept = CString::new(&bytes[..bytes.len().min(NAME_MAX)])?;
    Ok(prctl::set_name(&kept)?)
}

/// Prepares this thread for serving a disk; returns what was denied.
///
/// * Timer slack 1 ns: the default of 50 us is what a guest would wait in addition for each timed
///   wait.
/// * I/O flusher: memory that this thread needs is not freed by writing to the very disk it serves.
///   Kernels before 5.6 do not know it; that is no warning.
#[must_use]
pub fn prepare_io_thread() -> Vec<Warning> {
    let mut warnings = Vec::new();
    if let Err(errno) = prctl::set_timerslack(1) {
        warnings.push(Warning { what: "set the timer slack of an I/O thread", errno });
    }
    match sys::set_io_flusher() {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => warnings.push(Warning { what: "mark an I/O thread as I/O flusher", errno }),
    }
    warnings
}
