//! The block device's users: what goes into the block layer and what comes back.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::disk::Disk;
use super::hostile::Hostile;
use super::kernel::Kernel;
use super::legacy::PauseState;
use super::queue::{BlockRequest, Outcome, Segments};
use super::state::State;
use crate::abi::REQUEST_BYTES_MAX;
use crate::ring::Op;

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// As submitted.
    pub cookie: u64,
    /// As submitted.
    pub op: Op,
    /// As submitted.
    pub sector: u64,
    /// What its caller sees: mostly EIO, whatever the server's reason.
    pub outcome: Outcome,
    /// What a read brought; empty for all else, on failure, and without `copy_data`.
    pub data: &'a [u8],
}

/// The block layer above the simulated driver. Shared by all that use the device, on any thread.
///
/// Requests are taken when the device exists and the range is inside (ENXIO, EIO), writes when it
/// is not read-only (EPERM), flushes and trims when it has them (EOPNOTSUPP), and while a tag is
/// free (EAGAIN): a tag is in use until the end of its request was looked at.
#[derive(Clone, Debug)]
pub struct SimDevice {
    kernel: Arc<Kernel>,
    /// Stands in for the buffer of the completion that is being looked at.
    spare: Arc<Mutex<Box<[u8]>>>,
    has_data: bool,
}

impl SimDevice {
    pub(super) fn new(kernel: Arc<Kernel>) -> Self {
        let has_data = kernel.lock().options.copy_data;
        let bytes = if has_data { REQUEST_BYTES_MAX } else { 0 };
        Self { kernel, spare: Arc::new(Mutex::new(vec![0; bytes].into())), has_data }
    }

    /// Queues a read. `sector` in 512 bytes, here and below; `cookie` comes back with the
    /// completion.
    ///
    /// # Errors
    /// See [`SimDevice`].
    pub fn submit_read(&self, cookie: u64, sector: u64, segments: Segments) -> Result<(), Errno> {
        self.submit(cookie, Op::Read, sector, 0, segments, &[])
    }

    /// Queues a write; its data go into the pages when it is published.
    ///
    /// # Errors
    /// See [`SimDevice`].
    ///
    /// # Panics
    /// When `data` is not as long as the segments. With `copy_data` off it is not looked at.
    pub fn submit_write(
        &self,
        cookie: u64,
        sector: u64,
        segments: Segments,
        data: &[u8],
    ) -> Result<(), Errno> {
        assert!(!self.has_data || data.len() == segments.bytes(), "{} bytes of data", data.len());
        let data = if self.has_data { data } else { &[] };
        self.submit(cookie, Op::Write, sector, 0, segments, data)
    }

    /// Queues a flush.
    ///
    /// # Errors
    /// See [`SimDevice`].
    pub fn submit_flush(&self, cookie: u64) -> Result<(), Errno> {
        self.submit(cookie, Op::Flush, 0, 0, Segments::default(), &[])
    }

    /// Queues a trim of `sectors` sectors of 512 bytes.
    ///
    /// # Errors
    /// See [`SimDevice`].
    pub fn submit_trim(&self, cookie: u64, sector: u64, sectors: u64) -> Result<(), Errno> {
        self.submit(cookie, Op::Trim, sector, sectors, Segments::default(), &[])
    }

    fn submit(
        &self,
        cookie: u64,
        op: Op,
        sector: u64,
        sectors: u64,
        segments: Segments,
        data: &[u8],
    ) -> Result<(), Errno> {
        let is_data = matches!(op, Op::Read | Op::Write);
        assert!(is_data != segments.as_slice().is_empty(), "{op:?} with {segments:?}");
        self.kernel.submit(BlockRequest { cookie, op, sector, sectors, segments }, data)
    }

    /// Looks at each request that ended before this call, in the order in which they ended. `look`
    /// may submit, but not ask for completions. Returns how many there were.
    ///
    /// # Panics
    /// When two threads, or `look`, ask at the same time.
    pub fn completions(&self, mut look: impl FnMut(Completion<'_>)) -> usize {
        let mut spare = self.spare.try_lock().expect("one looks at completions at a time");
        let mut state = self.kernel.lock();
        self.kernel.clear_done(&mut state);
        let count = state.queue.done_count();
        for _ in 0..count {
            let Some((tag, outcome)) = state.queue.pop_done() else {
                break;
            };
            let BlockRequest { cookie, op, sector, segments, .. } = state.queue.request(tag);
            std::mem::swap(state.queue.buffer(tag), &mut spare);
            state.queue.release(tag);
            drop(state);
            let has_data = outcome.is_ok() && op == Op::Read;
            let len = if has_data { segments.bytes().min(spare.len()) } else { 0 };
            look(Completion { cookie, op, sector, outcome, data: &spare[..len] });
            state = self.kernel.lock();
        }
        count
    }

    /// Requests whose end nobody looked at yet, wherever they are.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.kernel.lock().queue.in_use()
    }

    /// Requests in the ring, at most 32.
    #[must_use]
    pub fn in_ring(&self) -> u32 {
        self.kernel.lock().pending()
    }

    /// The block device; `None` before it is created and after it is removed.
    #[must_use]
    pub fn disk(&self) -> Option<Disk> {
        self.kernel.lock().disk
    }

    /// Opens the block device: it cannot be removed.
    ///
    /// # Errors
    /// ENXIO when there is none.
    pub fn open(&self) -> Result<(), Errno> {
        let mut state = self.kernel.lock();
        state.disk.ok_or(Errno::ENXIO)?;
        state.openers += 1;
        Ok(())
    }

    /// Closes it; the last close is news for the ring's poll.
    ///
    /// # Panics
    /// When it is not open.
    pub fn close(&self) {
        let mut state = self.kernel.lock();
        state.openers = state.openers.checked_sub(1).expect("the device is open");
        let is_last = state.openers == 0;
        drop(state);
        if is_last {
            self.kernel.wake_after(|state| state.is_close_news = true);
        }
    }

    /// Responses that no driver should see: to a request that is not pending, or more than there
    /// can be. A driver may crash on them.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.kernel.lock().violations
    }

    /// The toolstack asks for a pause (2009).
    pub fn request_pause(&self) {
        self.kernel.wake_after(State::request_pause);
    }

    /// The toolstack asks to go on with `name`, at most 255 bytes (2009).
    ///
    /// # Errors
    /// EPERM when it is not paused, ENAMETOOLONG.
    pub fn request_resume(&self, name: &[u8]) -> Result<(), Errno> {
        self.kernel.wake_after(|state| state.request_resume(name))
    }

    /// Where the pause is, and what the server said to the last resume: 0 or a negative errno.
    #[must_use]
    pub fn pause_state(&self) -> (PauseState, Option<i32>) {
        let state = self.kernel.lock();
        (state.pause.state, state.pause.response)
    }

    /// The powers of a driver that keeps no rule.
    #[must_use]
    pub fn hostile(&self) -> Hostile<'_> {
        Hostile::new(&self.kernel)
    }
}

/// Readable when there are completions.
impl AsFd for SimDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.done_event()
    }
}
