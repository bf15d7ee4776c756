//! Requests out, responses in.

use blktap_ioctl::abi::{STATUS_ERROR, STATUS_OKAY, STATUS_UNSUPPORTED};
use blktap_ioctl::sim::{POISON_FRESH, POISON_LOST, Segments, SimOptions, SimSegment};
use blktap_ioctl::{Op, RequestId, Segment};
use nix::errno::Errno;

use crate::{attach, attach_with, completed, take_all};

fn id(number: u64) -> RequestId {
    RequestId::new(number).unwrap()
}

#[test]
fn polling_says_yes_for_as_long_as_requests_are_left_in_the_ring() {
    let (mut ring, device) = attach();
    device.submit_read(1, 0, Segments::plain(4096)).unwrap();
    for _ in 0..3 {
        assert!(ring.poll_now().unwrap());
    }
}

#[test]
fn a_request_is_what_was_submitted() {
    let (mut ring, device) = attach();
    let pieces = [SimSegment { first: 2, last: 7 }, SimSegment { first: 0, last: 1 }];
    device.submit_read(1, 77, Segments::new(&pieces)).unwrap();
    device.submit_flush(2).unwrap();
    device.submit_trim(3, 100, 50).unwrap();
    let [read, flush, trim] = take_all(&mut ring)[..] else { panic!("three were submitted") };
    assert_eq!((read.op, read.sector, read.bytes), (Op::Read, 77, 4096));
    let expected = [Segment { offset: 1024, len: 3072 }, Segment { offset: 4096, len: 1024 }];
    assert_eq!(read.segments().collect::<Vec<_>>(), expected);
    assert_eq!((flush.op, flush.sector, flush.bytes), (Op::Flush, 0, 0));
    assert_eq!((trim.op, trim.sector, trim.bytes), (Op::Trim, 100, 25_600));
    assert_eq!((flush.segments().len(), trim.segments().len()), (0, 0));
}

#[test]
fn responses_count_when_they_are_pushed_in_any_order() {
    let (mut ring, device) = attach();
    for cookie in 0..4 {
        device.submit_read(cookie, 0, Segments::plain(512)).unwrap();
    }
    take_all(&mut ring);
    for (number, status) in [(2, STATUS_OKAY), (0, STATUS_ERROR), (3, -7), (1, STATUS_OKAY)] {
        ring.respond(id(number), status);
        assert_eq!(device.hostile().indices(), (4, 0));
    }
    assert_eq!(completed(&device), []);
    ring.push_responses().unwrap();
    assert_eq!(device.hostile().indices(), (4, 4));
    let eio = Err(Errno::EIO);
    assert_eq!(completed(&device), [(2, Ok(())), (0, eio), (3, eio), (1, Ok(()))]);
    assert_eq!((ring.outstanding(), device.in_use(), device.violations()), (0, 0, 0));
}

#[test]
fn nothing_is_pushed_when_nothing_was_answered() {
    let (mut ring, device) = attach();
    // The driver would notice the push: it counts what was never asked.
    device.hostile().set_rsp_prod(1);
    ring.push_responses().unwrap();
    assert_eq!((device.hostile().indices(), device.violations()), ((0, 1), 0));
}

/// No byte of this process leaks through a response (the class of XSA-216).
#[test]
fn the_padding_of_a_response_is_zero() {
    let (mut ring, device) = attach();
    device.submit_read(0, 0, Segments::plain(512)).unwrap();
    device.submit_write(1, 0x0123_4567, Segments::plain(512), &[1; 512]).unwrap_err();
    device.submit_write(1, 4095, Segments::plain(512), &[1; 512]).unwrap();
    take_all(&mut ring);
    ring.respond(id(1), STATUS_UNSUPPORTED);
    ring.push_responses().unwrap();
    let expected = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xFE, 0xFF, 0, 0, 0, 0];
    assert_eq!(device.hostile().response(0), expected);
}

#[test]
#[should_panic(expected = "request 5 is not outstanding")]
fn asserts_on_a_response_to_an_idle_slot() {
    let (mut ring, _device) = attach();
    ring.respond(id(5), STATUS_OKAY);
}

#[test]
#[should_panic(expected = "request 0 is not outstanding")]
fn asserts_on_a_second_response() {
    let (mut ring, device) = attach();
    device.submit_read(0, 0, Segments::plain(512)).unwrap();
    take_all(&mut ring);
    ring.respond(id(0), STATUS_OKAY);
    ring.respond(id(0), STATUS_OKAY);
}

#[test]
fn a_read_answered_without_data_is_seen() {
    let (mut ring, device) = attach();
    device.submit_read(0, 0, Segments::plain(1024)).unwrap();
    let request = take_all(&mut ring)[0];
    ring.copy_in(request.segments().next().unwrap().offset, &[7; 512]);
    ring.respond(request.id, STATUS_OKAY);
    ring.push_responses().unwrap();
    device.completions(|completion| {
        assert_eq!(completion.data[..512], [7; 512]);
        assert_eq!(completion.data[512..], [POISON_FRESH; 512]);
    });
}

#[test]
fn the_pages_are_lost_after_the_response() {
    let (mut ring, device) = attach();
    device.submit_write(0, 0, Segments::plain(512), &[7; 512]).unwrap();
    let request = take_all(&mut ring)[0];
    let mut bytes = [0; 512];
    ring.respond(request.id, STATUS_OKAY);
    ring.copy_out(request.segments().next().unwrap().offset, &mut bytes);
    assert_eq!(bytes, [7; 512]);
    ring.push_responses().unwrap();
    ring.copy_out(request.segments().next().unwrap().offset, &mut bytes);
    assert_eq!(bytes, [POISON_LOST; 512]);
}

#[test]
fn indices_wrap() {
    for first_index in [u32::MAX - 40, u32::MAX - 32, u32::MAX - 31, u32::MAX - 1, u32::MAX] {
        let (mut ring, device) = attach_with(SimOptions { first_index, ..SimOptions::default() });
        let mut next = 0;
        for round in 0..20 {
            for cookie in 0..7 {
                device.submit_read(round * 7 + cookie, cookie, Segments::plain(512)).unwrap();
            }
            let taken = take_all(&mut ring);
            assert_eq!(taken.len(), 7);
            for request in taken {
                ring.respond(request.id, STATUS_OKAY);
            }
            ring.push_responses().unwrap();
            for (cookie, outcome) in completed(&device) {
                assert_eq!((cookie, outcome), (next, Ok(())));
                next += 1;
            }
        }
        assert_eq!((next, device.violations()), (140, 0));
        let end = first_index.wrapping_add(140);
        assert_eq!(device.hostile().indices(), (end, end));
    }
}
