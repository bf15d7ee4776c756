//! Each command, by what the client gets back.

use super::*;
use crate::request::Op;
use nix::errno::Errno;

#[test]
fn reads_what_was_written() {
    for features in [PLAIN, STRUCTURED] {
        let mut rig = Rig::new();
        let mut peer = rig.client(features);
        let data = pattern(1, 8192);
        peer.send(&write(1, 4096, &data));
        peer.send(&request(READ, 0, 2, 4096, 8192));
        rig.settle();
        assert_eq!(peer.take(16), simple(1, 0));
        if features.structured {
            let offset = 4096u64.to_be_bytes();
            assert_eq!(peer.take(28 + 8192), chunk(1, 2, &[&offset, &data]));
        } else {
            assert_eq!(peer.take(16), simple(2, 0));
            assert_eq!(peer.take(8192), data);
        }
        assert!(peer.is_silent());
        rig.close();
    }
}

#[test]
fn the_longest_read_and_write_work() {
    let mut rig = Rig::new();
    rig.intake.disk.resize(4 << 20, 0);
    rig.intake.info.size = 4 << 20;
    let mut peer = rig.client(PLAIN);
    let data = pattern(3, 4 << 20);
    let mut bytes = write(1, 0, &data);
    bytes.extend(request(READ, 0, 2, 0, 4 << 20));
    let mut sent = 0;
    while sent < bytes.len() {
        sent += peer.send_some(&bytes[sent..]);
        rig.settle();
    }
    while peer.received.len() < 32 + data.len() {
        let before = peer.received.len();
        peer.read();
        assert!(peer.received.len() > before, "{}", rig.describe());
        rig.settle();
    }
    assert_eq!(peer.take(16), simple(1, 0));
    assert_eq!(peer.take(16), simple(2, 0));
    assert!(peer.take(4 << 20) == data);
    rig.close();
}

#[test]
fn flags_reach_the_request() {
    let mut rig = Rig::new();
    let mut peer = rig.client(PLAIN);
    peer.send(&request(WRITE, 1, 1, 0, 512));
    peer.send(&[7; 512]);
    peer.send(&request(TRIM, 1, 2, 512, 512));
    peer.send(&request(WRITE_ZEROES, 0, 3, 0, 512));
    peer.send(&request(WRITE_ZEROES, 2, 4, 0, 1 << 20));
    peer.send(&request(FLUSH, 0, 5, 0, 0));
    peer.send(&request(READ, 1, 6, 0, 512));
    rig.settle();
    let seen: Vec<_> = rig.intake.started.iter().map(|r| (r.op, r.fua, r.may_punch)).collect();
    let expected = [
        (Op::Write, true, false),
        (Op::Trim, true, false),
        (Op::WriteZeroes, false, true),
        (Op::WriteZeroes, false, false),
        (Op::Flush, false, false),
        (Op::Read, false, false),
    ];
    assert_eq!(seen, expected);
    assert_eq!(rig.intake.started[3].len, 1 << 20);
    for cookie in 1..=6 {
        assert_eq!(peer.take(16), simple(cookie, 0));
    }
    assert_eq!(peer.take(512), [0; 512]);
    rig.close();
}

#[test]
fn an_error_comes_without_data_and_in_the_form_of_its_command() {
    for features in [PLAIN, STRUCTURED] {
        let mut rig = Rig::new();
        let mut peer = rig.client(features);
        for (cookie, kind) in [(1, READ), (2, WRITE), (3, FLUSH)] {
            rig.intake.failures.push(Errno::EIO);
            let len = if kind == FLUSH { 0 } else { 512 };
            peer.send(&request(kind, 0, cookie, 0, len));
            if kind == WRITE {
                peer.send(&[1; 512]);
            }
            rig.settle();
            let error = if features.structured && kind == READ {
                chunk(0x8001, cookie, &[&5u32.to_be_bytes(), &[0, 0]])
            } else {
                simple(cookie, 5)
            };
            assert_eq!(peer.take(error.len()), error);
            assert!(peer.is_silent());
        }
        rig.close();
    }
}

#[test]
fn changes_of_a_read_only_disk_are_not_permitted() {
    let mut rig = Rig::new();
    rig.intake.info.read_only = true;
    let mut peer = rig.client(PLAIN);
    peer.send(&write(1, 0, &[1; 512]));
    peer.send(&request(TRIM, 0, 2, 0, 512));
    peer.send(&request(READ, 0, 3, 0, 512));
    rig.settle();
    assert_eq!(peer.take(16), simple(1, 1));
    assert_eq!(peer.take(16), simple(2, 1));
    assert_eq!(peer.take(16), simple(3, 0));
    assert_eq!(peer.take(512), [0; 512]);
    rig.close();
}

#[test]
fn replies_come_in_the_order_of_the_answers() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    for cookie in 0..4u64 {
        peer.send(&request(READ, 0, cookie, cookie * 512, 512));
    }
    rig.intake.disk[..2048].copy_from_slice(&pattern(9, 2048));
    rig.settle();
    for (index, cookie) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        rig.finish(index);
        assert_eq!(peer.take(16), simple(cookie, 0));
        let start = usize::try_from(cookie).unwrap() * 512;
        assert_eq!(peer.take(512), rig.intake.disk[start..start + 512]);
    }
    rig.close();
}

#[test]
fn block_status_joins_extents_up_to_the_end_of_the_range() {
    let mut rig = Rig::new();
    rig.intake.disk[1024..4096].fill(1);
    rig.intake.disk[8192..8704].fill(1);
    let mut peer = rig.client(ALLOCATION);
    peer.send(&request(BLOCK_STATUS, 0, 1, 512, 8192));
    rig.settle();
    let extent = |len: u32, flags: u32| [len.to_be_bytes(), flags.to_be_bytes()].concat();
    let parts = [
        1u32.to_be_bytes().to_vec(),
        extent(512, 3),
        extent(3072, 0),
        extent(4096, 3),
        extent(512, 0),
    ];
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let expected = chunk(5, 1, &parts);
    assert_eq!(peer.take(expected.len()), expected);
    // One is enough for who asks for one.
    peer.send(&request(BLOCK_STATUS, 8, 2, 1536, 8192));
    rig.settle();
    let expected = chunk(5, 2, &[&1u32.to_be_bytes(), &extent(2560, 0)]);
    assert_eq!(peer.take(expected.len()), expected);
    rig.close();
}

#[test]
fn block_status_stops_after_sixteen_extents() {
    let mut rig = Rig::new();
    for sector in (0..64).step_by(2) {
        rig.intake.disk[sector * 512] = 1;
    }
    let mut peer = rig.client(ALLOCATION);
    peer.send(&request(BLOCK_STATUS, 0, 1, 0, 64 * 512));
    rig.settle();
    assert_eq!(peer.take(20)[16..], (4 + 16 * 8u32).to_be_bytes());
    assert_eq!(peer.take(4), 1u32.to_be_bytes());
    for index in 0..16 {
        let flags = if index % 2 == 0 { 0u32 } else { 3 };
        assert_eq!(peer.take(8), [512u32.to_be_bytes(), flags.to_be_bytes()].concat());
    }
    assert!(peer.is_silent());
    rig.close();
}

#[test]
fn block_status_that_fails_half_way_tells_what_it_knows() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.disk[512..].fill(1);
    let mut peer = rig.client(ALLOCATION);
    peer.send(&request(BLOCK_STATUS, 0, 1, 0, 4096));
    rig.settle();
    rig.finish(0);
    rig.settle();
    assert_eq!((rig.intake.running[0].offset, rig.intake.running[0].len), (512, 3584));
    rig.intake.failures.push(Errno::EIO);
    rig.finish(0);
    let first = [512u32.to_be_bytes(), 3u32.to_be_bytes()].concat();
    let expected = chunk(5, 1, &[&1u32.to_be_bytes(), &first]);
    assert_eq!(peer.take(expected.len()), expected);
    // And an error when it knows nothing.
    peer.send(&request(BLOCK_STATUS, 0, 2, 0, 4096));
    rig.settle();
    rig.intake.failures.push(Errno::EIO);
    rig.finish(0);
    let expected = chunk(0x8001, 2, &[&5u32.to_be_bytes(), &[0, 0]]);
    assert_eq!(peer.take(expected.len()), expected);
    rig.close();
}

#[test]
fn goodbye_waits_for_what_is_running() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    peer.send(&request(READ, 0, 1, 0, 512));
    peer.send(&request(FLUSH, 0, 2, 0, 0));
    peer.send(&request(DISC, 0, 3, 0, 0));
    peer.send(&request(READ, 0, 4, 0, 512));
    rig.settle();
    assert_eq!(rig.intake.running.len(), 2, "nothing after the good-bye is started");
    assert!(peer.is_silent());
    rig.finish(0);
    assert_eq!(peer.take(16), simple(1, 0));
    assert_eq!(peer.take(512), [0; 512]);
    assert!(peer.is_silent());
    rig.finish(0);
    assert!(peer.is_closed());
    assert_eq!(peer.received, simple(2, 0));
    assert_eq!(rig.held(), 0);
    rig.close();
}

#[test]
fn refused_requests_are_answered_and_their_payload_is_dropped() {
    let mut rig = Rig::new();
    let mut peer = rig.client(PLAIN);
    let too_long = (4 << 20) + 512;
    let mut bytes = request(WRITE, 0, 1, 0, too_long);
    bytes.resize(bytes.len() + too_long as usize, 9);
    bytes.extend(request(WRITE, 4, 2, 0, 512));
    bytes.resize(bytes.len() + 512, 9);
    bytes.extend(request(READ, 0, 3, 0, too_long));
    bytes.extend(request(READ, 0, 4, u64::MAX, 2));
    bytes.extend(request(BLOCK_STATUS, 0, 5, 0, 512));
    bytes.extend(request(WRITE_ZEROES, 16, 6, 0, 512));
    bytes.extend(request(5, 0, 7, 0, 512));
    bytes.extend(request(READ, 0, 8, 0, 0));
    bytes.extend(request(READ, 0, 9, 512, 512));
    let mut sent = 0;
    while sent < bytes.len() {
        sent += peer.send_some(&bytes[sent..]);
        rig.settle();
    }
    for (cookie, error) in
        [(1, 22), (2, 22), (3, 22), (4, 22), (5, 22), (6, 95), (7, 22), (8, 22), (9, 0)]
    {
        assert_eq!(peer.take(16), simple(cookie, error));
    }
    assert_eq!(peer.take(512), [0; 512]);
    assert_eq!(rig.intake.started.len(), 1);
    assert_eq!(rig.door.stats().refused, 8);
    rig.close();
}
