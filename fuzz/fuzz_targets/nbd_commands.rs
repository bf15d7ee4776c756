//! The commands of an NBD connection, behind a handshake that went well. The first byte of the
//! input says how: its bits choose structured replies, extents, a read-only disk, the size of the
//! pieces.
#![no_main]

use tapdisk_fuzz::nbd::Rig;

/// Fixed newstyle, no zeroes.
const FLAGS: &[u8] = b"\0\0\0\x03";
const STRUCTURED_REPLY: &[u8] = b"IHAVEOPT\0\0\0\x08\0\0\0\0";
const BASE_ALLOCATION: &[u8] =
    b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
const GO: &[u8] = b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else { return };
    let mut rig = Rig::new(how & 4 != 0);
    let mut handshake = FLAGS.to_vec();
    if how & 1 != 0 {
        handshake.extend(STRUCTURED_REPLY);
    }
    if how & 2 != 0 {
        handshake.extend(BASE_ALLOCATION);
    }
    handshake.extend(GO);
    rig.send(&handshake, handshake.len());
    rig.send(bytes, if how & 8 != 0 { 7 } else { 8192 });
    rig.hang_up();
});
