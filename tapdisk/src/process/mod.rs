//! The process: how it starts, what it asks of the kernel, which signals reach it.
//!
//! The order at the start of `main` matters; each step says why:
//!
//! ```text
//!   SignalMask::block     before anything: no signal finds us half started
//!   close_inherited       before anything is opened
//!   restrict_umask        before anything is made
//!   daemonise             before any thread exists
//!   raise_limits          the child does not inherit locks on memory
//!   Log::start, threads   they inherit the mask
//!   Signals::open         in the process that reads it
//!   Launch::ready         when the control socket listens: only now the caller may use it
//! ```

mod launch;
mod limits;
mod signals;
mod sys;
#[cfg(test)]
mod tests;
mod thread;

pub use launch::{Launch, close_inherited, daemonise, foreground, restrict_umask};
pub use limits::{Warning, raise_limits};
pub use signals::{Received, SignalEvent, SignalMask, Signals};
pub(crate) use sys::{LocalTime, local_time};
pub use thread::{name_thread, prepare_io_thread};
