//! How this crate is given the bytes of a file: it opens none itself.

use crate::error::{ErrorKind, Part, Result};

/// Bytes that can be read from any place: a file, a device, a slice of memory.
///
/// ```
/// use vhd::ReadAt;
///
/// let file = [1_u8, 2, 3];
/// let mut two = [0; 2];
/// file.read_at(1, &mut two)?;
/// assert_eq!(two, [2, 3]);
/// assert!(file.read_at(2, &mut two).is_err());
/// # Ok::<(), vhd::Error>(())
/// ```
pub trait ReadAt {
    /// Fills all of `buffer` from `offset` bytes on.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`] when there are not so many bytes, [`ErrorKind::Io`] when storage
    /// fails. What `buffer` holds then is not specified.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// How many bytes there are, now.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when storage fails.
    fn length(&self) -> Result<u64>;
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let rest = rest.unwrap_or_default();
        let Some(bytes) = rest.get(..buffer.len()) else {
            return Err(truncated(offset, rest.len(), buffer.len()));
        };
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        Ok(u64::try_from(self.len()).unwrap_or(u64::MAX))
    }
}

impl<const N: usize> ReadAt for [u8; N] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.as_slice().read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        self.as_slice().length()
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.as_slice().read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        self.as_slice().length()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        (**self).length()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        (**self).length()
    }
}

/// The error of who found only `found` bytes at `offset`.
#[must_use]
pub fn truncated(offset: u64, found: usize, wanted: usize) -> crate::error::Error {
    let size = |size| u64::try_from(size).unwrap_or(u64::MAX);
    let kind = ErrorKind::Truncated { part: Part::Data, found: size(found), wanted: size(wanted) };
    crate::error::Error::at(offset, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_of_bytes_reads_them_and_not_past_their_end() {
        let array = *b"0123456789";
        let vector = array.to_vec();
        let boxed: Box<dyn ReadAt> = Box::new(vector.clone());
        let owners: [&dyn ReadAt; 5] = [&array, &array.as_slice(), &vector, &&vector, &boxed];
        for owner in owners {
            let mut found = [0; 3];
            assert_eq!(owner.length(), Ok(10));
            assert_eq!(owner.read_at(7, &mut found), Ok(()));
            assert_eq!(&found, b"789");
            let error = owner.read_at(8, &mut found).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{error}");
            assert!(owner.read_at(u64::MAX, &mut found).is_err());
        }
    }
}
