//! Random lives of a ring, against an oracle that knows only lists.

use std::collections::VecDeque;

use blktap_ioctl::sim::{Segments, SimDevice, SimOptions, SimSegment};
use blktap_ioctl::{MappedRing, Op, RingRequest};
use nix::errno::Errno;
use proptest::prelude::*;

use crate::{SECTORS, attach_with};

const DEPTH: u16 = 48;

#[derive(Clone, Debug)]
enum Step {
    Submit { op: Op, sector: u64, pieces: Vec<SimSegment> },
    Poll,
    Take { count: usize },
    Answer { which: usize, ok: bool },
    Push,
    Look,
}

fn piece() -> impl Strategy<Value = SimSegment> {
    (0_u8..8, 0_u8..8).prop_map(|(a, b)| SimSegment { first: a.min(b), last: a.max(b) })
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        5 => Just(Op::Read), 5 => Just(Op::Write), 1 => Just(Op::Flush), 1 => Just(Op::Trim)
    ];
    let submit = (op, 0..SECTORS - 88, proptest::collection::vec(piece(), 1..=11))
        .prop_map(|(op, sector, pieces)| Step::Submit { op, sector, pieces });
    prop_oneof![
        8 => submit,
        3 => Just(Step::Poll),
        4 => (1_usize..20).prop_map(|count| Step::Take { count }),
        8 => (any::<usize>(), prop::bool::weighted(0.9))
            .prop_map(|(which, ok)| Step::Answer { which, ok }),
        3 => Just(Step::Push),
        2 => Just(Step::Look),
    ]
}

/// A request, as the oracle remembers it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    cookie: u64,
    op: Op,
    sector: u64,
    pieces: Vec<SimSegment>,
    /// Of a write when submitted; of a read when answered.
    data: Vec<u8>,
}

/// The whole world in lists.
#[derive(Default)]
struct Oracle {
    waiting: VecDeque<Known>,
    /// Published and not taken: slot and request.
    published: VecDeque<(usize, Known)>,
    held: Vec<(RingRequest, Known)>,
    answered: Vec<(usize, Known, bool)>,
    done: Vec<(Known, bool)>,
    slots: [bool; 32],
    in_use: u16,
    disk: Vec<u8>,
    next: u64,
}

struct World {
    ring: MappedRing,
    device: SimDevice,
    oracle: Oracle,
}

impl World {
    fn new(first_index: u32) -> Self {
        let options = SimOptions {
            driver: blktap_ioctl::sim::Driver::Dkms,
            queue_depth: DEPTH,
            first_index,
            ..SimOptions::default()
        };
        let (ring, device) = attach_with(options);
        let disk = vec![0; usize::try_from(SECTORS * 512).unwrap()];
        Self { ring, device, oracle: Oracle { disk, ..Oracle::default() } }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Submit { op, sector, pieces } => self.submit(op, sector, pieces),
            Step::Poll => self.poll(),
            Step::Take { count } => (0..count).for_each(|_| self.take()),
            Step::Answer { which, ok } => self.answer(which, ok),
            Step::Push => self.push(),
            Step::Look => self.look(),
        }
        assert_eq!(self.ring.outstanding() as usize, self.oracle.held.len());
        assert_eq!(self.device.in_use(), usize::from(self.oracle.in_use));
        assert_eq!(self.device.violations(), 0);
    }

    fn submit(&mut self, op: Op, sector: u64, pieces: Vec<SimSegment>) {
        let cookie = self.oracle.next;
        let bytes: usize = pieces.iter().map(|piece| piece.bytes()).sum();
        let tint = cookie.to_le_bytes();
        let data: Vec<u8> =
            (0..bytes).map(|number| tint[number % 8] ^ number.to_le_bytes()[0]).collect();
        let segments = Segments::new(&pieces);
        let result = match op {
            Op::Read => self.device.submit_read(cookie, sector, segments),
            Op::Write => self.device.submit_write(cookie, sector, segments, &data),
            Op::Flush => self.device.submit_flush(cookie),
            Op::Trim => self.device.submit_trim(cookie, sector, 8),
        };
        if self.oracle.in_use == DEPTH {
            assert_eq!(result, Err(Errno::EAGAIN));
            return;
        }
        assert_eq!(result, Ok(()));
        self.oracle.next += 1;
        self.oracle.in_use += 1;
        self.oracle.waiting.push_back(Known { cookie, op, sector, pieces, data });
    }

    fn poll(&mut self) {
        let oracle = &mut self.oracle;
        while let Some(slot) = oracle.slots.iter().position(|used| !used) {
            let Some(known) = oracle.waiting.pop_front() else {
                break;
            };
            oracle.slots[slot] = true;
            oracle.published.push_back((slot, known));
        }
        assert_eq!(self.ring.poll_now().unwrap(), !oracle.published.is_empty());
    }

    fn take(&mut self) {
        let taken = self.ring.take();
        let Some((slot, known)) = self.oracle.published.pop_front() else {
            assert_eq!(taken, None);
            return;
        };
        let request = taken.unwrap().unwrap();
        assert_eq!((request.id.index() as usize, request.op), (slot, known.op));
        let has_data = matches!(known.op, Op::Read | Op::Write);
        assert_eq!(request.segments().len(), if has_data { known.pieces.len() } else { 0 });
        for (page, (segment, piece)) in request.segments().zip(&known.pieces).enumerate() {
            let offset = 4096 * (slot * 11 + page) + 512 * usize::from(piece.first);
            assert_eq!((segment.offset as usize, segment.len as usize), (offset, piece.bytes()));
        }
        match known.op {
            Op::Flush => assert_eq!((request.sector, request.bytes), (0, 0)),
            Op::Trim => assert_eq!((request.sector, request.bytes), (known.sector, 4096)),
            _ => {
                let bytes = known.data.len() as u64;
                assert_eq!((request.sector, request.bytes), (known.sector, bytes));
            }
        }
        self.oracle.held.push((request, known));
    }

    /// Serves a request from the oracle's disk, by way of the pages.
    fn answer(&mut self, which: usize, ok: bool) {
        if self.oracle.held.is_empty() {
            return;
        }
        let (request, mut known) = self.oracle.held.swap_remove(which % self.oracle.held.len());
        let mut at = usize::try_from(known.sector * 512).unwrap();
        let mut seen = Vec::new();
        for segment in request.segments() {
            let len = segment.len as usize;
            let mut bytes = vec![0; len];
            if known.op == Op::Read {
                bytes.copy_from_slice(&self.oracle.disk[at..at + len]);
                self.ring.copy_in(segment.offset, &bytes);
            } else {
                self.ring.copy_out(segment.offset, &mut bytes);
                if ok {
                    self.oracle.disk[at..at + len].copy_from_slice(&bytes);
                }
            }
            seen.extend(bytes);
            at += len;
        }
        match known.op {
            Op::Write => assert_eq!(seen, known.data),
            _ => known.data = seen,
        }
        self.ring.respond(request.id, if ok { 0 } else { -1 });
        self.oracle.answered.push((request.id.index() as usize, known, ok));
    }

    fn push(&mut self) {
        self.ring.push_responses().unwrap();
        for (slot, known, ok) in self.oracle.answered.drain(..) {
            self.oracle.slots[slot] = false;
            self.oracle.done.push((known, ok));
        }
    }

    fn look(&mut self) {
        let mut expected = self.oracle.done.drain(..);
        let count = self.device.completions(|completion| {
            let (known, ok) = expected.next().unwrap();
            assert_eq!((completion.cookie, completion.op), (known.cookie, known.op));
            assert_eq!(completion.outcome, if ok { Ok(()) } else { Err(Errno::EIO) });
            let data = if ok && known.op == Op::Read { &known.data[..] } else { &[] };
            assert_eq!(completion.data, data);
        });
        assert!(expected.next().is_none());
        self.oracle.in_use -= u16::try_from(count).unwrap();
    }

    /// Brings everything to an end.
    fn finish(mut self) {
        for _ in 0..4 {
            self.run(Step::Poll);
            self.run(Step::Take { count: 32 });
            for _ in 0..32 {
                self.run(Step::Answer { which: 0, ok: true });
            }
            self.run(Step::Push);
            self.run(Step::Look);
        }
        assert_eq!(self.oracle.in_use, 0);
        self.ring.unmap().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_ring_and_its_kernel_do_what_lists_do(
        near_wrap in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut world = World::new(if near_wrap { u32::MAX - 50 } else { 0 });
        for step in steps {
            world.run(step);
        }
        world.finish();
    }
}
