//! The kernel's ring: any entry, any index, any message. What is taken is inside its pages, and can
//! be answered; a ring that says nonsense goes dead and can still be unmapped.
//!
//! The input is a list of steps: a byte that says what the driver does, then 112 bytes for it.
#![no_main]

use blktap_ioctl::abi::{ENTRY_SIZE, PAGE_SIZE, RING_ENTRIES, SEGMENTS_MAX};
use blktap_ioctl::sim::{self, SimOptions};
use blktap_ioctl::{DeviceParams, MappedRing, RingFault, RingRequest, parse_entry};
use tapdisk_fuzz as _;

const DATA_BYTES: u64 = RING_ENTRIES as u64 * SEGMENTS_MAX as u64 * PAGE_SIZE as u64;

/// Enough to wrap the ring twice.
const STEPS_MAX: usize = 80;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let first_index = input.first().map_or(0, |byte| u32::MAX - u32::from(*byte));
    let options =
        SimOptions { poison: false, copy_data: false, first_index, ..SimOptions::default() };
    let served = sim::serve(options, &DeviceParams::new(1 << 20));
    let (mut ring, device) = served.expect("a simulated ring needs a memfd and an eventfd");
    for step in input.chunks(1 + ENTRY_SIZE).take(STEPS_MAX) {
        let mut entry = [0; ENTRY_SIZE];
        for (byte, foreign) in entry.iter_mut().zip(step.iter().skip(1)) {
            *byte = *foreign;
        }
        if let Ok(request) = parse_entry(&entry) {
            check(&request);
        }
        let number = u32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let hostile = device.hostile();
        match step.first().map_or(0, |byte| byte % 8) {
            0..=2 => hostile.publish(&entry),
            3 => hostile.write_entry(number, &entry),
            4 => hostile.set_req_prod(number),
            5 => hostile.set_message(entry[0]),
            6 => hostile.set_rsp_prod(number),
            _ => turn(&mut ring),
        }
    }
    turn(&mut ring);
    assert_eq!(ring.outstanding(), 0);
    assert!(ring.unmap().is_ok(), "nothing is outstanding, all is pushed");
});

/// Takes all there is and answers it.
fn turn(ring: &mut MappedRing) {
    let _ = ring.poll_now().expect("polling the simulated ring cannot fail");
    let mut taken = 0;
    while let Some(next) = ring.take() {
        taken += 1;
        assert!(taken <= RING_ENTRIES + 1, "more requests than the ring has entries");
        match next {
            Ok(request) => {
                check(&request);
                ring.respond(request.id, 0);
            }
            Err(RingFault::Malformed { id, .. }) => ring.respond(id, -1),
            Err(fault) => assert!(fault.is_fatal() && ring.is_dead()),
        }
    }
    ring.push_responses().expect("the simulated driver takes every response");
}

/// What every request that was taken promises.
fn check(request: &RingRequest) {
    let mut bytes = 0;
    for segment in request.segments() {
        let end = u64::from(segment.offset) + u64::from(segment.len);
        assert!(end <= DATA_BYTES, "{request:?}");
        assert!(segment.len >= 512 && segment.len.is_multiple_of(512), "{request:?}");
        let own = u64::from(request.id.index()) * SEGMENTS_MAX as u64 * PAGE_SIZE as u64;
        assert!(u64::from(segment.offset) >= own, "{request:?}");
        bytes += u64::from(segment.len);
    }
    if request.segments().len() > 0 {
        assert_eq!(bytes, request.bytes, "{request:?}");
    }
    assert!(request.sector.checked_mul(512).and_then(|at| at.checked_add(request.bytes)).is_some());
}
