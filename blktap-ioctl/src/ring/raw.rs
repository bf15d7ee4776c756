//! A ring without the rules: what a server with a fault can do to the kernel's half, for tests.
//!
//! Everything that [`MappedRing`](super::MappedRing) forbids is allowed here: to poll before there
//! is a mapping, to answer what was not asked, to map twice. Drivers of Linux 4.19 crash on much of
//! it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;

use super::door::Door;
use super::mapping::{Index, Pages};
use crate::abi::{DeviceInfoBoth, ENTRY_SIZE, NAME_SIZE, Params, ResponseEntry};

/// A ring, mapped or not.
#[derive(Debug)]
pub struct RawRing {
    /// Before `door`: unmapped before the device is closed.
    pages: Option<Pages>,
    door: Door,
}

impl RawRing {
    /// Opens the ring's node.
    ///
    /// # Errors
    /// EBUSY when it is open already, ENXIO when the minor is not allocated, and those of open.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
    }

    pub(crate) fn from_door(door: Door) -> Self {
        Self { pages: None, door }
    }

    /// Maps the ring. A mapping that there is stays.
    ///
    /// # Errors
    /// EBUSY when it is mapped.
    pub fn map(&mut self) -> io::Result<()> {
        let pages = self.door.map()?;
        self.pages = Some(pages);
        Ok(())
    }

    /// Maps `bytes` bytes, and unmaps them.
    ///
    /// # Errors
    /// What mmap says.
    pub fn try_map(&self, bytes: usize) -> io::Result<()> {
        Pages::try_map(self.as_fd(), bytes)
    }

    /// Tries to unmap one page of the mapping.
    ///
    /// # Errors
    /// What munmap says.
    ///
    /// # Panics
    /// When it is not mapped.
    pub fn try_unmap_page(&mut self, page: usize) -> Result<(), Errno> {
        self.pages.as_mut().expect("the caller has mapped the ring").try_unmap_page(page)
    }

    /// Unmaps the ring.
    pub fn unmap(&mut self) {
        drop(self.pages.take());
        self.door.unmapped();
    }

    fn pages(&self) -> &Pages {
        self.pages.as_ref().expect("the caller has mapped the ring")
    }

    /// Runs the poll method; returns whether the ring is readable.
    ///
    /// # Errors
    /// What poll says.
    pub fn poll(&self) -> io::Result<bool> {
        self.door.poll()
    }

    /// The four words at the start of the ring's page: two indices, each with its event.
    ///
    /// # Panics
    /// When it is not mapped, here and below.
    #[must_use]
    pub fn header(&self) -> [u32; 4] {
        [0, 4, 8, 12].map(|offset| self.pages().ring_word(offset))
    }

    /// The message byte.
    #[must_use]
    pub fn message(&self) -> u8 {
        self.pages().message()
    }

    /// The entry of request `index`, modulo 32.
    #[must_use]
    pub fn entry(&self, index: u32) -> [u8; ENTRY_SIZE] {
        self.pages().entry(index)
    }

    /// Writes response `index`, modulo 32.
    pub fn write_response(&self, index: u32, response: ResponseEntry) {
        let [low, high] = response.status.to_ne_bytes();
        let tail = u64::from_ne_bytes([response.operation, 0, low, high, 0, 0, 0, 0]);
        self.pages().write_response(index, [response.id, tail]);
    }

    /// Publishes responses.
    pub fn set_rsp_prod(&self, index: u32) {
        self.pages().set_index(Index::Responses, index);
    }

    /// Copies out of the data area.
    ///
    /// # Panics
    /// When it is not mapped, or the bytes are not inside; here and below.
    pub fn copy_out(&self, offset: u32, bytes: &mut [u8]) {
        self.pages().copy_out(offset as usize, bytes);
    }

    /// Copies into the data area.
    pub fn copy_in(&self, offset: u32, bytes: &[u8]) {
        self.pages().copy_in(offset as usize, bytes);
    }

    /// The ioctl RESPOND.
    ///
    /// # Errors
    /// What it says, here and below.
    pub fn respond(&self) -> io::Result<()> {
        self.door.respond()
    }

    /// The ioctl `CREATE_DEVICE`, with any bytes.
    ///
    /// # Errors
    /// As above.
    pub fn create_device(&self, info: &mut DeviceInfoBoth) -> Result<(), Errno> {
        self.door.create_device(info)
    }

    /// The ioctl of 2009.
    ///
    /// # Errors
    /// As above.
    pub fn create_device_compat(&self, params: &Params) -> Result<(), Errno> {
        self.door.create_device_compat(params)
    }

    /// The ioctl `REMOVE_DEVICE`.
    ///
    /// # Errors
    /// As above.
    pub fn remove_device(&self) -> Result<(), Errno> {
        self.door.remove_device()
    }

    /// The ioctls 203 to 206, which drivers after 2009 do not have.
    pub fn legacy_calls(&self) -> [io::Result<()>; 4] {
        let params = Params { name: [0; NAME_SIZE], capacity: 8, sector_size: 512 };
        [
            self.door.set_params(&params),
            self.door.pause(),
            self.door.reopen().map(drop),
            self.door.resume(0),
        ]
    }
}

/// A ring's file that somebody else has opened.
impl From<File> for RawRing {
    fn from(file: File) -> Self {
        Self::from_door(Door::Device(file))
    }
}

impl AsFd for RawRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.fd()
    }
}
