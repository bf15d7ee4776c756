//! Requests: what a client asks.

use std::ffi::OsString;

use super::layout::{self, MessageBytes};
use super::{DecodeError, EncodeError, Key, MESSAGE_SIZE, MessageId, Params};

/// The largest order of a guest's ring: 8 grant references fit a message.
pub const RING_ORDER_MAX: u32 = 3;

/// The layout of a guest's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkifProtocol {
    /// That of this machine.
    Native,
    /// 32-bit x86.
    X86_32,
    /// 64-bit x86.
    X86_64,
}

impl BlkifProtocol {
    fn raw(self) -> u32 {
        match self {
            Self::Native => 1,
            Self::X86_32 => 2,
            Self::X86_64 => 3,
        }
    }

    fn from_raw(raw: u32) -> Result<Self, DecodeError> {
        match raw {
            1 => Ok(Self::Native),
            2 => Ok(Self::X86_32),
            3 => Ok(Self::X86_64),
            _ => Err(DecodeError::BlkifProtocol(raw)),
        }
    }
}

/// A guest's ring, as tapback names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blkif {
    /// The guest.
    pub domain: u32,
    /// Its device.
    pub device: u32,
    /// Grant references; the first 2^`order` count.
    pub grants: [u32; 8],
    /// 0 to [`RING_ORDER_MAX`].
    pub order: u32,
    /// The layout of its entries.
    pub protocol: BlkifProtocol,
    /// Ignored.
    pub pool: OsString,
    /// The event channel.
    pub port: u32,
    /// How long to poll after a request, in microseconds.
    pub poll_duration_us: u32,
    /// Poll only while the host is idle by this many percent.
    pub poll_idle_percent: u32,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who is there?
    Pid,
    /// All disks.
    List,
    /// All minors.
    ListMinors,
    /// Make a disk without an image.
    Attach {
        /// Its number.
        minor: u16,
    },
    /// Remove a disk without an open image.
    Detach {
        /// Its number.
        minor: u16,
    },
    /// Open an image.
    Open {
        /// The disk.
        minor: u16,
        /// The image.
        params: Params,
    },
    /// Close the image when its I/O is done.
    Close {
        /// The disk.
        minor: u16,
    },
    /// Close the image without waiting for guests.
    ForceShutdown {
        /// The disk.
        minor: u16,
    },
    /// Stop the I/O and close the image; guests wait.
    Pause {
        /// The disk.
        minor: u16,
    },
    /// Open the image (an empty path: the same) and go on.
    Resume {
        /// The disk.
        minor: u16,
        /// The image; without a key.
        params: Params,
    },
    /// Statistics as JSON.
    Stats {
        /// The disk; [`super::COOKIE_ALL`] means all.
        minor: u16,
    },
    /// The geometry of the open image.
    DiskInfo {
        /// The disk.
        minor: u16,
    },
    /// Serve a guest's ring.
    XenblkifConnect {
        /// The disk.
        minor: u16,
        /// The ring.
        blkif: Blkif,
    },
    /// Let a guest's ring go.
    XenblkifDisconnect {
        /// Ignored: the ring is looked for in all disks.
        minor: u16,
        /// The guest.
        domain: u32,
        /// Its device.
        device: u32,
    },
    /// End the process.
    Exit,
}

impl Request {
    /// Its message id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        match self {
            Self::Pid => MessageId::Pid,
            Self::List => MessageId::List,
            Self::ListMinors => MessageId::ListMinors,
            Self::Attach { .. } => MessageId::Attach,
            Self::Detach { .. } => MessageId::Detach,
            Self::Open { .. } => MessageId::Open,
            Self::Close { .. } => MessageId::Close,
            Self::ForceShutdown { .. } => MessageId::ForceShutdown,
            Self::Pause { .. } => MessageId::Pause,
            Self::Resume { .. } => MessageId::Resume,
            Self::Stats { .. } => MessageId::Stats,
            Self::DiskInfo { .. } => MessageId::DiskInfo,
            Self::XenblkifConnect { .. } => MessageId::XenblkifConnect,
            Self::XenblkifDisconnect { .. } => MessageId::XenblkifDisconnect,
            Self::Exit => MessageId::Exit,
        }
    }

    /// The disk it is about; 0 where it is about none.
    #[must_use]
    pub fn cookie(&self) -> u16 {
        match self {
            Self::Pid | Self::List | Self::ListMinors | Self::Exit => 0,
            Self::Attach { minor }
            | Self::Detach { minor }
            | Self::Open { minor, .. }
            | Self::Close { minor }
            | Self::ForceShutdown { minor }
            | Self::Pause { minor }
            | Self::Resume { minor, .. }
            | Self::Stats { minor }
            | Self::DiskInfo { minor }
            | Self::XenblkifConnect { minor, .. }
            | Self::XenblkifDisconnect { minor, .. } => *minor,
        }
    }

    /// The message and what follows it.
    ///
    /// # Errors
    /// When a string does not fit. The key of a RESUME is not sent.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = [0; MESSAGE_SIZE];
        let mut payload = Vec::new();
        layout::TYPE.set_u16(&mut bytes, self.id().raw());
        layout::COOKIE.set_u16(&mut bytes, self.cookie());
        match self {
            Self::Open { params, .. } => {
                params.encode(&mut bytes)?;
                encode_log(params, &mut payload)?;
                if let Some(key) = &params.key {
                    let size = u8::try_from(key.as_bytes().len()).expect("a key has at most 128");
                    payload.push(size);
                    payload.extend_from_slice(key.as_bytes());
                }
            }
            Self::Resume { params, .. } => {
                let params = Params { key: None, ..params.clone() };
                params.encode(&mut bytes)?;
                encode_log(&params, &mut payload)?;
            }
            Self::XenblkifConnect { blkif, .. } => encode_blkif(blkif, &mut bytes)?,
            Self::XenblkifDisconnect { domain, device, .. } => {
                layout::BLKIF_DOMAIN.set_u32(&mut bytes, *domain);
                layout::BLKIF_DEVICE.set_u32(&mut bytes, *device);
            }
            _ => {}
        }
        let mut message = bytes.to_vec();
        message.append(&mut payload);
        Ok(message)
    }

    /// The request of a message; `log` and `key` followed it.
    pub(super) fn decode(
        bytes: &MessageBytes,
        log: Option<OsString>,
        key: Option<Key>,
    ) -> Result<Self, DecodeError> {
        let minor = layout::COOKIE.get_u16(bytes);
        let id = MessageId::try_from(layout::TYPE.get_u16(bytes))?;
        Ok(match id {
            MessageId::Pid => Self::Pid,
            MessageId::List => Self::List,
            MessageId::ListMinors => Self::ListMinors,
            MessageId::Attach => Self::Attach { minor },
            MessageId::Detach => Self::Detach { minor },
            MessageId::Open => Self::Open { minor, params: Params::decode(bytes, log, key)? },
            MessageId::Close => Self::Close { minor },
            MessageId::ForceShutdown => Self::ForceShutdown { minor },
            MessageId::Pause => Self::Pause { minor },
            MessageId::Resume => Self::Resume { minor, params: Params::decode(bytes, log, None)? },
            MessageId::Stats => Self::Stats { minor },
            MessageId::DiskInfo => Self::DiskInfo { minor },
            MessageId::XenblkifConnect => {
                Self::XenblkifConnect { minor, blkif: decode_blkif(bytes)? }
            }
            MessageId::XenblkifDisconnect => Self::XenblkifDisconnect {
                minor,
                domain: layout::BLKIF_DOMAIN.get_u32(bytes),
                device: layout::BLKIF_DEVICE.get_u32(bytes),
            },
            MessageId::Exit => Self::Exit,
            _ => return Err(DecodeError::NotARequest(id)),
        })
    }
}

fn encode_log(params: &Params, payload: &mut Vec<u8>) -> Result<(), EncodeError> {
    if let Some(log) = &params.log {
        payload.extend_from_slice(&layout::encode_string(log, "log")?);
    }
    Ok(())
}

fn encode_blkif(blkif: &Blkif, bytes: &mut MessageBytes) -> Result<(), EncodeError> {
    let mut grants = [0; 32];
    for (to, grant) in grants.as_chunks_mut::<4>().0.iter_mut().zip(blkif.grants) {
        *to = grant.to_ne_bytes();
    }
    layout::BLKIF_DOMAIN.set_u32(bytes, blkif.domain);
    layout::BLKIF_DEVICE.set_u32(bytes, blkif.device);
    layout::BLKIF_GRANTS.set(bytes, &grants);
    layout::BLKIF_ORDER.set_u32(bytes, blkif.order);
    layout::BLKIF_PROTOCOL.set_u32(bytes, blkif.protocol.raw());
    layout::BLKIF_POOL.set_string(bytes, &blkif.pool, "pool")?;
    layout::BLKIF_PORT.set_u32(bytes, blkif.port);
    layout::BLKIF_POLL_DURATION.set_u32(bytes, blkif.poll_duration_us);
    layout::BLKIF_POLL_IDLE.set_u32(bytes, blkif.poll_idle_percent);
    Ok(())
}

fn decode_blkif(bytes: &MessageBytes) -> Result<Blkif, DecodeError> {
    let order = layout::BLKIF_ORDER.get_u32(bytes);
    if order > RING_ORDER_MAX {
        return Err(DecodeError::RingOrder(order));
    }
    let mut grants = [0; 8];
    let raw = layout::BLKIF_GRANTS.get(bytes);
    for (grant, from) in grants.iter_mut().zip(raw.as_chunks::<4>().0) {
        *grant = u32::from_ne_bytes(*from);
    }
    Ok(Blkif {
        domain: layout::BLKIF_DOMAIN.get_u32(bytes),
        device: layout::BLKIF_DEVICE.get_u32(bytes),
        grants,
        order,
        protocol: BlkifProtocol::from_raw(layout::BLKIF_PROTOCOL.get_u32(bytes))?,
        pool: layout::BLKIF_POOL.get_string(bytes, "pool")?,
        port: layout::BLKIF_PORT.get_u32(bytes),
        poll_duration_us: layout::BLKIF_POLL_DURATION.get_u32(bytes),
        poll_idle_percent: layout::BLKIF_POLL_IDLE.get_u32(bytes),
    })
}
