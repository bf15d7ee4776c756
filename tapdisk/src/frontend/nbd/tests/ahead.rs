//! Small writes in a row: received where they belong, whatever comes between them.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[test]
fn payload_of_small_writes_in_a_row_is_not_copied() {
    let mut rig = Rig::new();
    let mut peer = rig.client(PLAIN);
    let batch = |round: usize| -> Vec<u8> {
        let writes = (0..8).map(|number| {
            write(number as u64, number as u64 * 4096, &pattern(round * 8 + number, 4096))
        });
        writes.flatten().collect()
    };
    // The first ones tell what there is going to be, and leave pages behind.
    peer.send(&batch(0));
    rig.settle();
    let copied = rig.door.stats().bytes_copied;
    assert_eq!(copied, 8 * 4096);
    for round in 1..5 {
        peer.send(&batch(round));
        rig.settle();
        assert_eq!(rig.door.stats().bytes_copied, copied);
        for number in 0..8 {
            assert_eq!(rig.intake.disk[number * 4096..][..4096], pattern(round * 8 + number, 4096));
        }
    }
    peer.read();
    assert_eq!(peer.received.len(), 5 * 8 * 16);
    rig.close();
}

#[test]
fn writes_of_nothing_are_no_row() {
    let mut rig = Rig::new();
    let mut peer = rig.client(PLAIN);
    for round in 0..3 {
        for cookie in 0..8 {
            peer.send(&request(WRITE, 0, cookie, 0, 0));
        }
        if round > 0 {
            rig.settle();
        }
        peer.send(&write(8, 0, &pattern(round, 512)));
        rig.settle();
        let replies: Vec<u8> = (0..8).flat_map(|cookie| simple(cookie, 22)).collect();
        assert_eq!(peer.take(8 * 16), replies);
        assert_eq!(peer.take(16), simple(8, 0));
    }
    rig.close();
}

#[test]
fn an_end_in_the_middle_of_a_row_gives_all_pages_back() {
    let whole: Vec<u8> = (0..8).flat_map(|number| write(number, 0, &[7; 512])).collect();
    for end in (0..whole.len()).step_by(13) {
        let mut rig = Rig::new();
        let mut peer = rig.client(PLAIN);
        peer.send(&whole);
        rig.settle();
        rig.intake.room = 0;
        peer.send(&whole[..end]);
        for _ in 0..3 {
            rig.turn();
        }
        drop(peer);
        rig.intake.room = 64;
        rig.settle();
        rig.wait(Duration::from_secs(2));
        assert_eq!((rig.held(), rig.door.connected()), (0, 0), "after {end} bytes");
        rig.close();
    }
}

#[test]
fn payload_of_a_row_that_is_cut_anywhere_is_not_copied() {
    let whole: Vec<u8> = (0..8).flat_map(|number| write(number, 0, &pattern(7, 512))).collect();
    for cut in (0..whole.len()).step_by(101) {
        let mut rig = Rig::new();
        let mut peer = rig.client(PLAIN);
        for number in 0..8 {
            peer.send(&write(number, 512, &[1; 512]));
        }
        rig.settle();
        let copied = rig.door.stats().bytes_copied;
        peer.send(&whole[..cut]);
        rig.settle();
        peer.send(&whole[cut..]);
        rig.settle();
        // A request that is cut itself is put together where requests are.
        let is_request_cut = (1..=28).contains(&(cut % (28 + 512)));
        let most = if is_request_cut { whole.len() as u64 } else { 0 };
        assert!(rig.door.stats().bytes_copied - copied <= most, "cut after {cut}");
        assert_eq!(rig.intake.disk[..512], pattern(7, 512), "cut after {cut}");
        rig.close();
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Write {
        sector: usize,
        count: usize,
    },
    /// Its payload is dropped.
    Refused,
    PastTheEnd,
    Read {
        sector: usize,
    },
    Flush,
}

fn action() -> impl Strategy<Value = Action> {
    let sectors = DISK_BYTES / 512 - 16;
    prop_oneof![
        20 => (0..sectors).prop_map(|sector| Action::Write { sector, count: 8 }),
        2 => (0..sectors, 1usize..16).prop_map(|(sector, count)| Action::Write { sector, count }),
        1 => Just(Action::Refused),
        1 => Just(Action::PastTheEnd),
        1 => (0..sectors).prop_map(|sector| Action::Read { sector }),
        1 => Just(Action::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Against a plain array, for streams that are mostly writes of a page, cut anywhere.
    #[test]
    fn a_row_that_something_comes_between_is_the_stream_that_was_sent(
        actions in prop::collection::vec(action(), 1..120),
        cuts in prop::collection::vec(any::<Index>(), 1..60),
        room in 1usize..40,
    ) {
        let mut rig = Rig::new();
        rig.intake.room = room;
        let mut peer = rig.client(PLAIN);
        let mut oracle = vec![0; DISK_BYTES];
        let (mut stream, mut replies) = (Vec::new(), Vec::new());
        for (cookie, action) in (0u64..).zip(actions) {
            let seed = usize::try_from(cookie).unwrap();
            match action {
                Action::Write { sector, count } => {
                    let data = pattern(seed, count * 512);
                    oracle[sector * 512..][..data.len()].copy_from_slice(&data);
                    stream.extend(write(cookie, sector as u64 * 512, &data));
                    replies.extend(simple(cookie, 0));
                }
                Action::Refused => {
                    stream.extend(request(WRITE, 0x80, cookie, 0, 4096));
                    stream.extend(pattern(seed, 4096));
                    replies.extend(simple(cookie, 22));
                }
                Action::PastTheEnd => {
                    stream.extend(write(cookie, DISK_BYTES as u64, &pattern(seed, 4096)));
                    replies.extend(simple(cookie, 28));
                }
                Action::Read { sector } => {
                    stream.extend(request(READ, 0, cookie, sector as u64 * 512, 512));
                    replies.extend(simple(cookie, 0));
                    replies.extend(&oracle[sector * 512..][..512]);
                }
                Action::Flush => {
                    stream.extend(request(FLUSH, 0, cookie, 0, 0));
                    replies.extend(simple(cookie, 0));
                }
            }
        }
        let mut cuts = cuts.iter().cycle();
        while !stream.is_empty() {
            let size = 1 + cuts.next().unwrap().index(40_000);
            let sent = peer.send_some(&stream[..size.min(stream.len())]);
            stream.drain(..sent);
            rig.turn();
            peer.read();
        }
        rig.settle();
        peer.read();
        // A refusal overtakes what runs.
        let order = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        prop_assert_eq!(order(&peer.received), order(&replies));
        prop_assert!(rig.intake.disk == oracle);
        rig.close();
    }
}
