//! What the production ring cannot do, and so only the kernel's half itself can be asked.

use std::sync::Arc;

use crate::abi::DeviceInfoBoth;
use crate::ring::Index;
use crate::sim::kernel::Kernel;
use crate::sim::{Segments, SimDevice, SimOptions, SimRing};

/// Both halves, raw; mapped, with a device, when `mapped`.
fn raw(mapped: bool) -> (SimRing, SimDevice) {
    let kernel = Arc::new(Kernel::new(SimOptions::default()).unwrap());
    let ring = SimRing { kernel: Arc::clone(&kernel) };
    if mapped {
        drop(ring.map().unwrap());
        let mut info = DeviceInfoBoth {
            capacity: 64,
            sector_size: 512,
            physical_sector_size: 512,
            ..DeviceInfoBoth::default()
        };
        ring.create_device(&mut info).unwrap();
    }
    (ring, SimDevice::new(kernel))
}

/// Publishes one response with these bytes, and rings.
fn respond(ring: &SimRing, index: u32, id: u64, operation: u8) {
    let tail = u64::from_ne_bytes([operation, 0, 0, 0, 0, 0, 0, 0]);
    let state = ring.kernel.lock();
    state.pages.write_response(index, [id, tail]);
    state.pages.set_index(Index::Responses, index.wrapping_add(1));
    drop(state);
    ring.respond().unwrap();
}

#[test]
#[should_panic(expected = "polled without a mapping")]
fn crashes_when_polled_before_the_ring_is_mapped() {
    raw(false).0.poll();
}

#[test]
fn a_response_to_no_request_is_counted() {
    let (ring, device) = raw(true);
    for (index, id) in (0..).zip([0, 31, 32, 64, 1 << 32, u64::MAX]) {
        respond(&ring, index, id, 0);
        assert_eq!(device.violations(), u64::from(index) + 1);
    }
}

#[test]
fn more_responses_than_entries_are_counted_and_not_read() {
    let (ring, device) = raw(true);
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    assert!(ring.poll());
    ring.kernel.lock().pages.set_index(Index::Responses, 33);
    ring.respond().unwrap();
    assert_eq!((device.violations(), device.in_ring()), (1, 1));
}
