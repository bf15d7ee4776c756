//! `null:SIZE`: a disk without storage, to measure everything else. Reads are zeros, writes vanish.
//!
//! The path is the size: bytes, or with a unit (`64M`, `10G`, `2T`); empty is 1 GiB.

use std::path::Path;

use nix::errno::Errno;

use super::{Image, ImageInfo, Mapping, OpenFlags};
use crate::error::DiskError;
use crate::queue::{FileId, Queue};
use crate::request::Op;

struct Null {
    size: u64,
}

pub(super) fn open(path: &Path, _: OpenFlags, _: &mut Queue) -> Result<Box<dyn Image>, DiskError> {
    let text = path.to_string_lossy();
    let size = parse_size(&text).ok_or_else(|| {
        DiskError::new(
            Errno::EINVAL,
            format!("Found {text:?} where a size in whole sectors was wanted, such as 64M or 10G"),
        )
    })?;
    Ok(Box::new(Null { size }))
}

fn parse_size(text: &str) -> Option<u64> {
    if text.is_empty() {
        return Some(1 << 30);
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let size = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (size > 0 && size.is_multiple_of(512) && i64::try_from(size).is_ok()).then_some(size)
}

impl Image for Null {
    fn info(&self) -> ImageInfo {
        ImageInfo { size: self.size, sector_size: 512 }
    }

    fn map(&mut self, _: usize, _: Op, _: u64, len: u64) -> Mapping {
        Mapping::Nowhere { len }
    }

    fn file(&self) -> Option<FileId> {
        None
    }

    fn close(self: Box<Self>, _: &mut Queue) -> Result<(), DiskError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_whole_sectors_and_fits_a_file_offset() {
        assert_eq!(parse_size(""), Some(1 << 30));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("64M"), Some(64 << 20));
        for bad in ["0", "513", "-1", "M", "abc", "16777216T", "1é"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
