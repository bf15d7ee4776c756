//! How a request ended, on the data path: small, `Copy`, mapped to each door in one function.

use nix::errno::Errno;

/// The end of a request or of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done; for a write that asked for it (FUA) and for a flush: durable.
    Done,
    /// Failed; nothing is promised of the sectors of a failed write: each holds its old or its new
    /// value.
    Failed(Errno),
}

impl Status {
    /// The first failure of two: what a request reports when its parts end differently.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::Done => other,
            Self::Failed(_) => self,
        }
    }

    /// `None` when done.
    #[must_use]
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::Done => None,
            Self::Failed(errno) => Some(errno),
        }
    }

    /// The status of a blktap2 or blkif response: 0, -2 (not supported) or -1 (any other failure).
    #[must_use]
    pub fn to_blkif(self) -> i16 {
        match self {
            Self::Done => 0,
            Self::Failed(Errno::EOPNOTSUPP) => -2,
            Self::Failed(_) => -1,
        }
    }

    /// The error field of an NBD reply. NBD knows eight values; what has no name there is
    /// `NBD_EIO`.
    #[must_use]
    pub fn to_nbd(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Failed(errno) => match errno {
                Errno::EPERM | Errno::EROFS | Errno::EACCES => 1,
                Errno::ENOMEM => 12,
                Errno::EINVAL => 22,
                Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => 28,
                Errno::EOVERFLOW => 75,
                Errno::EOPNOTSUPP => 95,
                Errno::ESHUTDOWN => 108,
                _ => 5,
            },
        }
    }
}

impl From<Result<(), Errno>> for Status {
    fn from(result: Result<(), Errno>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(errno) => Self::Failed(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_sees_only_ok_unsupported_and_error() {
        assert_eq!(Status::Done.to_blkif(), 0);
        assert_eq!(Status::Failed(Errno::EOPNOTSUPP).to_blkif(), -2);
        for errno in [Errno::EIO, Errno::ENOSPC, Errno::EPERM, Errno::EINVAL] {
            assert_eq!(Status::Failed(errno).to_blkif(), -1);
        }
    }

    #[test]
    fn an_nbd_error_is_one_that_the_protocol_names() {
        let named = [1, 5, 12, 22, 28, 75, 95, 108];
        for raw in 1..=133 {
            let error = Status::Failed(Errno::from_raw(raw)).to_nbd();
            assert!(named.contains(&error), "errno {raw} became {error}");
        }
        assert_eq!(Status::Done.to_nbd(), 0);
    }

    #[test]
    fn the_first_failure_wins() {
        let (eio, enospc) = (Status::Failed(Errno::EIO), Status::Failed(Errno::ENOSPC));
        assert_eq!(Status::Done.and(eio), eio);
        assert_eq!(eio.and(enospc), eio);
        assert_eq!(Status::Done.and(Status::Done), Status::Done);
    }
}
