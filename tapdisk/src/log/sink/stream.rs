//! The standard error: a terminal or a pipe, whose reader may have stopped reading.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slog::Level;

use super::super::IDENTIFIER;
use super::super::entry::{Entry, head};
use super::super::format::push_text;
use super::Sink;

/// The longest line: a pipe that is ready to write takes this much at once, without a wait.
const LINE_MAX: usize = 4096;

/// How long a line waits for a slow reader, in ms.
const PATIENCE_MS: u8 = 100;

#[derive(Debug)]
pub(super) struct Stream {
    file: File,
    pid: u32,
    line: String,
    /// The last line waited in vain; until one gets through, none waits again.
    stuck: bool,
}

impl Stream {
    pub(super) fn stderr(pid: u32) -> io::Result<Self> {
        Ok(Self::new(File::from(io::stderr().as_fd().try_clone_to_owned()?), pid))
    }

    fn new(file: File, pid: u32) -> Self {
        Self { file, pid, line: String::new(), stuck: false }
    }

    /// Whether a line can be written without a wait. The descriptor itself stays as it is: other
    /// programs have it too and do not expect it to be nonblocking.
    fn is_ready(&mut self) -> bool {
        let timeout = if self.stuck { 0 } else { PATIENCE_MS };
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        let count = loop {
            match poll(&mut fds, PollTimeout::from(timeout)) {
                Err(Errno::EINTR) => {}
                other => break other.unwrap_or(0),
            }
        };
        self.stuck = count == 0;
        !self.stuck
    }
}

impl Sink for Stream {
    fn write(&mut self, entry: &Entry) -> u64 {
        self.line.clear();
        let level = match entry.level {
            Level::Critical => "critical",
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        write!(self.line, "{IDENTIFIER}[{}]: {level}: ", self.pid).expect("a String takes all");
        push_text(&mut self.line, entry);
        if self.line.len() >= LINE_MAX {
            self.line.truncate(head(&self.line, LINE_MAX - 4).len());
            self.line.push_str("...");
        }
        self.line.push('\n');
        let written = self.is_ready() && self.file.write_all(self.line.as_bytes()).is_ok();
        u64::from(!written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::time::UNIX_EPOCH;

    fn entry(message: String) -> Entry {
        Entry { time: UNIX_EPOCH, level: Level::Info, message, fields: Vec::new() }
    }

    #[test]
    fn a_pipe_that_nobody_reads_loses_lines_and_recovers() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut stream = Stream::new(File::from(OwnedFd::from(writer)), 42);
        let mut taken = 0;
        // 64 KiB are what a pipe holds.
        while stream.write(&entry("x".repeat(10_000))) == 0 {
            taken += 1;
            assert!(taken < 1000, "it never fills");
        }
        let mut line = vec![0; LINE_MAX];
        reader.read_exact(&mut line).unwrap();
        assert!(line.starts_with(b"tapdisk[42]: info: xxx"));
        assert!(line.ends_with(b"x...\n"));
        assert_eq!(stream.write(&entry("after".to_string())), 0);
    }

    #[test]
    fn a_pipe_that_is_closed_loses_lines() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut stream = Stream::new(File::from(OwnedFd::from(writer)), 42);
        assert_eq!(stream.write(&entry("x".to_string())), 1);
    }
}
