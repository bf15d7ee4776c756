//! What goes wrong on the control path: a kind to decide by, an errno to exit with, and the words
//! for a person.

use std::error::Error;
use std::fmt;
use std::io;

use nix::errno::Errno;

/// What a caller decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for cannot be expressed or makes no sense.
    Invalid,
    /// There is nobody at the control socket.
    Connect,
    /// The deadline passed.
    Timeout,
    /// The other side went away in the middle.
    Vanished,
    /// The other side does not speak the protocol.
    Protocol,
    /// The other side answered with an error.
    Refused,
    /// A marker file or directory.
    Minor,
    /// The daemon did not start.
    Spawn,
    /// Anything else that the system refused.
    System,
}

/// An error of the control path.
///
/// It is shown as what was attempted, with path and numbers, and why that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlError {
    kind: ErrorKind,
    errno: i32,
    attempt: String,
}

impl ControlError {
    /// An error; `attempt` says what failed, on what, and what was found and wanted.
    #[must_use]
    pub fn new(kind: ErrorKind, errno: Errno, attempt: impl Into<String>) -> Self {
        Self::with_status(kind, errno as i32, attempt)
    }

    /// The same for a number that need not be an errno: a reply or an exit status holds any.
    #[must_use]
    pub fn with_status(kind: ErrorKind, status: i32, attempt: impl Into<String>) -> Self {
        Self { kind, errno: status.saturating_abs(), attempt: attempt.into() }
    }

    pub(crate) fn system(kind: ErrorKind, source: &io::Error, attempt: impl Into<String>) -> Self {
        let errno = source.raw_os_error().unwrap_or(Errno::EIO as i32);
        Self::with_status(kind, errno, attempt)
    }

    /// The same error, which also tells what it left behind.
    #[must_use]
    pub fn with_note(self, note: &str) -> Self {
        Self { attempt: format!("{} [{note}]", self.attempt), ..self }
    }

    /// What a caller decides by.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The positive errno (or exit status, or whatever an error reply held).
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// What failed, without the reason.
    #[must_use]
    pub fn attempt(&self) -> &str {
        &self.attempt
    }

    /// The reason in the words of the C library.
    #[must_use]
    pub fn reason(&self) -> String {
        strerror(self.errno)
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.attempt, self.reason())
    }
}

impl Error for ControlError {}

/// The C library's text for an errno: programs compare it, so it is not put in other words.
#[must_use]
pub fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error ") {
        Some(end) => text.split_at(end).0.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_that_of_the_c_library() {
        assert_eq!(strerror(2), "No such file or directory");
        assert_eq!(strerror(11), "Resource temporarily unavailable");
        assert_eq!(strerror(22), "Invalid argument");
        assert_eq!(strerror(114), "Operation already in progress");
    }

    #[test]
    fn a_reply_with_a_negative_or_wild_errno_is_still_an_error() {
        let error = ControlError::with_status(ErrorKind::Refused, -16, "Closing");
        assert_eq!(error.errno(), 16);
        let error = ControlError::with_status(ErrorKind::Refused, i32::MIN, "Closing");
        assert_eq!(error.errno(), i32::MAX);
    }

    #[test]
    fn an_error_says_what_and_why() {
        let error = ControlError::new(ErrorKind::Minor, Errno::EAGAIN, "Freeing minor 3");
        assert_eq!(error.to_string(), "Freeing minor 3: Resource temporarily unavailable");
    }
}
