//! The messages of the control socket.
//!
//! A client connects, sends one request, reads the reply, and the server closes. Both directions
//! send the one fixed-size C struct of blktap 4 in host layout: a header of type and cookie, and a
//! union at offset 8 whose member the type chooses. [`layout`] is the table of all fields that are
//! used.
//!
//! ```text
//!   request:  message (544)  [OPEN, RESUME with ADD_LOG: path of the log (256)]
//!                            [OPEN with OPEN_ENCRYPTED: u8 length, that many bytes of key]
//!   reply:    message (544)  [STATS_RSP: as many bytes of JSON as it says]
//!   LIST:     one reply for each disk, `count` counts down, then one with count 0
//! ```
//!
//! Nothing here reads or writes a socket: [`RequestBuffer`] says which bytes it wants next.
//! Invariants: decoding never panics whatever the bytes are; a string that does not fit is an error
//! and is never cut; what is encoded decodes to the same value.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod buffer;
mod id;
pub mod layout;
mod params;
mod request;
mod response;
#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;

use std::error::Error;
use std::fmt;

use nix::errno::Errno;

pub use buffer::{REQUEST_SIZE_MAX, RequestBuffer};
pub use id::MessageId;
pub use params::{Flags, KEY_SIZE_MAX, Key, Params};
pub use request::{Blkif, BlkifProtocol, RING_ORDER_MAX, Request};
pub use response::{ImageInfo, ListEntry, MINORS_MAX, Response};

/// The size of a message, in bytes, in either direction, without what follows some of them.
pub const MESSAGE_SIZE: usize = 544;

/// The longest string in a message, in bytes, without its NUL.
pub const STRING_LEN_MAX: usize = 255;

/// The cookie that asks for the statistics of every disk of the process.
pub const COOKIE_ALL: u16 = 0xffff;

/// Why received bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The type has no meaning.
    UnknownType(u16),
    /// A reply where a request belongs.
    NotARequest(MessageId),
    /// A request where a reply belongs.
    NotAResponse(MessageId),
    /// The field holds no NUL.
    Unterminated(&'static str),
    /// The length of a key, in bytes, is not 1..=128.
    KeySize(u8),
    /// The ring would have 2^order pages; at most 8 are named.
    RingOrder(u32),
    /// Not 1 (native), 2 (x86_32) or 3 (x86_64).
    BlkifProtocol(u32),
    /// A count that is negative or larger than its list.
    Count(i32),
    /// Not a minor number.
    Minor(i32),
}

impl DecodeError {
    /// What a server answers to such a request.
    #[must_use]
    pub fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(raw) => write!(formatter, "Message type {raw} is unknown"),
            Self::NotARequest(id) => write!(formatter, "{id:?} is not a request"),
            Self::NotAResponse(id) => write!(formatter, "{id:?} is not a reply"),
            Self::Unterminated(field) => {
                write!(formatter, "Field {field} has no NUL in its 256 bytes")
            }
            Self::KeySize(size) => write!(formatter, "Key of {size} bytes, want 1 to 128"),
            Self::RingOrder(order) => write!(formatter, "Ring order {order}, want 0 to 3"),
            Self::BlkifProtocol(raw) => write!(formatter, "Ring protocol {raw}, want 1 to 3"),
            Self::Count(count) => write!(formatter, "Count {count} is out of range"),
            Self::Minor(minor) => write!(formatter, "Minor {minor}, want 0 to 65535"),
        }
    }
}

impl Error for DecodeError {}

/// Why a value has no place in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The string has this many bytes; 255 fit.
    TooLong(&'static str, usize),
    /// The string holds a NUL.
    HoldsNul(&'static str),
    /// A list of this many entries; 63 fit.
    TooMany(usize),
}

impl EncodeError {
    /// The errno that names it best.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::TooLong(..) => Errno::ENAMETOOLONG,
            Self::HoldsNul(_) => Errno::EINVAL,
            Self::TooMany(_) => Errno::E2BIG,
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(field, len) => {
                write!(formatter, "Field {field} of {len} bytes, want at most {STRING_LEN_MAX}")
            }
            Self::HoldsNul(field) => write!(formatter, "Field {field} holds a NUL"),
            Self::TooMany(count) => {
                write!(formatter, "List of {count} entries, want at most {MINORS_MAX}")
            }
        }
    }
}

impl Error for EncodeError {}
