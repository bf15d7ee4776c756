//! What OPEN and RESUME say about an image.

use std::ffi::OsString;
use std::fmt;
use std::ops::BitOr;

use super::layout::{self, MessageBytes};
use super::{DecodeError, EncodeError};

/// The longest key, in bytes. tap-ctl sends 32 or 64.
pub const KEY_SIZE_MAX: usize = 128;

/// How an image is opened: a set of bits. Bits without a name here survive decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The image is shared with others.
    pub const SHARED: Self = Self(0x001);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(0x002);
    /// A block cache is put over it.
    pub const ADD_CACHE: Self = Self(0x004);
    /// It is read through a VHD index.
    pub const VHD_INDEX: Self = Self(0x008);
    /// A change log is put over it; its path follows the message.
    pub const ADD_LOG: Self = Self(0x010);
    /// What is read from the parent is stored in the leaf.
    pub const ADD_LOCAL_CACHE: Self = Self(0x020);
    /// The chain of another disk of this process becomes the parent.
    pub const REUSE_PARENT: Self = Self(0x040);
    /// There is a second image: a mirror.
    pub const SECONDARY: Self = Self(0x080);
    /// The second image takes over when the first is full.
    pub const STANDBY: Self = Self(0x100);
    /// The page cache is used.
    pub const NO_O_DIRECT: Self = Self(0x200);
    /// The image is encrypted; the key follows the message.
    pub const OPEN_ENCRYPTED: Self = Self(0x400);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These without `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The key of an encrypted image, 1 to [`KEY_SIZE_MAX`] bytes. Its debug form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key.
    ///
    /// # Errors
    /// [`DecodeError::KeySize`] when it is empty or too long (the size is then cut to 255).
    pub fn new(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() || bytes.len() > KEY_SIZE_MAX {
            return Err(DecodeError::KeySize(u8::try_from(bytes.len()).unwrap_or(u8::MAX)));
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({} bytes)", self.0.len())
    }
}

/// The parameters of OPEN and RESUME.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// Without [`Flags::ADD_LOG`] and [`Flags::OPEN_ENCRYPTED`]: those are `log` and `key`.
    pub flags: Flags,
    /// Sent by clients of the kernel ring; unused.
    pub device: u32,
    /// Unused.
    pub domain: u32,
    /// `type:path`; empty in a RESUME that opens the same image again.
    pub path: OsString,
    /// With [`Flags::REUSE_PARENT`]: the minor whose chain becomes the parent.
    pub parent: u32,
    /// How long a request is retried, in seconds; 0 is the default.
    pub request_timeout_s: u16,
    /// With [`Flags::SECONDARY`]: `type:path`, or `null` in a RESUME that ends mirroring.
    pub secondary: OsString,
    /// The change log to put over the image.
    pub log: Option<OsString>,
    /// The key of an encrypted image; only OPEN carries one.
    pub key: Option<Key>,
}

impl Params {
    /// The flags as they are sent.
    pub(super) fn wire_flags(&self) -> Flags {
        let log = if self.log.is_some() { Flags::ADD_LOG } else { Flags::NONE };
        let key = if self.key.is_some() { Flags::OPEN_ENCRYPTED } else { Flags::NONE };
        self.flags.without(Flags::ADD_LOG | Flags::OPEN_ENCRYPTED) | log | key
    }

    pub(super) fn decode(
        bytes: &MessageBytes,
        log: Option<OsString>,
        key: Option<Key>,
    ) -> Result<Self, DecodeError> {
        let flags = Flags(layout::PARAMS_FLAGS.get_u32(bytes));
        Ok(Self {
            flags: flags.without(Flags::ADD_LOG | Flags::OPEN_ENCRYPTED),
            device: layout::PARAMS_DEVICE.get_u32(bytes),
            domain: layout::PARAMS_DOMAIN.get_u32(bytes),
            path: layout::PARAMS_PATH.get_string(bytes, "path")?,
            parent: layout::PARAMS_PARENT.get_u32(bytes),
            request_timeout_s: layout::PARAMS_TIMEOUT.get_u16(bytes),
            secondary: layout::PARAMS_SECONDARY.get_string(bytes, "secondary")?,
            log,
            key,
        })
    }

    pub(super) fn encode(&self, bytes: &mut MessageBytes) -> Result<(), EncodeError> {
        layout::PARAMS_FLAGS.set_u32(bytes, self.wire_flags().0);
        layout::PARAMS_DEVICE.set_u32(bytes, self.device);
        layout::PARAMS_DOMAIN.set_u32(bytes, self.domain);
        layout::PARAMS_PATH.set_string(bytes, &self.path, "path")?;
        layout::PARAMS_PARENT.set_u32(bytes, self.parent);
        layout::PARAMS_TIMEOUT.set_u16(bytes, self.request_timeout_s);
        layout::PARAMS_SECONDARY.set_string(bytes, &self.secondary, "secondary")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_1_to_128_bytes() {
        assert_eq!(Key::new(&[]), Err(DecodeError::KeySize(0)));
        assert!(Key::new(&[7]).is_ok());
        assert!(Key::new(&[7; 128]).is_ok());
        assert_eq!(Key::new(&[7; 129]), Err(DecodeError::KeySize(129)));
        assert_eq!(Key::new(&[7; 1000]), Err(DecodeError::KeySize(255)));
    }

    #[test]
    fn debug_output_hides_the_key() {
        let key = Key::new(b"secret").unwrap();
        assert_eq!(format!("{key:?}"), "Key(6 bytes)");
    }

    #[test]
    fn the_flags_on_the_wire_say_what_follows() {
        let params = Params { flags: Flags::ADD_LOG | Flags::READ_ONLY, ..Params::default() };
        assert_eq!(params.wire_flags(), Flags::READ_ONLY);
        let params = Params { log: Some("l".into()), ..Params::default() };
        assert_eq!(params.wire_flags(), Flags::ADD_LOG);
    }
}
