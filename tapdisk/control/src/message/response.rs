//! Replies: what a server answers.

use std::ffi::OsString;

use super::layout::{self, MessageBytes};
use super::{DecodeError, EncodeError, MESSAGE_SIZE, MessageId};

/// The most minors that fit a reply to LIST_MINORS.
pub const MINORS_MAX: usize = 63;

/// The geometry of an open image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// The size, in sectors.
    pub sectors: u64,
    /// The size of a sector, in bytes.
    pub sector_size: u32,
    /// Flags as in xenstore's `info`.
    pub info: u32,
}

/// A disk in the reply to LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// How many disks are still to come, this one included: at least 1.
    pub remaining: u32,
    /// The disk.
    pub minor: u16,
    /// Its state bits.
    pub state: u32,
    /// `type:path`; empty while no image is open.
    pub path: OsString,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The request failed.
    Error {
        /// A positive errno.
        errno: i32,
        /// More about it; often empty.
        message: OsString,
    },
    /// Something failed while running.
    RuntimeError {
        /// What.
        message: OsString,
    },
    /// The process id.
    Pid(i32),
    /// The disk is there.
    Attach,
    /// The disk is gone.
    Detach,
    /// The image is open.
    Open(ImageInfo),
    /// The image is closed.
    Close,
    /// The disk is paused.
    Pause,
    /// The disk goes on.
    Resume,
    /// A disk of several.
    List(ListEntry),
    /// There are no more disks.
    ListEnd,
    /// Minors, at most [`MINORS_MAX`].
    ListMinors(Vec<i32>),
    /// This many bytes of JSON follow.
    Stats {
        /// In bytes.
        length: u64,
    },
    /// The geometry.
    DiskInfo(ImageInfo),
    /// The ring is served.
    XenblkifConnect,
    /// The ring is let go.
    XenblkifDisconnect,
}

impl Response {
    /// Its message id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        match self {
            Self::Error { .. } => MessageId::Error,
            Self::RuntimeError { .. } => MessageId::RuntimeError,
            Self::Pid(_) => MessageId::PidResponse,
            Self::Attach => MessageId::AttachResponse,
            Self::Detach => MessageId::DetachResponse,
            Self::Open(_) => MessageId::OpenResponse,
            Self::Close => MessageId::CloseResponse,
            Self::Pause => MessageId::PauseResponse,
            Self::Resume => MessageId::ResumeResponse,
            Self::List(_) | Self::ListEnd => MessageId::ListResponse,
            Self::ListMinors(_) => MessageId::ListMinorsResponse,
            Self::Stats { .. } => MessageId::StatsResponse,
            Self::DiskInfo(_) => MessageId::DiskInfoResponse,
            Self::XenblkifConnect => MessageId::XenblkifConnectResponse,
            Self::XenblkifDisconnect => MessageId::XenblkifDisconnectResponse,
        }
    }

    /// The message; `cookie` is that of the request.
    ///
    /// # Errors
    /// When a string or a list does not fit.
    pub fn encode(&self, cookie: u16) -> Result<MessageBytes, EncodeError> {
        let mut bytes = [0; MESSAGE_SIZE];
        layout::TYPE.set_u16(&mut bytes, self.id().raw());
        layout::COOKIE.set_u16(&mut bytes, cookie);
        match self {
            Self::Error { errno, message } => {
                layout::ERROR_ERRNO.set_i32(&mut bytes, *errno);
                layout::ERROR_MESSAGE.set_string(&mut bytes, message, "message")?;
            }
            Self::RuntimeError { message } => {
                layout::STRING.set_string(&mut bytes, message, "message")?;
            }
            Self::Pid(pid) => layout::PID.set_i32(&mut bytes, *pid),
            Self::Open(info) | Self::DiskInfo(info) => encode_info(info, &mut bytes),
            Self::List(entry) => {
                layout::LIST_COUNT.set_u32(&mut bytes, entry.remaining);
                layout::LIST_MINOR.set_u32(&mut bytes, entry.minor.into());
                layout::LIST_STATE.set_u32(&mut bytes, entry.state);
                layout::LIST_PATH.set_string(&mut bytes, &entry.path, "path")?;
            }
            Self::ListEnd => layout::LIST_MINOR.set_i32(&mut bytes, -1),
            Self::ListMinors(minors) => encode_minors(minors, &mut bytes)?,
            Self::Stats { length } => layout::STATS_LENGTH.set_u64(&mut bytes, *length),
            _ => {}
        }
        Ok(bytes)
    }

    /// The reply of a message.
    ///
    /// # Errors
    /// When it is none; never panics.
    pub fn decode(bytes: &MessageBytes) -> Result<Self, DecodeError> {
        let id = MessageId::try_from(layout::TYPE.get_u16(bytes))?;
        Ok(match id {
            MessageId::Error => Self::Error {
                errno: layout::ERROR_ERRNO.get_i32(bytes),
                message: layout::ERROR_MESSAGE.get_string(bytes, "message")?,
            },
            MessageId::RuntimeError => {
                Self::RuntimeError { message: layout::STRING.get_string(bytes, "message")? }
            }
            MessageId::PidResponse => Self::Pid(layout::PID.get_i32(bytes)),
            MessageId::AttachResponse => Self::Attach,
            MessageId::DetachResponse => Self::Detach,
            MessageId::OpenResponse => Self::Open(decode_info(bytes)),
            MessageId::CloseResponse => Self::Close,
            MessageId::PauseResponse => Self::Pause,
            MessageId::ResumeResponse => Self::Resume,
            MessageId::ListResponse => decode_list(bytes)?,
            MessageId::ListMinorsResponse => Self::ListMinors(decode_minors(bytes)?),
            MessageId::StatsResponse => Self::Stats { length: layout::STATS_LENGTH.get_u64(bytes) },
            MessageId::DiskInfoResponse => Self::DiskInfo(decode_info(bytes)),
            MessageId::XenblkifConnectResponse => Self::XenblkifConnect,
            MessageId::XenblkifDisconnectResponse => Self::XenblkifDisconnect,
            _ => return Err(DecodeError::NotAResponse(id)),
        })
    }
}

fn encode_info(info: &ImageInfo, bytes: &mut MessageBytes) {
    layout::IMAGE_SECTORS.set_u64(bytes, info.sectors);
    layout::IMAGE_SECTOR_SIZE.set_u32(bytes, info.sector_size);
    layout::IMAGE_INFO.set_u32(bytes, info.info);
}

fn decode_info(bytes: &MessageBytes) -> ImageInfo {
    ImageInfo {
        sectors: layout::IMAGE_SECTORS.get_u64(bytes),
        sector_size: layout::IMAGE_SECTOR_SIZE.get_u32(bytes),
        info: layout::IMAGE_INFO.get_u32(bytes),
    }
}

fn decode_list(bytes: &MessageBytes) -> Result<Response, DecodeError> {
    let count = layout::LIST_COUNT.get_i32(bytes);
    let remaining = u32::try_from(count).map_err(|_| DecodeError::Count(count))?;
    if remaining == 0 {
        return Ok(Response::ListEnd);
    }
    let minor = layout::LIST_MINOR.get_i32(bytes);
    Ok(Response::List(ListEntry {
        remaining,
        minor: u16::try_from(minor).map_err(|_| DecodeError::Minor(minor))?,
        state: layout::LIST_STATE.get_u32(bytes),
        path: layout::LIST_PATH.get_string(bytes, "path")?,
    }))
}

fn encode_minors(minors: &[i32], bytes: &mut MessageBytes) -> Result<(), EncodeError> {
    let count = i32::try_from(minors.len()).map_err(|_| EncodeError::TooMany(minors.len()))?;
    if minors.len() > MINORS_MAX {
        return Err(EncodeError::TooMany(minors.len()));
    }
    let mut list = [0; 252];
    for (to, minor) in list.as_chunks_mut::<4>().0.iter_mut().zip(minors) {
        *to = minor.to_ne_bytes();
    }
    layout::MINORS_COUNT.set_i32(bytes, count);
    layout::MINORS_LIST.set(bytes, &list);
    Ok(())
}

fn decode_minors(bytes: &MessageBytes) -> Result<Vec<i32>, DecodeError> {
    let raw = layout::MINORS_COUNT.get_i32(bytes);
    let list = layout::MINORS_LIST.get(bytes);
    let count = usize::try_from(raw).map_err(|_| DecodeError::Count(raw))?;
    let minors = list.as_chunks::<4>().0.get(..count).ok_or(DecodeError::Count(raw))?;
    Ok(minors.iter().map(|minor| i32::from_ne_bytes(*minor)).collect())
}
