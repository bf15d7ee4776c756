//! The laws of an entry.

use proptest::prelude::*;

use super::*;

/// A well-formed entry, built by hand from the layout.
fn entry(op: u8, id: u64, sector: u64, segments: &[(u8, u8)]) -> [u8; ENTRY_SIZE] {
    let mut bytes = [0; ENTRY_SIZE];
    bytes[0] = op;
    bytes[1] = u8::try_from(segments.len()).unwrap();
    bytes[8..16].copy_from_slice(&id.to_ne_bytes());
    bytes[16..24].copy_from_slice(&sector.to_ne_bytes());
    for (number, (first, last)) in segments.iter().enumerate() {
        bytes[24 + 8 * number + 4] = *first;
        bytes[24 + 8 * number + 5] = *last;
    }
    bytes
}

fn trim(id: u64, sector: u64, sectors: u64) -> [u8; ENTRY_SIZE] {
    let mut bytes = entry(OP_TRIM, id, sector, &[]);
    bytes[24..32].copy_from_slice(&sectors.to_ne_bytes());
    bytes
}

fn reason(bytes: &[u8; ENTRY_SIZE]) -> Reason {
    match parse_entry(bytes) {
        Err(EntryFault::Malformed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_lie_in_the_pages_of_their_request() {
    let request = parse_entry(&entry(OP_READ, 3, 100, &[(2, 7), (0, 7), (0, 1)])).unwrap();
    let expected = [
        Segment { offset: 4096 * 33 + 1024, len: 3072 },
        Segment { offset: 4096 * 34, len: 4096 },
        Segment { offset: 4096 * 35, len: 1024 },
    ];
    assert_eq!(request.segments().collect::<Vec<_>>(), expected);
    assert_eq!((request.id.index(), request.op, request.sector), (3, Op::Read, 100));
    assert_eq!((request.bytes, request.offset()), (8192, 51200));
}

#[test]
fn the_largest_request_is_44_kib_and_ends_with_the_data_area() {
    let request = parse_entry(&entry(OP_WRITE, 31, 0, &[(0, 7); 11])).unwrap();
    assert_eq!(request.bytes, 45056);
    let last = request.segments().nth(10).unwrap();
    assert_eq!((last.offset + last.len) as usize, crate::abi::DATA_SIZE);
}

#[test]
fn rejects_ids_past_31() {
    for id in [32, 33, 255, 256, 1 << 32, u64::MAX] {
        assert_eq!(parse_entry(&entry(OP_READ, id, 0, &[(0, 7)])), Err(EntryFault::Id(id)));
    }
}

#[test]
fn rejects_unknown_operations_and_keeps_them_for_the_response() {
    for op in 4..=255 {
        let id = RequestId::new(7).unwrap();
        let fault = EntryFault::Malformed { id, operation: op, reason: Reason::Operation(op) };
        assert_eq!(parse_entry(&entry(op, 7, 0, &[(0, 7)])), Err(fault));
    }
}

#[test]
fn rejects_data_requests_without_1_to_11_segments() {
    for op in [OP_READ, OP_WRITE] {
        let mut bytes = entry(op, 0, 0, &[(0, 7); 11]);
        for count in 0..=255 {
            bytes[1] = count;
            if (1..=11).contains(&count) {
                assert_eq!(parse_entry(&bytes).unwrap().segments().len(), usize::from(count));
            } else {
                assert_eq!(reason(&bytes), Reason::SegmentCount(count));
            }
        }
    }
}

#[test]
fn rejects_flushes_and_trims_with_segments() {
    for mut bytes in [entry(OP_FLUSH, 0, 0, &[]), trim(0, 0, 8)] {
        assert!(parse_entry(&bytes).is_ok());
        for count in 1..=255 {
            bytes[1] = count;
            assert_eq!(reason(&bytes), Reason::SegmentCount(count));
        }
    }
}

#[test]
fn accepts_exactly_the_segments_inside_a_page() {
    for first_sect in 0..=255_u8 {
        for last_sect in 0..=255_u8 {
            let bytes = entry(OP_WRITE, 5, 9, &[(0, 7), (first_sect, last_sect)]);
            if first_sect <= last_sect && last_sect < 8 {
                let segment = parse_entry(&bytes).unwrap().segments().nth(1).unwrap();
                assert_eq!(segment.offset, 4096 * 56 + 512 * u32::from(first_sect));
                assert_eq!(segment.len, 512 * u32::from(last_sect - first_sect + 1));
            } else {
                let expected = Reason::SegmentBounds { segment: 1, first_sect, last_sect };
                assert_eq!(reason(&bytes), expected);
            }
        }
    }
}

#[test]
fn what_lies_behind_the_last_segment_is_not_looked_at() {
    let mut bytes = entry(OP_READ, 1, 0, &[(0, 7)]);
    bytes[32..].fill(0xFF);
    assert_eq!(parse_entry(&bytes).unwrap().segments().len(), 1);
}

#[test]
fn rejects_ranges_that_end_past_2_to_the_63_bytes() {
    let limit = i64::MAX.unsigned_abs() / 512;
    assert!(parse_entry(&entry(OP_READ, 0, limit - 8, &[(0, 7)])).is_ok());
    for sector in [limit - 7, limit, 1 << 55, u64::MAX / 512, u64::MAX] {
        let bytes = entry(OP_READ, 0, sector, &[(0, 7)]);
        assert_eq!(reason(&bytes), Reason::Range { sector });
    }
    for (sector, sectors) in [(1, u64::MAX), (u64::MAX, 1), (limit, 1), (1, limit), (0, 1 << 55)] {
        assert_eq!(reason(&trim(0, sector, sectors)), Reason::Range { sector });
    }
    assert_eq!(parse_entry(&trim(0, 1, limit - 1)).unwrap().bytes, (limit - 1) * 512);
}

#[test]
fn rejects_a_trim_of_nothing() {
    assert_eq!(reason(&trim(0, 5, 0)), Reason::EmptyTrim);
}

#[test]
fn a_flush_has_neither_place_nor_length() {
    let mut bytes = entry(OP_FLUSH, 9, u64::MAX, &[]);
    bytes[24..].fill(0xFF);
    let request = parse_entry(&bytes).unwrap();
    assert_eq!((request.op, request.sector, request.bytes), (Op::Flush, 0, 0));
    assert_eq!(request.segments().len(), 0);
}

#[test]
fn operations_survive_the_way_to_the_abi_and_back() {
    for raw in 0..=255 {
        assert_eq!(Op::from_raw(raw).map(Op::to_raw), (raw < 4).then_some(raw));
    }
}

proptest! {
    /// Whatever the bytes: what is accepted is inside the request's own pages, adds up, and is the
    /// same the second time.
    #[test]
    fn accepts_nothing_outside_of_its_own_pages(
        head in proptest::array::uniform4(0_u8..13),
        id in prop_oneof![0_u64..40, any::<u64>()],
        sector in prop_oneof![0_u64..1 << 40, any::<u64>()],
        tail in proptest::collection::vec(prop_oneof![4 => 0_u8..9, 1 => any::<u8>()], 88),
    ) {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..4].copy_from_slice(&head);
        bytes[8..16].copy_from_slice(&id.to_ne_bytes());
        bytes[16..24].copy_from_slice(&sector.to_ne_bytes());
        bytes[24..].copy_from_slice(&tail);
        let parsed = parse_entry(&bytes);
        prop_assert_eq!(parsed, parse_entry(&bytes));
        if let Ok(request) = parsed {
            prop_assert_eq!(u64::from(request.id.index()), id);
            let start = request.id.index() * 11 * 4096;
            for (number, segment) in (0_u32..).zip(request.segments()) {
                let page = start + number * 4096;
                prop_assert!(segment.len >= 512 && segment.len % 512 == 0);
                prop_assert!(segment.offset >= page);
                prop_assert!(segment.offset + segment.len <= page + 4096);
            }
            let sum: u64 = request.segments().map(|segment| u64::from(segment.len)).sum();
            prop_assert_eq!(sum != 0, matches!(request.op, Op::Read | Op::Write));
            prop_assert!(sum == 0 || sum == request.bytes);
            prop_assert!(i64::try_from(request.offset() + request.bytes).is_ok());
        }
    }
}
