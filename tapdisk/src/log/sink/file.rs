//! A file: `2026-11-23T02:39:58.123456Z ERROR The message key=value`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::entry::Entry;
use super::super::format::{cut, push_text, push_utc};
use super::Sink;

/// How much is gathered before it is written.
const BUFFER_SIZE: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Lines in the buffer.
    lines: u64,
    line: String,
    /// Made for this process alone.
    own: bool,
}

impl LogFile {
    /// A file that somebody chose; it is appended to.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Self::new(path, false)
    }

    /// The file of this process, in `directory`.
    pub(super) fn create(directory: &Path, pid: u32) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|error| with_path(directory, &error))?;
        Self::new(directory.join(format!("tapdisk.{pid}.log")), true)
    }

    fn new(path: PathBuf, own: bool) -> io::Result<Self> {
        let file = open_file(&path, own)?;
        let buffer = Vec::with_capacity(BUFFER_SIZE);
        Ok(Self { path, file, buffer, lines: 0, line: String::new(), own })
    }
}

fn open_file(path: &Path, own: bool) -> io::Result<File> {
    // Without a wait for a reader, should it be a FIFO; our own is not a link to elsewhere.
    let flags = libc::O_NONBLOCK | if own { libc::O_NOFOLLOW } else { 0 };
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| with_path(path, &error))
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Sink for LogFile {
    fn write(&mut self, entry: &Entry) -> u64 {
        self.line.clear();
        push_utc(&mut self.line, entry.time);
        self.line.push(' ');
        self.line.push_str(entry.level.as_str());
        self.line.push(' ');
        push_text(&mut self.line, entry);
        cut(&mut self.line);
        let full = self.buffer.len() + self.line.len() >= BUFFER_SIZE;
        let lost = if full { self.flush() } else { 0 };
        self.buffer.extend_from_slice(self.line.as_bytes());
        self.buffer.push(b'\n');
        self.lines += 1;
        lost
    }

    fn flush(&mut self) -> u64 {
        let lost = match self.file.write_all(&self.buffer) {
            Ok(()) => 0,
            // Some may have got through; to count them as lost is the safe side.
            Err(_) => self.lines,
        };
        self.buffer.clear();
        self.lines = 0;
        lost
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = open_file(&self.path, self.own)?;
        Ok(())
    }

    fn remove(&mut self) {
        let still_ours = || {
            let there = std::fs::symlink_metadata(&self.path).ok()?;
            let open = self.file.metadata().ok()?;
            Some(there.dev() == open.dev() && there.ino() == open.ino())
        };
        if self.own && still_ours() == Some(true) {
            // A file that stays is looked after by those who prune the directory.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Scratch;
    use super::*;
    use slog::Level;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::UNIX_EPOCH;

    fn entry(message: &str) -> Entry {
        let message = message.to_string();
        Entry { time: UNIX_EPOCH, level: Level::Info, message, fields: Vec::new() }
    }

    #[test]
    fn lines_are_gathered_until_the_flush() {
        let scratch = Scratch::new();
        let mut file = LogFile::create(&scratch.path("a/b"), 42).unwrap();
        let path = scratch.path("a/b/tapdisk.42.log");
        assert_eq!(file.write(&entry("one")), 0);
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(file.flush(), 0);
        let line = "1970-01-01T00:00:00.000000Z INFO one\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), line);
    }

    #[test]
    fn a_burst_is_written_before_the_buffer_is_over_full() {
        let scratch = Scratch::new();
        let mut file = LogFile::open(scratch.path("log")).unwrap();
        for _ in 0..10 {
            assert_eq!(file.write(&entry(&"x".repeat(4096))), 0);
        }
        assert!(file.buffer.capacity() <= BUFFER_SIZE);
        assert!(fs::metadata(scratch.path("log")).unwrap().len() > 20_000);
    }

    #[test]
    fn after_a_rotation_lines_go_to_the_new_file() {
        let scratch = Scratch::new();
        let (path, moved) = (scratch.path("log"), scratch.path("log.1"));
        let mut file = LogFile::open(path.clone()).unwrap();
        file.write(&entry("one"));
        file.flush();
        fs::rename(&path, &moved).unwrap();
        file.reopen().unwrap();
        file.write(&entry("two"));
        file.flush();
        assert!(fs::read_to_string(&moved).unwrap().ends_with("one\n"));
        assert!(fs::read_to_string(&path).unwrap().ends_with("two\n"));
    }

    #[test]
    fn a_failed_reopen_leaves_the_old_file_open() {
        let scratch = Scratch::new();
        let directory = scratch.path("logs");
        let mut file = LogFile::create(&directory, 1).unwrap();
        let moved = scratch.path("moved");
        fs::rename(&directory, &moved).unwrap();
        assert!(file.reopen().unwrap_err().to_string().contains("tapdisk.1.log"));
        file.write(&entry("still"));
        assert_eq!(file.flush(), 0);
        assert!(fs::read_to_string(moved.join("tapdisk.1.log")).unwrap().ends_with("still\n"));
    }

    #[test]
    fn only_the_own_file_and_only_the_very_one_is_removed() {
        let scratch = Scratch::new();
        LogFile::open(scratch.path("log")).unwrap().remove();
        assert!(scratch.path("log").exists());
        let mut own = LogFile::create(&scratch.path(""), 1).unwrap();
        let path = scratch.path("tapdisk.1.log");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"of another").unwrap();
        own.remove();
        assert!(path.exists());
        own.reopen().unwrap();
        own.remove();
        assert!(!path.exists());
    }

    #[test]
    fn the_own_file_is_not_a_link_and_not_for_everybody() {
        let scratch = Scratch::new();
        symlink(scratch.path("elsewhere"), scratch.path("tapdisk.1.log")).unwrap();
        assert!(LogFile::create(&scratch.path(""), 1).is_err());
        let _file = LogFile::create(&scratch.path(""), 2).unwrap();
        let mode = fs::metadata(scratch.path("tapdisk.2.log")).unwrap().permissions().mode();
        assert_eq!(mode & 0o137, 0);
    }

    #[test]
    fn a_full_disk_loses_lines_by_the_count() {
        let mut file = LogFile::open("/dev/full".into()).unwrap();
        assert_eq!(file.write(&entry("one")), 0);
        assert_eq!(file.write(&entry("two")), 0);
        assert_eq!(file.flush(), 2);
        assert_eq!(file.flush(), 0);
    }

    #[test]
    fn a_fifo_without_a_reader_does_not_hold_up_the_start() {
        let scratch = Scratch::new();
        let path = scratch.path("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LogFile::open(path).is_err());
    }
}
