//! A kernel that keeps no rule.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blktap_ioctl::abi::{ENTRY_SIZE, STATUS_ERROR};
use blktap_ioctl::sim::{Segments, SimDevice, SimOptions};
use blktap_ioctl::{MappedRing, Op, Reason, RequestId, RingFault, RingRequest};
use proptest::prelude::*;

use crate::{attach, attach_with, completed, read_entry, take_all};

fn id(number: u64) -> RequestId {
    RequestId::new(number).unwrap()
}

/// Whatever the entry was: a request stays inside its own pages and adds up.
fn is_sound(request: &RingRequest) -> bool {
    let start = request.id.index() * 11 * 4096;
    let inside = (0_u32..).zip(request.segments()).all(|(number, segment)| {
        let page = start + number * 4096;
        let end = segment.offset.checked_add(segment.len);
        segment.len != 0 && segment.offset >= page && end.is_some_and(|end| end <= page + 4096)
    });
    let sum: u64 = request.segments().map(|segment| u64::from(segment.len)).sum();
    let has_data = matches!(request.op, Op::Read | Op::Write);
    let count = request.segments().len();
    let end = request.sector.checked_mul(512).and_then(|start| start.checked_add(request.bytes));
    inside
        && has_data == (sum != 0)
        && count <= 11
        && (!has_data || sum == request.bytes)
        && end.is_some_and(|end| i64::try_from(end).is_ok())
}

#[test]
fn a_malformed_entry_is_answered_with_its_own_operation() {
    let (mut ring, device) = attach();
    let mut entry = read_entry(9);
    entry[0] = 77;
    device.hostile().publish(&entry);
    assert!(ring.poll_now().unwrap());
    let fault = ring.take().unwrap().unwrap_err();
    assert_eq!(fault, RingFault::Malformed { id: id(9), reason: Reason::Operation(77) });
    assert!(!fault.is_fatal());
    assert_eq!((ring.outstanding(), ring.take()), (1, None));
    ring.respond(id(9), STATUS_ERROR);
    ring.push_responses().unwrap();
    let expected = [9, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0xFF, 0xFF, 0, 0, 0, 0];
    assert_eq!(device.hostile().response(0), expected);
    // And life goes on.
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    assert_eq!(take_all(&mut ring).len(), 1);
}

#[test]
fn the_ring_dies_of_an_id_past_31_and_says_so_once() {
    for number in [32, 255, u64::MAX] {
        let (mut ring, device) = attach();
        device.hostile().publish(&read_entry(number));
        device.hostile().publish(&read_entry(0));
        let fault = RingFault::Id(number);
        assert_eq!(ring.take(), Some(Err(fault)));
        assert!(fault.is_fatal() && ring.is_dead());
        assert_eq!((ring.take(), ring.outstanding()), (None, 0));
        ring.poll_now().unwrap();
        assert!(!ring.poll_now().unwrap(), "a dead ring keeps nobody awake");
    }
}

#[test]
fn the_ring_dies_of_an_id_that_is_outstanding_and_the_first_one_is_still_answered() {
    let (mut ring, device) = attach();
    device.submit_read(5, 0, Segments::plain(512)).unwrap();
    let request = take_all(&mut ring)[0];
    device.hostile().publish(&read_entry(0));
    assert_eq!(ring.take(), Some(Err(RingFault::Duplicate(id(0)))));
    assert_eq!((ring.outstanding(), ring.take()), (1, None));
    ring.respond(request.id, 0);
    ring.push_responses().unwrap();
    assert_eq!(completed(&device), [(5, Ok(()))]);
    ring.unmap().unwrap();
}

#[test]
fn an_id_is_in_use_until_its_response_is_pushed() {
    let (mut ring, device) = attach();
    device.submit_read(5, 0, Segments::plain(512)).unwrap();
    let request = take_all(&mut ring)[0];
    ring.respond(request.id, 0);
    device.hostile().publish(&read_entry(0));
    assert_eq!(ring.take(), Some(Err(RingFault::Duplicate(id(0)))));
}

/// Of 10 published, 6 are taken, 2 of them answered: every class of value that the index can have.
#[test]
fn the_ring_dies_of_an_index_out_of_step() {
    for first in [0, 1000, u32::MAX - 9, u32::MAX - 5, u32::MAX] {
        let cons = first.wrapping_add(6);
        let rsp = first.wrapping_add(2);
        let bad = [
            cons.wrapping_add(33),
            rsp.wrapping_add(33),
            rsp.wrapping_add(64),
            cons.wrapping_sub(1),
            rsp,
            rsp.wrapping_sub(1),
            first,
            cons.wrapping_add(1 << 31),
            cons.wrapping_add(u32::MAX - 32),
        ];
        for req_prod in bad {
            let mut ring = six_of_ten(first, req_prod);
            let expected = RingFault::Index { req_prod, req_cons: cons, rsp_prod: rsp };
            assert_eq!(ring.take(), Some(Err(expected)), "{first} {req_prod}");
            assert!(ring.is_dead());
            assert_eq!((ring.take(), ring.outstanding()), (None, 4));
        }
        for fresh in [0, 1, 26, 28] {
            let mut ring = six_of_ten(first, cons.wrapping_add(fresh));
            assert_eq!(ring.take().is_some(), fresh != 0, "{first} {fresh}");
            assert!(!ring.is_dead() || fresh != 0);
        }
    }
}

/// A ring with 6 taken and 2 answered, and then this index.
fn six_of_ten(first_index: u32, req_prod: u32) -> MappedRing {
    let (mut ring, device) = attach_with(SimOptions { first_index, ..SimOptions::default() });
    for cookie in 0..6 {
        device.submit_read(cookie, 0, Segments::plain(512)).unwrap();
    }
    assert_eq!(take_all(&mut ring).len(), 6);
    ring.respond(id(3), 0);
    ring.respond(id(1), 0);
    ring.push_responses().unwrap();
    device.hostile().set_req_prod(req_prod);
    ring
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any index: at most 32 entries come out before the ring is dead or empty.
    #[test]
    fn no_index_makes_more_than_32_entries_come_out(first in any::<u32>(), found in any::<u32>()) {
        let mut ring = six_of_ten(first, found);
        let taken = std::iter::from_fn(|| ring.take()).take(100).count();
        prop_assert!(taken <= 32, "{} entries", taken);
    }

    /// Any entries, answered or not: what comes out is sound, and each that can be is answerable.
    #[test]
    fn any_entry_is_a_sound_request_or_a_fault(
        entries in proptest::collection::vec(
            (0_u8..6, 0_u8..13, 0_u64..34, any::<u64>(), proptest::collection::vec(0_u8..10, 88)),
            1..64,
        ),
    ) {
        let (mut ring, device) = attach();
        for (op, count, number, sector, tail) in entries {
            let mut entry = [0; ENTRY_SIZE];
            (entry[0], entry[1]) = (op, count);
            entry[8..16].copy_from_slice(&number.to_ne_bytes());
            entry[16..24].copy_from_slice(&sector.to_ne_bytes());
            entry[24..].copy_from_slice(&tail);
            device.hostile().publish(&entry);
            let id = match ring.take() {
                None => { prop_assert!(ring.is_dead()); break }
                Some(Ok(request)) => { prop_assert!(is_sound(&request)); request.id }
                Some(Err(RingFault::Malformed { id, .. })) => id,
                Some(Err(fault)) => { prop_assert!(fault.is_fatal()); continue }
            };
            if number % 3 != 0 {
                ring.respond(id, STATUS_ERROR);
                ring.push_responses().unwrap();
            }
        }
    }
}

/// A double fetch (the class of XSA-155): another processor rewrites every byte of the ring's page
/// while requests are taken. What was checked is what is used, since there is only the copy.
#[test]
fn bytes_that_change_during_processing_never_make_an_unsound_request() {
    const REQUESTS: u64 = 30_000;
    const SWEEPS: u64 = 1_000;
    const TURNS_MAX: u64 = 50_000_000;
    let (ring, device) = attach();
    let mut ring = Some(ring);
    let mut sound = 0_u64;
    let (stop, sweeps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| mutate(&device, &stop, &sweeps));
        let _stop = StopAtEnd(&stop);
        for _ in 0..TURNS_MAX {
            if sound >= REQUESTS && sweeps.load(Ordering::Relaxed) >= SWEEPS {
                break;
            }
            let mut this = ring.take().unwrap();
            while let Some(taken) = this.take() {
                let id = match taken {
                    Ok(request) => {
                        assert!(is_sound(&request), "{request:?}");
                        sound += 1;
                        request.id
                    }
                    Err(RingFault::Malformed { id, .. }) => id,
                    Err(_) => break,
                };
                // Asserts that this is the id that was checked.
                this.respond(id, STATUS_ERROR);
                this.push_responses().unwrap();
            }
            this.poll_now().unwrap();
            let (_, rsp_prod) = device.hostile().indices();
            device.hostile().write_ring_word(0, rsp_prod.wrapping_add(16));
            ring = Some(if this.is_dead() { this.unmap().unwrap().map().unwrap() } else { this });
        }
    });
    assert!(sound >= REQUESTS, "{sound} requests");
    assert!(sweeps.into_inner() >= SWEEPS, "the other processor did not run");
}

/// Also when the test fails: its threads are waited for.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Rewrites all of the ring's page until told to stop: the entries mostly with what is well-formed
/// and different each time, so that a second look at one of them sees another request.
fn mutate(device: &SimDevice, stop: &AtomicBool, sweeps: &AtomicU64) {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    while !stop.load(Ordering::Relaxed) {
        for index in 0..32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let [_, _, _, number, count, op, noise, kind] = random.to_le_bytes();
            let mut entry = read_entry(u64::from(number % 32));
            (entry[0], entry[1]) = (op % 2, 1 + count % 11);
            for segment in 0..11 {
                entry[29 + 8 * segment] = noise % 8;
            }
            if kind < 16 {
                entry[usize::from(noise) % ENTRY_SIZE] = kind << 4;
            }
            device.hostile().write_entry(index, &entry);
        }
        let [message, event, kill, ..] = random.to_le_bytes();
        device.hostile().write_ring_word(16, u32::from(message & 3));
        device.hostile().write_ring_word(4, u32::from(event));
        if kill == 0 {
            device.hostile().write_ring_word(0, u32::from(event) << 16);
        }
        sweeps.fetch_add(1, Ordering::Relaxed);
    }
}
