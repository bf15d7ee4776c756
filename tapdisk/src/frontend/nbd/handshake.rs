//! The handshake: fixed newstyle negotiation as a state machine over bytes. No I/O, no allocation.
//!
//! ```text
//!   client flags (4) ──> option header (16) ──> payload (0..=OPTION_BYTES_MAX) ──> reply
//!                              ^   └─> unknown or too long: reply at once, Drain ──┐  │
//!                              └────────────────────────────────────────────────<──┴──┘
//! ```
//!
//! The caller gathers [`Handshake::needs`] bytes, hands exactly those to [`Handshake::step`], sends
//! the reply and does what the [`Step`] says. Numbers are those of the NBD protocol, sections
//! "Handshake phase" and "Option types".
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::wire::{ALLOCATION_ID, Features};
use crate::request::DiskInfo;

/// The longest option whose payload is looked at, in bytes: room for 15 names of full length.
pub(super) const OPTION_BYTES_MAX: u32 = 64 << 10;
/// A longer option than this is not drained but ends the connection, in bytes. Arbitrary; no known
/// client sends options of more than a few KiB.
pub(super) const OPTION_DRAIN_BYTES_MAX: u32 = 1 << 20;
/// The most options of one handshake. A client that knows all of them needs ten.
const OPTIONS_MAX: u32 = 64;
/// The longest name, in bytes (NBD protocol, "Values").
const NAME_BYTES_MAX: u32 = 4096;
/// The most bytes of the replies to one option: see `every_reply_fits`.
pub(super) const REPLY_BYTES_MAX: u32 = 256;

/// What `NBD_OPT_LIST` shows. All names lead to the one disk.
const EXPORT_NAME: &[u8] = b"tapdisk";
const DESCRIPTION: &[u8] = b"The virtual disk of this tapdisk";
const BASE_ALLOCATION: &[u8] = b"base:allocation";
const BASE_ALL: &[u8] = b"base:";

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

const TRANSMISSION_HAS_FLAGS: u16 = 1;
const TRANSMISSION_READ_ONLY: u16 = 1 << 1;
const TRANSMISSION_SEND_FLUSH: u16 = 1 << 2;
const TRANSMISSION_SEND_FUA: u16 = 1 << 3;
const TRANSMISSION_SEND_TRIM: u16 = 1 << 5;
const TRANSMISSION_SEND_WRITE_ZEROES: u16 = 1 << 6;
const TRANSMISSION_SEND_DF: u16 = 1 << 7;
const TRANSMISSION_CAN_MULTI_CONN: u16 = 1 << 8;

/// What a client is told about the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Export {
    pub(super) disk: DiskInfo,
    /// The most bytes of a read or a write.
    pub(super) payload_bytes_max: u32,
}

/// What the caller does after a step, once the reply is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Gathers what the next step needs.
    Continue,
    /// Drops so many bytes of input first.
    Drain(u32),
    /// The handshake is over, requests follow.
    Transmission(Features),
    /// Closes when the reply is sent.
    Close,
    /// Closes at once: the peer broke the protocol.
    Hangup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Flags,
    Header,
    Payload { option: u32, len: u32 },
}

/// One client's handshake.
#[derive(Clone, Debug)]
pub(super) struct Handshake {
    phase: Phase,
    zeroes: bool,
    features: Features,
    options: u32,
}

impl Handshake {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Flags, zeroes: true, features: Features::default(), options: 0 }
    }

    /// How many bytes the next step wants; at most [`OPTION_BYTES_MAX`].
    pub(super) fn needs(&self) -> u32 {
        match self.phase {
            Phase::Flags => 4,
            Phase::Header => 16,
            Phase::Payload { len, .. } => len,
        }
    }

    /// Takes the next [`Handshake::needs`] bytes and writes what is to be answered.
    pub(super) fn step(&mut self, input: &[u8], export: &Export, reply: &mut Reply) -> Step {
        match self.phase {
            Phase::Flags => self.flags(input),
            Phase::Header => self.header(input, export, reply),
            Phase::Payload { option, .. } => {
                self.phase = Phase::Header;
                self.option(option, input, export, reply)
            }
        }
    }

    fn flags(&mut self, input: &[u8]) -> Step {
        let Some(flags) = Reader(input).u32() else {
            return Step::Hangup;
        };
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Step::Hangup;
        }
        self.zeroes = flags & u32::from(NO_ZEROES) == 0;
        self.phase = Phase::Header;
        Step::Continue
    }

    fn header(&mut self, input: &[u8], export: &Export, reply: &mut Reply) -> Step {
        let mut reader = Reader(input);
        let (Some(magic), Some(option), Some(len)) = (reader.u64(), reader.u32(), reader.u32())
        else {
            return Step::Hangup;
        };
        self.options = self.options.saturating_add(1);
        if magic != OPTION_MAGIC || self.options > OPTIONS_MAX || len > OPTION_DRAIN_BYTES_MAX {
            return Step::Hangup;
        }
        let is_known = matches!(
            option,
            OPT_EXPORT_NAME
                | OPT_ABORT
                | OPT_LIST
                | OPT_INFO
                | OPT_GO
                | OPT_STRUCTURED_REPLY
                | OPT_LIST_META_CONTEXT
                | OPT_SET_META_CONTEXT
        );
        if !is_known {
            reply.option(option, REP_ERR_UNSUP, &[]);
            return Step::Drain(len);
        }
        if len > OPTION_BYTES_MAX {
            if option == OPT_SET_META_CONTEXT {
                self.features.allocation = false;
            }
            reply.option(option, REP_ERR_TOO_BIG, &[]);
            return match option {
                // There is no way to report an error; an abort succeeds whatever comes with it.
                OPT_EXPORT_NAME => Step::Hangup,
                OPT_ABORT => Step::Close,
                _ => Step::Drain(len),
            };
        }
        if len == 0 {
            return self.option(option, &[], export, reply);
        }
        self.phase = Phase::Payload { option, len };
        Step::Continue
    }

    fn option(&mut self, option: u32, data: &[u8], export: &Export, reply: &mut Reply) -> Step {
        match option {
            OPT_EXPORT_NAME => return self.export_name(data, export, reply),
            OPT_ABORT => {
                reply.option(option, REP_ACK, &[]);
                return Step::Close;
            }
            OPT_LIST | OPT_STRUCTURED_REPLY if !data.is_empty() => {
                reply.option(option, REP_ERR_INVALID, &[]);
            }
            OPT_LIST => {
                let len = u32::try_from(EXPORT_NAME.len()).unwrap_or(0);
                reply.option(option, REP_SERVER, &[&len.to_be_bytes(), EXPORT_NAME, DESCRIPTION]);
                reply.option(option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY => {
                self.features.structured = true;
                reply.option(option, REP_ACK, &[]);
            }
            OPT_INFO | OPT_GO => {
                if self.info(option, data, export, reply) && option == OPT_GO {
                    return Step::Transmission(self.features);
                }
            }
            _ => self.meta_context(option, data, reply),
        }
        Step::Continue
    }

    fn export_name(&self, name: &[u8], export: &Export, reply: &mut Reply) -> Step {
        if name.len() > NAME_BYTES_MAX as usize {
            return Step::Hangup;
        }
        reply.put(&export.disk.size.to_be_bytes());
        reply.put(&self.transmission_flags(export).to_be_bytes());
        if self.zeroes {
            reply.put(&[0; 124]);
        }
        Step::Transmission(self.features)
    }

    /// Answers INFO or GO; whether it succeeded.
    fn info(&self, option: u32, data: &[u8], export: &Export, reply: &mut Reply) -> bool {
        let Some(requested) = requested_infos(data) else {
            reply.option(option, REP_ERR_INVALID, &[]);
            return false;
        };
        let wants = |info: u16| requested.chunks_exact(2).any(|item| item == info.to_be_bytes());
        let disk = &export.disk;
        let flags = self.transmission_flags(export).to_be_bytes();
        reply.option(
            option,
            REP_INFO,
            &[&INFO_EXPORT.to_be_bytes(), &disk.size.to_be_bytes(), &flags],
        );
        // Told unasked, too: it is the only way for a client to learn what it must keep to.
        reply.option(
            option,
            REP_INFO,
            &[
                &INFO_BLOCK_SIZE.to_be_bytes(),
                &disk.sector_size.to_be_bytes(),
                &disk.sector_size.max(4096).to_be_bytes(),
                &export.payload_bytes_max.to_be_bytes(),
            ],
        );
        if wants(INFO_NAME) {
            reply.option(option, REP_INFO, &[&INFO_NAME.to_be_bytes(), EXPORT_NAME]);
        }
        if wants(INFO_DESCRIPTION) {
            reply.option(option, REP_INFO, &[&INFO_DESCRIPTION.to_be_bytes(), DESCRIPTION]);
        }
        reply.option(option, REP_ACK, &[]);
        true
    }

    fn meta_context(&mut self, option: u32, data: &[u8], reply: &mut Reply) {
        let sets = option == OPT_SET_META_CONTEXT;
        let matches = if self.features.structured { allocation_matches(data, sets) } else { None };
        if sets {
            // A failed one takes back what an earlier one set.
            self.features.allocation = matches == Some(true);
        }
        let Some(matches) = matches else {
            reply.option(option, REP_ERR_INVALID, &[]);
            return;
        };
        if matches {
            let id = if sets { ALLOCATION_ID } else { 0 };
            reply.option(option, REP_META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION]);
        }
        reply.option(option, REP_ACK, &[]);
    }

    fn transmission_flags(&self, export: &Export) -> u16 {
        let mut flags = TRANSMISSION_HAS_FLAGS
            | TRANSMISSION_SEND_FLUSH
            | TRANSMISSION_SEND_FUA
            | TRANSMISSION_SEND_TRIM
            | TRANSMISSION_SEND_WRITE_ZEROES
            | TRANSMISSION_CAN_MULTI_CONN;
        if export.disk.read_only {
            flags |= TRANSMISSION_READ_ONLY;
        }
        if self.features.structured {
            flags |= TRANSMISSION_SEND_DF;
        }
        flags
    }
}

/// The list of information requests in an INFO or GO option; `None` when it is malformed.
fn requested_infos(data: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(data);
    reader.name()?;
    let count = usize::from(reader.u16()?);
    (reader.0.len() == count.checked_mul(2)?).then_some(reader.0)
}

/// Whether `base:allocation` is among what a meta context option selects; `None` when it is
/// malformed.
fn allocation_matches(data: &[u8], sets: bool) -> Option<bool> {
    let mut reader = Reader(data);
    reader.name()?;
    let count = reader.u32()?;
    let mut matches = count == 0 && !sets;
    // Each query takes at least 4 bytes of a payload that is bounded, and so is this loop.
    for _ in 0..count {
        let query = reader.name()?;
        matches |= query == BASE_ALLOCATION || (!sets && query == BASE_ALL);
    }
    reader.0.is_empty().then_some(matches)
}

/// Takes fields off the front of foreign bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length and so many bytes, as names and queries come.
    fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.u32().filter(|len| *len <= NAME_BYTES_MAX)?;
        let (name, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(name)
    }
}

/// What goes back for one step: nothing, or the replies to one option.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    bytes: [u8; REPLY_BYTES_MAX as usize],
    len: usize,
}

impl Reply {
    pub(super) fn new() -> Self {
        Self { bytes: [0; REPLY_BYTES_MAX as usize], len: 0 }
    }

    /// The first word of the server.
    pub(super) fn greeting() -> Self {
        let mut reply = Self::new();
        reply.put(&GREETING_MAGIC.to_be_bytes());
        reply.put(&OPTION_MAGIC.to_be_bytes());
        reply.put(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        reply
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.len.saturating_add(bytes.len());
        let target = self.bytes.get_mut(self.len..end);
        target.expect("no reply is longer than REPLY_BYTES_MAX").copy_from_slice(bytes);
        self.len = end;
    }

    fn option(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.put(&REPLY_MAGIC.to_be_bytes());
        self.put(&option.to_be_bytes());
        self.put(&kind.to_be_bytes());
        self.put(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        for part in parts {
            self.put(part);
        }
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
