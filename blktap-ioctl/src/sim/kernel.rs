//! The simulated driver: its state behind one lock, and the events that it raises.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::SimOptions;
use super::queue::BlockRequest;
use super::state::State;
use crate::abi::MAP_SIZE;
use crate::ring::Pages;

/// Both eventfds, the shared memory and the state.
#[derive(Debug)]
pub(super) struct Kernel {
    memory: OwnedFd,
    /// The same pages once more, for who does not ask for the lock.
    pages: Pages,
    /// Readable: the ring should be polled.
    ring_event: EventFd,
    /// Readable: there are completions.
    done_event: EventFd,
    state: Mutex<State>,
}

impl Kernel {
    pub(super) fn new(options: SimOptions) -> io::Result<Self> {
        let memory = memfd_create("blktap-ring", MFdFlags::MFD_CLOEXEC)?;
        let size = i64::try_from(MAP_SIZE).expect("1.4 MB fit");
        nix::unistd::ftruncate(&memory, size)?;
        let event = || {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            EventFd::from_value_and_flags(0, flags)
        };
        let state = State::new(options, Pages::map(memory.as_fd())?);
        Ok(Self {
            pages: Pages::map(memory.as_fd())?,
            memory,
            ring_event: event()?,
            done_event: event()?,
            state: Mutex::new(state),
        })
    }

    /// The state, also after a test that panicked while it had the lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be written at any time, whatever the state.
    pub(super) fn unlocked_pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn ring_event(&self) -> BorrowedFd<'_> {
        self.ring_event.as_fd()
    }

    pub(super) fn done_event(&self) -> BorrowedFd<'_> {
        self.done_event.as_fd()
    }

    /// Changes the state, and wakes the server once until it polls.
    pub(super) fn wake_after<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.wake(&mut state);
        result
    }

    fn wake(&self, state: &mut State) {
        if !state.is_ring_signalled {
            state.is_ring_signalled = true;
            self.ring_event.write(1).expect("an eventfd that was read takes a 1");
        }
    }

    /// Changes the state, and tells the callers when requests ended by it.
    pub(super) fn end_after<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        self.signal_done(&mut state);
        result
    }

    fn signal_done(&self, state: &mut State) {
        if state.queue.done_count() != 0 && !state.is_done_signalled {
            state.is_done_signalled = true;
            self.done_event.write(1).expect("an eventfd that was read takes a 1");
        }
    }

    /// The callers look for completions from now on.
    pub(super) fn clear_done(&self, state: &mut State) {
        if state.is_done_signalled {
            state.is_done_signalled = false;
            self.done_event.read().expect("the flag says that it was written");
        }
    }

    pub(super) fn submit(&self, request: BlockRequest, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.lock();
        state.accepts(&request)?;
        state.queue.push(request, data)?;
        self.wake(&mut state);
        Ok(())
    }

    pub(super) fn map(&self) -> io::Result<Pages> {
        if self.lock().check_mapped().is_ok() {
            return Err(Errno::EBUSY.into());
        }
        let pages = Pages::map(self.memory.as_fd())?;
        // What has been waiting for a ring is published by its first poll.
        self.wake_after(State::mapped);
        Ok(pages)
    }

    /// The poll method.
    pub(super) fn poll(&self) -> bool {
        let mut state = self.lock();
        if state.is_ring_signalled {
            state.is_ring_signalled = false;
            self.ring_event.read().expect("the flag says that it was written");
        }
        state.poll()
    }

    /// The RESPOND ioctl.
    pub(super) fn respond(&self) -> Result<(), Errno> {
        let mut state = self.lock();
        state.check_mapped()?;
        let has_responses = state.consume();
        // Slots are free for what waits; a pause is reached.
        if has_responses && (state.queue.has_waiting() || state.pages.message() != 0) {
            self.wake(&mut state);
        }
        self.signal_done(&mut state);
        Ok(())
    }
}
