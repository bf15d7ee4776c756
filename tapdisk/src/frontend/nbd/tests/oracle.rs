//! Random commands of several clients, cut and reordered at random, against a plain vector of
//! bytes.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const SECTORS: usize = 64;
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    Write {
        sector: usize,
        count: usize,
        seed: usize,
    },
    Zero {
        sector: usize,
        count: usize,
        keep: bool,
    },
    Read {
        sector: usize,
        count: usize,
    },
    Status {
        sector: usize,
        count: usize,
    },
    Flush,
    /// Refused, with payload.
    TooLong,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || {
        (0..SECTORS, 1..=SECTORS).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)))
    };
    prop_oneof![
        4 => (range(), 0usize..1000)
            .prop_map(|((sector, count), seed)| Action::Write { sector, count, seed }),
        4 => range().prop_map(|(sector, count)| Action::Read { sector, count }),
        1 => (range(), any::<bool>())
            .prop_map(|((sector, count), keep)| Action::Zero { sector, count, keep }),
        1 => range().prop_map(|(sector, count)| Action::Status { sector, count }),
        1 => Just(Action::Flush),
        1 => Just(Action::TooLong),
    ]
}

impl Action {
    fn bytes(&self, cookie: u64) -> Vec<u8> {
        let ranged = |kind, flags, sector: &usize, count: &usize| {
            let len = u32::try_from(count * 512).unwrap();
            request(kind, flags, cookie, *sector as u64 * 512, len)
        };
        match self {
            Self::Write { sector, count, seed } => {
                write(cookie, *sector as u64 * 512, &pattern(*seed, count * 512))
            }
            Self::Zero { sector, count, keep } => {
                ranged(WRITE_ZEROES, if *keep { 2 } else { 0 }, sector, count)
            }
            Self::Read { sector, count } => ranged(READ, 0, sector, count),
            Self::Status { sector, count } => ranged(BLOCK_STATUS, 0, sector, count),
            Self::Flush => request(FLUSH, 0, cookie, 0, 0),
            Self::TooLong => {
                let mut bytes = request(WRITE, 0, cookie, 0, 65536 + 512);
                bytes.resize(bytes.len() + 65536 + 512, 0xee);
                bytes
            }
        }
    }
}

/// What a client waits for, in no order.
struct Expected {
    cookie: u64,
    action: Action,
    /// What the oracle had when the request was answered.
    disk: Option<Vec<u8>>,
}

/// Sends a piece of what is to be sent.
fn feed(peer: &mut Peer, stream: &mut Vec<u8>, size: usize) {
    if !stream.is_empty() {
        let sent = peer.send_some(&stream[..size.min(stream.len())]);
        stream.drain(..sent);
    }
}

/// Compares all whole replies that are there.
fn check_replies(peer: &mut Peer, expected: &mut Vec<Expected>) {
    peer.read();
    while check_reply(peer, expected) {}
}

/// Takes one whole reply off the front, if it is there, and compares it.
fn check_reply(peer: &mut Peer, expected: &mut Vec<Expected>) -> bool {
    let bytes = &peer.received;
    let Some(magic) = bytes.first_chunk::<4>() else {
        return false;
    };
    let is_simple = u32::from_be_bytes(*magic) == 0x6744_6698;
    if bytes.len() < if is_simple { 16 } else { 20 } {
        return false;
    }
    let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
    let at = expected.iter().position(|item| item.cookie == cookie).expect("a reply for a request");
    let payload =
        if is_simple { 0 } else { u32::from_be_bytes(bytes[16..20].try_into().unwrap()) as usize };
    let header = if is_simple { 16 } else { 20 };
    if bytes.len() < header + payload {
        return false;
    }
    let reply: Vec<u8> = peer.received.drain(..header + payload).collect();
    let item = expected.swap_remove(at);
    match item.action {
        Action::TooLong => assert_eq!(reply, simple(cookie, 22)),
        Action::Read { sector, count } => {
            let disk = item.disk.expect("answered");
            let offset = (sector as u64 * 512).to_be_bytes();
            let data = &disk[sector * 512..(sector + count) * 512];
            assert!(reply == chunk(1, cookie, &[&offset, data]));
        }
        Action::Status { count, .. } => {
            assert_eq!(reply[20..24], 1u32.to_be_bytes());
            let described: u32 = reply[24..]
                .chunks(8)
                .map(|extent| u32::from_be_bytes(extent[..4].try_into().unwrap()))
                .sum();
            assert!(described as usize <= count * 512);
        }
        _ => assert_eq!(reply, simple(cookie, 0)),
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_stream_of_commands_does_what_it_says(
        actions in prop::collection::vec((0..CLIENTS, action()), 1..60),
        cuts in prop::collection::vec((any::<Index>(), any::<Index>(), 0u8..4), 1..200),
        room in 1usize..20,
    ) {
        let config = NbdConfig {
            payload_bytes_max: 65536,
            bytes_per_client: 65536,
            staging_bytes: 65536,
            requests_per_client: 5,
            send_buffer_bytes: 8192,
            ..NbdConfig::default()
        };
        let mut rig = Rig::with(config, 512 << 10);
        rig.serves = false;
        rig.intake.room = room;
        let mut peers: Vec<Peer> = (0..CLIENTS).map(|_| rig.client(ALLOCATION)).collect();
        let mut streams = vec![Vec::new(); CLIENTS];
        let mut expected: Vec<Vec<Expected>> = (0..CLIENTS).map(|_| Vec::new()).collect();
        for (cookie, (client, action)) in (0..).zip(actions) {
            streams[client].extend(action.bytes(cookie));
            expected[client].push(Expected { cookie, action, disk: None });
        }
        let mut oracle = vec![0; DISK_BYTES];
        for (which, size, what) in cuts {
            let client = which.index(CLIENTS);
            match what {
                0 => feed(&mut peers[client], &mut streams[client], 1 + size.index(5000)),
                1 => check_replies(&mut peers[client], &mut expected[client]),
                2 if !rig.intake.running.is_empty() => {
                    let index = size.index(rig.intake.running.len());
                    finish(&mut rig, index, &mut oracle, &mut expected);
                    rig.turn();
                }
                _ => rig.settle(),
            }
        }
        for _ in 0..10_000 {
            if expected.iter().all(Vec::is_empty) {
                break;
            }
            for client in 0..CLIENTS {
                feed(&mut peers[client], &mut streams[client], 5000);
                check_replies(&mut peers[client], &mut expected[client]);
            }
            if !rig.intake.running.is_empty() {
                finish(&mut rig, 0, &mut oracle, &mut expected);
            }
            rig.settle();
        }
        prop_assert!(expected.iter().all(Vec::is_empty), "{}", rig.describe());
        prop_assert!(rig.intake.disk == oracle);
        rig.close();
    }
}

/// Ends one request, and does to the oracle what its client asked for.
fn finish(rig: &mut Rig, index: usize, oracle: &mut [u8], expected: &mut [Vec<Expected>]) {
    let crate::request::Request { token, op, .. } = rig.intake.running[index];
    let client = usize::from(token.peer);
    let cookie = match op {
        crate::request::Op::BlockStatus => {
            rig.door.clients[client].lookups.get(token.number).cookie
        }
        _ => token.number,
    };
    let item = expected[client].iter_mut().find(|item| item.cookie == cookie);
    let item = item.expect("what runs was asked for and is not answered");
    match &item.action {
        Action::Write { sector, count, seed } => {
            oracle[sector * 512..][..count * 512].copy_from_slice(&pattern(*seed, count * 512));
        }
        Action::Zero { sector, count, .. } => oracle[sector * 512..][..count * 512].fill(0),
        _ => {}
    }
    item.disk = Some(oracle.to_vec());
    rig.intake.finish(index, &mut rig.door);
}
