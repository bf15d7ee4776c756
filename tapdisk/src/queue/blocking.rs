//! Operations that have no asynchronous form everywhere: fdatasync, fallocate, lseek; and the helper
//! thread that does them where they would block the loop.
//!
//! The thread is started when it is first needed. Both channels are bounded by the capacity of the
//! queue, so that neither side ever waits for room.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::EventFd;
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

/// The helper thread, as the queue sees it.
pub(super) struct Worker {
    jobs: SyncSender<Job>,
    results: Receiver<Raw>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub(super) fn start(capacity: usize, event: Arc<EventFd>) -> io::Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(capacity);
        let (done, results) = sync_channel(capacity);
        let thread = std::thread::Builder::new()
            .name("queue-helper".to_owned())
            .spawn(move || serve(&todo, &done, &event))?;
        Ok(Self { jobs, results, thread })
    }

    pub(super) fn give(&self, key: Key, verb: Verb, file: Arc<File>, offset: u64, len: u64) {
        let job = Job { key, verb, file, offset, len };
        self.jobs.try_send(job).expect("as many places as the queue knows I/Os");
    }

    pub(super) fn reap(&self, out: &mut Vec<Raw>) {
        out.extend(self.results.try_iter());
    }

    /// Waits for at least one result.
    pub(super) fn wait(&self, timeout: Duration, out: &mut Vec<Raw>) {
        out.extend(self.results.recv_timeout(timeout));
    }

    /// Lets the thread end; waits for it only when it has nothing left to do. Otherwise it keeps what
    /// it uses (the files, never the memory of an I/O) and ends by itself, should it come back.
    pub(super) fn stop(self, join: bool) {
        drop(self.jobs);
        if join {
            self.thread.join().expect("the helper thread does not panic");
        }
    }
}

fn serve(todo: &Receiver<Job>, done: &SyncSender<Raw>, event: &EventFd) {
    use std::os::fd::AsFd;
    while let Ok(Job { key, verb, file, offset, len }) = todo.recv() {
        let result = run(file.as_fd(), verb, offset, len);
        // Before the result: who sees it may take for granted that nobody else holds the file.
        drop(file);
        if done.send(Raw { key, result }).is_err() {
            return;
        }
        // Fails only when the counter is full (EAGAIN): then the event is signalled already.
        let _ = event.write(1);
    }
}
