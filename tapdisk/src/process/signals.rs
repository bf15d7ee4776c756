//! Signals, as events of the control thread's loop.
//!
//! No handler runs: the signals are blocked in every thread and read from a signalfd, where any
//! code may run in answer.
//!
//! * SIGINT, [`SignalEvent::Interrupt`]: close all disks in order, exit when they are closed.
//! * SIGTERM, [`SignalEvent::Terminate`]: with no disk open exit at once, else as SIGINT. Where
//!   tapdisk used to die of it, the storage manager sends it after a failed launch and waits for
//!   the end: that case stays as quick, and a disk that is in use is not torn from its guest.
//! * SIGUSR1, [`SignalEvent::Dump`]: the state of all disks into the log.
//! * SIGUSR2, [`SignalEvent::Poll`]: poll the rings for a while.
//! * SIGHUP, [`SignalEvent::ReopenLog`].
//! * SIGPIPE is ignored: the write says so.
//! * SIGXFSZ is ignored: the write over the limit fails with EFBIG, which ends that request and
//!   leaves other disks alone; the signal itself goes to one thread and names no file.
//! * SIGBUS keeps its default and ends the process: it comes from an access to a mapped page that
//!   is no more (the ring, a truncated file). The thread cannot go on, and a signalfd cannot catch
//!   it: the kernel resets a blocked synchronous signal to its default.
//!
//! All others keep their default.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, event};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::sys;

/// What somebody asks of the daemon by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalEvent {
    /// Close all disks; exit when they are closed.
    Interrupt,
    /// Exit at once if no disk is open; otherwise as [`SignalEvent::Interrupt`].
    Terminate,
    /// Write the state of all disks into the log.
    Dump,
    /// Poll the rings for a while.
    Poll,
    /// Reopen the file of the log.
    ReopenLog,
}

/// The signals that are events.
const EVENTS: [(Signal, SignalEvent); 5] = [
    (Signal::SIGINT, SignalEvent::Interrupt),
    (Signal::SIGTERM, SignalEvent::Terminate),
    (Signal::SIGUSR1, SignalEvent::Dump),
    (Signal::SIGUSR2, SignalEvent::Poll),
    (Signal::SIGHUP, SignalEvent::ReopenLog),
];

fn events() -> SigSet {
    EVENTS.iter().map(|(signal, _)| *signal).collect()
}

/// The mask that this process was started with. The signals that are events are blocked now, in
/// this thread and in those that it starts.
#[derive(Clone, Copy, Debug)]
pub struct SignalMask {
    original: SigSet,
}

impl SignalMask {
    /// Blocks the signals that are events and ignores those that come with an error code of their
    /// own. First thing in `main`: until then a SIGUSR1 ends the process.
    ///
    /// # Errors
    /// What the system says; it has no reason to.
    pub fn block() -> io::Result<Self> {
        let original = events().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        sys::ignore(Signal::SIGPIPE)?;
        sys::ignore(Signal::SIGXFSZ)?;
        Ok(Self { original })
    }

    /// Puts the original mask back, for this thread: in a child process before it runs another
    /// program. One system call, safe between fork and exec.
    ///
    /// # Errors
    /// What the system says; it has no reason to.
    pub fn restore(&self) -> io::Result<()> {
        Ok(self.original.thread_set_mask()?)
    }
}

/// One signal that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// What it asks for.
    pub event: SignalEvent,
    /// The process that sent it; 0 for the kernel.
    pub pid: u32,
    /// The user of that process.
    pub uid: u32,
}

/// Where signals are read. One thread owns it and has it in its loop.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Opens it; after [`daemonise`](super::daemonise): it belongs to the process that opens it.
    ///
    /// # Errors
    /// What signalfd says.
    pub fn open(_blocked: &SignalMask) -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { fd: SignalFd::with_flags(&events(), flags)? })
    }

    /// The next signal; `None` when there is none.
    ///
    /// # Errors
    /// What reading says.
    pub fn receive(&mut self) -> io::Result<Option<Received>> {
        loop {
            let information = match self.fd.read_signal() {
                Ok(Some(information)) => information,
                Ok(None) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let number = i32::try_from(information.ssi_signo).unwrap_or(0);
            let known = EVENTS.iter().find(|(signal, _)| *signal as i32 == number);
            if let Some((_, event)) = known {
                let (pid, uid) = (information.ssi_pid, information.ssi_uid);
                return Ok(Some(Received { event: *event, pid, uid }));
            }
        }
    }
}

impl event::Source for Signals {
    fn register(&mut self, registry: &Registry, token: Token, wanted: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, wanted)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        wanted: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, wanted)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }
}
