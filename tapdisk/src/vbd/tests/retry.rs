//! The laws of what is tried again, and of what waits for space.

use super::*;

#[test]
fn a_passing_error_is_tried_again_until_the_time_is_up() {
    for errno in [Errno::EAGAIN, Errno::EBUSY, Errno::EINTR] {
        let mut rig = Rig::new(&format!("retry{errno:?}"));
        for number in 0..200 {
            rig.fault(number, Fault::Error(errno));
        }
        rig.write(0, 0, 1);
        let mut seconds = 0;
        while rig.ended(0).is_none() {
            rig.settle();
            seconds += 1;
            assert!(seconds <= 121, "tried for two minutes");
            rig.at(Duration::from_secs(seconds));
            rig.vbd.maintain();
        }
        assert_eq!(rig.ended(0), failed(errno));
        assert_eq!(rig.vbd.counters().reader().load().retries, 120);
    }
}

#[test]
fn a_passing_error_that_passes_is_not_seen() {
    let mut rig = Rig::new("passes");
    rig.fault(0, Fault::Error(Errno::EAGAIN));
    rig.write(0, 0, 9);
    rig.settle();
    assert_eq!(rig.ended(0), None);
    assert_eq!(rig.vbd.deadline(), Now::default().after(RETRY_INTERVAL));
    rig.at(Duration::from_millis(999));
    rig.vbd.maintain();
    assert!(rig.vbd.queue().is_idle(), "not before its time");
    rig.at(RETRY_INTERVAL);
    rig.vbd.maintain();
    rig.settle();
    assert_eq!(rig.ended(0), DONE);
}

/// Seconds until a request of `op` is answered that the storage fails for ever.
fn seconds_until_told(rig: &mut Rig, op: Op, fua: bool) -> u64 {
    let segments =
        if op.has_data() { Segments::one(rig.buffers[0].part(0, 512)) } else { Segments::NONE };
    let token = Token { peer: 0, number: 0 };
    let len = if op == Op::Flush { 0 } else { 512 };
    let request = Request { token, op, fua, may_punch: false, offset: 0, len, segments };
    rig.vbd.intake(0).start(|place| *place = request);
    for seconds in 1..500 {
        rig.settle();
        if rig.ended(0).is_some() {
            return seconds - 1;
        }
        rig.at(Duration::from_secs(seconds));
        rig.vbd.maintain();
    }
    u64::MAX
}

#[test]
fn an_error_of_the_storage_is_tried_again_by_number_and_by_time() {
    let default = RetryPolicy::default();
    for (tries, timeout, wanted) in [
        (default.tries, default.timeout, 60),
        (3, default.timeout, 3),
        (0, default.timeout, 0),
        (60, Duration::from_secs(10), 10),
    ] {
        for errno in [Errno::EIO, Errno::ETIMEDOUT, Errno::ESTALE, Errno::ENOLINK] {
            let mut rig = Rig::new(&format!("storage{errno:?}{tries}"));
            rig.vbd.retries.policy = RetryPolicy { tries, timeout, ..default };
            for number in 0..200 {
                rig.fault(number, Fault::Error(errno));
            }
            assert_eq!(seconds_until_told(&mut rig, Op::Write, false), wanted);
            assert_eq!(rig.ended(0), failed(errno));
        }
    }
}

/// The kernel says once that it lost something: a second fdatasync that succeeds means nothing.
#[test]
fn a_flush_and_a_write_with_fua_that_the_storage_failed_are_not_tried_again() {
    for (op, fua) in [(Op::Flush, false), (Op::Write, true)] {
        for errno in [Errno::EIO, Errno::ETIMEDOUT, Errno::ESTALE] {
            let mut rig = Rig::new(&format!("durable{op:?}{errno:?}"));
            rig.fault(0, Fault::Error(errno));
            assert_eq!(seconds_until_told(&mut rig, op, fua), 0);
            assert_eq!(rig.ended(0), failed(errno));
        }
    }
    let mut rig = Rig::new("full-flush");
    rig.fault(0, Fault::Error(Errno::ENOSPC));
    assert_eq!(seconds_until_told(&mut rig, Op::Flush, false), 0);
}

/// Out of the page cache it may be the flush that tells of it, and of other writes.
#[test]
fn a_write_with_fua_waits_for_space_when_io_is_direct() {
    for is_direct in [false, true] {
        let mut rig = Rig::new(if is_direct { "fua-direct" } else { "fua-cached" });
        rig.vbd.retries.is_direct = is_direct;
        rig.fault(0, Fault::Error(Errno::ENOSPC));
        assert_eq!(seconds_until_told(&mut rig, Op::Write, true), u64::from(is_direct));
        assert_eq!(rig.ended(0), if is_direct { DONE } else { failed(Errno::ENOSPC) });
    }
}

/// A full storage: whatever is written fails, and one I/O a second looks whether it still does.
#[test]
fn writes_wait_for_space_and_one_of_them_looks_for_it() {
    let mut rig = Rig::new("space");
    let full = |rig: &mut Rig, count| {
        let next = rig.vbd.queue().sim().unwrap().accepted();
        (next..next + count).for_each(|number| rig.fault(number, Fault::Error(Errno::ENOSPC)));
    };
    full(&mut rig, 20);
    for token in 0..20 {
        rig.write(token, u64::from(token) * 1024, 7);
    }
    rig.start(20, Op::Flush, 0, 0);
    rig.settle();
    assert_eq!((rig.vbd.awaiting_space(), rig.answers.len()), (20, 0));
    for second in 1..300 {
        full(&mut rig, 1);
        let before = rig.vbd.queue().sim().unwrap().accepted();
        assert_eq!(rig.vbd.deadline(), Now::default().after(Duration::from_secs(second)));
        rig.at(Duration::from_secs(second));
        rig.vbd.maintain();
        rig.settle();
        assert_eq!(rig.vbd.queue().sim().unwrap().accepted(), before + 1);
        assert_eq!((rig.vbd.awaiting_space(), rig.answers.len()), (20, 0), "not given up");
    }
    rig.start(21, Op::Read, 0, 512);
    rig.settle();
    assert_eq!(rig.answers, [(21, Status::Done)], "what needs no space goes on");
    rig.at(Duration::from_secs(300));
    rig.vbd.maintain();
    rig.settle();
    assert_eq!(rig.vbd.awaiting_space(), 19);
    assert_eq!(rig.vbd.deadline(), Now::default().after(Duration::from_secs(300)), "at once");
    rig.vbd.maintain();
    rig.settle();
    assert_eq!((rig.vbd.awaiting_space(), rig.answers.len()), (0, 22));
    assert_eq!(rig.answers.last(), Some(&(20, Status::Done)), "the flush behind them");
}

/// Else the state that `list` shows, and the log, would change every second.
#[test]
fn a_request_that_waits_alone_waits_also_while_it_looks() {
    let mut rig = Rig::new("alone");
    rig.fault(0, Fault::Error(Errno::ENOSPC));
    rig.write(0, 0, 7);
    rig.settle();
    assert_eq!(rig.vbd.awaiting_space(), 1);
    rig.fault(1, Fault::Error(Errno::ENOSPC));
    rig.at(Duration::from_secs(1));
    rig.vbd.maintain();
    assert_eq!(rig.vbd.awaiting_space(), 1, "on its way");
    rig.settle();
    assert_eq!(rig.vbd.awaiting_space(), 1, "in vain");
    rig.at(Duration::from_secs(2));
    rig.vbd.maintain();
    rig.settle();
    assert_eq!((rig.vbd.awaiting_space(), rig.ended(0)), (0, DONE));
}

#[test]
fn whoever_made_space_need_not_wait_until_that_is_found() {
    let mut rig = Rig::new("kick");
    rig.fault(0, Fault::Error(Errno::EDQUOT));
    rig.write(0, 0, 7);
    rig.settle();
    assert_eq!(rig.vbd.awaiting_space(), 1);
    rig.vbd.space_came();
    rig.settle();
    assert_eq!(rig.ended(0), DONE);
}

#[test]
fn what_waits_for_space_goes_on_in_the_next_chain_or_ends_with_the_disk() {
    for ends in [false, true] {
        let mut rig = Rig::new(if ends { "space-end" } else { "space-pause" });
        rig.fault(0, Fault::Error(Errno::ENOSPC));
        rig.write(0, 0, 7);
        rig.settle();
        assert!(rig.vbd.is_drained());
        rig.vbd.close_chain().unwrap();
        assert_eq!(rig.vbd.deadline(), Now::NEVER);
        rig.vbd.maintain();
        if ends {
            rig.vbd.shut_down();
        } else {
            rig.open("aio", &[], false);
        }
        rig.settle();
        assert_eq!(rig.ended(0), if ends { failed(Errno::ESHUTDOWN) } else { DONE });
    }
}

#[test]
fn what_a_peer_left_that_is_gone_is_not_tried_again() {
    let mut rig = Rig::new("gone");
    rig.write(0, 0, 1);
    rig.fault(0, Fault::Error(Errno::EIO));
    rig.write(1, 8192, 1);
    rig.fault(1, Fault::Error(Errno::ENOSPC));
    rig.settle();
    assert!(rig.answers.is_empty());
    assert!(!rig.vbd.intake(0).abandon(7), "another one");
    assert!(!rig.vbd.intake(1).abandon(0), "another door");
    rig.turn(0);
    assert!(rig.answers.is_empty());
    assert!(!rig.vbd.intake(0).abandon(0));
    rig.turn(0);
    assert_eq!((rig.ended(0), rig.ended(1)), (failed(Errno::ESHUTDOWN), failed(Errno::ESHUTDOWN)));
    // His next connection writes there.
    rig.write(2, 0, 2);
    assert!(rig.vbd.intake(0).abandon(0), "it is under way");
    rig.settle();
    rig.at(RETRY_INTERVAL * 2);
    assert!(!rig.vbd.maintain());
    rig.settle();
    assert_eq!(rig.vbd.outstanding(), 0);
    assert_eq!(rig.vbd.awaiting_space(), 0);
}

#[test]
fn other_errors_are_answered_at_once() {
    for errno in [Errno::ENODATA, Errno::EBADE, Errno::EOPNOTSUPP, Errno::EFBIG] {
        let mut rig = Rig::new(&format!("error{errno:?}"));
        rig.fault(0, Fault::Error(errno));
        rig.write(0, 0, 1);
        rig.settle();
        assert_eq!(rig.ended(0), failed(errno));
    }
}
