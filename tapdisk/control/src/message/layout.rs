//! Where each field of a message is. A field is a type, so that a place outside the message does
//! not compile; the bytes are never seen as a struct.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{DecodeError, EncodeError, MESSAGE_SIZE, STRING_LEN_MAX};

/// The bytes of a message.
pub type MessageBytes = [u8; MESSAGE_SIZE];

/// `LEN` bytes at offset `AT` of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field<const AT: usize, const LEN: usize>;

/// The union starts here.
const UNION: usize = 8;

/// The size of a string, in bytes, with its NUL.
pub(super) const STRING_SIZE: usize = 256;

/// The message id.
pub const TYPE: Field<0, 2> = Field;
/// The minor that the message is about.
pub const COOKIE: Field<2, 2> = Field;

/// PID_RSP: the process id.
pub const PID: Field<UNION, 4> = Field;

/// OPEN_RSP, DISK_INFO_RSP: the size, in sectors.
pub const IMAGE_SECTORS: Field<UNION, 8> = Field;
/// The size of a sector, in bytes.
pub const IMAGE_SECTOR_SIZE: Field<{ UNION + 8 }, 4> = Field;
/// The flags of the disk as xenstore's `info` has them.
pub const IMAGE_INFO: Field<{ UNION + 12 }, 4> = Field;

/// OPEN, RESUME (and ATTACH, unused there): see [`super::Flags`].
pub const PARAMS_FLAGS: Field<UNION, 4> = Field;
/// Unused since the kernel driver is optional.
pub const PARAMS_DEVICE: Field<{ UNION + 4 }, 4> = Field;
/// Unused.
pub const PARAMS_DOMAIN: Field<{ UNION + 8 }, 4> = Field;
/// `type:path`.
pub const PARAMS_PATH: Field<{ UNION + 12 }, STRING_SIZE> = Field;
/// With REUSE_PARENT: the minor whose chain becomes the parent.
pub const PARAMS_PARENT: Field<{ UNION + 268 }, 4> = Field;
/// How long a request is retried, in seconds; 0 is the default.
pub const PARAMS_TIMEOUT: Field<{ UNION + 272 }, 2> = Field;
/// With SECONDARY: `type:path`.
pub const PARAMS_SECONDARY: Field<{ UNION + 274 }, STRING_SIZE> = Field;

/// RUNTIME_ERROR: what happened.
pub const STRING: Field<UNION, STRING_SIZE> = Field;

/// ERROR: a positive errno.
pub const ERROR_ERRNO: Field<UNION, 4> = Field;
/// ERROR: what happened, often empty.
pub const ERROR_MESSAGE: Field<{ UNION + 4 }, STRING_SIZE> = Field;

/// LIST_MINORS_RSP: how many follow.
pub const MINORS_COUNT: Field<UNION, 4> = Field;
/// 63 of 4 bytes each.
pub const MINORS_LIST: Field<{ UNION + 4 }, 252> = Field;

/// LIST_RSP: how many disks are still to come, this one included; 0 ends the list.
pub const LIST_COUNT: Field<UNION, 4> = Field;
/// The disk's minor; -1 at the end.
pub const LIST_MINOR: Field<{ UNION + 4 }, 4> = Field;
/// The disk's state bits.
pub const LIST_STATE: Field<{ UNION + 8 }, 4> = Field;
/// `type:path`, empty while no image is open.
pub const LIST_PATH: Field<{ UNION + 12 }, STRING_SIZE> = Field;

/// STATS_RSP: how many bytes follow.
pub const STATS_LENGTH: Field<{ UNION + 8 }, 8> = Field;

/// XENBLKIF_CONNECT, XENBLKIF_DISCONNECT: the guest's domain.
pub const BLKIF_DOMAIN: Field<UNION, 4> = Field;
/// The guest's device.
pub const BLKIF_DEVICE: Field<{ UNION + 4 }, 4> = Field;
/// 8 grant references of 4 bytes each.
pub const BLKIF_GRANTS: Field<{ UNION + 8 }, 32> = Field;
/// 2^order of them are valid.
pub const BLKIF_ORDER: Field<{ UNION + 40 }, 4> = Field;
/// See [`super::BlkifProtocol`].
pub const BLKIF_PROTOCOL: Field<{ UNION + 44 }, 4> = Field;
/// The name of a pool of grant frames; ignored.
pub const BLKIF_POOL: Field<{ UNION + 48 }, STRING_SIZE> = Field;
/// The event channel.
pub const BLKIF_PORT: Field<{ UNION + 304 }, 4> = Field;
/// How long the ring is polled after the last request, in microseconds.
pub const BLKIF_POLL_DURATION: Field<{ UNION + 308 }, 4> = Field;
/// Polling only while the host's CPUs are idle by this many percent.
pub const BLKIF_POLL_IDLE: Field<{ UNION + 312 }, 4> = Field;

impl<const AT: usize, const LEN: usize> Field<AT, LEN> {
    const LIES_INSIDE: () = assert!(AT + LEN <= MESSAGE_SIZE);

    /// The field's bytes.
    #[must_use]
    pub fn get(self, bytes: &MessageBytes) -> [u8; LEN] {
        let () = Self::LIES_INSIDE;
        *bytes.get(AT..).and_then(<[u8]>::first_chunk).expect("lies inside, asserted above")
    }

    /// Replaces the field's bytes.
    pub fn set(self, bytes: &mut MessageBytes, value: &[u8; LEN]) {
        let () = Self::LIES_INSIDE;
        *bytes
            .get_mut(AT..)
            .and_then(<[u8]>::first_chunk_mut)
            .expect("lies inside, asserted above") = *value;
    }
}

impl<const AT: usize> Field<AT, 2> {
    pub(super) fn get_u16(self, bytes: &MessageBytes) -> u16 {
        u16::from_ne_bytes(self.get(bytes))
    }

    pub(super) fn set_u16(self, bytes: &mut MessageBytes, value: u16) {
        self.set(bytes, &value.to_ne_bytes());
    }
}

impl<const AT: usize> Field<AT, 4> {
    pub(super) fn get_u32(self, bytes: &MessageBytes) -> u32 {
        u32::from_ne_bytes(self.get(bytes))
    }

    pub(super) fn set_u32(self, bytes: &mut MessageBytes, value: u32) {
        self.set(bytes, &value.to_ne_bytes());
    }

    pub(super) fn get_i32(self, bytes: &MessageBytes) -> i32 {
        i32::from_ne_bytes(self.get(bytes))
    }

    pub(super) fn set_i32(self, bytes: &mut MessageBytes, value: i32) {
        self.set(bytes, &value.to_ne_bytes());
    }
}

impl<const AT: usize> Field<AT, 8> {
    pub(super) fn get_u64(self, bytes: &MessageBytes) -> u64 {
        u64::from_ne_bytes(self.get(bytes))
    }

    pub(super) fn set_u64(self, bytes: &mut MessageBytes, value: u64) {
        self.set(bytes, &value.to_ne_bytes());
    }
}

impl<const AT: usize> Field<AT, STRING_SIZE> {
    pub(super) fn get_string(
        self,
        bytes: &MessageBytes,
        name: &'static str,
    ) -> Result<OsString, DecodeError> {
        decode_string(&self.get(bytes), name)
    }

    pub(super) fn set_string(
        self,
        bytes: &mut MessageBytes,
        value: &OsStr,
        name: &'static str,
    ) -> Result<(), EncodeError> {
        self.set(bytes, &encode_string(value, name)?);
        Ok(())
    }
}

/// The bytes before the first NUL.
pub(super) fn decode_string(
    bytes: &[u8; STRING_SIZE],
    name: &'static str,
) -> Result<OsString, DecodeError> {
    let mut parts = bytes.split(|byte| *byte == 0);
    let string = parts.next().unwrap_or_default();
    if parts.next().is_none() {
        return Err(DecodeError::Unterminated(name));
    }
    Ok(OsString::from_vec(string.to_vec()))
}

/// The string, padded with NULs, at least one.
pub(super) fn encode_string(
    value: &OsStr,
    name: &'static str,
) -> Result<[u8; STRING_SIZE], EncodeError> {
    let value = value.as_bytes();
    if value.len() > STRING_LEN_MAX {
        return Err(EncodeError::TooLong(name, value.len()));
    }
    if value.contains(&0) {
        return Err(EncodeError::HoldsNul(name));
    }
    let mut bytes = [0; STRING_SIZE];
    for (to, from) in bytes.iter_mut().zip(value) {
        *to = *from;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_fills_its_field_up_to_the_last_byte_but_one() {
        let longest = "x".repeat(STRING_LEN_MAX);
        let bytes = encode_string(OsStr::new(&longest), "path").unwrap();
        assert_eq!(decode_string(&bytes, "path").unwrap(), OsStr::new(&longest));
        let longer = "x".repeat(STRING_LEN_MAX + 1);
        assert_eq!(
            encode_string(OsStr::new(&longer), "path"),
            Err(EncodeError::TooLong("path", 256))
        );
    }

    #[test]
    fn a_string_without_nul_is_refused() {
        assert_eq!(decode_string(&[b'x'; 256], "pool"), Err(DecodeError::Unterminated("pool")));
    }

    #[test]
    fn a_string_with_a_nul_inside_is_not_cut() {
        assert_eq!(encode_string(OsStr::new("a\0b"), "path"), Err(EncodeError::HoldsNul("path")));
    }

    #[test]
    fn bytes_after_the_nul_do_not_matter_and_others_need_not_be_utf8() {
        let mut bytes = [b'x'; 256];
        bytes[0] = 0xff;
        bytes[2] = 0;
        assert_eq!(decode_string(&bytes, "path").unwrap().as_bytes(), [0xff, b'x']);
    }
}
