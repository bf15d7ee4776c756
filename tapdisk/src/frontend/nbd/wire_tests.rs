//! Laws of the request parser and the reply headers.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proptest::prelude::*;

use super::*;

const MAX: u32 = 4 << 20;
const BOTH: Features = Features { structured: true, allocation: true };
const PLAIN: Features = Features { structured: false, allocation: false };

fn raw(kind: u16, flags: u16, offset: u64, len: u32) -> RawRequest {
    RawRequest { flags, kind, cookie: 7, offset, len }
}

fn accepted(verdict: Verdict) -> Command {
    match verdict {
        Verdict::Accept(command) => command,
        other => panic!("{other:?}"),
    }
}

#[test]
fn parses_each_field_from_its_place() {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
    for (index, byte) in bytes.iter_mut().enumerate().skip(4) {
        *byte = u8::try_from(index).unwrap();
    }
    let request = RawRequest::parse(&bytes).unwrap();
    assert_eq!(request.flags, 0x0405);
    assert_eq!(request.kind, 0x0607);
    assert_eq!(request.cookie, 0x0809_0a0b_0c0d_0e0f);
    assert_eq!(request.offset, 0x1011_1213_1415_1617);
    assert_eq!(request.len, 0x1819_1a1b);
}

#[test]
fn refuses_each_wrong_bit_of_the_magic() {
    for bit in 0..32u32 {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&(REQUEST_MAGIC ^ (1 << bit)).to_be_bytes());
        assert_eq!(RawRequest::parse(&bytes), None);
    }
}

#[test]
fn fua_is_accepted_everywhere_and_counts_only_for_changes() {
    for (kind, counts) in [(READ, false), (WRITE, true), (TRIM, true), (WRITE_ZEROES, true)] {
        assert_eq!(accepted(judge(&raw(kind, FLAG_FUA, 0, 512), BOTH, MAX)).fua, counts);
    }
    assert!(!accepted(judge(&raw(FLUSH, FLAG_FUA, 0, 0), BOTH, MAX)).fua);
    assert!(!accepted(judge(&raw(BLOCK_STATUS, FLAG_FUA, 0, 512), BOTH, MAX)).fua);
}

#[test]
fn a_flag_of_another_command_is_refused() {
    let refused = Verdict::Refuse(Errno::EINVAL, 0);
    assert_eq!(judge(&raw(READ, FLAG_NO_HOLE, 0, 512), BOTH, MAX), refused);
    assert_eq!(judge(&raw(READ, FLAG_DF, 0, 512), PLAIN, MAX), refused);
    assert_eq!(judge(&raw(TRIM, FLAG_REQ_ONE, 0, 512), BOTH, MAX), refused);
    assert_eq!(judge(&raw(WRITE_ZEROES, 1 << 15, 0, 512), BOTH, MAX), refused);
    let drained = Verdict::Refuse(Errno::EINVAL, 512);
    assert_eq!(judge(&raw(WRITE, FLAG_DF, 0, 512), BOTH, MAX), drained);
}

#[test]
fn no_hole_keeps_zeros_stored() {
    assert!(accepted(judge(&raw(WRITE_ZEROES, 0, 0, 512), BOTH, MAX)).may_punch);
    assert!(!accepted(judge(&raw(WRITE_ZEROES, FLAG_NO_HOLE, 0, 512), BOTH, MAX)).may_punch);
    let fast = judge(&raw(WRITE_ZEROES, FLAG_FAST_ZERO, 0, 512), BOTH, MAX);
    assert_eq!(fast, Verdict::Refuse(Errno::EOPNOTSUPP, 0));
}

#[test]
fn only_reads_and_writes_are_bounded_by_the_payload() {
    let over = MAX + 1;
    assert_eq!(judge(&raw(READ, 0, 0, over), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    assert_eq!(
        judge(&raw(READ, FLAG_DF, 0, over), BOTH, MAX),
        Verdict::Refuse(Errno::EOVERFLOW, 0)
    );
    assert_eq!(judge(&raw(WRITE, 0, 0, over), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, over));
    accepted(judge(&raw(READ, 0, 0, MAX), BOTH, MAX));
    accepted(judge(&raw(WRITE, 0, 0, MAX), BOTH, MAX));
    for kind in [TRIM, WRITE_ZEROES, BLOCK_STATUS] {
        accepted(judge(&raw(kind, 0, 0, u32::MAX), BOTH, MAX));
    }
}

#[test]
fn a_write_too_long_to_drain_ends_the_connection() {
    let last = judge(&raw(WRITE, 0, 0, DRAIN_BYTES_MAX), BOTH, MAX);
    assert_eq!(last, Verdict::Refuse(Errno::EINVAL, DRAIN_BYTES_MAX));
    assert_eq!(judge(&raw(WRITE, 0, 0, DRAIN_BYTES_MAX + 1), BOTH, MAX), Verdict::Hangup);
}

#[test]
fn a_range_past_the_end_of_u64_is_refused() {
    let offset = u64::MAX - 511;
    assert_eq!(judge(&raw(READ, 0, offset, 512), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    assert_eq!(judge(&raw(WRITE, 0, offset, 512), BOTH, MAX), Verdict::Refuse(Errno::ENOSPC, 512));
    accepted(judge(&raw(READ, 0, offset - 1, 512), BOTH, MAX));
}

#[test]
fn zero_length_is_for_flush_alone() {
    for kind in [READ, WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS] {
        assert_eq!(judge(&raw(kind, 0, 0, 0), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    }
    accepted(judge(&raw(FLUSH, 0, 0, 0), BOTH, MAX));
    assert_eq!(judge(&raw(FLUSH, 0, 0, 512), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    assert_eq!(judge(&raw(FLUSH, 0, 512, 0), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
}

#[test]
fn block_status_needs_its_context() {
    let refused = Verdict::Refuse(Errno::EINVAL, 0);
    assert_eq!(judge(&raw(BLOCK_STATUS, 0, 0, 512), PLAIN, MAX), refused);
    let structured = Features { structured: true, allocation: false };
    assert_eq!(judge(&raw(BLOCK_STATUS, 0, 0, 512), structured, MAX), refused);
    assert!(accepted(judge(&raw(BLOCK_STATUS, FLAG_REQ_ONE, 0, 512), BOTH, MAX)).one_extent);
}

#[test]
fn an_unknown_command_is_refused_only_when_no_payload_can_follow() {
    assert_eq!(judge(&raw(5, 0, 0, 512), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    assert_eq!(judge(&raw(9, 0, 0, 0), BOTH, MAX), Verdict::Refuse(Errno::EINVAL, 0));
    assert_eq!(judge(&raw(9, 0, 0, 1), BOTH, MAX), Verdict::Hangup);
    assert_eq!(judge(&raw(u16::MAX, 0, 0, 512), BOTH, MAX), Verdict::Hangup);
}

#[test]
fn reply_headers_have_the_bytes_of_the_protocol() {
    let failed = Status::Failed(Errno::EIO);
    assert_eq!(
        Header::simple(0x0102_0304_0506_0708, failed).as_slice(),
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(
        Header::data(9, 0x1000, 512).as_slice(),
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 2, 8, 0, 0, 0, 0, 0,
            0, 0x10, 0
        ]
    );
    assert_eq!(
        Header::error(9, failed).as_slice(),
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 6, 0, 0, 0, 5,
            0, 0
        ]
    );
    assert_eq!(
        Header::block_status(9, 16).as_slice(),
        [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 20, 0, 0, 0, 1]
    );
    assert_eq!(descriptor(512, state_flags(ExtentKind::Hole)), [0, 0, 2, 0, 0, 0, 0, 3]);
}

proptest! {
    /// Most requests are not looked at more closely: what comes out would be the same.
    #[test]
    fn a_plain_request_is_accepted_as_what_it_is_taken_for(
        kind in 0u16..4,
        flags in prop_oneof![3 => Just(0), 1 => any::<u16>()],
        offset in prop_oneof![any::<u64>(), u64::MAX - 8192..=u64::MAX],
        len in 0..=2 * PAGE_SIZE,
    ) {
        let raw = raw(kind, flags, offset, len);
        let is_plain = plain(&raw).is_some();
        let ends = offset.checked_add(u64::from(len)).is_some();
        prop_assert_eq!(is_plain, kind < 2 && flags == 0 && (1..=PAGE_SIZE).contains(&len) && ends);
        for features in [BOTH, PLAIN] {
            if let Some(op) = plain(&raw) {
                let command = Command { op, fua: false, may_punch: false, one_extent: false };
                prop_assert_eq!(judge(&raw, features, PAGE_SIZE), Verdict::Accept(command));
            }
        }
    }
}

proptest! {
    /// Whatever a client sends: an accepted request is bounded, does not wrap, and a refused one
    /// announces no more than is drained.
    #[test]
    fn an_accepted_request_is_within_bounds(
        bytes in prop::array::uniform28(any::<u8>()),
        kind in 0u16..12,
        short in any::<bool>(),
        structured: bool,
        allocation: bool,
    ) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        if short {
            bytes[4..6].fill(0);
            bytes[24..26].fill(0);
        }
        let request = RawRequest::parse(&bytes).unwrap();
        match judge(&request, Features { structured, allocation }, MAX) {
            Verdict::Accept(command) => {
                prop_assert!(request.offset.checked_add(u64::from(request.len)).is_some());
                prop_assert!(!command.op.has_data() || request.len <= MAX);
                prop_assert_eq!(command.op == Op::Flush, request.len == 0);
            }
            Verdict::Refuse(_, drain) => prop_assert!(drain <= DRAIN_BYTES_MAX),
            Verdict::Disconnect => prop_assert_eq!(kind, DISC),
            Verdict::Hangup => prop_assert!(request.len > 0),
        }
    }
}
