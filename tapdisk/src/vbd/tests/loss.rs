//! The laws of what the storage may have lost: no FLUSH promises it.

use super::*;

impl Rig {
    /// A flush of this number, and how it ends when its fdatasync does so.
    fn flush(&mut self, token: u32, fault: Option<Errno>) -> Option<Status> {
        let next = self.vbd.queue().sim().unwrap().accepted();
        if let Some(errno) = fault {
            self.fault(next, Fault::Error(errno));
        }
        self.start(token, Op::Flush, 0, 0);
        self.settle();
        self.ended(token)
    }

    /// As a pause and a resume do it.
    fn open_again(&mut self) {
        assert!(self.vbd.close_chain().is_err());
        self.open("aio", &[], false);
    }
}

/// The kernel tells of a loss with one fdatasync, and takes the pages for clean.
#[test]
fn after_a_failed_fdatasync_no_flush_of_a_raw_image_succeeds_until_it_is_opened_again() {
    for errno in [Errno::EIO, Errno::ENOSPC, Errno::ETIMEDOUT] {
        let mut rig = Rig::new(&format!("loss{errno:?}"));
        rig.write(0, 0, 1);
        rig.settle();
        assert_eq!(rig.flush(1, Some(errno)), failed(errno));
        assert!(rig.vbd.has_lost());
        for token in 2..5 {
            assert_eq!(rig.flush(token, None), failed(errno));
        }
        rig.start_with(5, Op::Write, 512, 512, true);
        rig.write(6, 1024, 2);
        rig.start(7, Op::Read, 0, 512);
        rig.settle();
        assert_eq!(rig.ended(5), failed(errno));
        assert_eq!((rig.ended(6), rig.ended(7)), (DONE, DONE), "these promise nothing");
        rig.open_again();
        assert!(rig.vbd.has_lost(), "nobody has been told of what came after the last flush");
        assert_eq!(rig.flush(8, None), failed(errno));
        assert!(!rig.vbd.has_lost());
        assert_eq!(rig.flush(9, None), DONE);
    }
}

#[test]
fn a_change_with_fua_that_fails_counts_unless_the_error_is_its_own() {
    for (errno, is_direct, counts) in [
        (Errno::EIO, true, true),
        (Errno::ETIMEDOUT, false, true),
        (Errno::ENODATA, true, false),
        (Errno::ENODATA, false, true),
        (Errno::ENOSPC, false, true),
        (Errno::ECANCELED, false, false),
    ] {
        for op in [Op::Write, Op::WriteZeroes] {
            let mut rig = Rig::new(&format!("fua{errno:?}{is_direct}{op:?}"));
            rig.vbd.retries.is_direct = is_direct;
            rig.fault(0, Fault::Error(errno));
            rig.start_with(0, op, 0, 512, true);
            rig.settle();
            assert_eq!(rig.ended(0), failed(errno));
            let wanted = if counts { failed(errno) } else { DONE };
            assert_eq!(rig.flush(1, None), wanted, "{op:?} {errno:?}, direct {is_direct}");
        }
    }
}

#[test]
fn an_fdatasync_that_was_not_begun_has_lost_nothing() {
    let mut rig = Rig::new("busy");
    assert_eq!(rig.flush(0, Some(Errno::EAGAIN)), None);
    assert!(!rig.vbd.has_lost());
    rig.at(RETRY_INTERVAL);
    rig.vbd.maintain();
    rig.settle();
    assert_eq!(rig.ended(0), DONE);
}

/// Which of two that run at the same time hears of the loss is chance.
#[test]
fn a_flush_that_runs_beside_one_that_fails_fails_too() {
    let mut rig = Rig::new("beside");
    rig.fault(0, Fault::Error(Errno::EIO));
    rig.fault(1, Fault::Stuck);
    rig.start(0, Op::Flush, 0, 0);
    rig.start(1, Op::Flush, 0, 0);
    rig.settle_stuck(1);
    assert_eq!((rig.ended(0), rig.ended(1)), (failed(Errno::EIO), None));
    rig.vbd.queue().sim().unwrap().release();
    rig.settle();
    assert_eq!(rig.ended(1), failed(Errno::EIO));
}

/// NBD lets a client ask for extents with FUA.
#[test]
fn a_question_with_fua_that_fails_has_lost_nothing_and_is_answered_after_a_loss() {
    let mut rig = Rig::new("question");
    rig.vbd.retries.policy.tries = 0;
    rig.fault(0, Fault::Error(Errno::EIO));
    rig.start_with(0, Op::BlockStatus, 0, 4096, true);
    rig.settle();
    assert_eq!((rig.ended(0), rig.vbd.has_lost()), (failed(Errno::EIO), false));
    assert_eq!(rig.flush(1, Some(Errno::EIO)), failed(Errno::EIO));
    rig.start_with(2, Op::BlockStatus, 0, 4096, true);
    rig.settle();
    assert_eq!(rig.ended(2), DONE);
}

/// NFS.
#[test]
fn a_write_that_may_tell_of_an_earlier_one_counts() {
    for is_told_late in [false, true] {
        let mut rig = Rig::new(&format!("late{is_told_late}"));
        rig.vbd.loss.is_told_late = is_told_late;
        rig.vbd.retries.policy = rig.vbd.retries.policy.through_page_cache();
        rig.write(0, 0, 1);
        rig.settle();
        rig.fault(1, Fault::Error(Errno::EDQUOT));
        rig.write(1, 512, 1);
        rig.settle();
        assert_eq!(rig.ended(1), failed(Errno::EDQUOT));
        let wanted = if is_told_late { failed(Errno::EDQUOT) } else { DONE };
        assert_eq!(rig.flush(2, None), wanted);
    }
}

#[test]
fn the_next_life_of_a_disk_has_lost_nothing() {
    let mut rig = Rig::new("life");
    assert_eq!(rig.flush(0, Some(Errno::EIO)), failed(Errno::EIO));
    rig.open_again();
    rig.vbd.forget_loss();
    assert_eq!(rig.flush(1, None), DONE);
}

/// An fdatasync of which only the write heard would leave the image in the belief that its table
/// is durable, or will be with the next one.
#[test]
fn a_change_with_fua_that_the_storage_failed_fails_the_flushes_of_a_vhd_after_it() {
    for op in [Op::Write, Op::WriteZeroes, Op::Trim] {
        let mut rig = Rig::of_vhd("lost");
        rig.write(0, 0, 1);
        rig.settle();
        rig.start(3, Op::Flush, 0, 0);
        rig.settle();
        assert_eq!((rig.ended(0), rig.ended(3)), (Some(Status::Done), Some(Status::Done)));
        let next = rig.vbd.queue().sim().unwrap().accepted();
        rig.start_with(1, op, 0, 512, true);
        // The change itself is done.
        rig.fault(next + 1, Fault::Error(Errno::EIO));
        rig.settle();
        assert_eq!(rig.ended(1), failed(Errno::EIO), "{op:?}");
        rig.start(2, Op::Flush, 0, 0);
        rig.settle();
        assert_eq!(rig.ended(2), failed(Errno::EIO), "{op:?}");
    }
}

/// Who wrote before the pause has to hear it, and only knows FLUSH.
#[test]
fn a_flush_after_a_pause_that_lost_writes_fails_once() {
    let mut rig = Rig::of_vhd("pause");
    rig.write(0, 0, 1);
    rig.settle();
    rig.start(1, Op::Flush, 0, 0);
    let next = rig.vbd.queue().sim().unwrap().accepted();
    rig.fault(next, Fault::Error(Errno::EIO));
    rig.settle();
    assert_eq!(rig.ended(1), failed(Errno::EIO));
    rig.write(2, 512, 2);
    rig.settle();
    assert_eq!(rig.vbd.close_chain().unwrap_err().errno(), Errno::EIO);
    rig.open("vhd", &[], false);
    rig.start(3, Op::Flush, 0, 0);
    rig.start(4, Op::Flush, 0, 0);
    rig.settle();
    assert_eq!((rig.ended(3), rig.ended(4)), (failed(Errno::EIO), Some(Status::Done)));
}
