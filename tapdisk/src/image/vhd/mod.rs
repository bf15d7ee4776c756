//! `vhd:/path`: a VHD and its parents, under the engine of the `vhd` crate.
//!
//! The engine says where sectors are and which metadata is to be read and written; here its sectors
//! become bytes, its layers files of the queue, and its steps I/O. What is promised, and in which
//! order things are written for that, is docs/durability.md. Opening is in [`open`], what is
//! written before the first request and after the last in [`session`].

mod open;
mod session;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use vhd::engine::{self, Action, Answer, ClaimId, Engine, StepId, Table, ZEROS_MAX};

use super::claim::Claim;
use super::{Image, ImageInfo, ImageType, Mapping, Metadata, Requests};
use crate::error::DiskError;
use crate::memory::{Memory, Segment};
use crate::queue::{FileId, Io, IoOp, Queue};
use crate::request::Op;
use crate::status::Status;
use crate::vbd::SLOTS;
use session::Session;

pub(super) use open::open;

const SECTOR_SHIFT: u32 = 9;
const SECTOR_BYTES: u32 = 1 << SECTOR_SHIFT;

/// The most that a step reads or writes.
const STEP_BYTES: u32 = (ZEROS_MAX + 1) << SECTOR_SHIFT;

/// I/Os on metadata that the queue has at the same time: more wait in the engine.
const STEPS_MAX: usize = 64;

/// One file of the chain.
struct Layer {
    file: FileId,
    handle: Arc<File>,
    path: PathBuf,
    kind: &'static ImageType,
}

/// A step of the engine that the queue has.
#[derive(Clone, Copy)]
struct Flight {
    id: StepId,
    /// The buffer of a read or write.
    buffer: Option<Segment>,
    is_read: bool,
}

/// A chain of VHDs.
struct Vhd {
    engine: Engine,
    /// Leaf first.
    layers: Vec<Layer>,
    /// The first of them.
    leaf: FileId,
    info: ImageInfo,
    claim: Claim,
    /// What a leaf that is written needs at close.
    session: Option<Session>,
    flights: Vec<Option<Flight>>,
    free_flights: Vec<u32>,
    /// Of the flush that a request has under way: what it covers.
    began: Vec<u64>,
}

fn sectors(bytes: u64) -> u64 {
    bytes >> SECTOR_SHIFT
}

fn bytes(sectors: u64) -> u64 {
    sectors << SECTOR_SHIFT
}

/// Of what a step reads or writes.
fn small(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("at most STEP_BYTES")
}

fn result_of(status: Status) -> Result<(), engine::Errno> {
    status.errno().map_or(Ok(()), |errno| Err(engine::Errno(errno as i32)))
}

fn status_of(result: Result<(), engine::Errno>) -> Status {
    result.map_err(|errno| Errno::from_raw(errno.0)).into()
}

fn op_of(op: Op) -> engine::Op {
    match op {
        Op::Read => engine::Op::Read,
        Op::Write => engine::Op::Write,
        Op::WriteZeroes => engine::Op::WriteZeroes,
        Op::Trim => engine::Op::Trim,
        Op::BlockStatus | Op::Flush => engine::Op::Status,
    }
}

impl Vhd {
    fn mapping(&self, answer: Answer) -> Mapping {
        match answer {
            Answer::Data { layer, sector, count } => Mapping::Data {
                file: self.layers[layer].file,
                offset: bytes(sector),
                len: bytes(count),
                layer,
            },
            Answer::First { claim, sector, count } => Mapping::First {
                file: self.layers[0].file,
                offset: bytes(sector),
                len: bytes(count),
                change: claim.0,
            },
            Answer::Zero { count } => Mapping::Nowhere { len: bytes(count) },
            Answer::Fresh { count } => Mapping::Fresh { len: bytes(count) },
            Answer::Change { count, .. } => Mapping::Change { len: bytes(count) },
            Answer::Wait => Mapping::Wait,
            Answer::Fail(errno) => Mapping::Fail(Errno::from_raw(errno.0)),
        }
    }

    /// Gives one step of the engine to the queue; false when there is no room for it.
    fn begin_step(&mut self, queue: &mut Queue, memory: &mut Memory) -> bool {
        let Some(number) = self.free_flights.last().copied() else { return false };
        let Some(buffer) = memory.allocate_spare(STEP_BYTES) else { return false };
        let Some(step) = self.engine.next_step() else {
            memory.free(buffer);
            return false;
        };
        self.free_flights.pop();
        let (layer, op, sector, count) = match step.action {
            Action::Read { layer, sector } => (layer, IoOp::Read, sector, 1),
            Action::Write { sector, zeros, bytes: last } => {
                let len = zeros << SECTOR_SHIFT;
                memory.zero(buffer.part(0, len));
                memory.copy_in(buffer.part(len, SECTOR_BYTES), &last);
                (0, IoOp::Write { durable: false }, sector, u64::from(zeros) + 1)
            }
            Action::Flush => (0, IoOp::Flush, 0, 0),
            Action::Zero { sector, count, may_punch } => {
                (0, IoOp::WriteZeroes { may_punch, durable: false }, sector, count)
            }
        };
        let buffer = if op.has_data() {
            Some(buffer)
        } else {
            memory.free(buffer);
            None
        };
        let flight = Flight { id: step.id, buffer, is_read: op == IoOp::Read };
        self.flights[number as usize] = Some(flight);
        let part = buffer.map(|buffer| buffer.part(0, small(bytes(count))));
        let io = Io {
            tag: super::own_tag(number),
            op,
            file: self.layers[layer].file,
            offset: bytes(sector),
            len: bytes(count),
            segments: part.as_slice(),
        };
        queue.push(memory, &io);
        true
    }
}

impl Image for Vhd {
    fn info(&self) -> ImageInfo {
        self.info
    }

    #[inline]
    fn map(&mut self, slot: usize, op: Op, offset: u64, len: u64) -> Mapping {
        let slot = u16::try_from(slot).expect("fewer slots");
        let answer = self.engine.map(op_of(op), sectors(offset), sectors(len), slot);
        self.mapping(answer)
    }

    fn places(&self) -> Option<Arc<Table>> {
        Some(self.engine.table())
    }

    fn file(&self) -> Option<FileId> {
        Some(self.leaf)
    }

    fn lost(&self) -> Option<Errno> {
        self.engine.lost().map(|errno| Errno::from_raw(errno.0))
    }

    fn metadata(&mut self) -> Option<&mut dyn Metadata> {
        Some(self)
    }

    fn warning(&self) -> Option<&str> {
        self.claim.warning()
    }

    fn members(&self) -> Vec<(PathBuf, &'static ImageType)> {
        self.layers.iter().map(|layer| (layer.path.clone(), layer.kind)).collect()
    }

    fn describe(&self, out: &mut dyn std::fmt::Write) -> std::fmt::Result {
        self.engine.describe(out)
    }

    fn close(self: Box<Self>, queue: &mut Queue) -> Result<(), DiskError> {
        for layer in &self.layers {
            queue.remove_file(layer.file);
        }
        let closed = self.session.as_ref().map_or(Ok(()), |session| session.close(&self.engine));
        self.claim.release(&self.layers[0].handle);
        closed
    }
}

impl Metadata for Vhd {
    fn store(&mut self, slot: usize, offset: u64, len: u64) -> Mapping {
        let slot = u16::try_from(slot).expect("fewer slots");
        let answer = self.engine.store(sectors(offset), sectors(len), slot);
        self.mapping(answer)
    }

    fn wrote(&mut self, change: u16, status: Status) {
        self.engine.wrote(ClaimId(change), result_of(status));
    }

    fn wants_requests(&self) -> bool {
        self.engine.wants_requests()
    }

    fn has_steps(&self) -> bool {
        self.engine.has_steps()
    }

    fn work(&mut self, queue: &mut Queue, memory: &mut Memory, requests: Option<Requests>) {
        if let Some(Requests { newest, oldest }) = requests {
            self.engine.requests(newest, oldest);
        }
        self.engine.advance();
        while self.engine.has_steps() && queue.has_room() && self.begin_step(queue, memory) {}
    }

    fn ended(&mut self, number: u32, status: Status, memory: &mut Memory) {
        let flight = self.flights[number as usize].take().expect("a step under way");
        self.free_flights.push(number);
        let mut sector = [0; 1 << SECTOR_SHIFT];
        if let Some(buffer) = flight.buffer {
            if flight.is_read {
                memory.copy_out(buffer.part(0, SECTOR_BYTES), &mut sector);
            }
            memory.free(buffer);
        }
        let found = flight.is_read.then_some(&sector);
        self.engine.ended(flight.id, result_of(status).map(|()| found));
    }

    fn take_settled(&mut self) -> Option<(usize, Status)> {
        let settled = self.engine.take_settled()?;
        Some((usize::from(settled.waiter), status_of(settled.result)))
    }

    fn take_woken(&mut self) -> bool {
        self.engine.take_woken()
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn needs_flush(&self) -> bool {
        self.engine.needs_flush()
    }

    fn flush_began(&mut self, slot: usize) {
        self.began[slot] = self.engine.flush_began();
    }

    fn flush_ended(&mut self, slot: usize, status: Status) -> Status {
        status_of(self.engine.flush_ended(self.began[slot], result_of(status)))
    }

    fn shut_down(&mut self) {
        self.engine.shut_down();
    }
}

fn flights() -> (Vec<Option<Flight>>, Vec<u32>) {
    let numbers = (0..u32::try_from(STEPS_MAX).expect("few")).rev().collect();
    (vec![None; STEPS_MAX], numbers)
}

fn no_flushes() -> Vec<u64> {
    vec![0; usize::from(SLOTS)]
}
