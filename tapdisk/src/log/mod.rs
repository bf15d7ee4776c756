//! The log: from any thread, into the journal, syslog, a file or the standard error.
//!
//! ```text
//!   any thread ── try_send ──> bounded queue ──> writer thread ──> sink
//!                    └ full: counted, dropped
//! ```
//!
//! Logging never waits: not for the queue, which drops what does not fit, and not for the sink,
//! which only the writer thread touches. A log on a dead disk costs lines, not requests. Lines that
//! are lost are counted ([`LogHandle::dropped`], [`LogHandle::failed`]), and the log itself says
//! how many went missing as soon as there is room again.
//!
//! A line is bounded before it is queued, so the queue is bounded in bytes too. What others chose
//! (paths, names of peers) is escaped: it cannot end a line and begin another.
//!
//! Why not slog-async, whose thread does the same: it tells neither when its queue is empty (then
//! is the time to flush and to report), nor when a record was made, and its end waits without a
//! limit.

mod entry;
mod format;
mod rate;
mod sink;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::{Duration, SystemTime};

use slog::{Drain, Level, Logger, OwnedKVList, Record};

use entry::Entry;
pub use rate::{RATE_BURST, RATE_WINDOW, RateLimit};
use sink::Sink;
use writer::{Message, Shared, Writer};

/// How many records the queue holds: the dump of the state of a few dozen disks in one go.
pub const QUEUE_LEN: usize = 1024;

/// How long the end of the process waits for the writer: a sink on a dead disk does not hold it up.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of this program in the journal and in syslog.
const IDENTIFIER: &str = "tapdisk";

/// Where the log goes: the value of `--log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The journal if its socket is there, else syslog if its is, else a file, else (it cannot be
    /// made) the standard error.
    #[default]
    Auto,
    /// systemd's journal, by its native protocol.
    Journald,
    /// RFC 3164 datagrams to `/dev/log`.
    Syslog,
    /// The file of that path, appended to, never deleted. Without a path: one for this process, in
    /// `/var/log/blktap`, deleted at a clean end unless there were errors in it.
    File(Option<PathBuf>),
    /// The standard error.
    Stderr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "journald" => Ok(Self::Journald),
            "syslog" => Ok(Self::Syslog),
            "file" => Ok(Self::File(None)),
            "stderr" => Ok(Self::Stderr),
            other => match other.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(Some(path.into()))),
                _ => Err(format!(
                    "Unknown log {other:?}, expected journald, syslog, file[:PATH], stderr or auto"
                )),
            },
        }
    }
}

/// What [`Log::start`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to.
    pub target: Target,
    /// The least severe level that is logged.
    pub level: Level,
    /// Of this process, after it went into the background.
    pub pid: u32,
    /// The journal's socket.
    pub journald: PathBuf,
    /// The socket of syslog.
    pub syslog: PathBuf,
    /// Where the file of this process is made; made itself, with mode 0755, when it is not there.
    pub directory: PathBuf,
}

impl Config {
    /// With the paths of a real system.
    #[must_use]
    pub fn new(target: Target, level: Level) -> Self {
        Self {
            target,
            level,
            pid: std::process::id(),
            journald: "/run/systemd/journal/socket".into(),
            syslog: "/dev/log".into(),
            directory: "/var/log/blktap".into(),
        }
    }
}

/// The log of this process: owned by `main`, which ends it.
#[derive(Debug)]
pub struct Log {
    logger: Logger,
    handle: LogHandle,
    /// Says nothing; its end is the end of the writer.
    ended: Receiver<()>,
}

impl Log {
    /// Opens the sink and starts the writer thread; call it after going into the background.
    ///
    /// # Errors
    /// When there can be no socket or thread, or the file cannot be opened. A socket that nobody
    /// listens at is none: what goes there is lost and counted until somebody does.
    pub fn start(config: &Config) -> io::Result<Self> {
        Self::with_sink(sink::open(config)?, config.level, QUEUE_LEN)
    }

    fn with_sink(sink: Box<dyn Sink>, level: Level, queue_len: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = sync_channel(queue_len);
        let (end, ended) = channel();
        let writer = Writer::new(sink, receiver, Arc::clone(&shared), queue_len, end);
        let builder = std::thread::Builder::new().name("tapdisk-log".to_string());
        builder.spawn(move || writer.run())?;
        let handle = LogHandle { queue: sender.clone(), shared: Arc::clone(&shared) };
        let drain = QueueDrain { queue: sender, shared, level };
        let logger = Logger::root(drain, slog::o!());
        Ok(Self { logger, handle, ended })
    }

    /// Where to log.
    pub fn logger(&self) -> &Logger {
        &self.logger
    }

    /// For counters and signals.
    #[must_use]
    pub fn handle(&self) -> &LogHandle {
        &self.handle
    }

    /// Ends the log, when all that is in the queue is written. After a clean end of the process its
    /// file is deleted, unless there were errors in it.
    ///
    /// # Errors
    /// `TimedOut` when the sink does not come to an end within 2 s; it is left behind.
    pub fn finish(self, clean: bool) -> io::Result<()> {
        self.finish_within(clean, FINISH_TIMEOUT)
    }

    fn finish_within(self, clean: bool, timeout: Duration) -> io::Result<()> {
        self.handle.shared.close(clean);
        self.handle.wake();
        match self.ended.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => {
                let text = format!("The log was not written within {} ms", timeout.as_millis());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            _ => Ok(()),
        }
    }
}

/// A view of the log for any thread.
#[derive(Clone)]
pub struct LogHandle {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

impl LogHandle {
    /// Records that found the queue full, since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped()
    }

    /// Lines that the sink did not take, since the start.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed()
    }

    /// Opens the file of the log anew: it was moved away. Does not wait for it.
    pub fn reopen(&self) {
        self.shared.ask_to_reopen();
        self.wake();
    }

    /// A full queue means that the writer is awake.
    fn wake(&self) {
        let _ = self.queue.try_send(Message::Wake);
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LogHandle")
            .field("dropped", &self.dropped())
            .field("failed", &self.failed())
            .finish_non_exhaustive()
    }
}

/// slog's end of the queue.
struct QueueDrain {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    level: Level,
}

impl Drain for QueueDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        if !self.is_enabled(record.level()) {
            return Ok(());
        }
        if record.level().is_at_least(Level::Error) {
            // Before it may be dropped: a log that lost an error is worth keeping as well.
            self.shared.keep_file();
        }
        let entry = Entry::new(record, values, SystemTime::now());
        if self.queue.try_send(Message::Entry(entry)).is_err() {
            self.shared.count_dropped();
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(self.level)
    }
}
