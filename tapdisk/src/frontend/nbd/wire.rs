//! The transmission phase on the wire: requests in, reply headers out. No I/O, no memory of its
//! own.
//!
//! Every request passes [`plain`] or [`judge`]; what comes out of them carries the proof that its
//! length is within the door's bound, that its range does not wrap, and that its flags fit its
//! command.
//! Numbers are those of the NBD protocol, sections "Transmission phase" and "Values".
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use nix::errno::Errno;

use crate::memory::PAGE_SIZE;
use crate::request::{ExtentKind, Op};
use crate::status::Status;

/// Bytes of a request without its payload.
pub(super) const REQUEST_BYTES: u32 = 28;
/// Bytes of one extent in the answer to a block status request.
pub(super) const DESCRIPTOR_BYTES: u32 = 8;
/// The most extents in one answer: a client asks on from where they end. 128 bytes; a guess at
/// where another round trip costs less than another look-up.
pub(super) const EXTENTS_MAX: u32 = 16;
/// The most look-ups for one answer: neighbours of one kind become one extent, so that few extents
/// may take many.
pub(super) const LOOKUPS_MAX: u32 = 4 * EXTENTS_MAX;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_DF: u16 = 4;
const FLAG_REQ_ONE: u16 = 8;
const FLAG_FAST_ZERO: u16 = 16;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const RESIZE: u16 = 8;

const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// The id that stands for `base:allocation` on this server.
pub(super) const ALLOCATION_ID: u32 = 1;

/// A longer write than this is not drained but ends the connection: what clients send at most when
/// they know of no limit (NBD protocol, "Block size constraints").
pub(super) const DRAIN_BYTES_MAX: u32 = 32 << 20;

/// What was negotiated and matters to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Structured replies.
    pub(super) structured: bool,
    /// The metadata context `base:allocation`.
    pub(super) allocation: bool,
}

/// A request as it stands on the wire: nothing is checked but the magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawRequest {
    pub(super) flags: u16,
    pub(super) kind: u16,
    /// The client's name for it, given back with the reply.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl RawRequest {
    /// Offset and length.
    #[inline]
    pub(super) fn range(&self) -> (u64, u64) {
        (self.offset, u64::from(self.len))
    }

    /// Whether payload follows, if it is accepted or drained.
    #[inline]
    pub(super) fn is_write(&self) -> bool {
        self.kind == WRITE
    }

    /// Splits the bytes up; `None` when they do not start with the magic: the stream is out of
    /// step.
    #[inline]
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES as usize]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (cookie, rest) = rest.split_first_chunk::<8>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let (len, _) = rest.split_first_chunk::<4>()?;
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then_some(Self {
            flags: u16::from_be_bytes(*flags),
            kind: u16::from_be_bytes(*kind),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            len: u32::from_be_bytes(*len),
        })
    }
}

/// What a well-formed request asks for; its range goes with it in the [`RawRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) op: Op,
    /// Only ever set for changes.
    pub(super) fua: bool,
    /// Only ever set for zeros.
    pub(super) may_punch: bool,
    /// One extent is enough.
    pub(super) one_extent: bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is well-formed; a write's payload follows.
    Accept(Command),
    /// It is answered with an error at once; so many bytes of payload follow and are dropped.
    Refuse(Errno, u32),
    /// The client says good-bye.
    Disconnect,
    /// Nobody knows where the next request would start: the connection ends.
    Hangup,
}

/// What there is most of: a read or write of at most a page that has nothing special. [`judge`]
/// accepts each of these, with this op and nothing else set.
#[inline(always)]
pub(super) fn plain(raw: &RawRequest) -> Option<Op> {
    let op = match raw.kind {
        READ => Op::Read,
        WRITE => Op::Write,
        _ => return None,
    };
    let is_plain = raw.flags == 0
        && (1..=PAGE_SIZE).contains(&raw.len)
        && raw.offset.checked_add(u64::from(raw.len)).is_some();
    is_plain.then_some(op)
}

/// Checks one request, all that can be known without the disk.
pub(super) fn judge(raw: &RawRequest, features: Features, payload_bytes_max: u32) -> Verdict {
    let (op, flags_known) = match raw.kind {
        READ if features.structured => (Op::Read, FLAG_FUA | FLAG_DF),
        READ => (Op::Read, FLAG_FUA),
        WRITE => (Op::Write, FLAG_FUA),
        FLUSH => (Op::Flush, FLAG_FUA),
        TRIM => (Op::Trim, FLAG_FUA),
        WRITE_ZEROES => (Op::WriteZeroes, FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO),
        BLOCK_STATUS => (Op::BlockStatus, FLAG_FUA | FLAG_REQ_ONE),
        DISC => return Verdict::Disconnect,
        // Known to the protocol and known to have no payload, but not to be had here.
        CACHE | RESIZE => return Verdict::Refuse(Errno::EINVAL, 0),
        _ if raw.len == 0 => return Verdict::Refuse(Errno::EINVAL, 0),
        // Whether `len` bytes follow is anybody's guess.
        _ => return Verdict::Hangup,
    };
    if op == Op::Write && raw.len > DRAIN_BYTES_MAX {
        return Verdict::Hangup;
    }
    let refused = if raw.flags & !flags_known != 0 {
        Some(Errno::EINVAL)
    } else {
        refusal(op, raw, features, payload_bytes_max)
    };
    match refused {
        Some(errno) => Verdict::Refuse(errno, if op == Op::Write { raw.len } else { 0 }),
        None => Verdict::Accept(Command {
            op,
            fua: op.is_change() && raw.flags & FLAG_FUA != 0,
            may_punch: op == Op::WriteZeroes && raw.flags & FLAG_NO_HOLE == 0,
            one_extent: raw.flags & FLAG_REQ_ONE != 0,
        }),
    }
}

/// Why a request of a known command with flags of its own cannot be done, if so.
fn refusal(op: Op, raw: &RawRequest, features: Features, payload_bytes_max: u32) -> Option<Errno> {
    let has_range = op != Op::Flush;
    if has_range == (raw.len == 0) {
        return Some(Errno::EINVAL);
    }
    if raw.offset.checked_add(u64::from(raw.len)).is_none() {
        return Some(if op == Op::Write { Errno::ENOSPC } else { Errno::EINVAL });
    }
    match op {
        Op::Flush if raw.offset != 0 => Some(Errno::EINVAL),
        Op::Read if raw.len > payload_bytes_max && raw.flags & FLAG_DF != 0 => {
            Some(Errno::EOVERFLOW)
        }
        Op::Read | Op::Write if raw.len > payload_bytes_max => Some(Errno::EINVAL),
        Op::WriteZeroes if raw.flags & FLAG_FAST_ZERO != 0 => Some(Errno::EOPNOTSUPP),
        Op::BlockStatus if !features.allocation => Some(Errno::EINVAL),
        _ => None,
    }
}

/// The header of a reply, ready to send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: u8,
}

/// Room for any header: the longest is a structured one with an offset, 28 bytes. A round number,
/// so that it is copied with few instructions.
const HEADER_BYTES_MAX: usize = 32;

impl Header {
    /// A simple reply.
    #[inline(always)]
    pub(super) fn simple(cookie: u64, status: Status) -> Self {
        let mut header = Self::empty();
        header.put(SIMPLE_MAGIC.to_be_bytes());
        header.put(status.to_nbd().to_be_bytes());
        header.put(cookie.to_be_bytes());
        header
    }

    /// The one chunk of a successful structured read; `len` bytes of data follow.
    #[inline(always)]
    pub(super) fn data(cookie: u64, offset: u64, len: u32) -> Self {
        let mut header = Self::chunk(cookie, CHUNK_OFFSET_DATA, len.saturating_add(8));
        header.put(offset.to_be_bytes());
        header
    }

    /// The one chunk of a successful block status request; the descriptors follow.
    pub(super) fn block_status(cookie: u64, descriptors_bytes: u32) -> Self {
        let len = descriptors_bytes.saturating_add(4);
        let mut header = Self::chunk(cookie, CHUNK_BLOCK_STATUS, len);
        header.put(ALLOCATION_ID.to_be_bytes());
        header
    }

    /// The one chunk of a failed structured reply, without a message.
    pub(super) fn error(cookie: u64, status: Status) -> Self {
        let mut header = Self::chunk(cookie, CHUNK_ERROR, 6);
        header.put(status.to_nbd().to_be_bytes());
        header.put(0u16.to_be_bytes());
        header
    }

    /// A failure of a request of type `kind`, in the form that the client expects for it.
    pub(super) fn failure(op: Option<Op>, features: Features, cookie: u64, status: Status) -> Self {
        if features.structured && matches!(op, Some(Op::Read | Op::BlockStatus)) {
            Self::error(cookie, status)
        } else {
            Self::simple(cookie, status)
        }
    }

    /// In bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The bytes.
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    #[inline(always)]
    fn empty() -> Self {
        Self { bytes: [0; HEADER_BYTES_MAX], len: 0 }
    }

    #[inline(always)]
    fn chunk(cookie: u64, kind: u16, len: u32) -> Self {
        let mut header = Self::empty();
        header.put(STRUCTURED_MAGIC.to_be_bytes());
        header.put(CHUNK_DONE.to_be_bytes());
        header.put(kind.to_be_bytes());
        header.put(cookie.to_be_bytes());
        header.put(len.to_be_bytes());
        header
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, field: [u8; N]) {
        let at = usize::from(self.len);
        let target = self.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>());
        *target.expect("the longest header has 28 bytes") = field;
        self.len = self.len.saturating_add(const { field_len(N) });
    }
}

/// The length of a field of a header, which is one of a few integers.
const fn field_len(bytes: usize) -> u8 {
    match bytes {
        2 => 2,
        4 => 4,
        8 => 8,
        _ => panic!("fields of headers are integers"),
    }
}

/// The op that a request's type names, for the form of its reply.
pub(super) fn op_of(kind: u16) -> Option<Op> {
    match kind {
        READ => Some(Op::Read),
        BLOCK_STATUS => Some(Op::BlockStatus),
        _ => None,
    }
}

/// The state flags of `base:allocation`.
pub(super) fn state_flags(kind: ExtentKind) -> u32 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        ExtentKind::Zero => STATE_ZERO,
    }
}

/// One extent of the answer to a block status request.
pub(super) fn descriptor(len: u32, flags: u32) -> [u8; DESCRIPTOR_BYTES as usize] {
    (u64::from(len) << 32 | u64::from(flags)).to_be_bytes()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
