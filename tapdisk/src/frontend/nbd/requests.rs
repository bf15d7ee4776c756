//! The transmission phase of one client: requests out of the staging buffer, answers into the
//! outbox.
//!
//! A request is taken only when all it needs is there: room with whoever serves it, a slot (and
//! with it room for the reply), and its buffer. So a write whose payload has begun to arrive can
//! always be finished, and a client that asks for too much at once waits for its own replies,
//! nobody else's.

use nix::errno::Errno;

use super::client::{Client, Gone, Partial, Phase, Turn};
use super::shared::{Grant, Shared};
use super::slots::State;
use super::wire::{
    self, Command, DESCRIPTOR_BYTES, EXTENTS_MAX, Header, REQUEST_BYTES, RawRequest, Verdict,
};
use crate::frontend::Intake;
use crate::memory::{Memory, Segment};
use crate::request::{Answer, Op, Request, Segments, Token};
use crate::status::Status;

/// From this length on, in bytes, payload is better received where it belongs than copied there: a
/// copy of this costs about as much as a receive.
const LARGE_WRITE: u32 = 16 << 10;

/// How many requests one client takes before the next client has its turn.
const REQUESTS_PER_TURN: u32 = 16;

/// Why taking requests from the staging buffer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// There is no whole request, or payload is missing: receive.
    All,
    /// It was others' turn.
    Enough,
    /// Something is wanting that an answer or a sent reply brings.
    Blocked,
    /// The client has said good-bye.
    Goodbye,
}

impl Client {
    /// Takes requests, first those that are here, then those in the socket.
    pub(super) fn take_requests(
        &mut self,
        shared: &mut Shared,
        intake: &mut dyn Intake,
    ) -> Result<Turn, Gone> {
        self.look_further(shared, intake);
        let mut quota = REQUESTS_PER_TURN;
        for _ in 0..super::ROUNDS_PER_TURN {
            match self.take_staged(&mut quota, shared, intake)? {
                Taken::All => {}
                Taken::Enough => return Ok(Turn::More),
                Taken::Goodbye => return Ok(Turn::Idle),
                Taken::Blocked => {
                    shared.blocked = true;
                    return Ok(Turn::Idle);
                }
            }
            if !self.receive(shared, intake.memory())? {
                return Ok(Turn::Idle);
            }
        }
        Ok(Turn::More)
    }

    /// Starts the block status requests again that are not at their end.
    pub(super) fn look_further(&mut self, shared: &mut Shared, intake: &mut dyn Intake) {
        while self.slots.has_again() {
            if !intake.has_room() {
                shared.blocked = true;
                shared.out_of_room = true;
                return;
            }
            let slot = self.slots.pop_again().expect("there is one");
            self.start_slot(slot, shared, intake);
        }
    }

    fn take_staged(
        &mut self,
        quota: &mut u32,
        shared: &mut Shared,
        intake: &mut dyn Intake,
    ) -> Result<Taken, Gone> {
        loop {
            if self.drain > 0 {
                self.skip_drain();
            }
            if !self.has_next(intake.memory()) {
                return Ok(Taken::All);
            }
            if *quota == 0 {
                return Ok(Taken::Enough);
            }
            *quota -= 1;
            if !intake.has_room() {
                shared.out_of_room = true;
                return Ok(Taken::Blocked);
            }
            if let Some(partial) = self.partial.take() {
                self.start_slot(partial.slot, shared, intake);
                continue;
            }
            if !self.slots.has_free() {
                return Ok(Taken::Blocked);
            }
            let mut bytes = [0; REQUEST_BYTES as usize];
            intake.memory().copy_out(self.staging.part(self.start, REQUEST_BYTES), &mut bytes);
            let raw = RawRequest::parse(&bytes).ok_or(Gone::Fault)?;
            match wire::judge(&raw, self.features, shared.config.payload_bytes_max) {
                Verdict::Accept(command) => {
                    if !self.accept(&raw, command, shared, intake) {
                        return Ok(Taken::Blocked);
                    }
                }
                Verdict::Refuse(errno, drain) => self.refuse(&raw, errno, drain, shared, intake),
                Verdict::Disconnect => {
                    self.phase = Phase::Closing;
                    return Ok(Taken::Goodbye);
                }
                Verdict::Hangup => return Err(Gone::Fault),
            }
        }
    }

    /// Whether there is a request, or the last of one's payload.
    #[inline]
    fn has_next(&mut self, memory: &mut Memory) -> bool {
        let staged = self.end - self.start;
        let Some(partial) = &mut self.partial else {
            return staged >= REQUEST_BYTES;
        };
        let rest = partial.buffer.len - partial.received;
        let taken = rest.min(staged);
        if taken > 0 {
            let source = self.staging.part(self.start, taken);
            memory.copy_within(source, partial.buffer.part(partial.received, taken));
            self.start += taken;
            partial.received += taken;
        }
        taken == rest
    }

    /// Takes a well-formed request out of the staging buffer; `false` when there is no memory for
    /// it.
    fn accept(
        &mut self,
        raw: &RawRequest,
        command: Command,
        shared: &mut Shared,
        intake: &mut dyn Intake,
    ) -> bool {
        let bytes = match command.op {
            Op::Read | Op::Write => raw.len,
            Op::BlockStatus => EXTENTS_MAX * DESCRIPTOR_BYTES,
            Op::Flush | Op::Trim | Op::WriteZeroes => 0,
        };
        let mut buffer = Segment::EMPTY;
        if bytes > 0 {
            // Something of its own is out then, and will come back.
            if self.held > 0 && self.held + bytes > shared.config.bytes_per_client {
                return false;
            }
            buffer = match shared.allocate(self.number, bytes, intake.memory()) {
                Grant::Buffer(buffer) => buffer,
                Grant::Wait => return false,
                Grant::Never => {
                    let drain = if command.op == Op::Write { raw.len } else { 0 };
                    self.refuse(raw, Errno::ENOMEM, drain, shared, intake);
                    return true;
                }
            };
            self.held += bytes;
        }
        self.start += REQUEST_BYTES;
        let range = (raw.cookie, raw.offset, raw.len);
        let slot = self.slots.take(State::Receiving, command, range, buffer);
        if command.op == Op::Write {
            self.writes_large = raw.len >= LARGE_WRITE;
            self.partial = Some(Partial { slot, buffer, received: 0 });
        } else {
            self.start_slot(slot, shared, intake);
        }
        true
    }

    /// Answers a request that is not started with an error, and drops its payload.
    fn refuse(
        &mut self,
        raw: &RawRequest,
        errno: Errno,
        drain: u32,
        shared: &mut Shared,
        intake: &mut dyn Intake,
    ) {
        self.start += REQUEST_BYTES;
        self.drain = drain;
        shared.stats.refused += 1;
        // A slot, for its place in the outbox.
        let slot = self.slots.take(State::Answered, Command::NONE, (0, 0, 0), Segment::EMPTY);
        let op = wire::op_of(raw.kind);
        let header = Header::failure(op, self.features, raw.cookie, Status::Failed(errno));
        self.outbox.push(slot, header.as_slice(), Segment::EMPTY, intake.memory());
    }

    #[inline]
    fn start_slot(&mut self, index: u16, shared: &mut Shared, intake: &mut dyn Intake) {
        let slot = self.slots.get(index);
        slot.state = State::Running;
        let op = slot.command.op;
        // Made in place: a request with room for eleven segments is not moved lightly.
        let mut request = Request {
            token: Token(u32::from(self.number) << 16 | u32::from(index)),
            op,
            fua: slot.command.fua,
            may_punch: slot.command.may_punch,
            offset: slot.offset + u64::from(slot.described),
            len: u64::from(slot.len - slot.described),
            segments: Segments::NONE,
        };
        if op.has_data() {
            request.segments.push(slot.buffer);
        }
        self.running += 1;
        shared.running += 1;
        shared.stats.requests += 1;
        intake.start(&request);
    }

    /// Takes the answer to a request of this client.
    pub(super) fn answered(
        &mut self,
        index: u16,
        answer: Answer,
        shared: &mut Shared,
        memory: &mut Memory,
    ) {
        self.running -= 1;
        shared.running -= 1;
        shared.released = true;
        let slot = self.slots.get(index);
        assert!(slot.state == State::Running, "slot {index} is {:?}", slot.state);
        if self.phase == Phase::Dead {
            let buffer = self.slots.free(index);
            self.give_back(buffer, shared, memory);
            return;
        }
        slot.state = State::Answered;
        let (op, cookie) = (slot.command.op, slot.cookie);
        let mut data = slot.buffer;
        let header = match (op, answer.status) {
            (Op::Read, Status::Done) if self.features.structured => {
                Header::data(cookie, slot.offset, slot.len)
            }
            (Op::BlockStatus, _) => {
                if answer.status == Status::Done {
                    let extent = answer.extent.expect("a block status that is done has an extent");
                    if slot.describe(extent, memory) {
                        self.slots.push_again(index);
                        shared.blocked = true;
                        return;
                    }
                }
                data.len = slot.descriptors * DESCRIPTOR_BYTES;
                if data.len > 0 {
                    Header::block_status(cookie, data.len)
                } else {
                    Header::failure(Some(op), self.features, cookie, answer.status)
                }
            }
            (_, Status::Done) => Header::simple(cookie, Status::Done),
            (_, failed) => Header::failure(Some(op), self.features, cookie, failed),
        };
        if op == Op::Write || (op == Op::Read && answer.status != Status::Done) {
            // Nothing of it is sent: others may have it at once.
            let buffer = std::mem::replace(&mut slot.buffer, Segment::EMPTY);
            data = Segment::EMPTY;
            self.give_back(buffer, shared, memory);
        }
        self.outbox.push(index, header.as_slice(), data, memory);
    }
}
