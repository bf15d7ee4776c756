//! Linux AIO: contexts, control blocks, and the completion ring read in user space.
//!
//! A room with `unsafe`: see [`super`] for the contract. What is specific here:
//! * The control blocks are in a fixed table, one per I/O that the queue knows; the kernel reads
//!   one during `io_submit` and its key field during `io_cancel`.
//! * The context is an address: the kernel maps its ring of completions there, in this process,
//!   until `io_destroy`. The ring has been laid out like this since 2.6; its magic number and its
//!   feature words are checked, and `io_getevents` is used where they differ.
//! * One thread at a time submits and reaps (`&mut`), so the head of the ring is ours alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use super::super::engine::{Raw, Request, Submitted, Verb};
use super::super::table::Key;

// linux/aio_abi.h
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;
const IOCB_FLAG_RESFD: u32 = 1;

// fs/aio.c; the ring is not in a header of the kernel, but has been read like this by other
// programs since 2.6.
const RING_MAGIC: u32 = 0xa10a_10a1;
const RING_COMPAT_FEATURES: u32 = 1;
const RING_INCOMPAT_FEATURES: u32 = 0;

/// The least depth that is worth having.
const DEPTH_MIN: usize = 32;

#[repr(C)]
struct Ring {
    id: u32,
    /// How many events it holds.
    nr: u32,
    head: u32,
    tail: u32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const _: () = assert!(size_of::<Ring>() == 32 && size_of::<Event>() == 32);
const _: () = assert!(std::mem::offset_of!(Ring, head) == 8);
const _: () = assert!(std::mem::offset_of!(Ring, tail) == 12);
const _: () = assert!(size_of::<libc::iocb>() == 64);

const NO_EVENT: Event = Event { data: 0, obj: 0, res: 0, res2: 0 };

/// One context.
pub(in crate::queue) struct Aio {
    /// `None` when it was left behind.
    context: Option<usize>,
    depth: usize,
    blocks: Box<[libc::iocb]>,
    /// What is staged, oldest first.
    batch: Vec<*mut libc::iocb>,
    /// Room for what `io_getevents` brings.
    events: Box<[Event]>,
    /// How many events the ring holds; `None`: its layout is not the one we know.
    ring_size: Option<u32>,
    takes_sync: bool,
}

// SAFETY: the pointers in `batch` are into `blocks`, which goes where this goes; a context belongs
// to the process, not to a thread.
unsafe impl Send for Aio {}

impl Aio {
    /// A context for `depth` I/Os, or half as many until the system's limit allows it.
    pub(in crate::queue) fn open(
        capacity: usize,
        depth: usize,
        event: &EventFd,
    ) -> io::Result<Self> {
        let (context, depth) = halving(depth, setup)?;
        // SAFETY: iocb is a C struct of integers: all zeros is a valid value of it.
        let mut block: libc::iocb = unsafe { std::mem::zeroed() };
        // The same for all: each completion signals the event.
        block.aio_flags = IOCB_FLAG_RESFD;
        block.aio_resfd = u32::try_from(event.as_raw_fd()).expect("a descriptor is not negative");
        let mut aio = Self {
            context: Some(context),
            depth,
            blocks: vec![block; capacity].into(),
            batch: Vec::with_capacity(depth),
            events: vec![NO_EVENT; depth].into(),
            ring_size: None,
            takes_sync: true,
        };
        aio.ring_size = aio.check_ring();
        Ok(aio)
    }

    /// How many it holds at once.
    pub(in crate::queue) fn depth(&self) -> usize {
        self.depth
    }

    pub(in crate::queue) fn takes_sync(&self) -> bool {
        self.takes_sync
    }

    /// Kernels before 4.18 do not know fdatasync here.
    pub(in crate::queue) fn give_up_sync(&mut self) -> bool {
        self.takes_sync = false;
        true
    }

    #[inline(always)]
    pub(in crate::queue) fn stage(&mut self, request: &Request<'_>) {
        let block = &mut self.blocks[request.key.index() as usize];
        let pieces = request.pieces;
        let (single, vectored, flags) = if request.verb == Verb::Read {
            (IOCB_CMD_PREAD, IOCB_CMD_PREADV, 0)
        } else {
            match request.verb {
                Verb::Write => (IOCB_CMD_PWRITE, IOCB_CMD_PWRITEV, 0),
                Verb::WriteDurable => (IOCB_CMD_PWRITE, IOCB_CMD_PWRITEV, libc::RWF_DSYNC),
                Verb::Sync => (IOCB_CMD_FDSYNC, IOCB_CMD_FDSYNC, 0),
                verb => unreachable!("{verb:?} is the helper thread's"),
            }
        };
        (block.aio_lio_opcode, block.aio_buf, block.aio_nbytes) = match pieces {
            [] => (single, 0, 0),
            [one] => (single, one.address() as u64, one.len() as u64),
            many => (vectored, many.as_ptr() as u64, many.len() as u64),
        };
        block.aio_data = request.key.0;
        block.aio_rw_flags = flags;
        block.aio_fildes = u32::try_from(request.fd.as_raw_fd()).expect("not negative");
        // A sync must have none.
        block.aio_offset = if pieces.is_empty() { 0 } else { request.offset.cast_signed() };
        self.batch.push(&raw mut *block);
    }

    pub(in crate::queue) fn submit(&mut self) -> Submitted {
        let context = self.context.expect("not abandoned");
        let (count, blocks) = (self.batch.len(), self.batch.as_mut_ptr());
        // SAFETY: `count` pointers to control blocks of the fixed table, each set by `stage`; what
        // they name is valid for as long as the contract says.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, context, count, blocks) };
        match usize::try_from(result) {
            Ok(accepted) => {
                if accepted == count {
                    self.batch.clear();
                } else {
                    self.batch.drain(..accepted);
                }
                Submitted { accepted, refused: None }
            }
            Err(_) => Submitted { accepted: 0, refused: Some(Errno::last()) },
        }
    }

    pub(in crate::queue) fn withdraw_first(&mut self) -> bool {
        self.batch.remove(0);
        true
    }

    pub(in crate::queue) fn withdraw_all(&mut self) -> bool {
        self.batch.clear();
        true
    }

    #[inline]
    pub(in crate::queue) fn reap(&mut self, out: &mut Vec<Raw>) -> u64 {
        let Some(size) = self.ring_size else {
            self.get_events(0, Duration::ZERO, out);
            return 1;
        };
        let tail = self.word(std::mem::offset_of!(Ring, tail)).load(Ordering::Acquire);
        let head_word = self.word(std::mem::offset_of!(Ring, head));
        let mut head = head_word.load(Ordering::Relaxed);
        if head == tail {
            return 0;
        }
        while head != tail {
            assert!(head < size, "head {head} of a ring of {size} events");
            let event = self.ring_event(head);
            out.push(Raw { key: Key(event.data), result: event.res });
            head += 1;
            if head == size {
                head = 0;
            }
        }
        // After the copies: from here on the kernel may write there again.
        head_word.store(head, Ordering::Release);
        0
    }

    pub(in crate::queue) fn has_results(&self) -> bool {
        self.ring_size.is_none() || {
            let tail = self.word(std::mem::offset_of!(Ring, tail)).load(Ordering::Acquire);
            tail != self.word(std::mem::offset_of!(Ring, head)).load(Ordering::Relaxed)
        }
    }

    pub(in crate::queue) fn wait(
        &mut self,
        at_least: usize,
        timeout: Duration,
        out: &mut Vec<Raw>,
    ) {
        self.get_events(at_least, timeout, out);
    }

    /// An error (a signal) leaves the events where they are.
    fn get_events(&mut self, at_least: usize, timeout: Duration, out: &mut Vec<Raw>) {
        let context = self.context.expect("not abandoned");
        let (most, events) = (self.events.len(), self.events.as_mut_ptr());
        let at_least = at_least.min(most);
        let timeout = libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // SAFETY: the kernel writes at most `most` events into a table of as many; the time is a
        // live local.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                at_least,
                most,
                events,
                &raw const timeout,
            )
        };
        let count = usize::try_from(result).unwrap_or(0);
        let events = self.events.iter().take(count);
        out.extend(events.map(|event| Raw { key: Key(event.data), result: event.res }));
    }

    /// Best effort: files and disks do not know it (EINVAL).
    pub(in crate::queue) fn cancel(&mut self, key: Key) {
        let context = self.context.expect("not abandoned");
        let block = &raw mut self.blocks[key.index() as usize];
        let mut event = NO_EVENT;
        // SAFETY: the control block is in the fixed table; the kernel looks it up by its address,
        // reads its key field, and writes at most one event. The result comes through the ring in
        // any case.
        unsafe { libc::syscall(libc::SYS_io_cancel, context, block, &raw mut event) };
    }

    /// Leaves the context behind: `io_destroy` would wait for I/O that does not come back. The
    /// kernel takes it down with the process.
    pub(in crate::queue) fn abandon(&mut self) {
        self.context = None;
        self.ring_size = None;
    }

    /// The ring's size, when its layout is the one we know.
    fn check_ring(&self) -> Option<u32> {
        // SAFETY: a context that `io_setup` gave is the address of the mapped ring, at least a
        // page; the header is integers, and with nothing in flight none of them changes.
        let ring = unsafe { self.ring().read() };
        let known = ring.magic == RING_MAGIC
            && ring.compat_features == RING_COMPAT_FEATURES
            && ring.incompat_features == RING_INCOMPAT_FEATURES
            && ring.header_length as usize == size_of::<Ring>()
            && ring.nr > 0;
        known.then_some(ring.nr)
    }

    #[inline]
    fn ring(&self) -> *mut Ring {
        std::ptr::with_exposed_provenance_mut(self.context.expect("not abandoned"))
    }

    /// The head or the tail.
    #[inline]
    fn word(&self, offset: usize) -> &AtomicU32 {
        let word: *mut u32 = self.ring().wrapping_byte_add(offset).cast();
        // SAFETY: inside the header, aligned, mapped until `io_destroy`, which only `Drop` calls;
        // the kernel changes it with single stores.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// An event that the kernel has written: `index` is below the size and between head and tail.
    #[inline]
    fn ring_event(&self, index: u32) -> Event {
        let events: *const Event = self.ring().wrapping_add(1).cast_const().cast();
        let event = events.wrapping_add(index as usize);
        // SAFETY: inside the ring, which holds `nr` events behind its header and is mapped until
        // `io_destroy`; complete, because it is before the tail, which was loaded with Acquire.
        unsafe { event.read() }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        if let Some(context) = self.context {
            // SAFETY: the context is ours and not used again. The call waits for what is in flight,
            // which is nothing: otherwise `abandon` was called.
            unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        }
    }
}

fn setup(depth: usize) -> Result<usize, Errno> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: the kernel writes one word, the context, which starts as zero as it must.
    let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
    Errno::result(result)?;
    Ok(usize::try_from(context).expect("an address"))
}

/// Tries smaller depths while the system's limit is in the way; returns the context and its depth.
fn halving(
    wanted: usize,
    mut setup: impl FnMut(usize) -> Result<usize, Errno>,
) -> io::Result<(usize, usize)> {
    let mut depth = wanted;
    loop {
        match setup(depth) {
            Ok(context) => return Ok((context, depth)),
            Err(Errno::EAGAIN) if depth > DEPTH_MIN => depth = (depth / 2).max(DEPTH_MIN),
            Err(errno) => return Err(setup_error(errno, wanted, depth)),
        }
    }
}

/// Says what is missing and what would help.
fn setup_error(errno: Errno, wanted: usize, tried: usize) -> io::Error {
    if errno != Errno::EAGAIN {
        return io::Error::other(format!("Linux AIO is not available: {errno}"));
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/{name}"));
        text.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    };
    let (most, used) = (read("aio-max-nr"), read("aio-nr"));
    io::Error::new(
        io::ErrorKind::WouldBlock,
        format!(
            "No AIO context for {wanted} I/Os, nor for {tried}: the system allows {most} in all \
             (/proc/sys/fs/aio-max-nr) and {used} are taken (/proc/sys/fs/aio-nr); raise the former"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::queue::FileId;
    use crate::queue::sys::iovecs::Iovecs;
    use std::os::fd::AsFd;

    fn event() -> EventFd {
        EventFd::new().unwrap()
    }

    #[test]
    fn knows_the_ring_of_this_kernel() {
        let aio = Aio::open(64, 64, &event()).unwrap();
        let size = aio.ring_size.expect("the layout of the ring has not changed since 2.6");
        assert!(size as usize >= 64);
        assert!(!aio.has_results());
    }

    #[test]
    fn a_ring_of_another_layout_is_left_to_the_kernel() {
        let path = std::env::current_exe().unwrap();
        let file = std::fs::File::open(path).unwrap();
        let mut memory = Memory::new(4096).unwrap();
        let segment = memory.allocate(512).unwrap();
        let mut iovecs = Iovecs::new(1);
        iovecs.fill(0, &memory, &[segment]);
        let event = event();
        let mut aio = Aio::open(1, 1, &event).unwrap();
        aio.ring_size = None;
        for round in 0..4 {
            let (key, verb, file_id) = (Key(round << 32), Verb::Read, FileId::NOBODY);
            let pieces = iovecs.get(Iovecs::own(0, 1));
            let (fd, offset, len) = (file.as_fd(), 0, 512);
            aio.stage(&Request { key, verb, file: file_id, fd, offset, len, pieces });
            assert_eq!(aio.submit().accepted, 1);
            let mut out = Vec::new();
            aio.wait(1, Duration::from_secs(20), &mut out);
            assert_eq!((out[0].key, out[0].result), (key, 512));
            out.clear();
            assert_eq!(aio.reap(&mut out), 1, "asks the kernel");
            assert!(out.is_empty());
        }
    }

    #[test]
    fn halves_the_depth_until_the_system_allows_it() {
        let limit = |most: usize| {
            move |depth| {
                if depth <= most { Ok(4096) } else { Err(Errno::EAGAIN) }
            }
        };
        assert_eq!(halving(256, limit(1000)).unwrap(), (4096, 256));
        assert_eq!(halving(256, limit(100)).unwrap(), (4096, 64));
        assert_eq!(halving(100, limit(40)).unwrap(), (4096, 32));
        let error = halving(256, limit(31)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        // Less than the least that we would go down to, but what was asked for.
        assert_eq!(halving(4, limit(31)).unwrap(), (4096, 4));
    }

    #[test]
    fn the_error_names_the_limit_and_its_values() {
        let text = setup_error(Errno::EAGAIN, 256, 32).to_string();
        assert!(text.contains("/proc/sys/fs/aio-max-nr"), "{text}");
        let most = std::fs::read_to_string("/proc/sys/fs/aio-max-nr").unwrap();
        assert!(text.contains(most.trim()), "{text}");
        assert!(setup_error(Errno::ENOSYS, 256, 32).to_string().contains("ENOSYS"));
    }
}
