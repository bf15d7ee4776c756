//! The writer thread: takes records from the queue and gives them to the sink.
//!
//! It flushes when the queue is empty, so that a burst costs few writes and a single line is not
//! held back. What was dropped is reported then too, or after as many records as the queue holds,
//! for a queue that never empties.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use slog::Level;

use super::entry::Entry;
use super::sink::Sink;

/// What goes through the queue.
pub(super) enum Message {
    /// To be written.
    Entry(Entry),
    /// Look at [`Shared`]: something was asked for.
    Wake,
}

/// What the writer and the other threads tell each other beside the queue.
#[derive(Debug, Default)]
pub(super) struct Shared {
    dropped: AtomicU64,
    failed: AtomicU64,
    reopen: AtomicBool,
    closing: AtomicBool,
    /// The process ended well: its file may be deleted.
    clean: AtomicBool,
    /// There was an error: its file stays.
    keep: AtomicBool,
}

impl Shared {
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn keep_file(&self) {
        self.keep.store(true, Ordering::Release);
    }

    pub(super) fn ask_to_reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }

    pub(super) fn close(&self, clean: bool) {
        self.clean.store(clean, Ordering::Relaxed);
        self.closing.store(true, Ordering::Release);
    }
}

pub(super) struct Writer {
    sink: Box<dyn Sink>,
    queue: Receiver<Message>,
    shared: Arc<Shared>,
    queue_len: usize,
    /// How many of the dropped are reported.
    reported: u64,
    /// Records since the last report.
    written: usize,
    /// Goes last: then there is no sink any more.
    _end: Sender<()>,
}

impl Writer {
    pub(super) fn new(
        sink: Box<dyn Sink>,
        queue: Receiver<Message>,
        shared: Arc<Shared>,
        queue_len: usize,
        end: Sender<()>,
    ) -> Self {
        Self { sink, queue, shared, queue_len, reported: 0, written: 0, _end: end }
    }

    /// Until it is asked to end, or nobody is left who could log.
    pub(super) fn run(mut self) {
        while let Some(message) = self.next() {
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            if let Message::Entry(entry) = message {
                self.write(&entry);
                self.written += 1;
                if self.written >= self.queue_len {
                    self.report_dropped();
                }
            }
        }
        self.report_dropped();
        self.flush();
        let keep = self.shared.keep.load(Ordering::Acquire);
        if self.shared.clean.load(Ordering::Relaxed) && !keep {
            self.sink.remove();
        }
    }

    /// The next message, if need be waited for; `None` at the end.
    fn next(&mut self) -> Option<Message> {
        match self.queue.try_recv() {
            Ok(message) => return Some(message),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        self.report_dropped();
        self.flush();
        // Whoever asks for the end wakes us afterwards: asked for now, it is on its way.
        if self.shared.closing.load(Ordering::Acquire) {
            return None;
        }
        self.queue.recv().ok()
    }

    fn write(&mut self, entry: &Entry) {
        let lost = self.sink.write(entry);
        self.count_failed(lost);
    }

    fn flush(&mut self) {
        let lost = self.sink.flush();
        self.count_failed(lost);
    }

    fn count_failed(&self, lost: u64) {
        if lost > 0 {
            self.shared.failed.fetch_add(lost, Ordering::Relaxed);
        }
    }

    fn reopen(&mut self) {
        self.flush();
        if let Err(error) = self.sink.reopen() {
            let text = format!("Cannot reopen the log, going on with the old one: {error}");
            self.write(&Entry::own(Level::Warning, text));
        }
    }

    fn report_dropped(&mut self) {
        self.written = 0;
        let dropped = self.shared.dropped();
        let missing = dropped - self.reported;
        if missing > 0 {
            self.reported = dropped;
            self.write(&Entry::own(Level::Warning, format!("{missing} messages dropped")));
        }
    }
}
