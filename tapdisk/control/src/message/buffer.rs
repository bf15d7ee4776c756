//! Receives a request piece by piece.

use std::ffi::OsString;

use super::layout::{self, MessageBytes, STRING_SIZE};
use super::{DecodeError, Flags, KEY_SIZE_MAX, Key, MESSAGE_SIZE, MessageId, Request};

/// The longest request: a message, the path of a log, the length of a key, and the key. In bytes.
pub const REQUEST_SIZE_MAX: usize = MESSAGE_SIZE + STRING_SIZE + 1 + KEY_SIZE_MAX;

/// The bytes of one request, as far as they have come.
///
/// ```text
///   loop: read into space() -> advance(n) -> request(): None: more, Some: done, Err: EINVAL
/// ```
///
/// It asks for exactly the bytes that are missing, never for one that could belong to something
/// else.
#[derive(Clone)]
pub struct RequestBuffer {
    bytes: [u8; REQUEST_SIZE_MAX],
    filled: usize,
}

impl Default for RequestBuffer {
    fn default() -> Self {
        Self { bytes: [0; REQUEST_SIZE_MAX], filled: 0 }
    }
}

impl std::fmt::Debug for RequestBuffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes may hold a key.
        formatter
            .debug_struct("RequestBuffer")
            .field("filled", &self.filled)
            .finish_non_exhaustive()
    }
}

impl RequestBuffer {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next bytes go. Empty when the request is complete, or cannot become one.
    #[must_use]
    pub fn space(&mut self) -> &mut [u8] {
        let wanted = self.wanted().unwrap_or(self.filled);
        self.bytes.get_mut(self.filled..wanted).unwrap_or_default()
    }

    /// Takes note that the first `count` bytes of [`Self::space`] were filled.
    ///
    /// # Panics
    /// When that is more than the space.
    pub fn advance(&mut self, count: usize) {
        let room = self.space().len();
        assert!(count <= room, "advanced by {count} bytes, there was room for {room}");
        self.filled = self.filled.saturating_add(count);
    }

    /// Whether nothing has come yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The cookie, as soon as the message is there: a reply repeats it.
    #[must_use]
    pub fn cookie(&self) -> Option<u16> {
        self.message().map(|message| layout::COOKIE.get_u16(message))
    }

    /// The request, when all of it is there.
    ///
    /// # Errors
    /// When it is none, as soon as that is certain.
    pub fn request(&self) -> Result<Option<Request>, DecodeError> {
        let wanted = self.wanted()?;
        let Some(message) = self.message().filter(|_| self.filled == wanted) else {
            return Ok(None);
        };
        let (log, key) = follows(message);
        let mut tail = self.bytes.get(MESSAGE_SIZE..wanted).unwrap_or_default();
        let mut log_path: Option<OsString> = None;
        if log && let Some((path, rest)) = tail.split_first_chunk::<STRING_SIZE>() {
            log_path = Some(layout::decode_string(path, "log")?);
            tail = rest;
        }
        let key = match tail.split_first() {
            Some((_, key_bytes)) if key => Some(Key::new(key_bytes)?),
            _ => None,
        };
        Request::decode(message, log_path, key).map(Some)
    }

    fn message(&self) -> Option<&MessageBytes> {
        self.bytes.get(..self.filled).and_then(<[u8]>::first_chunk)
    }

    /// The length of the request as far as it is known, in bytes: at least `filled`.
    fn wanted(&self) -> Result<usize, DecodeError> {
        let Some(message) = self.message() else {
            return Ok(MESSAGE_SIZE);
        };
        let (log, key) = follows(message);
        let key_at = if log { MESSAGE_SIZE.saturating_add(STRING_SIZE) } else { MESSAGE_SIZE };
        if !key {
            return Ok(key_at);
        }
        let size = self.bytes.get(..self.filled).and_then(|bytes| bytes.get(key_at));
        let key_len = match size {
            None => 0,
            Some(&size) if size == 0 || usize::from(size) > KEY_SIZE_MAX => {
                return Err(DecodeError::KeySize(size));
            }
            Some(&size) => usize::from(size),
        };
        Ok(key_at.saturating_add(1).saturating_add(key_len))
    }
}

/// Whether the path of a log and a key follow the message.
fn follows(message: &MessageBytes) -> (bool, bool) {
    let flags = Flags(layout::PARAMS_FLAGS.get_u32(message));
    let (log, key) = (flags.contains(Flags::ADD_LOG), flags.contains(Flags::OPEN_ENCRYPTED));
    match MessageId::try_from(layout::TYPE.get_u16(message)) {
        Ok(MessageId::Open) => (log, key),
        Ok(MessageId::Resume) => (log, false),
        _ => (false, false),
    }
}
