//! The handshake over a socket: what its parser's own laws cannot show.

use super::*;

#[test]
fn greets_before_anything_is_sent_and_waits() {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    rig.settle();
    assert_eq!(peer.take(18), b"NBDMAGICIHAVEOPT\0\x03");
    // A client in a migration takes 40 s for its flags.
    rig.wait(Duration::from_secs(100));
    peer.send(&[0, 0, 0, 3]);
    peer.send(&option(7, &[0; 6]));
    rig.settle();
    assert_eq!(peer.take(20 + 12)[..20], option_reply(7, 3, &[0; 12])[..20]);
    peer.take(20 + 14 + 20);
    peer.send(&request(FLUSH, 0, 1, 0, 0));
    rig.settle();
    assert_eq!(peer.take(16), simple(1, 0));
    rig.wait(Duration::from_secs(3600));
    assert!(peer.is_silent(), "only the handshake has a deadline");
    rig.close();
}

#[test]
fn a_handshake_that_does_not_end_is_let_go() {
    let mut rig = Rig::new();
    let mut silent = rig.connect();
    let mut talking = rig.connect();
    rig.settle();
    talking.send(&[0, 0, 0, 3]);
    for _ in 0..12 {
        assert!(silent.read() && talking.read());
        rig.wait(Duration::from_secs(10));
        if talking.read() {
            talking.send(&option(3, &[]));
        }
        rig.settle();
    }
    assert!(silent.is_closed() && talking.is_closed());
    assert_eq!(rig.held(), 0);
    assert_eq!(rig.door.stats().faults, 2);
    rig.close();
}

#[test]
fn a_new_client_takes_the_place_of_the_longest_silent_handshake() {
    let config = NbdConfig { clients_max: 3, ..NbdConfig::default() };
    let (mut rig, connect) = listening(config);
    let mut first = connect();
    rig.settle();
    rig.wait(Duration::from_secs(3));
    let mut second = connect();
    let mut working = connect();
    working.send(&[0, 0, 0, 3]);
    working.send(&option(7, &[0; 6]));
    rig.settle();
    // The first has spoken since the second was silent.
    rig.wait(Duration::from_secs(1));
    first.send(&[0, 0, 0, 3]);
    rig.settle();
    let mut refused = connect();
    rig.settle();
    assert!(refused.is_closed(), "nobody has been silent for long enough");
    rig.wait(Duration::from_secs(5));
    let mut third = connect();
    rig.settle();
    assert!(second.is_closed());
    assert!(third.read() && first.read() && working.read());
    assert_eq!(rig.door.connected(), 3);
    rig.close();
}

#[test]
fn every_place_can_be_taken_again() {
    let config = NbdConfig { clients_max: 2, ..NbdConfig::default() };
    let (mut rig, connect) = listening(config);
    for _ in 0..50 {
        let mut peers = [connect(), connect()];
        rig.settle();
        for peer in &mut peers {
            peer.send(&[0, 0, 0, 3]);
            peer.send(&option(1, b""));
            peer.send(&request(FLUSH, 0, 1, 0, 0));
        }
        rig.settle();
        for peer in &mut peers {
            assert_eq!(peer.take(18 + 10 + 16)[28..], simple(1, 0));
        }
        drop(peers);
        rig.settle();
        assert_eq!((rig.door.connected(), rig.held()), (0, 0));
    }
    assert_eq!(rig.door.stats().clients, 100);
    assert_eq!(rig.door.stats().faults, 0);
    rig.close();
}

#[test]
fn abort_is_acknowledged_and_closed() {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    peer.send(&[0, 0, 0, 3]);
    peer.send(&option(2, &[]));
    rig.settle();
    assert!(peer.is_closed());
    assert_eq!(peer.received[18..], option_reply(2, 1, &[]));
    assert_eq!(rig.held(), 0);
    rig.close();
}

#[test]
fn options_sent_ahead_are_answered_in_order() {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    let mut bytes = vec![0, 0, 0, 3];
    for number in [99, 8, 4, 8] {
        bytes.extend(option(number, &vec![0; if number == 8 { 0 } else { 70_000 }]));
    }
    bytes.extend(option(1, b"x"));
    bytes.extend(write(5, 0, &pattern(1, 512)));
    peer.send(&bytes);
    rig.settle();
    peer.take(18);
    let unsupported = 0x8000_0001;
    for (number, kind) in [(99, unsupported), (8, 1), (4, unsupported), (8, 1)] {
        assert_eq!(peer.take(20), option_reply(number, kind, &[]));
    }
    peer.take(10);
    assert_eq!(peer.take(16), simple(5, 0));
    assert_eq!(rig.intake.disk[..512], pattern(1, 512));
    rig.close();
}

#[test]
fn connections_leave_the_largest_request_its_memory() {
    let mut rig = Rig::with(NbdConfig::default(), 1 << 20);
    let mut peers: Vec<Peer> = (0..16).map(|_| rig.client(PLAIN)).collect();
    // Who stays is all over the table.
    for index in 0..8 {
        drop(peers.remove(index));
    }
    rig.settle();
    let last = peers.last_mut().unwrap();
    last.send(&request(READ, 0, 7, 0, 1 << 20));
    rig.settle();
    assert_eq!(last.take(16), simple(7, 0));
    rig.close();
}
