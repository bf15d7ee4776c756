//! Parent locators: where a differencing disk looks for its parent.
//!
//! Eight entries of 24 bytes in the header point to text elsewhere in the file:
//!
//! ```text
//!  0 platform code    4 space    8 length in bytes    12 reserved    16 offset in bytes (u64)
//! ```
//!
//! The specification counts the space in sectors; Microsoft's programs and these write bytes. A
//! space below 512 is taken for sectors, since no space is smaller than one.
//!
//! The text of `MacX` is a `file://` URL in UTF-8 in which nothing is escaped with percent signs;
//! that of `W2ku` (absolute) and `W2ru` (relative) is UTF-16LE with backslashes. The three are
//! written with the same path, relative to the child.

use crate::bytes::{be32, be64, put};
use crate::error::{ErrorKind, Part, Result};

/// Bytes in an entry.
pub const LOCATOR_SIZE: usize = 24;

/// Entries in a header.
pub const LOCATOR_COUNT: usize = 8;

/// The longest text that is read, in bytes: twice the longest path of Windows.
pub const TEXT_SIZE_MAX: u32 = 1 << 16;

const URL_PREFIX: &str = "file://";

/// Which system a locator is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Platform {
    /// The entry is not used.
    None,
    /// Mac OS X: a `file://` URL in UTF-8.
    MacX,
    /// Windows: an absolute path in UTF-16LE.
    W2ku,
    /// Windows: a relative path in UTF-16LE.
    W2ru,
    /// Mac OS: an alias. Not read.
    Mac,
    /// Deprecated. Not read.
    Wi2r,
    /// Deprecated. Not read.
    Wi2k,
    /// Not one that the format defines.
    Unknown(u32),
}

impl Platform {
    const CODES: [(Self, u32); 7] = [
        (Self::None, 0),
        (Self::MacX, u32::from_be_bytes(*b"MacX")),
        (Self::W2ku, u32::from_be_bytes(*b"W2ku")),
        (Self::W2ru, u32::from_be_bytes(*b"W2ru")),
        (Self::Mac, u32::from_be_bytes(*b"Mac ")),
        (Self::Wi2r, u32::from_be_bytes(*b"Wi2r")),
        (Self::Wi2k, u32::from_be_bytes(*b"Wi2k")),
    ];

    /// From the number on disk.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        let known = Self::CODES.iter().find(|(_, known)| *known == code);
        known.map_or(Self::Unknown(code), |(platform, _)| *platform)
    }

    /// Is its text read, and leads to the parent?
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Self::MacX | Self::W2ku | Self::W2ru)
    }

    /// The number on disk.
    #[must_use]
    pub fn code(self) -> u32 {
        if let Self::Unknown(code) = self {
            return code;
        }
        let known = Self::CODES.iter().find(|(platform, _)| *platform == self);
        known.map_or(0, |(_, code)| *code)
    }
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// Which system it is for.
    pub platform: Platform,
    /// The room of the text: in bytes, or below 512 in sectors.
    pub space: u32,
    /// The length of the text, in bytes.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
    /// Where the text is, in bytes.
    pub offset: u64,
}

impl Locator {
    /// An entry that is not used.
    pub const NONE: Self =
        Self { platform: Platform::None, space: 0, length: 0, reserved: 0, offset: 0 };

    /// Reads one. Every entry has a meaning; what is wrong with it, [`check`](Self::check) says.
    #[must_use]
    pub fn parse(bytes: &[u8; LOCATOR_SIZE]) -> Self {
        Self {
            platform: Platform::from_code(be32(bytes, 0)),
            space: be32(bytes, 4),
            length: be32(bytes, 8),
            reserved: be32(bytes, 12),
            offset: be64(bytes, 16),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; LOCATOR_SIZE] {
        let mut bytes = [0; LOCATOR_SIZE];
        put(&mut bytes, 0, &self.platform.code().to_be_bytes());
        put(&mut bytes, 4, &self.space.to_be_bytes());
        put(&mut bytes, 8, &self.length.to_be_bytes());
        put(&mut bytes, 12, &self.reserved.to_be_bytes());
        put(&mut bytes, 16, &self.offset.to_be_bytes());
        bytes
    }

    /// The room of the text, in bytes.
    #[must_use]
    pub fn space_bytes(&self) -> u64 {
        let space = u64::from(self.space);
        if space < 512 { space << 9 } else { space }
    }

    /// Where the room of the text ends, in bytes; past the end of the numbers, their end.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.space_bytes())
    }

    /// Bytes to read for [`decode`](Self::decode): the length, bounded by the room and by
    /// [`TEXT_SIZE_MAX`].
    #[must_use]
    pub fn text_size(&self) -> u32 {
        let room = u32::try_from(self.space_bytes()).unwrap_or(u32::MAX);
        self.length.min(room).min(TEXT_SIZE_MAX)
    }

    /// The parent's path in `text`, the bytes at the entry's offset, with slashes.
    ///
    /// `None` for platforms whose text is not read.
    ///
    /// # Errors
    /// Text that is not in the platform's encoding. The error names locator `number`.
    pub fn decode(&self, number: u8, text: &[u8]) -> Option<Result<String>> {
        let decoded = match self.platform {
            Platform::MacX => decode_url(text),
            Platform::W2ku | Platform::W2ru => decode_windows(text),
            _ => return None,
        };
        let part = Part::Locator(number);
        Some(decoded.map_err(|wanted| ErrorKind::Encoding { part, wanted }.into()))
    }

    /// The first complaint that a checking tool has, in its words.
    #[must_use]
    pub fn check(&self) -> Option<&'static str> {
        if self.platform == Platform::None {
            let is_zero = *self == Self::NONE;
            return if is_zero { None } else { Some("non-zero locator") };
        }
        let complaints = [
            (matches!(self.platform, Platform::Unknown(_)), "invalid platform code"),
            (self.offset == 0 || !self.offset.is_multiple_of(512), "invalid data offset"),
            (self.space == 0, "invalid data space"),
            (self.length == 0, "invalid data length"),
            (u64::from(self.length) > self.space_bytes(), "invalid size"),
            (self.reserved != 0, "invalid reserved bits"),
        ];
        complaints.iter().find(|(is_true, _)| *is_true).map(|(_, complaint)| *complaint)
    }
}

/// The bytes of a path for a platform; `path` is relative to the child, as `./parent.vhd`.
///
/// Windows' own programs want a relative path to start with `.\\`.
///
/// # Panics
/// For a platform other than the three that are written.
#[must_use]
pub fn encode(platform: Platform, path: &str) -> Vec<u8> {
    match platform {
        Platform::MacX => format!("{URL_PREFIX}{path}").into_bytes(),
        Platform::W2ku | Platform::W2ru => {
            let start = if path.starts_with("./") { "" } else { ".\\" };
            let text = format!("{start}{}", path.replace('/', "\\"));
            text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        }
        other => panic!("nothing is written for {other:?}"),
    }
}

fn decode_url(text: &[u8]) -> std::result::Result<String, &'static str> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| "UTF-8")?;
    text.strip_prefix(URL_PREFIX).map(str::to_owned).ok_or("a URL that starts with file://")
}

fn decode_windows(text: &[u8]) -> std::result::Result<String, &'static str> {
    let units = text.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let letters = char::decode_utf16(units.take_while(|unit| *unit != 0));
    let text: String = letters.collect::<std::result::Result<_, _>>().map_err(|_| "UTF-16LE")?;
    let text = text.replace('\\', "/");
    let without_drive = text.strip_prefix("C:").or_else(|| text.strip_prefix("c:"));
    Ok(without_drive.unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests;
