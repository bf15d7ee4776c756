//! The life of a disk: one state at a time. The bits that `tap-ctl list` prints are computed from
//! it.
//!
//! ```text
//!   Attached ── open ──> Running <── resume ── Paused
//!      ^                  │   │                  ^ │ resume fails: still Paused
//!      │                close pause ── drained ──┘ │
//!      │                  v                        │
//!   Closed <─ drained ─ Closing <────── close ─────┘
//!      ^
//!      └── drained ── Dead <── forced close, from any state with I/O that does not end
//! ```

/// What a draining disk does when it is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never opened.
    Attached,
    /// Serves.
    Running,
    /// Takes no requests; pauses when those it has are done.
    Pausing,
    /// Without image; requests wait at the doors.
    Paused {
        /// The last resume failed.
        failed: bool,
    },
    /// Serves until the block device is gone, then drains, then closes.
    Closing,
    /// Open once, and no more.
    Closed,
    /// Closed by force with I/O under way that does not end.
    Dead,
}

/// The state bits of the control protocol that we ever show.
mod bits {
    pub(super) const DEAD: u32 = 0x1;
    pub(super) const CLOSED: u32 = 0x2;
    pub(super) const QUIESCE_REQUESTED: u32 = 0x4;
    pub(super) const QUIESCED: u32 = 0x8;
    pub(super) const PAUSE_REQUESTED: u32 = 0x10;
    pub(super) const PAUSED: u32 = 0x20;
    pub(super) const SHUTDOWN_REQUESTED: u32 = 0x40;
    pub(super) const RESUME_FAILED: u32 = 0x200;
}

impl Life {
    /// The state as `tap-ctl list` shows it: the reference's bits in the same situation.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Attached | Self::Running => 0,
            Self::Pausing => bits::QUIESCE_REQUESTED | bits::PAUSE_REQUESTED,
            Self::Paused { failed } => {
                let failed = if failed { bits::RESUME_FAILED } else { 0 };
                bits::PAUSED | bits::QUIESCED | bits::CLOSED | failed
            }
            Self::Closing => bits::SHUTDOWN_REQUESTED | bits::QUIESCE_REQUESTED,
            Self::Closed => bits::CLOSED,
            Self::Dead => bits::DEAD | bits::SHUTDOWN_REQUESTED,
        }
    }

    /// Whether it has an image, or will again: then it cannot be detached.
    #[must_use]
    pub fn is_open(self) -> bool {
        !matches!(self, Self::Attached | Self::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_reference() {
        assert_eq!(Life::Attached.bits(), 0);
        assert_eq!(Life::Running.bits(), 0);
        assert_eq!(Life::Closed.bits(), 0x2);
        assert_eq!(Life::Paused { failed: false }.bits(), 0x2a);
        assert_eq!(Life::Paused { failed: true }.bits(), 0x22a);
    }

    #[test]
    fn the_bits_that_storage_managers_test_say_paused_and_pausing() {
        assert_ne!(Life::Paused { failed: true }.bits() & 0x20, 0);
        assert_ne!(Life::Pausing.bits() & 0x10, 0);
        assert_eq!(Life::Running.bits() & 0x30, 0);
    }
}
