//! Opening that failed, and may not when it is tried again: storage comes back, somebody else lets
//! go of the image. Ten attempts, a second apart, as blktap has them; between them the loop runs
//! as always, so other commands are answered and a forced close gives up at once.

use std::time::Duration;

use nix::errno::Errno;

use super::thread::OpenRequest;
use crate::time::Now;

/// How often an image is tried in all.
pub(super) const ATTEMPTS: u32 = 10;

/// How long after a failure it is tried again.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Which command tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// A person or a storage manager waits, and nothing else.
    Open,
    /// A guest waits, whose requests fail when this does.
    Resume,
}

/// A command that tries again.
#[derive(Debug)]
pub(super) struct Again {
    /// Who is to be answered.
    pub(super) ticket: u64,
    pub(super) opening: Opening,
    pub(super) request: OpenRequest,
    left: u32,
    next: Now,
}

impl Again {
    /// Before the first attempt.
    pub(super) fn new(ticket: u64, opening: Opening, request: OpenRequest) -> Self {
        Self { ticket, opening, request, left: ATTEMPTS, next: Now::default() }
    }

    /// When the next attempt is due.
    pub(super) fn next(&self) -> Now {
        self.next
    }

    /// An attempt failed at `now`: whether there is to be another.
    pub(super) fn failed(&mut self, errno: Errno, now: Now) -> bool {
        self.left = self.left.saturating_sub(1);
        self.next = now.after(INTERVAL);
        self.left > 0 && may_pass(self.opening, errno)
    }
}

/// Whether an error may be another one in a second. What names a mistake never is (blktap tries a
/// resume again after those too); an image that is open for writing elsewhere is refused at once
/// when it is opened, and waited for when a guest is to go on.
fn may_pass(opening: Opening, errno: Errno) -> bool {
    let storage = matches!(
        errno,
        Errno::EIO | Errno::ETIMEDOUT | Errno::ESTALE | Errno::EREMOTEIO | Errno::EHOSTDOWN
    );
    let elsewhere = matches!(
        errno,
        Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOLCK | Errno::ENOMEM | Errno::ENFILE
    );
    storage || (opening == Opening::Resume && elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageSpec, OpenFlags};
    use crate::vbd::retry::RetryPolicy;

    fn again(opening: Opening) -> Again {
        let request = OpenRequest {
            spec: ImageSpec::parse("aio:/x".as_ref()).unwrap(),
            name: "aio:/x".into(),
            flags: OpenFlags::default(),
            retry: RetryPolicy::default(),
        };
        Again::new(1, opening, request)
    }

    #[test]
    fn an_error_that_may_pass_is_tried_ten_times_a_second_apart() {
        for opening in [Opening::Open, Opening::Resume] {
            let mut again = again(opening);
            let mut now = Now(5);
            for _ in 1..ATTEMPTS {
                assert!(again.failed(Errno::EIO, now));
                assert_eq!(again.next(), now.after(INTERVAL));
                now = again.next();
            }
            assert!(!again.failed(Errno::EIO, now));
        }
    }

    #[test]
    fn a_mistake_is_told_at_once() {
        for errno in [Errno::ENOENT, Errno::EINVAL, Errno::EMEDIUMTYPE, Errno::ENOMEDIUM] {
            assert!(!again(Opening::Open).failed(errno, Now(0)), "{errno}");
            assert!(!again(Opening::Resume).failed(errno, Now(0)), "{errno}");
        }
    }

    #[test]
    fn an_image_in_use_is_waited_for_only_when_a_guest_waits() {
        assert!(!again(Opening::Open).failed(Errno::EAGAIN, Now(0)));
        assert!(again(Opening::Resume).failed(Errno::EAGAIN, Now(0)));
    }
}
