//! The archive that a kernel unpacks as its first file system: cpio, format "newc", uncompressed.
//!
//! Layout: for each entry 110 bytes of header in hexadecimal ASCII, the name with its NUL, padding
//! to 4 bytes, the contents, padding to 4 bytes; at the end an entry `TRAILER!!!`.

use std::io::{self, Write};

/// Types and permissions, as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes an archive.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, inode: 0 }
    }

    /// A folder: before what lies in it.
    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER, (0, 0), &[])
    }

    /// A file.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, bytes: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | permissions, (0, 0), bytes)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// The end; gives back what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let name = name.trim_start_matches('/');
        let too_large = |_| io::Error::other(format!("{name} is too large for an archive"));
        let name_bytes = u32::try_from(name.len() + 1).map_err(too_large)?;
        let data_bytes = u32::try_from(data.len()).map_err(too_large)?;
        self.inode += 1;
        // inode mode uid gid links mtime size device (2) special device (2) name check
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, 1, 0, data_bytes, 0, 0, major, minor, name_bytes, 0];
        write!(self.to, "070701")?;
        for field in fields {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(name.as_bytes())?;
        // The header's 110 bytes are 2 more than a multiple of 4.
        self.to.write_all(&[0; 4][..1 + padding(110 + name.len() + 1)])?;
        self.to.write_all(data)?;
        self.to.write_all(&[0; 4][..padding(data.len())])
    }
}

fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(4) - bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_that_the_kernel_reads() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("/etc").unwrap();
        archive.file("etc/abc", 0o644, b"12345").unwrap();
        archive.link("etc/l", "abc").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let at =
            |start: usize, len: usize| std::str::from_utf8(&bytes[start..start + len]).unwrap();
        assert_eq!(at(0, 6), "070701");
        assert_eq!(at(14, 8), "000041ed", "mode of a folder");
        assert_eq!((at(94, 8), at(110, 4)), ("00000004", "etc\0"));
        // 110 + 4 = 114, padded to 116.
        assert_eq!(at(116, 6), "070701");
        assert_eq!(at(116 + 54, 8), "00000005", "the size of the contents");
        assert_eq!(at(116 + 110, 8), "etc/abc\0");
        // 110 + 8 = 118, padded to 120.
        assert_eq!(at(116 + 120, 8), "12345\0\0\0");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn every_entry_starts_at_a_multiple_of_four() {
        for length in 1..9 {
            let mut archive = Archive::new(Vec::new());
            archive.file(&"n".repeat(length), 0o644, &vec![b'x'; length]).unwrap();
            let bytes = archive.finish().unwrap();
            let magic = bytes.windows(6).enumerate().filter(|(_, window)| *window == b"070701");
            assert!(magic.clone().count() == 2 && magic.map(|(at, _)| at).all(|at| at % 4 == 0));
        }
    }
}
