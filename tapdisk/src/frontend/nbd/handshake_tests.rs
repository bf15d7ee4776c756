//! Laws of the negotiation, without a socket.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proptest::prelude::*;

use super::*;

const EXPORT: Export = Export {
    disk: DiskInfo { size: 0x0102_0304_0506_0000, sector_size: 512, read_only: false },
    payload_bytes_max: 4 << 20,
};

/// Feeds `input` as far as it goes. Returns all replies, and the step that ended it.
fn run(input: &[u8], export: &Export) -> (Vec<u8>, Step, Handshake) {
    let mut handshake = Handshake::new();
    let (mut rest, mut replies) = (input, Vec::new());
    loop {
        let needs = handshake.needs() as usize;
        if rest.len() < needs {
            return (replies, Step::Continue, handshake);
        }
        let (bytes, later) = rest.split_at(needs);
        rest = later;
        let mut reply = Reply::new();
        let step = handshake.step(bytes, export, &mut reply);
        replies.extend_from_slice(reply.as_slice());
        match step {
            Step::Continue => {}
            Step::Drain(bytes) => rest = &rest[rest.len().min(bytes as usize)..],
            last => return (replies, last, handshake),
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

fn reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let number = number.to_be_bytes();
    [&REPLY_MAGIC.to_be_bytes()[..], &number, &kind.to_be_bytes(), &len.to_be_bytes(), data]
        .concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn contexts(name: &[u8], count: u32, queries: &[&[u8]]) -> Vec<u8> {
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [string(name), count.to_be_bytes().to_vec(), queries].concat()
}

/// The replies to some options, after ordinary flags.
fn answers(options: &[Vec<u8>]) -> Vec<u8> {
    run(&[&3u32.to_be_bytes()[..], &options.concat()].concat(), &EXPORT).0
}

#[test]
fn greets_as_fixed_newstyle_without_zeroes() {
    assert_eq!(Reply::greeting().as_slice(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn an_unknown_client_flag_ends_it() {
    for bit in 2..32u32 {
        let (_, step, _) = run(&(3 | 1u32 << bit).to_be_bytes(), &EXPORT);
        assert_eq!(step, Step::Hangup);
    }
}

#[test]
fn export_name_enters_transmission_with_zeroes_unless_waived() {
    for (flags, zeroes) in [(0u32, 124), (1, 124), (2, 0), (3, 0)] {
        let input = [&flags.to_be_bytes()[..], &option(1, b"any name")].concat();
        let (bytes, step, _) = run(&input, &EXPORT);
        assert_eq!(step, Step::Transmission(Features::default()));
        assert_eq!(bytes[..8], EXPORT.disk.size.to_be_bytes());
        assert_eq!(bytes[8..10], 0b1_0110_1101u16.to_be_bytes());
        assert_eq!(bytes[10..], vec![0; zeroes]);
    }
}

#[test]
fn an_export_name_is_at_most_4096_bytes() {
    let step = |len| run(&[vec![0, 0, 0, 3], option(1, &vec![b'x'; len])].concat(), &EXPORT).1;
    assert_eq!(step(4096), Step::Transmission(Features::default()));
    assert_eq!(step(4097), Step::Hangup);
}

#[test]
fn transmission_flags_tell_of_read_only_and_structured_replies() {
    let export = Export { disk: DiskInfo { read_only: true, ..EXPORT.disk }, ..EXPORT };
    let input = [vec![0, 0, 0, 3], option(8, &[]), option(1, &[])].concat();
    let (bytes, step, _) = run(&input, &export);
    assert_eq!(step, Step::Transmission(Features { structured: true, allocation: false }));
    assert_eq!(bytes[20..][8..], 0b1_1110_1111u16.to_be_bytes());
}

#[test]
fn list_shows_one_export() {
    let entry = [string(EXPORT_NAME), DESCRIPTION.to_vec()].concat();
    assert_eq!(answers(&[option(3, &[])]), [reply(3, 2, &entry), reply(3, 1, &[])].concat());
    assert_eq!(answers(&[option(3, b"x")]), reply(3, 0x8000_0003, &[]));
}

#[test]
fn info_tells_what_is_asked_and_what_must_be_known() {
    let size = EXPORT.disk.size.to_be_bytes();
    let export = [&[0, 0][..], &size, &0b1_0110_1101u16.to_be_bytes()].concat();
    let sizes = [512u32, 4096, 4 << 20].map(u32::to_be_bytes).concat();
    let sizes = [&[0, 3][..], &sizes].concat();
    let always = |number| [reply(number, 3, &export), reply(number, 3, &sizes)].concat();
    let none = [string(b"some name"), vec![0, 0]].concat();
    let expected = [always(6), reply(6, 1, &[])].concat();
    assert_eq!(answers(&[option(6, &none)]), expected);
    // In any order, twice, unknown ones among them.
    let infos = [0u16, 9, 3, 2, 1, 1].map(u16::to_be_bytes).concat();
    let all = [string(b""), vec![0, 6], infos].concat();
    let name = [&[0, 1][..], EXPORT_NAME].concat();
    let description = [&[0, 2][..], DESCRIPTION].concat();
    let expected =
        [always(7), reply(7, 3, &name), reply(7, 3, &description), reply(7, 1, &[])].concat();
    assert_eq!(answers(&[option(7, &all)]), expected);
}

#[test]
fn the_preferred_size_is_no_less_than_the_least() {
    let export = Export { disk: DiskInfo { sector_size: 8192, ..EXPORT.disk }, ..EXPORT };
    let (bytes, ..) = run(&[vec![0, 0, 0, 3], option(6, &[0; 6])].concat(), &export);
    assert_eq!(bytes[32 + 22..][..8], [8192u32, 8192].map(u32::to_be_bytes).concat());
}

#[test]
fn a_malformed_go_is_refused_and_the_handshake_goes_on() {
    let refused = reply(7, 0x8000_0003, &[]);
    let name_too_long = string(&[b'x'; 4097]);
    let past_the_end = [1000u32.to_be_bytes().to_vec(), vec![0; 20]].concat();
    let infos_missing = [string(b""), vec![0, 2, 0, 3]].concat();
    let infos_left = [string(b""), vec![0, 1, 0, 3, 0]].concat();
    for data in [vec![], vec![0; 5], name_too_long, past_the_end, infos_missing, infos_left] {
        let input = [vec![0, 0, 0, 3], option(7, &data), option(8, &[])].concat();
        let (bytes, step, _) = run(&input, &EXPORT);
        assert_eq!(bytes, [refused.clone(), reply(8, 1, &[])].concat());
        assert_eq!(step, Step::Continue);
    }
}

#[test]
fn abort_is_acknowledged_then_closes_whatever_comes_with_it() {
    for data in [&b""[..], b"bye"] {
        let (bytes, step, _) = run(&[vec![0, 0, 0, 3], option(2, data)].concat(), &EXPORT);
        assert_eq!((bytes, step), (reply(2, 1, &[]), Step::Close));
    }
}

#[test]
fn meta_contexts_need_structured_replies() {
    for number in [9, 10] {
        let data = contexts(b"", 1, &[BASE_ALLOCATION]);
        let refused = reply(number, 0x8000_0003, &[]);
        assert_eq!(answers(&[option(number, &data)]), refused);
    }
}

#[test]
fn lists_the_context_by_name_by_wildcard_and_unasked() {
    let entry = [&0u32.to_be_bytes()[..], BASE_ALLOCATION].concat();
    let shown = [reply(9, 4, &entry), reply(9, 1, &[])].concat();
    let nothing = reply(9, 1, &[]);
    let structured = reply(8, 1, &[]);
    for (queries, expected) in [
        (&[][..], &shown),
        (&[BASE_ALLOCATION][..], &shown),
        (&[BASE_ALL], &shown),
        (&[b"qemu:dirty", BASE_ALL, BASE_ALLOCATION], &shown),
        (&[b"base:other"], &nothing),
        (&[b""], &nothing),
    ] {
        let count = u32::try_from(queries.len()).unwrap();
        let bytes = answers(&[option(8, &[]), option(9, &contexts(b"disk", count, queries))]);
        assert_eq!(bytes, [structured.clone(), expected.clone()].concat());
    }
}

#[test]
fn sets_the_context_by_its_full_name_only() {
    let entry = [&ALLOCATION_ID.to_be_bytes()[..], BASE_ALLOCATION].concat();
    for (queries, selected) in [
        (&[BASE_ALLOCATION][..], true),
        (&[b"qemu:dirty", BASE_ALLOCATION], true),
        (&[BASE_ALL], false),
        (&[], false),
        (&[b"base:allocations"], false),
    ] {
        let count = u32::try_from(queries.len()).unwrap();
        let set = option(10, &contexts(b"", count, queries));
        let input = [vec![0, 0, 0, 3], option(8, &[]), set, option(7, &[0; 6])].concat();
        let (bytes, step, _) = run(&input, &EXPORT);
        assert_eq!(step, Step::Transmission(Features { structured: true, allocation: selected }));
        let shown = reply(10, 4, &entry);
        assert_eq!(bytes.windows(shown.len()).any(|window| window == shown), selected);
    }
}

#[test]
fn a_failed_set_takes_back_what_was_set() {
    let good = contexts(b"", 1, &[BASE_ALLOCATION]);
    let too_many = contexts(b"", 2, &[BASE_ALLOCATION]);
    let left = [good.clone(), vec![0]].concat();
    let huge_count = contexts(b"", u32::MAX, &[BASE_ALLOCATION]);
    let past_the_end = [string(b""), vec![0, 0, 0, 1], 99u32.to_be_bytes().to_vec()].concat();
    let too_big = vec![0; OPTION_BYTES_MAX as usize + 1];
    for bad in [vec![], too_many, left, huge_count, past_the_end, too_big] {
        let input = [vec![0, 0, 0, 3], option(8, &[]), option(10, &good), option(10, &bad)];
        let (_, step, handshake) = run(&input.concat(), &EXPORT);
        assert_eq!(step, Step::Continue);
        assert!(!handshake.features.allocation);
    }
}

#[test]
fn what_is_unknown_or_too_long_is_drained() {
    let known = reply(3, 0x8000_0009, &[]);
    let long = vec![1; OPTION_BYTES_MAX as usize + 1];
    for number in [0, 4, 5, 11, 0xffff_ffff] {
        let unknown = reply(number, 0x8000_0001, &[]);
        for data in [&[][..], &[0; 100], &long] {
            let bytes = answers(&[option(number, data), option(3, &long)]);
            assert_eq!(bytes, [unknown.clone(), known.clone()].concat());
        }
    }
}

#[test]
fn an_option_too_long_to_drain_ends_it() {
    for (len, ends) in [(OPTION_DRAIN_BYTES_MAX, false), (OPTION_DRAIN_BYTES_MAX + 1, true)] {
        let mut input = [vec![0, 0, 0, 3], option(99, &[])].concat();
        let at = input.len() - 4;
        input[at..].copy_from_slice(&len.to_be_bytes());
        assert_eq!(run(&input, &EXPORT).1 == Step::Hangup, ends);
    }
}

#[test]
fn the_number_of_options_is_bounded() {
    let input = |count: u32| {
        let options = (0..count).flat_map(|_| option(3, &[]));
        [0, 0, 0, 3].into_iter().chain(options).collect::<Vec<u8>>()
    };
    assert_eq!(run(&input(OPTIONS_MAX), &EXPORT).1, Step::Continue);
    assert_eq!(run(&input(OPTIONS_MAX + 1), &EXPORT).1, Step::Hangup);
}

#[test]
fn a_wrong_option_magic_ends_it() {
    let mut input = [vec![0, 0, 0, 3], option(3, &[])].concat();
    input[4] ^= 1;
    assert_eq!(run(&input, &EXPORT).1, Step::Hangup);
}

proptest! {
    /// Whatever comes, no step panics or wants more than its bound, and every reply fits.
    #[test]
    fn every_reply_fits(
        options in prop::collection::vec(
            (0u32..12, prop::collection::vec(any::<u8>(), 0..200), any::<bool>()), 0..20),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut input = vec![0, 0, 0, 3];
        for (number, mut data, tame) in options {
            if tame {
                // A name length that is within bounds gets past the first check.
                data.splice(0..data.len().min(4), [0, 0, 0, 2]);
            }
            input.extend(option(number, &data));
        }
        input.extend(tail);
        let (_, _, handshake) = run(&input, &EXPORT);
        prop_assert!(handshake.needs() <= OPTION_BYTES_MAX);
    }
}
