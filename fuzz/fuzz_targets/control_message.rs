//! The control socket, both ends: a request that comes in pieces of any size, and a reply.
//!
//! The first byte of the input says how large the pieces are.
#![no_main]

use tapdisk_control::message::{MESSAGE_SIZE, REQUEST_SIZE_MAX, RequestBuffer, Response};
use tapdisk_fuzz as _;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    request(bytes, usize::from(*piece).max(1));
    reply(bytes);
});

fn request(mut bytes: &[u8], piece: usize) {
    let mut buffer = RequestBuffer::new();
    let mut taken = 0;
    loop {
        match buffer.request() {
            Ok(None) => {}
            Err(_) => return,
            Ok(Some(request)) => {
                assert!(buffer.space().is_empty(), "a complete request asks for more");
                // What was understood can be said again, and means the same.
                let encoded = request.encode().expect("its strings came out of a message");
                let mut again = RequestBuffer::new();
                let mut rest = encoded.as_slice();
                while !rest.is_empty() && !again.space().is_empty() {
                    let count = again.space().len().min(rest.len());
                    again.space()[..count].copy_from_slice(&rest[..count]);
                    again.advance(count);
                    rest = &rest[count..];
                }
                assert!(rest.is_empty(), "it became longer");
                assert_eq!(again.request(), Ok(Some(request)));
                return;
            }
        }
        let count = buffer.space().len().min(piece).min(bytes.len());
        if count == 0 {
            assert!(bytes.is_empty(), "it waits for bytes and has no room for them");
            return;
        }
        buffer.space()[..count].copy_from_slice(&bytes[..count]);
        buffer.advance(count);
        bytes = &bytes[count..];
        taken += count;
        assert!(taken <= REQUEST_SIZE_MAX);
    }
}

fn reply(bytes: &[u8]) {
    let mut message = [0; MESSAGE_SIZE];
    for (byte, foreign) in message.iter_mut().zip(bytes) {
        *byte = *foreign;
    }
    if let Ok(response) = Response::decode(&message) {
        let again = response.encode(0).expect("its strings came out of a message");
        assert_eq!(Response::decode(&again), Ok(response));
    }
}
