//! Requests out, responses in.

use std::os::fd::AsFd;
use std::time::Instant;

use blktap_ioctl::abi::{STATUS_ERROR, STATUS_OKAY, STATUS_UNSUPPORTED};
use blktap_ioctl::{Op, RequestId, Segment};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::kernel::{
    Generation, PATIENCE, answer, is_driver, only_driver, publish, raw_served, served, take, wait,
};

fn id(number: u64) -> RequestId {
    RequestId::new(number).unwrap()
}

#[test]
fn nothing_moves_into_the_ring_but_by_polling() {
    let (_tap, ring, user) = raw_served(Generation::Dkms);
    user.read(1, 0, 0, 4096);
    user.queued(1);
    assert_eq!(ring.header(), [0, 1, 0, 1]);
    publish(&ring, 1);
    assert_eq!(ring.header(), [1, 1, 0, 1]);
    assert_eq!(ring.message(), 0);
}

#[test]
fn a_poll_says_yes_for_what_it_moved_itself() {
    let (_tap, ring, user) = raw_served(Generation::Dkms);
    assert!(!ring.poll().unwrap());
    user.read(1, 0, 0, 4096);
    user.queued(1);
    assert!(ring.poll().unwrap());
    assert!(!ring.poll().unwrap(), "nothing new came");
    assert_eq!(ring.header()[0], 1, "the request is still there");
}

#[test]
fn a_request_is_what_was_asked_for() {
    let (_tap, mut ring, user) = served();
    user.read(1, 77, 1024, 4096);
    let read = take(&mut ring, 1)[0];
    assert_eq!((read.id, read.op, read.sector, read.bytes), (id(0), Op::Read, 77, 4096));
    let expected = [Segment { offset: 1024, len: 3072 }, Segment { offset: 4096, len: 1024 }];
    assert_eq!(read.segments().collect::<Vec<_>>(), expected);
    user.flush(2);
    let flush = take(&mut ring, 1)[0];
    assert_eq!((flush.id, flush.op, flush.sector, flush.bytes), (id(1), Op::Flush, 0, 0));
    user.trim(3, 100, 50);
    let trim = take(&mut ring, 1)[0];
    assert_eq!((trim.id, trim.op, trim.sector, trim.bytes), (id(2), Op::Trim, 100, 25_600));
    assert_eq!((flush.segments().len(), trim.segments().len()), (0, 0));
    answer(&mut ring, &[read, flush, trim]);
    assert_eq!(user.outcomes(3), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
}

#[test]
fn a_request_has_at_most_11_segments_each_in_its_own_page() {
    let (_tap, mut ring, user) = served();
    user.write(1, 8, 512, &[7; 44_544]);
    let write = take(&mut ring, 1)[0];
    let mut expected = vec![Segment { offset: 512, len: 3584 }];
    expected.extend((1..11).map(|page| Segment { offset: page * 4096, len: 4096 }));
    assert_eq!(write.segments().collect::<Vec<_>>(), expected);
    answer(&mut ring, &[write]);
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

#[test]
fn at_most_32_are_outstanding_and_the_lowest_free_slot_is_next() {
    let (_tap, mut ring, user) = served();
    for cookie in 0..48 {
        user.read(cookie, cookie * 8, 0, 512);
    }
    user.queued(48);
    let first = take(&mut ring, 32);
    let ids: Vec<u32> = first.iter().map(|request| request.id.index()).collect();
    assert_eq!(ids, (0..32).collect::<Vec<_>>());
    assert!(take(&mut ring, 0).is_empty());
    for number in [20, 3, 31] {
        ring.respond(id(number), STATUS_OKAY);
    }
    assert!(take(&mut ring, 0).is_empty(), "the driver does not know of the responses yet");
    ring.push_responses().unwrap();
    let next = take(&mut ring, 3);
    let ids: Vec<u32> = next.iter().map(|request| request.id.index()).collect();
    assert_eq!(ids, [3, 20, 31]);
    let rest: Vec<_> = (0..32).filter(|number| ![20, 3, 31].contains(number)).collect();
    for number in rest {
        ring.respond(id(number), STATUS_OKAY);
    }
    answer(&mut ring, &next);
    let last = take(&mut ring, 13);
    answer(&mut ring, &last);
    assert_eq!(user.outcomes(48), (0..48).map(|cookie| (cookie, Ok(()))).collect::<Vec<_>>());
    assert_eq!(ring.outstanding(), 0);
}

#[test]
fn responses_count_when_they_are_pushed_in_any_order() {
    let (_tap, mut ring, user) = served();
    for cookie in 0..4 {
        user.read(cookie, 0, 0, 512);
        take(&mut ring, 1);
    }
    for (number, status) in [(2, STATUS_OKAY), (0, STATUS_ERROR), (3, -7), (1, STATUS_OKAY)] {
        ring.respond(id(number), status);
        assert!(user.is_quiet());
    }
    assert!(!ring.poll_now().unwrap());
    assert!(user.is_quiet(), "poll takes no response");
    ring.push_responses().unwrap();
    let eio = Err(Errno::EIO);
    assert_eq!(user.outcomes(4), [(0, eio), (1, Ok(())), (2, Ok(())), (3, eio)]);
}

#[test]
fn unsupported_is_told_from_an_error_for_flush_and_trim_only() {
    let (_tap, mut ring, user) = served();
    for (cookie, op) in (0..).zip([Op::Read, Op::Write, Op::Trim]) {
        user.ask(cookie, op);
        let request = take(&mut ring, 1)[0];
        assert_eq!(request.op, op);
        ring.respond(request.id, STATUS_UNSUPPORTED);
    }
    ring.push_responses().unwrap();
    let eio = Err(Errno::EIO);
    let outcomes = user.outcomes(3);
    assert_eq!(outcomes[..2], [(0, eio), (1, eio)]);
    // Linux makes a success of it, since a discard is only a wish.
    let expected = if is_driver() { Ok(()) } else { Err(Errno::EOPNOTSUPP) };
    assert_eq!(outcomes[2], (2, expected));
}

/// Each side's view of a slot is its own: 60 rounds with eight of them.
#[test]
fn slots_are_used_again_and_again() {
    let (_tap, mut ring, user) = served();
    for round in 0..60 {
        for cookie in 0..8 {
            user.read(cookie, (round + cookie) % 64, 0, 512);
        }
        let mut requests = take(&mut ring, 8);
        requests.rotate_left(usize::try_from(round % 8).unwrap());
        answer(&mut ring, &requests);
        assert_eq!(user.outcomes(8).len(), 8);
    }
    assert!(user.is_quiet());
}

/// Another thread of the server polls at every moment, also while responses are taken.
#[test]
fn polls_of_two_threads_move_each_request_once() {
    const POLLS: u32 = 5_000;
    if !only_driver("its descriptor does not publish by being waited for") {
        return;
    }
    let (_tap, mut ring, user) = served();
    let other = ring.as_fd().try_clone_to_owned().unwrap();
    let poller = std::thread::spawn(move || {
        for _ in 0..POLLS {
            let mut fds = [PollFd::new(other.as_fd(), PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, PollTimeout::ZERO).unwrap();
        }
    });
    let mut rounds = 0;
    while !poller.is_finished() {
        for cookie in 0..8 {
            user.read(cookie, (rounds + cookie) % 64, 0, 512);
        }
        let start = Instant::now();
        let mut requests = Vec::new();
        // Not a wait: what the other one has moved is no news for this one.
        while requests.len() < 8 {
            assert!(start.elapsed() < PATIENCE, "{} of 8 requests came", requests.len());
            ring.poll_now().unwrap();
            requests.extend(std::iter::from_fn(|| ring.take()).map(Result::unwrap));
            std::thread::yield_now();
        }
        answer(&mut ring, &requests);
        let outcomes = user.outcomes(8);
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Ok(())), "{outcomes:?}");
        rounds += 1;
    }
    poller.join().unwrap();
    assert!(rounds > 0 && user.is_quiet(), "{rounds} rounds");
}

#[test]
fn waiting_for_the_ring_is_polling_it() {
    let (_tap, mut ring, user) = served();
    user.read(1, 0, 0, 512);
    user.queued(1);
    wait(&ring);
    if only_driver("its descriptor does not publish by being waited for") {
        // No poll of ours in between.
        let request = ring.take().unwrap().unwrap();
        answer(&mut ring, &[request]);
    } else {
        let request = take(&mut ring, 1);
        answer(&mut ring, &request);
    }
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}
