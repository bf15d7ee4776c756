//! Laws of the codec that concern more than one of its files.

use proptest::prelude::*;

use super::*;

fn params(with_log: bool, key_size: Option<usize>) -> Params {
    Params {
        flags: Flags::READ_ONLY | Flags::SECONDARY,
        device: 7,
        domain: 8,
        path: "vhd:/srv/with space=and:colon.vhd".into(),
        parent: 9,
        request_timeout_s: 120,
        secondary: "null".into(),
        log: with_log.then(|| "/srv/a.cbtlog".into()),
        key: key_size.map(|size| Key::new(&vec![0xa5; size]).unwrap()),
    }
}

fn blkif() -> Blkif {
    Blkif {
        domain: 5,
        device: 51712,
        grants: [1, 2, 3, 4, 5, 6, 7, u32::MAX],
        order: 3,
        protocol: BlkifProtocol::X86_32,
        pool: "td-xenio-default".into(),
        port: 17,
        poll_duration_us: 1000,
        poll_idle_percent: 50,
    }
}

fn every_request() -> Vec<Request> {
    let minor = 0x1234;
    vec![
        Request::Pid,
        Request::List,
        Request::ListMinors,
        Request::Attach { minor },
        Request::Detach { minor },
        Request::Open { minor, params: params(false, None) },
        Request::Open { minor, params: params(true, None) },
        Request::Open { minor, params: params(false, Some(1)) },
        Request::Open { minor, params: params(true, Some(128)) },
        Request::Close { minor },
        Request::ForceShutdown { minor },
        Request::Pause { minor },
        Request::Resume { minor, params: params(false, None) },
        Request::Resume { minor, params: params(true, None) },
        Request::Stats { minor: COOKIE_ALL },
        Request::DiskInfo { minor },
        Request::XenblkifConnect { minor, blkif: blkif() },
        Request::XenblkifDisconnect { minor, domain: 5, device: 51712 },
        Request::Exit,
    ]
}

fn every_response() -> Vec<Response> {
    let info = ImageInfo { sectors: 1 << 40, sector_size: 512, info: 4 };
    vec![
        Response::Error { errno: 114, message: "".into() },
        Response::RuntimeError { message: "lost".into() },
        Response::Pid(4711),
        Response::Attach,
        Response::Detach,
        Response::Open(info),
        Response::Close,
        Response::Pause,
        Response::Resume,
        Response::List(ListEntry { remaining: 2, minor: 3, state: 0x22a, path: "".into() }),
        Response::ListEnd,
        Response::ListMinors((0..63).collect()),
        Response::Stats { length: 4096 },
        Response::DiskInfo(info),
        Response::XenblkifConnect,
        Response::XenblkifDisconnect,
    ]
}

/// Feeds bytes in pieces, as a socket would, and says how many were taken.
fn receive(bytes: &[u8], piece: usize) -> (Result<Option<Request>, DecodeError>, usize) {
    let mut buffer = RequestBuffer::new();
    let mut taken = 0;
    loop {
        match buffer.request() {
            Ok(None) => {}
            end => return (end, taken),
        }
        let space = buffer.space();
        let count = space.len().min(piece).min(bytes.len() - taken);
        if count == 0 {
            return (Ok(None), taken);
        }
        space[..count].copy_from_slice(&bytes[taken..taken + count]);
        buffer.advance(count);
        taken += count;
    }
}

#[test]
fn a_request_survives_the_wire_in_pieces_of_any_size() {
    for request in every_request() {
        let bytes = request.encode().unwrap();
        for piece in [1, 7, 543, 544, 545, 4096] {
            let (received, taken) = receive(&bytes, piece);
            assert_eq!(received, Ok(Some(request.clone())), "in pieces of {piece}");
            assert_eq!(taken, bytes.len());
        }
    }
}

#[test]
fn a_request_takes_no_byte_of_what_comes_after_it() {
    for request in every_request() {
        let mut bytes = request.encode().unwrap();
        let len = bytes.len();
        bytes.extend_from_slice(&[0xee; 1000]);
        assert_eq!(receive(&bytes, 4096).1, len, "{request:?}");
    }
}

#[test]
fn a_request_is_not_complete_one_byte_before_its_end() {
    for request in every_request() {
        let bytes = request.encode().unwrap();
        assert_eq!(receive(&bytes[..bytes.len() - 1], 4096).0, Ok(None), "{request:?}");
    }
}

#[test]
fn a_response_survives_the_wire_with_its_cookie() {
    for response in every_response() {
        let bytes = response.encode(0xbeef).unwrap();
        assert_eq!(layout::COOKIE.get(&bytes), 0xbeef_u16.to_ne_bytes());
        assert_eq!(Response::decode(&bytes), Ok(response));
    }
}

#[test]
fn every_id_is_a_request_or_a_response_and_not_both() {
    for id in MessageId::ALL {
        let mut bytes = [0; MESSAGE_SIZE];
        layout::TYPE.set(&mut bytes, &id.raw().to_ne_bytes());
        // 1 = native protocol: the only field whose zero has no meaning.
        if *id == MessageId::XenblkifConnect {
            layout::BLKIF_PROTOCOL.set(&mut bytes, &1_u32.to_ne_bytes());
        }
        let request = receive(&bytes, MESSAGE_SIZE).0;
        let response = Response::decode(&bytes);
        assert_ne!(request.is_ok(), response.is_ok(), "{id:?}");
        if let Ok(Some(request)) = request {
            assert_eq!(request.id(), *id);
        }
        if let Ok(response) = response {
            assert_eq!(response.id(), *id);
        }
    }
}

#[test]
fn the_fields_of_an_open_are_where_blktap_4_has_them() {
    let request = Request::Open { minor: 0x0102, params: params(true, Some(32)) };
    let bytes = request.encode().unwrap();
    assert_eq!(bytes.len(), 544 + 256 + 1 + 32);
    assert_eq!(bytes[0..2], 7_u16.to_ne_bytes());
    assert_eq!(bytes[2..4], 0x0102_u16.to_ne_bytes());
    assert_eq!(bytes[8..12], 0x0492_u32.to_ne_bytes());
    assert_eq!(&bytes[20..24], b"vhd:");
    assert_eq!(bytes[276..280], 9_u32.to_ne_bytes());
    assert_eq!(bytes[280..282], 120_u16.to_ne_bytes());
    assert_eq!(&bytes[282..287], b"null\0");
    assert_eq!(&bytes[544..550], b"/srv/a");
    assert_eq!(bytes[800], 32);
}

#[test]
fn a_resume_never_carries_a_key() {
    let request = Request::Resume { minor: 1, params: params(false, Some(32)) };
    let bytes = request.encode().unwrap();
    assert_eq!(bytes.len(), 544);
    assert_eq!(bytes[8..12], 0x0082_u32.to_ne_bytes());
}

#[test]
fn a_key_of_0_or_more_than_128_bytes_is_refused_as_soon_as_its_size_is_there() {
    for size in [0, 129, 255] {
        let request = Request::Open { minor: 1, params: params(false, Some(1)) };
        let mut bytes = request.encode().unwrap();
        bytes[544] = size;
        bytes.truncate(545);
        assert_eq!(receive(&bytes, 4096).0, Err(DecodeError::KeySize(size)));
    }
}

#[test]
fn a_ring_order_above_3_is_refused() {
    let request = Request::XenblkifConnect { minor: 1, blkif: Blkif { order: 4, ..blkif() } };
    let bytes = request.encode().unwrap();
    assert_eq!(receive(&bytes, 4096).0, Err(DecodeError::RingOrder(4)));
}

#[test]
fn a_list_never_holds_a_minor_that_cannot_be() {
    let entry = ListEntry { remaining: 1, minor: 1, state: 0, path: "".into() };
    let mut bytes = Response::List(entry).encode(0).unwrap();
    layout::LIST_MINOR.set(&mut bytes, &65536_i32.to_ne_bytes());
    assert_eq!(Response::decode(&bytes), Err(DecodeError::Minor(65536)));
    layout::LIST_COUNT.set(&mut bytes, &(-1_i32).to_ne_bytes());
    assert_eq!(Response::decode(&bytes), Err(DecodeError::Count(-1)));
    assert_eq!(Response::ListMinors(vec![0; 64]).encode(0), Err(EncodeError::TooMany(64)));
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_an_error_or_too_few(
        id in 0_u16..40,
        flags in any::<u32>(),
        mut bytes in proptest::collection::vec(any::<u8>(), REQUEST_SIZE_MAX),
        len in 0..=REQUEST_SIZE_MAX,
        piece in 1_usize..600,
    ) {
        bytes[..2].copy_from_slice(&id.to_ne_bytes());
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        let (end, taken) = receive(&bytes[..len], piece);
        prop_assert!(taken <= len);
        if let Ok(Some(request)) = end {
            let again = request.encode().unwrap();
            prop_assert_eq!(receive(&again, 4096).0, Ok(Some(request)));
        }
    }

    #[test]
    fn any_bytes_are_a_response_or_an_error(
        id in 0_u16..40,
        bytes in proptest::collection::vec(any::<u8>(), MESSAGE_SIZE),
    ) {
        let mut bytes: layout::MessageBytes = bytes.try_into().unwrap();
        layout::TYPE.set(&mut bytes, &id.to_ne_bytes());
        if let Ok(response) = Response::decode(&bytes) {
            let again = response.encode(0).unwrap();
            prop_assert_eq!(Response::decode(&again), Ok(response));
        }
    }
}
