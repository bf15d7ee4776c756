//! How the loop of a disk waits: what it observes of the load decides between four ways.
//!
//! * **Lone**: requests come one at a time, each after the answer to the one before. Then one
//!   system call that reads or writes at once beats submit, sleep, wake. A load with two requests
//!   in flight shows itself: the second is there already when the loop waits, so that it does not
//!   sleep.
//! * **Batch**: many requests are in flight. Then a few microseconds of patience make each turn
//!   handle several completions, and each system call serves several requests.
//! * **Gather**: many were answered together, as storage that answers in bursts has it, and who
//!   asked for them asks again, one by one. Some patience takes these together, while the storage
//!   works on the rest.
//! * Otherwise the loop sleeps until something happens.
//!
//! Pure: fed with what happened, asked what to do.

use std::time::Duration;

/// So many points make a streak: each request that comes alone, after a sleep, is one. Arbitrary,
/// but small against the thousands of a second, and large against chance.
const LONE_STREAK: u32 = 16;

/// No more points than this: what was long ago does not count.
const LONE_STREAK_MAX: u32 = 2 * LONE_STREAK;

/// Points lost by a request that was there already when the loop wanted to sleep: two in flight, or
/// one client that is quicker than the loop. The former happens every time, so that a full streak
/// ends within 17 requests; the latter may be one in two.
const LONE_LOSS_AWAKE: u32 = 1;

/// Points lost by requests that come together: no doubt about these.
const LONE_LOSS: u32 = LONE_STREAK;

/// A wait shorter than this did not sleep: something was there already. Sleeping and waking costs
/// more.
const LONE_WAIT: Duration = Duration::from_micros(3);

/// With so many I/Os in flight the loop waits for several at once.
const BATCH_IN_FLIGHT: usize = 8;

/// It waits for this part of those in flight, so that the storage always has the rest to work on.
const BATCH_PART: usize = 4;

/// And never longer than this: what a batch can add to the latency of one request.
const BATCH_WAIT: Duration = Duration::from_micros(50);

/// So many requests that are likely to come next are worth some patience: below, it saves next to
/// nothing.
const GATHER_MIN: usize = 4;

/// How long. A client takes two to five microseconds for a request, so that about eight come in the
/// meantime; more patience costs rate where the storage would have had work for them.
const GATHER_WAIT: Duration = Duration::from_micros(25);

/// After a batch that did not come together in time, so many turns go without.
const BATCH_PENALTY: u32 = 32;

/// What the loop has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    lone_streak: u32,
    slept: bool,
    batch_wanted: usize,
    batch_penalty: u32,
    /// How many of the requests that were answered last may be followed by others.
    expected: usize,
    gathers: bool,
}

/// How to wait in the queue before looking at anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For so many completions.
    pub completions: usize,
    /// But no longer than this.
    pub timeout: Duration,
}

impl Pace {
    /// The loop waited for an event for so long.
    pub fn waited(&mut self, duration: Duration) {
        self.slept = duration >= LONE_WAIT;
    }

    /// A turn pulled `pulled` requests while `in_flight` were running. Says whether the one request
    /// may run inline.
    pub fn pulled(&mut self, pulled: usize, in_flight: usize) -> bool {
        let in_vain = std::mem::take(&mut self.gathers) && pulled == 0;
        self.expected = if in_vain { 0 } else { self.expected.saturating_sub(pulled) };
        if pulled == 0 {
            return false;
        }
        let alone = pulled == 1 && in_flight == 0;
        self.lone_streak = match (alone, self.slept) {
            (true, true) => (self.lone_streak + 1).min(LONE_STREAK_MAX),
            (true, false) => self.lone_streak.saturating_sub(LONE_LOSS_AWAKE),
            (false, _) => self.lone_streak.saturating_sub(LONE_LOSS),
        };
        alone && self.lone_streak >= LONE_STREAK
    }

    /// A turn answered so many requests.
    pub fn answered(&mut self, answered: usize) {
        // Not the sum: what was answered before these has been asked for again, or will not be.
        self.expected = self.expected.max(answered);
    }

    /// Whether and how to wait in the queue before looking at anything else.
    pub fn patience(&mut self, in_flight: usize) -> Option<Patience> {
        if in_flight < BATCH_IN_FLIGHT {
            return None;
        }
        let completions = in_flight / BATCH_PART;
        if self.expected >= GATHER_MIN {
            self.gathers = true;
            return Some(Patience { completions, timeout: GATHER_WAIT });
        }
        if self.batch_penalty > 0 {
            self.batch_penalty -= 1;
            return None;
        }
        self.batch_wanted = completions;
        Some(Patience { completions, timeout: BATCH_WAIT })
    }

    /// So many completions were there after the wait, whichever it was.
    pub fn reaped(&mut self, came: usize) {
        if came < std::mem::take(&mut self.batch_wanted) {
            self.batch_penalty = BATCH_PENALTY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_micros(100);
    const BATCH: Option<Patience> = Some(Patience { completions: 8, timeout: BATCH_WAIT });
    const GATHER: Option<Patience> = Some(Patience { completions: 4, timeout: GATHER_WAIT });

    #[test]
    fn requests_one_at_a_time_run_inline_after_a_while() {
        let mut pace = Pace::default();
        for _ in 0..LONE_STREAK - 1 {
            pace.waited(LONG);
            assert!(!pace.pulled(1, 0));
        }
        pace.waited(LONG);
        assert!(pace.pulled(1, 0));
    }

    #[test]
    fn requests_that_come_together_end_it() {
        for (pulled, in_flight) in [(2, 0), (1, 1)] {
            let mut pace = Pace { lone_streak: LONE_STREAK_MAX, ..Pace::default() };
            pace.waited(LONG);
            assert!(!pace.pulled(pulled, in_flight));
            assert!(pace.pulled(1, 0), "once may be chance");
            assert!(!pace.pulled(pulled, in_flight));
            for _ in 0..LONE_STREAK - 2 {
                assert!(!pace.pulled(1, 0), "the streak begins anew");
            }
        }
    }

    #[test]
    fn a_second_request_that_is_always_there_already_ends_it() {
        let mut pace = Pace { lone_streak: LONE_STREAK_MAX, ..Pace::default() };
        pace.waited(Duration::from_micros(1));
        let inline = (0..100).take_while(|_| pace.pulled(1, 0)).count();
        assert_eq!(inline, 16);
        assert!((0..100).all(|_| !pace.pulled(1, 0)));
    }

    #[test]
    fn a_client_that_is_now_and_then_quicker_than_the_loop_does_not() {
        let mut pace = Pace { lone_streak: LONE_STREAK, ..Pace::default() };
        let inline = (0..1000).filter(|number| {
            pace.waited(if number % 2 == 1 { Duration::ZERO } else { LONG });
            pace.pulled(1, 0)
        });
        assert_eq!(inline.count(), 1000);
    }

    #[test]
    fn a_turn_without_requests_changes_nothing() {
        let mut pace = Pace { lone_streak: LONE_STREAK, ..Pace::default() };
        assert!(!pace.pulled(0, 1));
        pace.waited(LONG);
        assert!(pace.pulled(1, 0));
    }

    #[test]
    fn batches_leave_most_of_the_requests_to_the_storage() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(7), None);
        assert_eq!(pace.patience(32), BATCH);
    }

    #[test]
    fn a_batch_that_did_not_come_together_is_not_tried_again_soon() {
        let mut pace = Pace::default();
        assert_eq!(pace.patience(32), BATCH);
        pace.reaped(3);
        for _ in 0..BATCH_PENALTY {
            assert_eq!(pace.patience(32), None);
        }
        assert_eq!(pace.patience(32), BATCH);
        pace.reaped(8);
        assert_eq!(pace.patience(32), BATCH);
    }

    #[test]
    fn who_was_answered_much_at_once_has_time_to_ask_again() {
        let mut pace = Pace { batch_penalty: 1000, ..Pace::default() };
        pace.answered(16);
        assert_eq!(pace.patience(7), None, "the storage has little to work on");
        for in_flight in [16, 19] {
            assert_eq!(pace.patience(in_flight), GATHER);
            assert!(!pace.pulled(6, in_flight));
            pace.answered(0);
        }
        assert_eq!(pace.patience(19), GATHER, "four of them may come yet");
        assert!(!pace.pulled(1, 19));
        assert_eq!(pace.patience(19), None, "three are not worth it");
    }

    #[test]
    fn who_does_not_ask_again_is_waited_for_once() {
        let mut pace = Pace { batch_penalty: 1000, ..Pace::default() };
        pace.answered(16);
        assert!(!pace.pulled(0, 16), "nobody had time");
        assert_eq!(pace.patience(16), GATHER);
        assert!(!pace.pulled(0, 16));
        assert_eq!(pace.patience(16), None);
        pace.answered(4);
        assert_eq!(pace.patience(16), GATHER);
    }

    #[test]
    fn gathering_in_vain_does_not_end_batches() {
        let mut pace = Pace::default();
        pace.answered(4);
        assert_eq!(pace.patience(16), GATHER);
        pace.reaped(0);
        assert!(!pace.pulled(0, 16));
        assert_eq!(pace.patience(32), BATCH);
    }
}
