//! Where lines end up. Only the writer thread calls a sink; it may wait, in bounds.

mod datagram;
mod file;
mod journald;
mod stream;
mod syslog;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::entry::Entry;
use super::{Config, Target};
use file::LogFile;
use journald::Journald;
use stream::Stream;
use syslog::Syslog;

/// A place for lines. What it cannot take is lost: it says how many lines were.
pub(super) trait Sink: Send {
    /// Takes a record; returns how many were lost by that.
    fn write(&mut self, entry: &Entry) -> u64;

    /// Nothing more comes for the moment; returns how many were lost.
    fn flush(&mut self) -> u64 {
        0
    }

    /// Opens what it writes to anew. On an error it goes on with what it has.
    ///
    /// # Errors
    /// What opening says.
    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The process ended well: what it wrote for itself alone is not needed any more.
    fn remove(&mut self) {}
}

/// Opens what `config` asks for. `auto` always gets something: a disk is served without a log
/// rather than not at all.
pub(super) fn open(config: &Config) -> io::Result<Box<dyn Sink>> {
    match &config.target {
        Target::Auto => {
            open_as(&resolve(config), config).or_else(|_| open_as(&Target::Stderr, config))
        }
        chosen => open_as(chosen, config),
    }
}

/// What `auto` means on this system.
fn resolve(config: &Config) -> Target {
    if is_socket(&config.journald) {
        Target::Journald
    } else if is_socket(&config.syslog) {
        Target::Syslog
    } else {
        Target::File(None)
    }
}

fn open_as(target: &Target, config: &Config) -> io::Result<Box<dyn Sink>> {
    Ok(match target {
        Target::Journald => Box::new(Journald::open(&config.journald, config.pid)?),
        Target::Syslog => Box::new(Syslog::open(&config.syslog, config.pid)?),
        Target::File(Some(path)) => Box::new(LogFile::open(path.clone())?),
        Target::File(None) => Box::new(LogFile::create(&config.directory, config.pid)?),
        Target::Stderr | Target::Auto => Box::new(Stream::stderr(config.pid)?),
    })
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}
