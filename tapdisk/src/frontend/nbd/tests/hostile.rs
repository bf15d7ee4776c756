//! Peers that break the protocol, or keep it in the most annoying way.

use super::*;

#[test]
fn a_broken_stream_is_closed() {
    let mut wrong_magic = request(READ, 0, 1, 0, 512);
    wrong_magic[3] ^= 1;
    let too_long = request(WRITE, 0, 1, 0, (32 << 20) + 1);
    let unknown = request(77, 0, 1, 0, 512);
    for bytes in [wrong_magic, too_long, unknown] {
        let mut rig = Rig::new();
        let mut peer = rig.client(PLAIN);
        peer.send(&bytes);
        rig.settle();
        assert!(peer.is_closed());
        assert_eq!(rig.door.stats().faults, 1);
        assert_eq!(rig.held(), 0);
        rig.close();
    }
}

#[test]
fn one_broken_client_takes_no_other_with_it() {
    let mut rig = Rig::new();
    rig.serves = false;
    let (mut good, mut bad) = (rig.client(PLAIN), rig.client(PLAIN));
    good.send(&request(READ, 0, 1, 0, 512));
    bad.send(&request(READ, 0, 1, 0, 512));
    bad.send(&[0xff; 100]);
    rig.settle();
    assert!(bad.is_closed());
    rig.serves = true;
    rig.finish(0);
    rig.finish(0);
    rig.settle();
    assert_eq!(good.take(16), simple(1, 0));
    assert_eq!(rig.door.connected(), 1);
    rig.close();
}

#[test]
fn any_length_of_a_read_is_bounded_before_memory_is_taken() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    let held = rig.held();
    for (cookie, len) in (0..).zip([(4 << 20) + 1, 1 << 31, u32::MAX]) {
        peer.send(&request(READ, 0, cookie, 0, len));
        rig.settle();
        assert_eq!(rig.held(), held);
        assert_eq!(peer.take(16), simple(cookie, 22));
    }
    // Not a multiple of anything: no more than a run of pages is taken, and the disk refuses it.
    peer.send(&request(READ, 0, 9, 3, 4095));
    rig.settle();
    assert_eq!(rig.held(), held + 4096);
    rig.finish(0);
    assert_eq!(peer.take(16), simple(9, 22));
    assert_eq!(rig.held(), held);
    rig.close();
}

#[test]
fn one_client_holds_no_more_than_its_share() {
    let config = NbdConfig { bytes_per_client: 4 << 20, ..NbdConfig::default() };
    let mut rig = Rig::with(config, 32 << 20);
    rig.serves = false;
    rig.intake.room = 1000;
    let mut peer = rig.client(PLAIN);
    let before = rig.held();
    for cookie in 0..16 {
        peer.send(&request(READ, 0, cookie, 0, 1 << 20));
    }
    rig.settle();
    assert_eq!(rig.intake.running.len(), 4);
    assert_eq!(rig.held() - before, 4 << 20);
    rig.serves = true;
    rig.intake.finish_all(&mut rig.door);
    let mut done = 0;
    while done < 16 * (16 + (1 << 20)) {
        peer.received.clear();
        rig.settle();
        peer.read();
        assert!(!peer.received.is_empty(), "{}", rig.describe());
        done += peer.received.len();
    }
    rig.close();
}

#[test]
fn a_request_that_never_fits_is_refused_instead_of_waited_for() {
    let mut rig = Rig::with(NbdConfig::default(), 512 << 10);
    let mut peer = rig.client(PLAIN);
    peer.send(&request(READ, 0, 1, 0, 1 << 20));
    let mut bytes = request(WRITE, 0, 2, 0, 1 << 20);
    bytes.resize(28 + (1 << 20), 1);
    bytes.extend(request(READ, 0, 3, 0, 512));
    let mut sent = 0;
    while sent < bytes.len() {
        sent += peer.send_some(&bytes[sent..]);
        rig.settle();
    }
    assert_eq!(peer.take(32), [simple(1, 12), simple(2, 12)].concat());
    assert_eq!(peer.take(16), simple(3, 0));
    rig.close();
}

/// An arena of 1 MiB of which a little is taken, so that a request of 512 KiB fits once.
fn narrow() -> Rig {
    let config = NbdConfig { send_buffer_bytes: 4096, ..NbdConfig::default() };
    let mut rig = Rig::with(config, 1 << 20);
    rig.intake.memory.allocate(64 << 10).unwrap();
    rig.free_at_start = rig.intake.memory.free_bytes();
    rig
}

#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    let mut rig = narrow();
    rig.serves = false;
    let (mut small, mut large) = (rig.client(PLAIN), rig.client(PLAIN));
    small.send(&request(READ, 0, 0, 0, 400 << 10));
    rig.settle();
    large.send(&request(READ, 0, 1, 0, 500 << 10));
    rig.settle();
    assert_eq!(rig.intake.running.len(), 1);
    small.send(&request(READ, 0, 1, 0, 512));
    rig.settle();
    assert_eq!(rig.intake.running.len(), 1, "who came later waits");
    rig.finish(0);
    while small.received.len() < 16 + (400 << 10) {
        small.read();
        rig.settle();
    }
    assert_eq!(rig.intake.running[0].len, 500 << 10);
    assert_eq!(rig.intake.running.len(), 2);
    rig.close();
}

#[test]
fn who_holds_memory_and_stalls_is_let_go_when_it_is_needed() {
    for writes in [false, true] {
        let mut rig = narrow();
        let (mut stalled, mut waiting) = (rig.client(PLAIN), rig.client(PLAIN));
        if writes {
            stalled.send(&request(WRITE, 0, 1, 0, 500 << 10));
            stalled.send(&[1; 100]);
        } else {
            stalled.send(&request(READ, 0, 1, 0, 500 << 10));
        }
        rig.settle();
        rig.wait(Duration::from_secs(1000));
        waiting.send(&request(READ, 0, 2, 0, 500 << 10));
        rig.settle();
        rig.wait(Duration::from_secs(29));
        assert_eq!(rig.door.connected(), 2);
        assert!(waiting.is_silent());
        rig.wait(Duration::from_secs(2));
        assert_eq!(rig.door.connected(), 1);
        assert!(stalled.is_closed());
        while waiting.received.len() < 16 + (500 << 10) {
            assert!(waiting.read());
            rig.settle();
        }
        assert_eq!(waiting.take(16), simple(2, 0));
        rig.close();
    }
}

#[test]
fn who_holds_memory_is_not_let_go_for_what_a_pause_kept_it_from() {
    let mut rig = narrow();
    let (mut sending, mut waiting) = (rig.client(PLAIN), rig.client(PLAIN));
    sending.send(&request(WRITE, 0, 1, 0, 500 << 10));
    sending.send(&[1; 100]);
    rig.settle();
    waiting.send(&request(READ, 0, 2, 0, 500 << 10));
    rig.settle();
    rig.door.suspend();
    rig.wait(Duration::from_secs(1000));
    assert_eq!(rig.door.connected(), 2);
    rig.door.resume();
    rig.settle();
    rig.wait(Duration::from_secs(29));
    assert_eq!(rig.door.connected(), 2);
    rig.wait(Duration::from_secs(2));
    assert_eq!(rig.door.connected(), 1);
    assert!(sending.is_closed());
    rig.close();
}

#[test]
fn who_said_goodbye_and_does_not_read_is_let_go() {
    let config = NbdConfig { send_buffer_bytes: 4096, ..NbdConfig::default() };
    let mut rig = Rig::with(config, 32 << 20);
    let mut peer = rig.client(PLAIN);
    peer.send(&request(READ, 0, 1, 0, 1 << 20));
    peer.send(&request(DISC, 0, 2, 0, 0));
    rig.settle();
    rig.wait(Duration::from_secs(29));
    assert_eq!(rig.door.connected(), 1);
    rig.wait(Duration::from_secs(2));
    assert_eq!((rig.door.connected(), rig.held()), (0, 0));
    rig.close();
}

#[test]
fn a_peer_that_only_connects_costs_nothing_for_long() {
    let (mut rig, connect) = listening(NbdConfig::default());
    for _ in 0..200 {
        drop(connect());
        rig.settle();
        assert_eq!((rig.door.connected(), rig.held()), (0, 0));
    }
    let crowd: Vec<Peer> = (0..40).map(|_| connect()).collect();
    rig.settle();
    assert_eq!(rig.door.connected(), 32);
    drop(crowd);
    rig.settle();
    assert_eq!((rig.door.connected(), rig.held()), (0, 0));
    rig.close();
}

#[test]
fn a_dripping_option_is_bounded() {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    peer.send(&[0, 0, 0, 3]);
    let bytes = option(10, &vec![0; 64 << 10]);
    for piece in bytes.chunks(997) {
        peer.send(piece);
        rig.settle();
    }
    assert_eq!(peer.take(18 + 20)[18..], option_reply(10, 0x8000_0003, &[]));
    rig.close();
}
