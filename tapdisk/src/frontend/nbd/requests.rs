//! The transmission phase of one client: requests out of the staging buffer, answers into the
//! outbox.
//!
//! A request is taken only when all it needs is there: room with whoever serves it, room for its
//! reply, and its buffer. So a write whose payload has begun to arrive can always be finished, and
//! a client that asks for too much at once waits for its own replies, nobody else's.
//!
//! There is no table of requests: what the reply is made of, and the buffer, come back with the
//! answer. Until then the buffer belongs to whoever serves the request: it is not freed, whatever
//! becomes of the client.

use nix::errno::Errno;

use super::client::{Client, Gone, Partial, Phase, Turn};
use super::shared::{Grant, Shared};
use super::wire::{
    self, Command, DESCRIPTOR_BYTES, EXTENTS_MAX, Header, REQUEST_BYTES, RawRequest, Verdict,
};
use crate::frontend::Intake;
use crate::memory::{Memory, Segment};
use crate::request::{Answer, Extent, Op, Request, Token};
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
        intake: &mut impl Intake,
    ) -> Result<Turn, Gone> {
        if self.lookups.has_again() {
            self.look_further(shared, intake);
        }
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
            if !self.readable || !self.receive(shared, intake.memory())? {
                return Ok(Turn::Idle);
            }
        }
        Ok(Turn::More)
    }

    /// Starts the block status requests again that are not at their end.
    #[inline(never)]
    pub(super) fn look_further(&mut self, shared: &mut Shared, intake: &mut impl Intake) {
        while self.lookups.has_again() {
            if !intake.has_room() {
                shared.blocked = true;
                shared.out_of_room = true;
                return;
            }
            let (number, lookup) = self.lookups.pop_again().expect("there is one");
            let (range, buffer) = (lookup.rest(), Segment::EMPTY);
            self.start(Op::BlockStatus, false, number, range, buffer, shared, intake);
        }
    }

    /// Takes requests out of the staging buffer. A function of its own: what is around it would
    /// take up registers that the requests need.
    #[inline(never)]
    fn take_staged(
        &mut self,
        quota: &mut u32,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) -> Result<Taken, Gone> {
        loop {
            if self.drain > 0 {
                self.skip_drain();
            }
            if !self.has_next(shared, intake.memory()) {
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
            if self.partial.is_some() {
                self.start_received(shared, intake);
                continue;
            }
            if self.owed == shared.config.requests_per_client {
                return Ok(Taken::Blocked);
            }
            if self.take_plain(shared, intake) {
                continue;
            }
            if let Some(end) = self.take_any(shared, intake)? {
                return Ok(end);
            }
        }
    }

    /// The short way of most requests: a plain read for which a page is kept, or a plain write all
    /// of whose payload lies in one. Any other stays where it is, for [`Client::take_any`].
    #[inline(always)]
    fn take_plain(&mut self, shared: &mut Shared, intake: &mut impl Intake) -> bool {
        let bytes = intake.memory().read(self.staging, self.start);
        let Some(raw) = RawRequest::parse(&bytes) else { return false };
        let Some(op) = wire::plain(&raw) else { return false };
        let page = match op {
            Op::Read if self.ahead.is_laid_out() => None,
            Op::Read => self.take_page(raw.len, shared),
            _ => self.ahead.take_whole(raw.len),
        };
        let Some(page) = page else { return false };
        match op {
            Op::Read => self.ahead.saw_other(),
            _ => self.ahead.saw_write(raw.len),
        }
        self.took_request();
        self.start(op, false, raw.cookie, raw.range(), page, shared, intake);
        true
    }

    /// A page that is kept, for a request of so many bytes; within this client's bound.
    #[inline(always)]
    fn take_page(&mut self, bytes: u32, shared: &mut Shared) -> Option<Segment> {
        let held = self.held + bytes;
        if held > shared.config.bytes_per_client {
            return None;
        }
        let page = shared.take_page(bytes)?;
        self.held = held;
        Some(page)
    }

    /// Takes the request at the start of the staging buffer, whatever it is. Says why that is the
    /// end for now, if it is.
    #[inline(never)]
    fn take_any(
        &mut self,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) -> Result<Option<Taken>, Gone> {
        let bytes = intake.memory().read(self.staging, self.start);
        let raw = RawRequest::parse(&bytes).ok_or(Gone::Fault)?;
        self.compare(&raw, shared, intake.memory());
        let is_taken = match wire::judge(&raw, self.features, shared.config.payload_bytes_max) {
            Verdict::Accept(command) => self.accept(&raw, command, shared, intake),
            Verdict::Refuse(errno, drain) => {
                self.refuse(&raw, errno, drain, shared, intake);
                true
            }
            Verdict::Disconnect => {
                self.close_when_answered(shared);
                return Ok(Some(Taken::Goodbye));
            }
            Verdict::Hangup => return Err(Gone::Fault),
        };
        Ok(if is_taken { None } else { Some(Taken::Blocked) })
    }

    /// Whether there is a request, or the last of one's payload.
    #[inline]
    fn has_next(&mut self, shared: &mut Shared, memory: &mut Memory) -> bool {
        let staged = self.end - self.start;
        if self.partial.is_some() {
            return self.has_payload(staged, shared, memory);
        }
        staged >= REQUEST_BYTES
    }

    /// Takes payload out of the staging buffer; whether the write has all of its own.
    #[inline(never)]
    fn has_payload(&mut self, staged: u32, shared: &mut Shared, memory: &mut Memory) -> bool {
        let partial = self.partial.as_mut().expect("the caller asked");
        let rest = partial.buffer.len - partial.received;
        let taken = rest.min(staged);
        if taken > 0 {
            let source = self.staging.part(self.start, taken);
            memory.copy_within(source, partial.buffer.part(partial.received, taken));
            self.start += taken;
            partial.received += taken;
            shared.stats.bytes_copied += u64::from(taken);
        }
        taken == rest
    }

    /// Starts the write whose last payload has come.
    #[inline(never)]
    fn start_received(&mut self, shared: &mut Shared, intake: &mut impl Intake) {
        let Partial { raw, fua, buffer, .. } = self.partial.take().expect("the caller asked");
        self.start(Op::Write, fua, raw.cookie, raw.range(), buffer, shared, intake);
    }

    /// Takes a well-formed request out of the staging buffer; `false` when there is no memory for
    /// it.
    fn accept(
        &mut self,
        raw: &RawRequest,
        command: Command,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) -> bool {
        let is_write = command.op == Op::Write;
        if is_write && let Some((buffer, received)) = self.ahead.take(raw.len) {
            self.took_request();
            self.partial = Some(Partial { raw: *raw, fua: command.fua, buffer, received });
            if received == raw.len {
                self.start_received(shared, intake);
            }
            return true;
        }
        if !command.op.has_data() {
            return self.accept_other(raw, command, shared, intake);
        }
        let buffer = match self.allocate(raw.len, shared, intake.memory()) {
            Grant::Buffer(buffer) => buffer,
            Grant::Wait => return false,
            Grant::Never => {
                let drain = if is_write { raw.len } else { 0 };
                self.refuse(raw, Errno::ENOMEM, drain, shared, intake);
                return true;
            }
        };
        self.took_request();
        if is_write {
            self.writes_large = raw.len >= LARGE_WRITE;
            self.partial = Some(Partial { raw: *raw, fua: command.fua, buffer, received: 0 });
        } else {
            self.start(Op::Read, false, raw.cookie, raw.range(), buffer, shared, intake);
        }
        true
    }

    /// A request is out of the staging buffer, and its reply is owed: both were looked at before.
    #[inline(always)]
    fn took_request(&mut self) {
        self.start = self.start.wrapping_add(REQUEST_BYTES);
        self.owed = self.owed.wrapping_add(1);
    }

    /// The same for one without data.
    #[inline(never)]
    fn accept_other(
        &mut self,
        raw: &RawRequest,
        command: Command,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) -> bool {
        let Command { op, fua, may_punch, one_extent } = command;
        let mut number = raw.cookie;
        if op == Op::BlockStatus {
            if !self.lookups.has_free() {
                return false;
            }
            let bytes = EXTENTS_MAX * DESCRIPTOR_BYTES;
            let buffer = match self.allocate(bytes, shared, intake.memory()) {
                Grant::Buffer(buffer) => buffer,
                Grant::Wait => return false,
                Grant::Never => {
                    self.refuse(raw, Errno::ENOMEM, 0, shared, intake);
                    return true;
                }
            };
            number = self.lookups.take(raw, one_extent, buffer);
        }
        self.took_request();
        let token = Token { peer: self.number, number };
        self.running += 1;
        shared.stats.requests = shared.stats.requests.wrapping_add(1);
        intake.start(|request| {
            request.set(token, op, raw.range());
            (request.fua, request.may_punch) = (fua, may_punch);
        });
        true
    }

    /// A buffer for a request.
    #[inline]
    fn allocate(&mut self, bytes: u32, shared: &mut Shared, memory: &mut Memory) -> Grant {
        let held = self.held + bytes;
        // Something of its own is out then, and will come back.
        if held > shared.config.bytes_per_client && self.held > 0 {
            return Grant::Wait;
        }
        let grant = shared.allocate(self.number, bytes, memory);
        if matches!(grant, Grant::Buffer(_)) {
            self.held = held;
        }
        grant
    }

    /// Answers a request that is not started with an error, and drops its payload.
    #[inline(never)]
    fn refuse(
        &mut self,
        raw: &RawRequest,
        errno: Errno,
        drain: u32,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) {
        if self.ahead.is_laid_out() {
            self.line_up(shared, intake.memory());
        }
        self.start += REQUEST_BYTES;
        self.drain = drain;
        self.owed += 1;
        shared.stats.refused += 1;
        let op = wire::op_of(raw.kind);
        let header = Header::failure(op, self.features, raw.cookie, Status::Failed(errno));
        self.outbox.push(header, Segment::EMPTY, 0);
    }

    /// Starts a request; a write's payload is in the buffer.
    #[inline(always)]
    #[expect(
        clippy::too_many_arguments,
        reason = "they are put into their places, not moved about"
    )]
    fn start(
        &mut self,
        op: Op,
        fua: bool,
        number: u64,
        range: (u64, u64),
        buffer: Segment,
        shared: &mut Shared,
        intake: &mut impl Intake,
    ) {
        // No more than are owed.
        self.running = self.running.wrapping_add(1);
        shared.stats.requests = shared.stats.requests.wrapping_add(1);
        let token = Token { peer: self.number, number };
        intake.start(move |request| {
            request.set(token, op, range);
            request.fua = fua;
            if op.has_data() {
                request.segments.set(buffer);
            }
        });
    }

    /// Takes the answer to a request of this client.
    #[inline(always)]
    pub(super) fn answered(
        &mut self,
        request: &Request,
        answer: Answer,
        shared: &mut Shared,
        memory: &mut Memory,
    ) {
        self.running -= 1;
        shared.released = true;
        let (op, cookie, buffer) = (request.op, request.token.number, request.segments.first());
        if self.phase == Phase::Dead || op == Op::BlockStatus {
            return self.answered_rarely(request, answer.status, answer.extent, shared, memory);
        }
        if op == Op::Read && answer.status == Status::Done {
            let header = if self.features.structured {
                Header::data(cookie, request.offset, buffer.len)
            } else {
                Header::simple(cookie, Status::Done)
            };
            return self.outbox.push(header, buffer, buffer.len);
        }
        if buffer.len > 0 {
            // Nothing of it is sent: others may have it at once.
            self.give_back(buffer, shared, memory);
        }
        let header = match answer.status {
            Status::Done => Header::simple(cookie, Status::Done),
            failed => Header::failure(Some(op), self.features, cookie, failed),
        };
        self.outbox.push(header, Segment::EMPTY, 0);
    }

    /// The same for a client that is gone, and for block status.
    #[inline(never)]
    fn answered_rarely(
        &mut self,
        request: &Request,
        status: Status,
        extent: Option<Extent>,
        shared: &mut Shared,
        memory: &mut Memory,
    ) {
        let number = request.token.number;
        let mut buffer = request.segments.first();
        if request.op == Op::BlockStatus {
            buffer = self.lookups.get(number).buffer;
        }
        if self.phase == Phase::Dead {
            self.owed -= 1;
            if request.op == Op::BlockStatus {
                self.lookups.free(number);
            }
            if buffer.len > 0 {
                self.give_back(buffer, shared, memory);
            }
            return;
        }
        if status == Status::Done {
            let extent = extent.expect("a block status that is done has an extent");
            if self.lookups.describe(number, extent, memory) {
                shared.blocked = true;
                return;
            }
        }
        let lookup = *self.lookups.get(number);
        self.lookups.free(number);
        let descriptors_len = lookup.descriptors_len();
        let header = if descriptors_len > 0 {
            Header::block_status(lookup.cookie, descriptors_len)
        } else {
            Header::failure(Some(request.op), self.features, lookup.cookie, status)
        };
        self.outbox.push(header, buffer, descriptors_len);
    }
}
