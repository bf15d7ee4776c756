//! The file: a header of 48 bytes and a bitmap. Numbers are little-endian.
//!
//! ```text
//!    0 parent uuid[16]   16 child uuid[16]   32 consistent i32   36 (4 bytes)
//!   40 size of the disk in bytes, u64
//!   48 bitmap: bit N%8 of byte N/8 is the Nth block of 64 KiB
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use tapdisk_control::error::strerror;

use crate::console::{Console, Failure, errno_of};

/// Bytes before the bitmap.
pub(crate) const HEADER_SIZE: usize = 48;
/// Bytes of disk that one bit stands for.
const BLOCK_SIZE: u64 = 64 << 10;
const CONSISTENT_AT: usize = 32;
const PADDING_AT: usize = 36;
const SIZE_AT: usize = 40;
/// Bitmaps are read and written in pieces of so many bytes: a header can claim any size.
pub(crate) const PIECE_SIZE: usize = 1 << 20;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The log before this one.
    pub(crate) parent: [u8; 16],
    /// The log after it.
    pub(crate) child: [u8; 16],
    /// Not 0: every write since the log began is in it.
    pub(crate) consistent: i32,
    padding: [u8; 4],
    /// Of the disk, in bytes.
    pub(crate) size: u64,
}

impl Header {
    /// That of a new log.
    pub(crate) fn new(size: u64) -> Self {
        Self { parent: [0; 16], child: [0; 16], consistent: 0, padding: [0; 4], size }
    }

    fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            parent: part(bytes, 0),
            child: part(bytes, 16),
            consistent: i32::from_le_bytes(part(bytes, CONSISTENT_AT)),
            padding: part(bytes, PADDING_AT),
            size: u64::from_le_bytes(part(bytes, SIZE_AT)),
        }
    }

    fn emit(&self) -> Vec<u8> {
        let consistent = self.consistent.to_le_bytes();
        let size = self.size.to_le_bytes();
        [&self.parent[..], &self.child, &consistent, &self.padding, &size].concat()
    }

    /// Bytes in the bitmap.
    pub(crate) fn bitmap_size(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE).div_ceil(8)
    }
}

fn part<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// A log that is open.
#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    file: File,
}

impl Log {
    /// Opens one that exists; says why where it cannot.
    pub(crate) fn open(console: &mut Console, path: &Path, writes: bool) -> Result<Self, Failure> {
        let file = OpenOptions::new().read(true).write(writes).open(path);
        Self::opened(console, path, file)
    }

    /// Makes one, in place of any that is there.
    pub(crate) fn create(console: &mut Console, path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        Self::opened(console, path, file)
    }

    fn opened(console: &mut Console, path: &Path, file: io::Result<File>) -> Result<Self, Failure> {
        let name = path.display().to_string();
        match file {
            Ok(file) => Ok(Self { name, file }),
            Err(error) => {
                let errno = errno_of(&error);
                console.complain(format!("Failed to open log file {name}. {}\n", strerror(errno)));
                Err(Failure::io(&format!("Cannot open {name}"), &error))
            }
        }
    }

    /// Its header. A file that ends within it is an EIO.
    pub(crate) fn header(&self, console: &mut Console) -> Result<Header, Failure> {
        let mut bytes = [0; HEADER_SIZE];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Header::parse(&bytes)),
            Err(error) => {
                let name = &self.name;
                console.complain(format!("Failed to read CBT metadata from file {name}\n"));
                Err(self.short(&error, "a header of 48 bytes"))
            }
        }
    }

    /// Writes a header.
    pub(crate) fn set_header(&self, console: &mut Console, header: &Header) -> Result<(), Failure> {
        self.file.write_all_at(&header.emit(), 0).map_err(|error| {
            console.complain(format!("Failed to write CBT metadata to file {}\n", self.name));
            Failure::io(&format!("Cannot write the header of {}", self.name), &error)
        })
    }

    /// Reads a piece of the bitmap.
    pub(crate) fn read(&self, piece: &mut [u8], at: u64) -> Result<(), Failure> {
        let at = at.saturating_add(HEADER_SIZE as u64);
        let read = self.file.read_exact_at(piece, at);
        read.map_err(|error| self.short(&error, &format!("{} bytes at {at}", piece.len())))
    }

    /// Writes a piece of the bitmap.
    pub(crate) fn write(&self, piece: &[u8], at: u64) -> Result<(), Failure> {
        let at = at.saturating_add(HEADER_SIZE as u64);
        self.file
            .write_all_at(piece, at)
            .map_err(|error| Failure::io(&format!("Cannot write to {} at {at}", self.name), &error))
    }

    /// Whether the file has a bitmap as long as the header says.
    pub(crate) fn check_bitmap(&self, header: &Header) -> Result<(), Failure> {
        let metadata = self.file.metadata();
        let length = metadata
            .map_err(|error| Failure::io(&format!("Cannot look at {}", self.name), &error))?
            .len();
        let wanted = header.bitmap_size().saturating_add(HEADER_SIZE as u64);
        if length >= wanted {
            return Ok(());
        }
        let name = &self.name;
        let (size, block) = (header.size, BLOCK_SIZE);
        Err(Failure::new(
            Errno::EIO,
            format!(
                "{name} has {length} bytes, a disk of {size} bytes in blocks of {block} needs {wanted}"
            ),
        ))
    }

    /// Gives the bitmap of `header` room, with zeros where there was none.
    pub(crate) fn set_length(&self, header: &Header) -> Result<(), Failure> {
        let length = header.bitmap_size().saturating_add(HEADER_SIZE as u64);
        let result = self.file.set_len(length);
        result.map_err(|error| {
            Failure::io(&format!("Cannot make {} {length} bytes long", self.name), &error)
        })
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        let result = self.file.sync_all();
        result.map_err(|error| Failure::io(&format!("Cannot flush {}", self.name), &error))
    }

    /// Its name, for messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn short(&self, error: &io::Error, wanted: &str) -> Failure {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Failure::new(
                Errno::EIO,
                format!("{} ends too early, wanted {wanted}", self.name),
            );
        }
        Failure::io(&format!("Cannot read {wanted} of {}", self.name), error)
    }
}

/// The pieces of a bitmap of `size` bytes: where each starts and how long it is.
pub(crate) fn pieces(size: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..size).step_by(PIECE_SIZE).map(move |at| {
        let length = usize::try_from(size - at).unwrap_or(PIECE_SIZE).min(PIECE_SIZE);
        (at, length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_written_as_it_was_read() {
        let mut bytes = [0; HEADER_SIZE];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(index).unwrap();
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.emit(), bytes);
        assert_eq!(header.size, 0x2f2e_2d2c_2b2a_2928);
        assert_eq!(header.consistent, 0x2322_2120);
    }

    #[test]
    fn a_bitmap_has_a_bit_for_each_started_block() {
        for (size, bytes) in [
            (0, 0),
            (1, 1),
            (65_536, 1),
            (65_536 * 8, 1),
            (65_536 * 8 + 1, 2),
            (10 << 20, 20),
            (u64::MAX, 1 << 45),
        ] {
            assert_eq!(Header::new(size).bitmap_size(), bytes, "{size}");
        }
    }

    #[test]
    fn pieces_cover_everything_once() {
        let piece = PIECE_SIZE as u64;
        for size in [0, 1, piece - 1, piece, piece + 1, 3 * piece + 5] {
            let mut next = 0;
            for (at, length) in pieces(size) {
                assert_eq!(at, next);
                assert!(length > 0 && length <= PIECE_SIZE);
                next += length as u64;
            }
            assert_eq!(next, size);
        }
    }
}
