//! Those who use the block device: on the simulated kernel its block layer, on the running one
//! threads that read and write the node, without a page cache between.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use blktap_ioctl::sim::{Outcome, Segments, SimDevice, SimSegment};
use blktap_ioctl::{Op, Tap};
use nix::errno::Errno;

use super::PATIENCE;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) cookie: u64,
    pub(crate) outcome: Outcome,
    /// Of a read that succeeded.
    pub(crate) data: Vec<u8>,
}

/// The users of one tap.
#[derive(Debug)]
pub(crate) enum User {
    Sim(SimDevice),
    Driver(Driver),
}

/// Of the running kernel's driver.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) tap: Tap,
    device: Option<Arc<File>>,
    sender: Sender<Done>,
    receiver: Receiver<Done>,
}

impl Driver {
    pub(crate) fn new(tap: &Tap) -> Self {
        let (sender, receiver) = channel();
        Self { tap: tap.clone(), device: None, sender, receiver }
    }

    /// The disk's name in sysfs: tda to tdz, tdaa, and so on.
    pub(crate) fn sysfs(&self) -> PathBuf {
        let mut letters = Vec::new();
        let mut number = i64::from(self.tap.minor);
        while number >= 0 {
            letters.push(char::from(b'a' + u8::try_from(number % 26).unwrap()));
            number = number / 26 - 1;
        }
        let name: String = letters.iter().rev().collect();
        Path::new("/sys/block").join(format!("td{name}"))
    }

    pub(crate) fn open_device(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT);
        // A read-only device is opened for reading alone by the law that has one.
        let both = options.clone().write(true).open(&self.tap.device_path);
        if both.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EROFS)) {
            return options.open(&self.tap.device_path);
        }
        both
    }

    fn start(&self, cookie: u64, call: impl FnOnce(&File) -> io::Result<Vec<u8>> + Send + 'static) {
        let device = Arc::clone(self.device.as_ref().expect("the device is open"));
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            let result = call(&device);
            // The law may have ended.
            drop(device);
            let _ = sender.send(match result {
                Ok(data) => Done { cookie, outcome: Ok(()), data },
                Err(error) => Done { cookie, outcome: Err(super::errno(&error)), data: vec![] },
            });
        });
    }

    /// Requests that the driver has and that have not ended.
    fn inflight(&self) -> usize {
        let text = std::fs::read_to_string(self.sysfs().join("inflight")).unwrap();
        text.split_whitespace().map(|number| number.parse::<usize>().unwrap()).sum()
    }
}

/// A buffer whose data start `shift` bytes after the start of a page.
struct Shifted {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Shifted {
    fn new(shift: usize, len: usize) -> Self {
        let bytes = vec![0; len + shift + 4096];
        let start = bytes.as_ptr().align_offset(4096) + shift;
        Self { bytes, start, len }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// How the kernel lays out a buffer that starts `shift` bytes after the start of a page.
fn segments(shift: usize, bytes: usize) -> Segments {
    let mut pieces = Vec::new();
    let (mut at, end) = (shift, shift + bytes);
    while at < end {
        let stop = end.min(at / 4096 * 4096 + 4096);
        let sector = |offset: usize| u8::try_from(offset % 4096 / 512).unwrap();
        pieces.push(SimSegment { first: sector(at), last: sector(stop - 512) });
        at = stop;
    }
    Segments::new(&pieces)
}

impl User {
    /// Opens the device.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        match self {
            Self::Sim(device) => Ok(device.open()?),
            Self::Driver(driver) => {
                driver.device = Some(Arc::new(driver.open_device()?));
                Ok(())
            }
        }
    }

    /// Closes it. Nothing is under way.
    pub(crate) fn close(&mut self) {
        match self {
            Self::Sim(device) => device.close(),
            Self::Driver(driver) => {
                let device = driver.device.take().expect("it is open");
                let start = Instant::now();
                while Arc::strong_count(&device) > 1 {
                    assert!(start.elapsed() < PATIENCE, "a thread keeps the device open");
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Reads `bytes` bytes from `sector` on into a buffer that starts `shift` bytes into a page.
    pub(crate) fn read(&self, cookie: u64, sector: u64, shift: usize, bytes: usize) {
        match self {
            Self::Sim(device) => {
                refused(device.submit_read(cookie, sector, segments(shift, bytes)));
            }
            Self::Driver(driver) => driver.start(cookie, move |file| {
                let mut buffer = Shifted::new(shift, bytes);
                file.read_exact_at(buffer.get(), sector * 512)?;
                Ok(buffer.get().to_vec())
            }),
        }
    }

    /// Writes.
    pub(crate) fn write(&self, cookie: u64, sector: u64, shift: usize, data: &[u8]) {
        match self {
            Self::Sim(device) => {
                let layout = segments(shift, data.len());
                refused(device.submit_write(cookie, sector, layout, data));
            }
            Self::Driver(driver) => {
                let mut buffer = Shifted::new(shift, data.len());
                buffer.get().copy_from_slice(data);
                driver.start(cookie, move |file| {
                    file.write_all_at(buffer.get(), sector * 512)?;
                    Ok(Vec::new())
                });
            }
        }
    }

    /// Flushes.
    pub(crate) fn flush(&self, cookie: u64) {
        match self {
            Self::Sim(device) => refused(device.submit_flush(cookie)),
            Self::Driver(driver) => driver.start(cookie, |file| {
                file.sync_all()?;
                Ok(Vec::new())
            }),
        }
    }

    /// Discards.
    pub(crate) fn trim(&self, cookie: u64, sector: u64, sectors: u64) {
        match self {
            Self::Sim(device) => refused(device.submit_trim(cookie, sector, sectors)),
            Self::Driver(driver) => driver.start(cookie, move |file| {
                blktap_ioctl::discard(file.as_fd(), sector * 512, sectors * 512)?;
                Ok(Vec::new())
            }),
        }
    }

    /// Waits until `count` requests are with the driver.
    pub(crate) fn queued(&self, count: usize) {
        if let Self::Driver(driver) = self {
            let start = Instant::now();
            while driver.inflight() != count {
                assert!(start.elapsed() < PATIENCE, "{} of {count} queued", driver.inflight());
                std::thread::yield_now();
            }
        }
    }

    /// Waits for the end of `count` requests; by cookie.
    pub(crate) fn done(&self, count: usize) -> Vec<Done> {
        let mut all = Vec::new();
        match self {
            Self::Sim(device) => {
                device.completions(|completion| {
                    all.push(Done {
                        cookie: completion.cookie,
                        outcome: completion.outcome,
                        data: completion.data.to_vec(),
                    });
                });
                assert_eq!(all.len(), count, "{all:?}");
            }
            Self::Driver(driver) => {
                while all.len() < count {
                    all.push(driver.receiver.recv_timeout(PATIENCE).expect("requests end"));
                }
            }
        }
        all.sort_by_key(|done| done.cookie);
        all
    }

    /// [`User::done`], without data.
    pub(crate) fn outcomes(&self, count: usize) -> Vec<(u64, Outcome)> {
        self.done(count).into_iter().map(|done| (done.cookie, done.outcome)).collect()
    }

    /// Whether none has ended that nobody asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            Self::Sim(device) => device.completions(|_| ()) == 0,
            Self::Driver(driver) => driver.receiver.try_recv().is_err(),
        }
    }

    /// The operations that one can ask for, for messages.
    pub(crate) fn ask(&self, cookie: u64, op: Op) {
        match op {
            Op::Read => self.read(cookie, 0, 0, 512),
            Op::Write => self.write(cookie, 0, 0, &[1; 512]),
            Op::Flush => self.flush(cookie),
            Op::Trim => self.trim(cookie, 0, 8),
        }
    }
}

/// The simulated block layer refuses at once what the running one ends with an error.
fn refused(result: Result<(), Errno>) {
    result.expect("the block layer takes it");
}
