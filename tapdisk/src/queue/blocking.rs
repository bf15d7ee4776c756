//! Operations that have no asynchronous form everywhere: fdatasync, fallocate, lseek; and the
//! helper thread that does them where they would block the loop.
//!
//! The thread is started when it is first needed, and one is enough: what it does is rare, and the
//! journal of a file system puts most of it in a row anyway. Long ranges are done in pieces, so
//! that a close that does not wait can stop the thread between two of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
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

/// How many bytes one call zeroes or gives up: a disk that writes 100 MB a second, because it knows
/// no better way, is done with it in less than a second.
const PIECE: i64 = 64 << 20;

/// Does one of them and returns its result; `stop` is asked before each piece of a long one.
pub(super) fn run(
    fd: BorrowedFd<'_>,
    verb: Verb,
    offset: u64,
    len: u64,
    stop: impl Fn() -> bool,
) -> i64 {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return encode_error(Errno::EFBIG);
    };
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let allocate = |mode| {
        in_pieces(offset, len, &stop, |offset, len| {
            let piece = len.min(PIECE);
            fallocate(fd, mode, offset, piece).map(|()| piece)
        })
    };
    let result = match verb {
        Verb::Sync => retry(|| fdatasync(fd)),
        Verb::Punch => allocate(punch),
        Verb::Zero => allocate(zero),
        Verb::Fill => in_pieces(offset, len, &stop, |offset, len| write_zeros(fd, offset, len)),
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

/// Does a range by calls that each say how much of the rest they did.
fn in_pieces(
    mut offset: i64,
    len: i64,
    stop: &impl Fn() -> bool,
    mut piece: impl FnMut(i64, i64) -> nix::Result<i64>,
) -> nix::Result<()> {
    let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
    while offset < end {
        if stop() {
            return Err(Errno::ECANCELED);
        }
        match piece(offset, end - offset) {
            Ok(done) if (1..=end - offset).contains(&done) => offset += done,
            Ok(_) => return Err(Errno::EIO),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Aligned for direct I/O.
#[repr(align(4096))]
struct Zeros([u8; 1 << 20]);

/// Never written to, and so no memory.
static ZEROS: Zeros = Zeros([0; 1 << 20]);

/// Writes some zeros; returns how many.
fn write_zeros(fd: BorrowedFd<'_>, offset: i64, len: i64) -> nix::Result<i64> {
    let len = usize::try_from(len).map_or(ZEROS.0.len(), |len| len.min(ZEROS.0.len()));
    let written = pwrite(fd, &ZEROS.0[..len], offset)?;
    i64::try_from(written).map_err(|_| Errno::EIO)
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
    /// In the order in which they were given, from 1 on.
    number: u64,
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
    /// The last job that is not to be gone on with; raised by the queue, looked at between pieces.
    cancelled: AtomicU64,
}

struct Lists {
    jobs: VecDeque<Job>,
    results: Vec<Raw>,
    /// How many jobs were given.
    given: u64,
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
            given: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            lists: Mutex::new(lists),
            todo: Condvar::new(),
            done: Condvar::new(),
            cancelled: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("queue-helper".to_owned())
            .spawn(move || serve(&theirs, &event))?;
        Ok(Self { shared, thread })
    }

    pub(super) fn give(&self, key: Key, verb: Verb, file: Arc<File>, offset: u64, len: u64) {
        {
            let mut lists = self.shared.lock();
            lists.given += 1;
            let number = lists.given;
            lists.jobs.push_back(Job { number, key, verb, file, offset, len });
        }
        self.shared.todo.notify_one();
    }

    /// Lets all that was given so far end soon: what has not begun, and a long one after its
    /// present piece, with ECANCELED. A system call under way is waited for.
    pub(super) fn cancel(&self) {
        let given = self.shared.lock().given;
        self.shared.cancelled.store(given, Ordering::Relaxed);
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
            self.shared.cancelled.store(u64::MAX, Ordering::Relaxed);
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
        let Some(Job { number, key, verb, file, offset, len }) = job else { return };
        let stop = || number <= shared.cancelled.load(Ordering::Relaxed);
        let result = if stop() {
            encode_error(Errno::ECANCELED)
        } else {
            run(file.as_fd(), verb, offset, len, stop)
        };
        // Before the result: who sees it may take for granted that nobody else holds the file.
        drop(file);
        shared.lock().results.push(Raw { key, result });
        shared.done.notify_one();
        // Fails only when the counter is full (EAGAIN): then the event is signalled already.
        let _ = event.write(1);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_long_range_is_done_in_pieces_that_make_it_up() {
        let mut done = Vec::new();
        let result = in_pieces(5, 20, &|| false, |offset, left| {
            let piece = left.min(8);
            done.push((offset, piece));
            Ok(piece)
        });
        assert_eq!((result, done), (Ok(()), vec![(5, 8), (13, 8), (21, 4)]));
    }

    #[test]
    fn a_long_range_stops_between_two_pieces() {
        let asked = std::cell::Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        let mut done = 0;
        let result = in_pieces(0, 100, &stop, |_, _| {
            done += 1;
            Ok(1)
        });
        assert_eq!((result, done), (Err(Errno::ECANCELED), 3));
    }

    #[test]
    fn a_piece_of_nothing_or_of_too_much_is_an_error() {
        for wrong in [0, 11] {
            assert_eq!(in_pieces(0, 10, &|| false, |_, _| Ok(wrong)), Err(Errno::EIO));
        }
    }

    #[test]
    fn a_cancelled_thread_ends_what_it_fills_and_what_waits_and_takes_the_next() {
        let event = Arc::new(EventFd::new().unwrap());
        let worker = Worker::start(8, event).unwrap();
        let memory = memfd_create(c"fill", MFdFlags::MFD_CLOEXEC).unwrap();
        let file = Arc::new(File::from(memory));
        // More than anybody fills before the next statement.
        worker.give(Key(0), Verb::Fill, Arc::clone(&file), 0, 1 << 40);
        worker.give(Key(1), Verb::Sync, Arc::clone(&file), 0, 0);
        worker.cancel();
        worker.give(Key(2), Verb::Fill, file, 0, 4096);
        let mut results = Vec::new();
        while results.len() < 3 {
            worker.wait(Duration::from_secs(10), &mut results);
        }
        let results: Vec<_> = results.iter().map(|raw| (raw.key.0, raw.result)).collect();
        let cancelled = encode_error(Errno::ECANCELED);
        assert_eq!(results, [(0, cancelled), (1, cancelled), (2, 0)]);
        worker.stop(true);
    }
}
