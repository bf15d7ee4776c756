//! The numbers of the messages.

use super::DecodeError;

macro_rules! message_ids {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message is: its first field. Numbers of blktap 4.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum MessageId {
            $($(#[$doc])* $name = $number,)*
        }

        impl MessageId {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub fn raw(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }

        impl TryFrom<u16> for MessageId {
            type Error = DecodeError;

            fn try_from(raw: u16) -> Result<Self, DecodeError> {
                match raw {
                    $($number => Ok(Self::$name),)*
                    _ => Err(DecodeError::UnknownType(raw)),
                }
            }
        }
    };
}

message_ids! {
    /// Reply: the request failed.
    Error = 1,
    /// Reply: something failed while running.
    RuntimeError = 2,
    /// Asks for the process id.
    Pid = 3,
    /// Its reply.
    PidResponse = 4,
    /// Makes a disk without an image.
    Attach = 5,
    /// Its reply.
    AttachResponse = 6,
    /// Opens an image.
    Open = 7,
    /// Its reply.
    OpenResponse = 8,
    /// Stops the I/O and closes the image.
    Pause = 9,
    /// Its reply.
    PauseResponse = 10,
    /// Opens the image again, or another one.
    Resume = 11,
    /// Its reply.
    ResumeResponse = 12,
    /// Closes the image when its I/O is done.
    Close = 13,
    /// Its reply, also to a forced shutdown.
    CloseResponse = 14,
    /// Removes the disk.
    Detach = 15,
    /// Its reply.
    DetachResponse = 16,
    /// Asks for the minors; blktap 4 does not answer it.
    ListMinors = 17,
    /// Its reply.
    ListMinorsResponse = 18,
    /// Asks for the disks.
    List = 19,
    /// Its reply, once for each disk and once more.
    ListResponse = 20,
    /// Asks for statistics.
    Stats = 21,
    /// Its reply; JSON follows.
    StatsResponse = 22,
    /// Closes the image without waiting for a guest.
    ForceShutdown = 23,
    /// Connects a guest's ring.
    XenblkifConnect = 24,
    /// Its reply.
    XenblkifConnectResponse = 25,
    /// Disconnects a guest's ring.
    XenblkifDisconnect = 26,
    /// Its reply.
    XenblkifDisconnectResponse = 27,
    /// Asks for the geometry of the open image.
    DiskInfo = 28,
    /// Its reply.
    DiskInfoResponse = 29,
    /// Ends the process; blktap 4 does not answer it.
    Exit = 30,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_one_message_or_none() {
        let mut known = 0;
        for raw in 0..=u16::MAX {
            if let Ok(id) = MessageId::try_from(raw) {
                assert_eq!(id.raw(), raw);
                known += 1;
            }
        }
        assert_eq!(known, MessageId::ALL.len());
        assert_eq!(known, 30);
    }

    #[test]
    fn numbers_are_those_of_blktap_4() {
        for (id, raw) in [
            (MessageId::Error, 1),
            (MessageId::Open, 7),
            (MessageId::List, 19),
            (MessageId::ForceShutdown, 23),
            (MessageId::DiskInfoResponse, 29),
            (MessageId::Exit, 30),
        ] {
            assert_eq!(id.raw(), raw);
        }
        assert_eq!(MessageId::try_from(0), Err(DecodeError::UnknownType(0)));
        assert_eq!(MessageId::try_from(31), Err(DecodeError::UnknownType(31)));
    }
}
