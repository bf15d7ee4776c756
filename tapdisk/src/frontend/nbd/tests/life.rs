//! Several clients, slow ones, pauses, and ends at every point.

use super::*;

#[test]
fn two_clients_are_served_at_once_and_see_one_disk() {
    let mut rig = Rig::new();
    let (mut left, mut right) = (rig.client(PLAIN), rig.client(STRUCTURED));
    left.send(&write(1, 0, &pattern(1, 4096)));
    rig.settle();
    right.send(&request(READ, 0, 1, 0, 4096));
    rig.settle();
    assert_eq!(left.take(16), simple(1, 0));
    assert_eq!(right.take(28 + 4096)[28..], pattern(1, 4096));
    rig.close();
}

#[test]
fn room_is_shared_out_in_turn() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 1;
    let mut peers = [rig.client(PLAIN), rig.client(PLAIN), rig.client(PLAIN)];
    for peer in &mut peers {
        for cookie in 0..5 {
            peer.send(&request(READ, 0, cookie, 0, 512));
        }
    }
    rig.settle();
    let mut served = Vec::new();
    for _ in 0..15 {
        served.push(rig.intake.running[0].token.peer);
        rig.finish(0);
        rig.settle();
    }
    for window in served.chunks(3) {
        let mut window = window.to_vec();
        window.sort_unstable();
        assert_eq!(window, [0, 1, 2], "{served:?}");
    }
    rig.close();
}

#[test]
fn a_flood_of_one_client_leaves_turns_to_the_other() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 64;
    let (mut flood, mut calm) = (rig.client(PLAIN), rig.client(PLAIN));
    for cookie in 0..128 {
        flood.send(&request(READ, 0, cookie, 0, 512));
    }
    calm.send(&request(READ, 0, 1, 512, 512));
    rig.turn();
    assert!(rig.intake.running.iter().any(|request| request.offset == 512));
    rig.close();
}

#[test]
fn requests_stay_in_the_socket_while_there_is_no_room() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 2;
    let mut peer = rig.client(PLAIN);
    for cookie in 0..100 {
        peer.send(&write(cookie, cookie * 512, &pattern(7, 512)));
    }
    rig.settle();
    for cookie in 0..100 {
        assert!((1..=2).contains(&rig.intake.running.len()));
        rig.finish(0);
        assert_eq!(peer.take(16), simple(cookie, 0));
        rig.settle();
    }
    for sector in rig.intake.disk[..51200].chunks(512) {
        assert_eq!(sector, pattern(7, 512));
    }
    rig.close();
}

#[test]
fn the_last_answer_wakes_who_waits_for_room() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 3;
    let mut peer = rig.client(PLAIN);
    for cookie in 0..6 {
        peer.send(&request(READ, 0, cookie, 0, 512));
    }
    rig.settle();
    // All that run end in one turn: nothing else will ever happen.
    rig.intake.finish_all(&mut rig.door);
    rig.settle();
    assert_eq!(rig.intake.running.len(), 3);
    rig.close();
}

#[test]
fn room_that_others_take_up_is_asked_for_again() {
    let mut rig = Rig::new();
    rig.intake.room = 0;
    let mut peer = rig.client(PLAIN);
    peer.send(&request(READ, 0, 1, 0, 512));
    for _ in 0..10 {
        assert!(rig.turn());
    }
    rig.intake.room = 1;
    rig.settle();
    assert_eq!(peer.take(16), simple(1, 0));
    rig.close();
}

#[test]
fn a_client_that_does_not_read_is_bounded_and_loses_nothing() {
    let config =
        NbdConfig { requests_per_client: 8, send_buffer_bytes: 4096, ..NbdConfig::default() };
    let mut rig = Rig::with(config, 32 << 20);
    rig.intake.disk.copy_from_slice(&pattern(3, DISK_BYTES));
    let (mut slow, mut other) = (rig.client(PLAIN), rig.client(PLAIN));
    let count = 200u64;
    let requests: Vec<u8> =
        (0..count).flat_map(|cookie| request(READ, 0, cookie, cookie * 4096, 65536)).collect();
    slow.send(&requests);
    rig.settle();
    assert!(rig.intake.started.len() < 50);
    assert!(rig.held() < 8 * 65536 + 1);
    other.send(&request(READ, 0, 1, 0, 512));
    rig.settle();
    assert_eq!(other.take(16), simple(1, 0));
    for cookie in 0..count {
        while slow.received.len() < 16 + 65536 {
            let before = slow.received.len();
            rig.settle();
            slow.read();
            assert!(slow.received.len() > before, "{}", rig.describe());
        }
        assert_eq!(slow.take(16), simple(cookie, 0));
        let start = usize::try_from(cookie).unwrap() * 4096;
        assert!(slow.take(65536) == rig.intake.disk[start..start + 65536]);
        if start + 65536 + 4096 > DISK_BYTES {
            break;
        }
    }
    rig.close();
}

#[test]
fn one_turn_answers_a_whole_batch_with_one_reply_behind_the_other() {
    let mut rig = Rig::new();
    let mut peer = rig.client(PLAIN);
    for cookie in 0..32 {
        peer.send(&request(READ, 0, cookie, cookie * 4096, 4096));
    }
    let received = rig.door.stats().bytes_in;
    assert!(rig.turn());
    assert_eq!(rig.door.stats().bytes_in - received, 32 * 28);
    assert_eq!(rig.intake.started.len(), 32);
    for cookie in 0..32 {
        assert_eq!(peer.take(16), simple(cookie, 0));
        peer.take(4096);
    }
    rig.close();
}

#[test]
fn what_a_client_asks_for_is_begun_while_large_replies_are_sent() {
    let mut rig = Rig::new();
    rig.intake.disk.copy_from_slice(&pattern(4, DISK_BYTES));
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    let all = u32::try_from(DISK_BYTES).unwrap();
    for cookie in 0..4 {
        peer.send(&request(READ, 0, cookie, 0, all));
    }
    rig.settle();
    let sent = rig.door.stats().bytes_out;
    rig.intake.finish_all(&mut rig.door);
    rig.door.flush(&mut rig.intake.memory);
    peer.send(&request(READ, 0, 4, 512, 512));
    assert!(rig.turn(), "there is more to be sent, which no event announces");
    assert_eq!(rig.intake.running.len(), 1);
    let sent = rig.door.stats().bytes_out - sent;
    assert!(sent > 0 && sent <= u64::from(all) + 16, "two messages of {sent} bytes");
    rig.serves = true;
    while peer.received.len() < 4 * (16 + DISK_BYTES) + 16 + 512 {
        let before = peer.received.len();
        rig.settle();
        peer.read();
        assert!(peer.received.len() > before, "{}", rig.describe());
    }
    for cookie in 0..4 {
        assert_eq!(peer.take(16), simple(cookie, 0));
        assert!(peer.take(DISK_BYTES) == rig.intake.disk);
    }
    assert_eq!(peer.take(16), simple(4, 0));
    assert!(peer.take(512) == rig.intake.disk[512..1024]);
    rig.close();
}

#[test]
fn a_door_that_closes_sends_what_the_socket_takes() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    let all = u32::try_from(DISK_BYTES).unwrap();
    peer.send(&request(READ, 0, 1, 0, all));
    peer.send(&request(READ, 0, 2, 0, 512));
    rig.settle();
    rig.close();
    assert_eq!(peer.take(16), simple(1, 0));
    peer.take(DISK_BYTES);
    assert_eq!(peer.take(16), simple(2, 0));
    peer.take(512);
}

#[test]
fn a_pause_holds_requests_back_and_lets_replies_out() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    let data = pattern(5, 1024);
    let bytes = write(2, 512, &data);
    peer.send(&request(READ, 0, 1, 0, 512));
    peer.send(&bytes[..300]);
    rig.settle();
    assert_eq!(rig.intake.running.len(), 1);
    rig.door.suspend();
    rig.finish(0);
    assert_eq!(peer.take(16), simple(1, 0));
    peer.take(512);
    peer.send(&bytes[300..]);
    peer.send(&request(READ, 0, 3, 512, 1024));
    // A handshake goes on, requests do not.
    let mut newcomer = rig.connect();
    newcomer.send(&[0, 0, 0, 3]);
    newcomer.send(&option(1, b""));
    newcomer.send(&request(FLUSH, 0, 1, 0, 0));
    rig.settle();
    assert!(rig.intake.running.is_empty());
    assert_eq!(newcomer.take(28).len(), 28);
    rig.door.resume();
    rig.settle();
    assert_eq!(rig.intake.running.len(), 3);
    rig.serves = true;
    rig.finish(0);
    rig.finish(0);
    rig.finish(0);
    rig.settle();
    assert_eq!(peer.take(32), [simple(2, 0), simple(3, 0)].concat());
    assert_eq!(peer.take(1024), data);
    assert_eq!(newcomer.take(16), simple(1, 0));
    rig.close();
}

#[test]
fn requests_that_wait_in_memory_are_found_after_a_pause() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 1;
    let mut peer = rig.client(PLAIN);
    for cookie in 0..3 {
        peer.send(&request(FLUSH, 0, cookie, 0, 0));
    }
    rig.settle();
    rig.door.suspend();
    rig.finish(0);
    rig.settle();
    assert!(rig.intake.running.is_empty());
    rig.door.resume();
    rig.serves = true;
    rig.settle();
    assert_eq!(peer.take(48), (0..3).flat_map(|cookie| simple(cookie, 0)).collect::<Vec<_>>());
    rig.close();
}

#[test]
fn an_end_after_any_byte_frees_all_but_what_is_running() {
    let session = [
        vec![0, 0, 0, 3],
        option(8, &[]),
        option(10, &queries(b"", &[b"base:allocation"])),
        option(7, &[0; 6]),
        request(READ, 0, 1, 0, 512),
        write(2, 0, &[1; 512]),
        request(BLOCK_STATUS, 0, 3, 0, 4096),
        write(4, 0, &[2; 100]),
        request(DISC, 0, 5, 0, 0),
    ]
    .concat();
    for end in 0..=session.len() {
        let mut rig = Rig::new();
        rig.serves = false;
        let mut peer = rig.connect();
        peer.send(&session[..end]);
        rig.settle();
        let running = rig.intake.running.clone();
        drop(peer);
        rig.settle();
        // The memory of what runs is untouched: nobody else gets it.
        let mut others = Vec::new();
        while let Some(segment) = rig.intake.memory.allocate(512) {
            let mine = running.iter().flat_map(|request| request.segments.as_slice());
            assert!(mine.clone().all(|other| other.offset != segment.offset));
            others.push(segment);
        }
        for segment in others {
            rig.intake.memory.free(segment);
        }
        rig.serves = true;
        rig.intake.finish_all(&mut rig.door);
        rig.settle();
        assert_eq!((rig.held(), rig.door.connected()), (0, 0), "after {end} bytes");
        rig.close();
    }
}

#[test]
fn an_end_that_comes_with_the_last_bytes_of_a_handshake_is_seen_at_once() {
    let (mut rig, connect) = listening(NbdConfig::default());
    for end in 1..4 {
        let mut peer = connect();
        rig.settle();
        peer.send(&[0, 0, 0, 3][..end]);
        drop(peer);
        rig.settle();
        assert_eq!((rig.door.connected(), rig.held()), (0, 0), "after {end} bytes");
    }
    rig.close();
}

#[test]
fn clients_that_ended_unseen_make_room_for_the_next() {
    let (mut rig, connect) = listening(NbdConfig::default());
    for _ in 0..100 {
        let mut peer = connect();
        peer.send(&[&[0, 0, 0, 3][..], &option(7, &[0; 6])].concat());
        rig.settle();
        assert!(peer.read(), "the door is not full: the others have ended");
        peer.send(&request(READ, 0, 1, 0, 512)[..20]);
    }
    rig.close();
}

#[test]
fn a_burst_of_clients_that_are_gone_does_not_turn_a_good_one_away() {
    let config = NbdConfig { clients_max: 3, ..NbdConfig::default() };
    let (mut rig, connect) = listening(config);
    let mut stays = [connect(), connect()];
    rig.settle();
    // All in one turn: there is one place, and the good one is the last to come.
    for _ in 0..5 {
        drop(connect());
        connect().send(&[0, 0, 0, 3]);
    }
    let mut good = connect();
    rig.settle();
    assert_eq!(good.take(18).len(), 18);
    assert!(stays.iter_mut().all(Peer::read), "who is connected stays");
    assert_eq!(rig.door.connected(), 3);
    rig.close();
}

#[test]
fn peers_are_let_go_while_their_requests_run() {
    let (mut rig, connect) = listening(NbdConfig::default());
    rig.serves = false;
    let mut peer = rig.client(ALLOCATION);
    peer.send(&request(READ, 0, 1, 0, 4096));
    peer.send(&request(BLOCK_STATUS, 0, 2, 0, 4096));
    peer.send(&request(WRITE, 0, 3, 0, 4096));
    rig.settle();
    let mut late = connect();
    rig.door.hang_up(&mut rig.intake.memory);
    assert!(peer.is_closed());
    assert!(late.stream.write_all(&[0; 4]).is_err() || late.is_closed());
    rig.settle();
    assert_eq!(rig.door.connected(), 1, "the memory of what runs is kept");
    rig.close();
}

#[test]
fn a_place_is_not_given_away_while_its_requests_run() {
    let config = NbdConfig { clients_max: 1, ..NbdConfig::default() };
    let mut rig = Rig::with(config, 32 << 20);
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    peer.send(&request(READ, 0, 1, 0, 512));
    rig.settle();
    drop(peer);
    rig.settle();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(rig.door.add(ours).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    rig.finish(0);
    let mut next = rig.client(PLAIN);
    next.send(&request(READ, 0, 2, 0, 512));
    rig.settle();
    rig.finish(0);
    assert_eq!(next.take(16), simple(2, 0));
    rig.close();
}

/// A handshake and, behind it, a write of one sector to the start of the disk.
fn greeted_write(cookie: u64, byte: u8) -> Vec<u8> {
    [&3u32.to_be_bytes()[..], &option(7, &[0; 6]), &write(cookie, 0, &[byte; 512])].concat()
}

#[test]
fn who_comes_back_is_not_overtaken_by_what_he_left() {
    let (mut rig, connect) = listening(NbdConfig::default());
    rig.serves = false;
    let mut other = rig.client(PLAIN);
    let mut peer = rig.client(PLAIN);
    peer.send(&write(2, 0, &[1; 512]));
    rig.settle();
    drop(peer);
    let mut peer = connect();
    peer.send(&greeted_write(3, 2));
    rig.settle();
    assert_eq!(rig.intake.abandoned, [1], "it is not tried again");
    // Who was there before may be the same client: it asks again on another of its connections.
    other.send(&write(4, 0, &[3; 512]));
    rig.settle();
    assert_eq!(rig.intake.running.len(), 1, "{:?}", rig.intake.running);
    rig.finish(0);
    rig.settle();
    assert_eq!(rig.intake.running.len(), 2);
    assert_eq!(rig.intake.disk[..512], [1; 512]);
    drop((peer, other));
    rig.close();
}

#[test]
fn a_client_that_is_gone_is_seen_while_its_requests_wait() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    peer.send(&write(1, 0, &[1; 512]));
    rig.settle();
    // Its end comes with its last bytes, and is not announced again.
    peer.send(&write(2, 0, &[2; 512])[..40]);
    drop(peer);
    rig.settle();
    assert_eq!(rig.intake.abandoned, [0]);
    rig.close();
}

#[test]
fn what_a_client_left_in_its_socket_is_not_begun_after_it_has_come_back() {
    let (mut rig, connect) = listening(NbdConfig::default());
    let mut peer = rig.client(PLAIN);
    rig.door.suspend();
    peer.send(&write(1, 0, &[1; 512]));
    drop(peer);
    rig.settle();
    let mut peer = connect();
    peer.send(&greeted_write(2, 2));
    rig.settle();
    rig.door.resume();
    rig.settle();
    let started: Vec<u64> = rig.intake.started.iter().map(|it| it.token.number).collect();
    assert_eq!(started, [2]);
    peer.read();
    assert!(peer.received.ends_with(&simple(2, 0)));
    rig.close();
}

#[test]
fn what_a_client_left_behind_others_requests_is_not_begun() {
    let mut rig = Rig::new();
    rig.serves = false;
    rig.intake.room = 1;
    let (mut first, mut second) = (rig.client(PLAIN), rig.client(PLAIN));
    first.send(&request(READ, 0, 1, 0, 512));
    rig.settle();
    second.send(&write(2, 0, &[2; 512]));
    rig.settle();
    drop(second);
    rig.settle();
    rig.finish(0);
    rig.settle();
    assert_eq!(rig.intake.started.len(), 1, "there was no room for it while it was there");
    rig.close();
}

/// As libnbd says good-bye.
#[test]
fn a_client_that_only_sends_nothing_more_gets_its_replies() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    peer.send(&[write(1, 0, &[1; 512]), request(DISC, 0, 2, 0, 0)].concat());
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    rig.settle();
    assert_eq!(rig.intake.running.len(), 1);
    rig.finish(0);
    assert_eq!(peer.take(16), simple(1, 0));
    assert!(peer.is_closed());
    // In the middle of a request there is nothing to wait for.
    let mut peer = rig.client(PLAIN);
    peer.send(&write(3, 0, &[1; 512])[..40]);
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    rig.settle();
    assert!(peer.is_closed());
    rig.close();
}

/// It waits for the replies that are still due, and would go on to be tried again.
#[test]
fn a_client_that_said_good_bye_and_is_gone_is_not_waited_for() {
    let mut rig = Rig::new();
    rig.serves = false;
    let mut peer = rig.client(PLAIN);
    peer.send(&write(1, 0, &[1; 512]));
    peer.send(&request(DISC, 0, 2, 0, 0));
    rig.settle();
    assert_eq!(rig.intake.abandoned, [0u16; 0]);
    drop(peer);
    rig.settle();
    assert_eq!(rig.intake.abandoned, [0]);
    rig.close();
}

#[test]
fn a_session_cut_into_single_bytes_is_the_same_session() {
    let data = pattern(8, 700);
    let session = [
        vec![0, 0, 0, 3],
        option(8, &[]),
        option(77, &[9; 30]),
        option(10, &queries(b"name", &[b"other:x", b"base:allocation"])),
        option(7, &[0, 0, 0, 1, b'n', 0, 1, 0, 3]),
        // First of all, for its reply overtakes those that the disk has to give.
        request(WRITE, 4, 1, 0, 700),
        data,
        write(2, 0, &pattern(2, 512)),
        request(READ, 0, 3, 0, 1024),
        request(BLOCK_STATUS, 0, 4, 0, 2048),
        request(DISC, 0, 5, 0, 0),
    ]
    .concat();
    let whole = replies(&session, session.len());
    assert!(whole == replies(&session, 1));
    for size in [2, 3, 7, 13, 27, 28, 29, 100, 511] {
        assert!(whole == replies(&session, size), "pieces of {size}");
    }
    for cut in 0..session.len() {
        let mut rig = Rig::new();
        let mut peer = rig.connect();
        peer.send(&session[..cut]);
        rig.settle();
        peer.read();
        peer.send(&session[cut..]);
        rig.settle();
        assert!(peer.is_closed());
        assert!(whole == peer.received, "cut at {cut}");
        rig.close();
    }
}

fn replies(session: &[u8], size: usize) -> Vec<u8> {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    for piece in session.chunks(size) {
        peer.send(piece);
        rig.settle();
    }
    assert!(peer.is_closed());
    rig.close();
    peer.received
}
