//! Operations that have no asynchronous form everywhere: fdatasync, fallocate, lseek; and the
//! helper thread that does them where they would block the loop.
//!
//! The thread is started when it is first needed, and one is enough: what it does is rare, and the
//! journal of a file system puts most of it in a row anyway.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::EventFd;
use nix::sys::uio::pwrite;
use nix::unistd::{Whence, fdatasync, lseek};

use crate::request::{Extent, ExtentKind};

use super::engine::{Raw, Verb, encode_error, encode_extent};
use super::table::Key;

/// Does one of them and returns its result.
pub(super) fn run(fd: BorrowedFd<'_>, verb: Verb, offset: u64, len: u64) -> i64 {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return encode_error(Errno::EFBIG);
    };
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let result = match verb {
        Verb::Sync => retry(|| fdatasync(fd)),
        Verb::Punch => retry(|| fallocate(fd, punch, offset, len)),
        Verb::Zero => retry(|| fallocate(fd, zero, offset, len)),
        Verb::Fill => fill(fd, offset, len),
        Verb::Extent => return encode_extent(extent(fd, offset, len)),
        Verb::Read | Verb::Write | Verb::WriteDurable => {
            unreachable!("every engine reads and writes")
        }
    };
    result.map_or_else(encode_error, |()| 0)
}

fn retry(mut call: impl FnMut() -> nix::Result<()>) -> nix::Result<()> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 1 << 20]);

/// Never written to, and so no memory.
static ZEROS: Zeros = Zeros([0; 1 << 20]);

/// Writes zeros.
fn fill(fd: BorrowedFd<'_>, mut offset: i64, len: i64) -> nix::Result<()> {
    let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
    while offset < end {
        let left = usize::try_from(end - offset).map_err(|_| Errno::EFBIG)?;
        match pwrite(fd, &ZEROS.0[..left.min(ZEROS.0.len())], offset) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => offset += i64::try_from(written).map_err(|_| Errno::EIO)?,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What the range starts with. The file position moves: nobody uses it.
///
/// A file that cannot tell (a disk: EINVAL) holds data; past the end there is a hole.
fn extent(fd: BorrowedFd<'_>, offset: i64, len: i64) -> Extent {
    let end = offset.saturating_add(len);
    let (kind, until) = match lseek(fd, offset, Whence::SeekData) {
        Ok(data) if data > offset => (ExtentKind::Hole, data),
        Ok(_) => match lseek(fd, offset, Whence::SeekHole) {
            Ok(hole) if hole > offset => (ExtentKind::Data, hole),
            _ => (ExtentKind::Data, end),
        },
        Err(Errno::ENXIO) => (ExtentKind::Hole, end),
        Err(_) => (ExtentKind::Data, end),
    };
    Extent { len: (until.min(end) - offset).unsigned_abs(), kind }
}

struct Job {
    key: Key,
    verb: Verb,
    file: Arc<File>,
    offset: u64,
    len: u64,
}

/// What the queue and the thread share: two lists with room for every I/O of the queue, so that
/// neither side ever waits for room or allocates.
struct Shared {
    lists: Mutex<Lists>,
    /// A job came, or the end.
    todo: Condvar,
    /// A result came.
    done: Condvar,
}

struct Lists {
    jobs: VecDeque<Job>,
    results: Vec<Raw>,
    /// The queue is gone.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().expect("nobody panics with the lists")
    }
}

/// The helper thread, as the queue sees it.
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub(super) fn start(capacity: usize, event: Arc<EventFd>) -> io::Result<Self> {
        let lists = Lists {
            jobs: VecDeque::with_capacity(capacity),
            results: Vec::with_capacity(capacity),
            closed: false,
        };
        let shared = Arc::new(Shared {
            lists: Mutex::new(lists),
            todo: Condvar::new(),
            done: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("queue-helper".to_owned())
            .spawn(move || serve(&theirs, &event))?;
        Ok(Self { shared, thread })
    }

    pub(super) fn give(&self, key: Key, verb: Verb, file: Arc<File>, offset: u64, len: u64) {
        self.shared.lock().jobs.push_back(Job { key, verb, file, offset, len });
        self.shared.todo.notify_one();
    }

    pub(super) fn reap(&self, out: &mut Vec<Raw>) {
        out.append(&mut self.shared.lock().results);
    }

    /// Waits for at least one result.
    pub(super) fn wait(&self, timeout: Duration, out: &mut Vec<Raw>) {
        let none = |lists: &mut Lists| lists.results.is_empty();
        let lists = self.shared.lock();
        let waited = self.shared.done.wait_timeout_while(lists, timeout, none);
        let (mut lists, _) = waited.expect("nobody panics with the lists");
        out.append(&mut lists.results);
    }

    /// Lets the thread end; waits for it only when it has nothing left to do. Otherwise it keeps
    /// what it uses (the files, never the memory of an I/O) and ends by itself, should it come
    /// back.
    pub(super) fn stop(self, join: bool) {
        {
            let mut lists = self.shared.lock();
            lists.jobs.clear();
            lists.closed = true;
        }
        self.shared.todo.notify_one();
        if join {
            self.thread.join().expect("the helper thread does not panic");
        }
    }
}

fn serve(shared: &Shared, event: &EventFd) {
    let idle = |lists: &mut Lists| lists.jobs.is_empty() && !lists.closed;
    loop {
        let waited = shared.todo.wait_while(shared.lock(), idle);
        let job = waited.expect("nobody panics with the lists").jobs.pop_front();
        let Some(Job { key, verb, file, offset, len }) = job else { return };
        let result = run(file.as_fd(), verb, offset, len);
        // Before the result: who sees it may take for granted that nobody else holds the file.
        drop(file);
        shared.lock().results.push(Raw { key, result });
        shared.done.notify_one();
        // Fails only when the counter is full (EAGAIN): then the event is signalled already.
        let _ = event.write(1);
    }
}
