//! An NBD connection from its first byte: flags, options, perhaps commands. The first byte of the
//! input says how large the pieces are that the rest comes in.
#![no_main]

use tapdisk_fuzz::nbd::Rig;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    let mut rig = Rig::new(false);
    rig.send(bytes, usize::from(*piece) * 16 + 1);
    rig.hang_up();
});
