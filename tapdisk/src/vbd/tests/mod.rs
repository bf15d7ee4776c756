//! The laws of a vbd, on the simulated queue.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::*;
use crate::frontend::Intake;
use crate::image::{ImageSpec, OpenFlags};
use crate::layer::LayerSpec;
use crate::memory::{PAGE_SIZE, Segment};
use crate::queue::QueueConfig;
use crate::queue::sim::Fault;
use crate::request::{Segments, Token};
use proptest::prelude::*;

mod loss;
mod retry;

const SIZE: u64 = 64 << 10;

struct Rig {
    vbd: Vbd,
    buffers: Vec<Segment>,
    answers: Vec<(u32, Status)>,
    path: PathBuf,
}

impl Rig {
    fn new(name: &str) -> Self {
        Self::with_layers(name, &[], false)
    }

    fn with_layers(name: &str, layers: &[&str], read_only: bool) -> Self {
        let path = std::env::temp_dir().join(format!("vbd-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let mut rig = Self::on(path);
        rig.open("aio", layers, read_only);
        rig
    }

    fn of_vhd(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vbd-{}-{name}", std::process::id()));
        std::fs::write(&path, vhd::testing::Spec::new(SIZE).make()).unwrap();
        let mut rig = Self::on(path);
        rig.open("vhd", &[], false);
        rig
    }

    fn on(path: PathBuf) -> Self {
        let config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
        let queue = Queue::simulated(7, config);
        let mut memory = Memory::new(4 << 20).unwrap();
        let buffers = (0..SLOTS).map(|_| memory.allocate(4096).unwrap()).collect();
        let vbd = Vbd::new(queue, memory, DiskCounters::new());
        Self { vbd, buffers, answers: Vec::new(), path }
    }

    fn open(&mut self, kind: &str, layers: &[&str], read_only: bool) {
        let text = format!("{kind}:{}", self.path.display());
        let spec = ImageSpec::parse(OsStr::new(&text)).unwrap();
        let flags = OpenFlags { read_only, buffered: true, ..OpenFlags::default() };
        let image = spec.open(flags, self.vbd.queue()).unwrap();
        let info = DiskInfo { size: SIZE, sector_size: 512, read_only };
        let layers = layers
            .iter()
            .map(|text| text.parse::<LayerSpec>().unwrap().build(info, usize::from(SLOTS)).unwrap())
            .collect();
        let chain = Chain::new(layers, vec![image]);
        self.vbd.insert_chain(chain, read_only, RetryPolicy::default());
    }

    fn start(&mut self, token: u32, op: Op, offset: u64, len: u32) {
        self.start_with(token, op, offset, len, false);
    }

    fn start_with(&mut self, token: u32, op: Op, offset: u64, len: u32, fua: bool) {
        let segments = if op.has_data() {
            Segments::one(self.buffers[token as usize].part(0, len))
        } else {
            Segments::NONE
        };
        let may_punch = true;
        let len = u64::from(len);
        let token = Token { peer: 0, number: u64::from(token) };
        let request = Request { token, op, fua, may_punch, offset, len, segments };
        self.vbd.intake(0).start(|place| *place = request);
    }

    fn write(&mut self, token: u32, offset: u64, byte: u8) {
        let buffer = self.buffers[token as usize];
        self.vbd.memory().copy_in(buffer, &[byte; 512]);
        self.start(token, Op::Write, offset, 512);
    }

    fn fault(&mut self, number: u64, fault: Fault) {
        self.vbd.queue().sim().unwrap().inject(number, fault);
    }

    /// Submits, and lets `steps` I/Os end.
    fn turn(&mut self, steps: usize) {
        self.vbd.work();
        self.vbd.queue().submit(false);
        for _ in 0..steps {
            self.vbd.queue().sim().unwrap().step();
        }
        self.vbd.reap();
        self.vbd.work();
        self.vbd.queue().submit(false);
        let answers = &mut self.answers;
        self.vbd.answers(|_, request, answer, _| {
            answers.push((u32::try_from(request.token.number).unwrap(), answer.status));
        });
    }

    /// Turns until nothing changes.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.turn(usize::from(SLOTS));
            if self.vbd.queue().is_idle() {
                return;
            }
        }
        panic!("the queue does not come to rest");
    }

    fn at(&mut self, time: Duration) {
        self.vbd.set_now(Now::default().after(time));
    }

    fn ended(&self, token: u32) -> Option<Status> {
        self.answers.iter().find(|(ended, _)| *ended == token).map(|(_, status)| *status)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn failed(errno: Errno) -> Option<Status> {
    Some(Status::Failed(errno))
}

const DONE: Option<Status> = Some(Status::Done);

#[test]
fn a_flush_is_answered_after_the_writes_before_it() {
    let mut rig = Rig::new("flush");
    rig.write(0, 0, 1);
    rig.write(1, 8192, 2);
    rig.start(2, Op::Flush, 0, 0);
    rig.turn(1);
    assert_eq!(rig.answers.len(), 1);
    assert_eq!(rig.ended(2), None);
    rig.turn(1);
    assert_eq!(rig.answers.len(), 2);
    assert_eq!(rig.ended(2), None, "the flush begins when both writes are done");
    rig.settle();
    assert_eq!(rig.ended(2), DONE);
}

#[test]
fn a_flush_does_not_wait_for_reads_or_later_writes() {
    let mut rig = Rig::new("later");
    rig.fault(0, Fault::Stuck);
    rig.fault(2, Fault::Stuck);
    rig.start(0, Op::Read, 0, 512);
    rig.start(1, Op::Flush, 0, 0);
    rig.write(2, 8192, 2);
    rig.settle_stuck(2);
    assert_eq!(rig.ended(1), DONE);
}

impl Rig {
    /// Turns while `stuck` I/Os never end.
    fn settle_stuck(&mut self, stuck: usize) {
        for _ in 0..10 {
            self.turn(usize::from(SLOTS));
        }
        assert_eq!(self.vbd.queue().in_flight(), stuck);
    }
}

/// A flush that becomes possible after the submit of a turn must not wait for the end of a read,
/// which may be far away: the loop may not sleep before it has submitted it.
#[test]
fn a_flush_that_a_late_completion_lets_go_is_submitted_before_the_loop_sleeps() {
    let mut rig = Rig::new("late");
    rig.fault(0, Fault::Stuck);
    rig.start(0, Op::Read, 0, 512);
    rig.write(1, 8192, 2);
    rig.start(2, Op::Flush, 0, 0);
    rig.vbd.queue().submit(false);
    rig.vbd.queue().sim().unwrap().run_all();
    rig.vbd.reap();
    assert!(rig.vbd.queue().is_ready());
    rig.settle_stuck(1);
    assert_eq!(rig.ended(2), DONE);
    assert!(!rig.vbd.queue().is_ready());
}

#[test]
fn a_request_outside_the_disk_is_refused_without_io() {
    let mut rig = Rig::new("outside");
    rig.start(0, Op::Read, SIZE, 512);
    rig.start(1, Op::Read, SIZE - 512, 1024);
    rig.start(2, Op::Read, u64::MAX - 511, 512);
    rig.start(3, Op::Read, 100, 512);
    rig.start(4, Op::Write, SIZE, 512);
    rig.start(5, Op::Trim, 0, 0);
    rig.start(6, Op::WriteZeroes, SIZE - 512, 1024);
    rig.start(7, Op::Trim, SIZE - 512, 1024);
    rig.settle();
    for token in [0, 1, 2, 3, 5] {
        assert_eq!(rig.ended(token), failed(Errno::EINVAL), "{token}");
    }
    for token in [4, 6, 7] {
        assert_eq!(rig.ended(token), failed(Errno::ENOSPC), "{token}");
    }
    assert_eq!(rig.vbd.queue().stats().pushed, 0);
}

#[test]
fn a_read_only_disk_refuses_changes_and_takes_flushes() {
    let mut rig = Rig::with_layers("readonly", &[], true);
    rig.write(0, 0, 1);
    rig.start(1, Op::Trim, 0, 4096);
    rig.start(2, Op::WriteZeroes, 0, 4096);
    rig.start(3, Op::Read, 0, 512);
    rig.start(4, Op::Flush, 0, 0);
    rig.settle();
    for token in 0..3 {
        assert_eq!(rig.ended(token), failed(Errno::EPERM), "{token}");
    }
    assert_eq!((rig.ended(3), rig.ended(4)), (DONE, DONE));
}

#[test]
fn parked_requests_and_flushes_behind_them_go_on_in_the_next_chain() {
    let mut rig = Rig::new("pause");
    rig.fault(0, Fault::Error(Errno::EAGAIN));
    rig.write(0, 0, 5);
    rig.start(1, Op::Flush, 0, 0);
    rig.settle();
    assert!(rig.vbd.is_drained() && rig.answers.is_empty());
    rig.vbd.close_chain().unwrap();
    rig.at(Duration::from_secs(5));
    assert!(!rig.vbd.maintain());
    rig.settle();
    assert!(rig.answers.is_empty(), "nothing runs while there is no chain");
    rig.open("aio", &[], false);
    rig.vbd.maintain();
    rig.settle();
    assert_eq!(rig.answers, [(0, Status::Done), (1, Status::Done)]);
}

#[test]
fn shutting_down_ends_what_a_layer_holds_and_what_waits() {
    let mut rig = Rig::with_layers("stuck", &["stuck:op=write"], false);
    rig.write(0, 0, 1);
    rig.start(1, Op::Flush, 0, 0);
    rig.start(2, Op::Read, 0, 512);
    rig.settle();
    assert_eq!(rig.answers, [(2, Status::Done)]);
    assert!(!rig.vbd.is_drained());
    rig.vbd.shut_down();
    rig.settle();
    assert_eq!(rig.ended(0), failed(Errno::ESHUTDOWN));
    assert!(rig.vbd.is_drained());
    assert_eq!(rig.vbd.outstanding(), 0);
}

#[test]
fn the_watchdog_barks_once_for_each_stop() {
    let mut rig = Rig::new("watchdog");
    rig.fault(0, Fault::Stuck);
    rig.start(0, Op::Read, 0, 512);
    rig.turn(8);
    rig.at(WATCHDOG - Duration::from_millis(1));
    assert!(!rig.vbd.maintain());
    rig.at(WATCHDOG);
    assert!(rig.vbd.maintain());
    assert!(!rig.vbd.maintain());
    rig.vbd.queue().sim().unwrap().release();
    rig.settle();
    assert_eq!(rig.ended(0), DONE);
    assert!(!rig.vbd.maintain());
}

#[test]
fn block_status_of_a_disk_without_storage_is_one_hole() {
    let mut rig = Rig::new("hole");
    rig.vbd.close_chain().unwrap();
    let spec = ImageSpec::parse(OsStr::new("null:64K")).unwrap();
    let image = spec.open(OpenFlags::default(), rig.vbd.queue()).unwrap();
    rig.vbd.insert_chain(Chain::new(Vec::new(), vec![image]), false, RetryPolicy::default());
    rig.start(0, Op::BlockStatus, 4096, 8192);
    rig.vbd.answers(|_, _, answer, _| {
        let extent = crate::request::Extent { len: 8192, kind: crate::request::ExtentKind::Hole };
        assert_eq!(answer, Answer { status: Status::Done, extent: Some(extent) });
    });
    assert_eq!(rig.vbd.outstanding(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Write { sector: u64, byte: u8 },
    Read { sector: u64 },
    Flush,
    Run(usize),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SIZE / 512, 1u8..).prop_map(|(sector, byte)| Step::Write { sector, byte }),
        3 => (0..SIZE / 512).prop_map(|sector| Step::Read { sector }),
        1 => Just(Step::Flush),
        4 => (1usize..8).prop_map(Step::Run),
        1 => Just(Step::Tick),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Error(Errno::EAGAIN)),
        Just(Fault::Error(Errno::EIO)),
        Just(Fault::Error(Errno::ENOSPC)),
        Just(Fault::Short(100)),
        Just(Fault::Short(0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Each request is answered once, whatever fails; what a successful read returns and what the
    /// file holds in the end is what successful writes left (one write to a sector at a time).
    #[test]
    fn every_request_is_answered_once(
        steps in prop::collection::vec(step(), 1..120),
        faults in prop::collection::vec((0u64..150, fault()), 0..10),
        case in any::<u64>(),
    ) {
        let mut rig = Rig::new(&format!("prop{case:x}"));
        for (number, fault) in faults {
            rig.fault(number, fault);
        }
        let mut oracle: Vec<Option<u8>> = vec![Some(0); usize::try_from(SIZE / 512).unwrap()];
        let mut expected = 0_u32;
        let mut running: Vec<(u32, usize, Option<u8>)> = Vec::new();
        let mut seconds = 0;
        for step in steps.into_iter().chain(std::iter::repeat_n(Step::Tick, 130)) {
            let busy = |sector: u64, running: &[(u32, usize, Option<u8>)]| {
                running.iter().any(|(_, other, _)| *other as u64 == sector)
            };
            match step {
                Step::Write { sector, byte } if expected < 250 && !busy(sector, &running) => {
                    rig.write(expected, sector * 512, byte);
                    running.push((expected, usize::try_from(sector).unwrap(), Some(byte)));
                    expected += 1;
                }
                Step::Read { sector } if expected < 250 && !busy(sector, &running) => {
                    rig.start(expected, Op::Read, sector * 512, 512);
                    running.push((expected, usize::try_from(sector).unwrap(), None));
                    expected += 1;
                }
                Step::Flush if expected < 250 => {
                    rig.start(expected, Op::Flush, 0, 0);
                    expected += 1;
                }
                Step::Run(count) => rig.turn(count),
                Step::Tick => {
                    rig.settle();
                    seconds += 1;
                    rig.at(Duration::from_secs(seconds));
                    rig.vbd.maintain();
                }
                _ => {}
            }
            for (token, status) in &rig.answers {
                let Some(at) = running.iter().position(|(running, ..)| running == token) else {
                    continue;
                };
                let (_, sector, byte) = running.swap_remove(at);
                match (byte, status) {
                    (Some(byte), Status::Done) => oracle[sector] = Some(byte),
                    // Old, new, or torn.
                    (Some(_), Status::Failed(_)) => oracle[sector] = None,
                    (None, Status::Done) => {
                        let mut bytes = [0; 512];
                        rig.vbd.memory.copy_out(rig.buffers[*token as usize], &mut bytes);
                        if let Some(byte) = oracle[sector] {
                            prop_assert_eq!(bytes, [byte; 512]);
                        }
                    }
                    (None, Status::Failed(_)) => {}
                }
            }
        }
        let mut tokens: Vec<u32> = rig.answers.iter().map(|(token, _)| *token).collect();
        tokens.sort_unstable();
        prop_assert_eq!(tokens, (0..expected).collect::<Vec<_>>());
        prop_assert_eq!(rig.vbd.outstanding(), 0);
    }
}

/// Requests hold their buffers until the image's own I/O has ended: that must not need what they
/// hold.
#[test]
fn first_writes_end_when_all_memory_is_handed_out() {
    let mut rig = Rig::of_vhd("full");
    let taken: Vec<Segment> = std::iter::from_fn(|| rig.vbd.memory().allocate(PAGE_SIZE)).collect();
    assert!(!taken.is_empty());
    for (token, byte) in [(0, 1), (1, 2)] {
        rig.write(token, u64::from(token) * 4096, byte);
    }
    rig.settle();
    assert_eq!((rig.ended(0), rig.ended(1)), (Some(Status::Done), Some(Status::Done)));
    taken.into_iter().for_each(|segment| rig.vbd.memory().free(segment));
}
