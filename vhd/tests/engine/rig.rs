//! The engine with a disk below it and requests above it: what the daemon does with it, step by
//! step, in an order that somebody else decides.

use vhd::engine::{Action, Answer, ClaimId, Engine, Errno, Op, Rule, StepId};
use vhd::testing::{Effect, Oracle, SECTOR, Store, bytes_of, value, value_of};

use crate::image::Shape;

/// A request of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Read { sector: u64, count: u64 },
    Write { sector: u64, count: u64, fua: bool, zeros: bool },
    Zero { sector: u64, count: u64 },
    Trim { sector: u64, count: u64 },
    Flush,
}

struct Request {
    number: u64,
    ask: Ask,
    version: u32,
    began: u64,
    /// Sectors that are mapped.
    cursor: u64,
    parts: u32,
    claims: u32,
    failed: bool,
    waits: bool,
    then_flush: bool,
    found: Vec<(u64, u64)>,
}

enum What {
    Part { slot: usize, claim: Option<ClaimId> },
    Flush { slot: usize, began: u64 },
    Step(StepId),
}

struct Io {
    what: What,
    /// The write that it is, when it is one.
    write: Option<u64>,
    covers: Vec<u64>,
    durable: bool,
    /// A read: layer, sector, count; and of which sector of the disk.
    read: Option<(usize, u64, u64, u64)>,
}

impl Io {
    fn new(what: What) -> Self {
        Self { what, write: None, covers: Vec::new(), durable: false, read: None }
    }
}

/// How an I/O ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Failed, having done the parts that the bits name.
    Failed(u64),
}

/// Engine, disk, requests.
pub(crate) struct Rig {
    pub(crate) shape: Shape,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) oracle: Oracle,
    below: Vec<Vec<u8>>,
    requests: Vec<Option<Request>>,
    running: Vec<Io>,
    newest: u64,
    version: u32,
    /// Requests that were answered.
    pub(crate) answered: u64,
}

/// Requests at once.
pub(crate) const SLOTS: usize = 32;

impl Rig {
    /// A disk whose leaf's opening was done.
    pub(crate) fn new(
        shape: Shape,
        store: Store,
        oracle: Oracle,
        version: u32,
    ) -> Result<Self, String> {
        let engine = shape.engine(store.bytes(), true)?;
        Ok(Self {
            shape,
            engine,
            store,
            oracle,
            below: shape.below(),
            requests: (0..SLOTS).map(|_| None).collect(),
            running: Vec::new(),
            newest: 0,
            version,
            answered: 0,
        })
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn has_slot(&self) -> bool {
        self.requests.iter().any(Option::is_none)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.running.is_empty() && self.requests.iter().all(Option::is_none)
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a flush may begin: all changes before it were answered.
    pub(crate) fn has_changes(&self) -> bool {
        self.requests.iter().flatten().any(|request| !matches!(request.ask, Ask::Read { .. }))
    }

    /// A request comes.
    pub(crate) fn ask(&mut self, ask: Ask) -> Result<(), String> {
        let slot = self.requests.iter().position(Option::is_none).expect("a free slot");
        self.newest += 1;
        self.version += 1;
        let (number, version) = (self.newest, self.version.max(10));
        let began = self.oracle.tick();
        let (first, count, new, weak) = match ask {
            Ask::Write { sector, count, zeros, .. } => (sector, count, Some(!zeros), false),
            Ask::Zero { sector, count } => (sector, count, Some(false), false),
            Ask::Trim { sector, count } => (sector, count, Some(false), true),
            Ask::Read { .. } | Ask::Flush => (0, 0, None, false),
        };
        if let Some(is_data) = new {
            for sector in first..first + count {
                let value = value(sector, if is_data { version } else { 0 });
                self.oracle.issue(number, sector, value, weak);
            }
        }
        self.version = version;
        self.requests[slot] = Some(Request {
            number,
            ask,
            version,
            began,
            cursor: 0,
            parts: 0,
            claims: 0,
            failed: false,
            waits: false,
            then_flush: false,
            found: Vec::new(),
        });
        self.map(slot)?;
        self.pump()
    }

    fn range(ask: Ask) -> (Op, u64, u64) {
        match ask {
            Ask::Read { sector, count } => (Op::Read, sector, count),
            Ask::Write { sector, count, .. } => (Op::Write, sector, count),
            Ask::Zero { sector, count } => (Op::WriteZeroes, sector, count),
            Ask::Trim { sector, count } => (Op::Trim, sector, count),
            Ask::Flush => (Op::Status, 0, 0),
        }
    }

    fn map(&mut self, slot: usize) -> Result<(), String> {
        let request = self.requests[slot].as_mut().expect("a request");
        request.waits = false;
        let ask = request.ask;
        if ask == Ask::Flush {
            self.flush(slot);
            return Ok(());
        }
        let (op, first, count) = Self::range(ask);
        let stores = !matches!(ask, Ask::Write { zeros: true, .. });
        while let request = self.requests[slot].as_ref().expect("a request")
            && request.cursor < count
        {
            let (at, left) = (first + request.cursor, count - request.cursor);
            let mut answer = self.engine.map(op, at, left, slot as u16);
            if stores && matches!(answer, Answer::Fresh { .. }) {
                answer = self.engine.store(at, left, slot as u16);
            }
            if !self.take(slot, at, answer)? {
                break;
            }
        }
        self.finish_if_done(slot)
    }

    /// Takes an answer for the sectors from `at` on; whether to go on.
    fn take(&mut self, slot: usize, at: u64, answer: Answer) -> Result<bool, String> {
        let request = self.requests[slot].as_mut().expect("a request");
        let is_read = matches!(request.ask, Ask::Read { .. });
        let fua = matches!(request.ask, Ask::Write { fua: true, .. });
        match answer {
            Answer::Data { layer, sector, count } if is_read => {
                request.parts += 1;
                request.cursor += count;
                let read = Some((layer, sector, count, at));
                self.running.push(Io { read, ..Io::new(What::Part { slot, claim: None }) });
            }
            Answer::Data { layer: 0, sector, count } => self.write(slot, at, sector, count, None),
            Answer::Data { layer, .. } => return Err(format!("a change of layer {layer}")),
            Answer::First { claim, sector, count } => {
                request.claims += 1;
                self.write(slot, at, sector, count, Some(claim));
            }
            Answer::Change { count, .. } => {
                request.claims += 1;
                request.then_flush |= fua;
                request.cursor += count;
            }
            Answer::Zero { count } | Answer::Fresh { count } => {
                // That nothing is there may not be durable yet.
                request.then_flush |= fua && self.engine.needs_flush();
                if is_read {
                    request.found.extend((at..at + count).map(|sector| (sector, 0)));
                }
                request.cursor += count;
            }
            Answer::Wait => {
                request.waits = true;
                return Ok(false);
            }
            Answer::Fail(_) => {
                request.failed = true;
                request.cursor = u64::MAX;
            }
        }
        Ok(true)
    }

    fn write(&mut self, slot: usize, at: u64, sector: u64, count: u64, claim: Option<ClaimId>) {
        let request = self.requests[slot].as_mut().expect("a request");
        request.parts += 1;
        request.cursor += count;
        let fua = matches!(request.ask, Ask::Write { fua: true, .. });
        let careless = self.shape.without == Some(Rule::DurableBeforeFua);
        let durable = fua && claim.is_none() && careless;
        request.then_flush |= fua && !durable;
        let is_data = matches!(request.ask, Ask::Write { zeros: false, .. });
        let version = if is_data { request.version } else { 0 };
        let bytes = (at..at + count).flat_map(|at| bytes_of(value(at, version))).collect();
        let write = Some(self.store.begin(Effect::Bytes(sector as usize * SECTOR, bytes)));
        self.running.push(Io { write, durable, ..Io::new(What::Part { slot, claim }) });
    }

    fn flush(&mut self, slot: usize) {
        let request = self.requests[slot].as_mut().expect("a request");
        request.parts += 1;
        request.then_flush = false;
        let without = self.shape.without == Some(Rule::DurableBeforeFlush);
        let covers = if without { Vec::new() } else { self.store.flush_begin() };
        let began = self.engine.flush_began();
        let what = What::Flush { slot, began };
        self.running.push(Io { covers, ..Io::new(what) });
    }

    /// Does what the engine wants, until it wants nothing more without an end.
    pub(crate) fn pump(&mut self) -> Result<(), String> {
        loop {
            while let Some(settled) = self.engine.take_settled() {
                let slot = usize::from(settled.waiter);
                let request = self.requests[slot].as_mut().ok_or("a claim of nobody")?;
                request.claims -= 1;
                request.failed |= settled.result.is_err();
                self.finish_if_done(slot)?;
            }
            if self.engine.wants_requests() {
                let with_parts = |request: &&Request| request.parts > 0;
                let oldest = self.requests.iter().flatten().filter(with_parts);
                let oldest = oldest.map(|request| request.number).min().unwrap_or(self.newest + 1);
                self.engine.requests(self.newest, oldest);
            }
            self.engine.advance();
            while let Some(step) = self.engine.next_step() {
                self.begin_step(step.id, step.action);
            }
            if !self.engine.take_woken() {
                return Ok(());
            }
            for slot in 0..SLOTS {
                if self.requests[slot].as_ref().is_some_and(|request| request.waits) {
                    self.map(slot)?;
                }
            }
        }
    }

    fn begin_step(&mut self, id: StepId, action: Action) {
        let mut io = Io::new(What::Step(id));
        match action {
            Action::Read { layer, sector } => io.read = Some((layer, sector, 1, 0)),
            Action::Write { sector, zeros, bytes } => {
                let all = [vec![0; zeros as usize * SECTOR].as_slice(), &bytes].concat();
                let effect = Effect::Bytes(sector as usize * SECTOR, all);
                io.write = Some(self.store.begin(effect));
            }
            Action::Flush => io.covers = self.store.flush_begin(),
            Action::Zero { sector, count, .. } => {
                let bytes = vec![0; count as usize * SECTOR];
                io.write = Some(self.store.begin(Effect::Bytes(sector as usize * SECTOR, bytes)));
            }
        }
        self.running.push(io);
    }

    /// One of the running I/Os ends.
    pub(crate) fn end(&mut self, index: usize, outcome: Outcome) -> Result<(), String> {
        let io = self.running.remove(index);
        let result = match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(_) => Err(Errno::EIO),
        };
        if let Some(write) = io.write {
            let bits = if let Outcome::Failed(bits) = outcome { bits } else { 0 };
            self.store.end(write, |at| bits >> (at % 64) & 1 == 1, result.is_ok());
        }
        match (io.write, result) {
            (Some(write), Ok(())) if io.durable => self.store.durable_end(write),
            (None, Ok(())) => self.store.flush_end(&io.covers),
            (None, Err(_)) => self.store.flush_failed(&io.covers),
            _ => {}
        }
        match io.what {
            What::Step(id) => {
                let mut sector = [0; SECTOR];
                if let Some((layer, at, ..)) = io.read {
                    sector.copy_from_slice(self.file(layer, at, 1));
                    self.engine.ended(id, result.map(|()| Some(&sector)));
                } else {
                    self.engine.ended(id, result.map(|()| None));
                }
            }
            What::Flush { slot, began } => {
                let result = self.engine.flush_ended(began, result);
                let request = self.requests[slot].as_mut().expect("a request");
                request.parts -= 1;
                request.failed |= result.is_err();
                self.finish_if_done(slot)?;
            }
            What::Part { slot, claim } => {
                if let Some(claim) = claim {
                    self.engine.wrote(claim, result);
                }
                if let Some((layer, at, count, disk)) = io.read
                    && result.is_ok()
                {
                    self.read(slot, layer, at, count, disk)?;
                }
                let request = self.requests[slot].as_mut().expect("a request");
                request.parts -= 1;
                request.failed |= result.is_err();
                self.finish_if_done(slot)?;
            }
        }
        self.pump()
    }

    fn file(&self, layer: usize, sector: u64, count: u64) -> &[u8] {
        let bytes = if layer == 0 { self.store.bytes() } else { &self.below[layer - 1] };
        let at = sector as usize * SECTOR;
        let end = at + count as usize * SECTOR;
        assert!(end <= bytes.len(), "a read past the end of layer {layer}: {at} to {end}");
        &bytes[at..end]
    }

    fn read(
        &mut self,
        slot: usize,
        layer: usize,
        at: u64,
        count: u64,
        disk: u64,
    ) -> Result<(), String> {
        let mut found = Vec::new();
        for (sector, bytes) in (disk..).zip(self.file(layer, at, count).chunks(SECTOR)) {
            let value = value_of(bytes).ok_or_else(|| format!("sector {sector} is torn inside"))?;
            found.push((sector, value));
        }
        self.requests[slot].as_mut().expect("a request").found.extend(found);
        Ok(())
    }

    fn finish_if_done(&mut self, slot: usize) -> Result<(), String> {
        let Some(request) = &self.requests[slot] else { return Ok(()) };
        let (_, first, count) = Self::range(request.ask);
        let mapped = request.cursor >= count;
        if request.parts > 0 || request.claims > 0 || request.waits || !mapped {
            return Ok(());
        }
        if request.then_flush && !request.failed {
            self.flush(slot);
            return Ok(());
        }
        let request = self.requests[slot].take().expect("a request");
        self.answered += 1;
        let is_done = !request.failed;
        match request.ask {
            Ask::Flush if is_done => {
                let readers = self.requests.iter().flatten().map(|request| request.began);
                self.oracle.flushed(request.began, readers.min().unwrap_or(u64::MAX));
            }
            Ask::Flush => self.oracle.lost(),
            Ask::Read { .. } => {
                for (sector, value) in request.found {
                    if is_done && !self.oracle.is_current(sector, value, request.began) {
                        let model = self.oracle.describe(sector);
                        return Err(format!("read {value:#x} at sector {sector}: {model}"));
                    }
                }
            }
            Ask::Write { fua, .. } => self.answer(request.number, first, count, is_done, fua),
            Ask::Zero { .. } | Ask::Trim { .. } => {
                self.answer(request.number, first, count, is_done, false);
            }
        }
        Ok(())
    }

    fn answer(&mut self, number: u64, first: u64, count: u64, is_done: bool, durable: bool) {
        for sector in first..first + count {
            self.oracle.answer(number, sector, is_done, durable);
        }
    }

    /// Checks a file that a power cut or a kill left; returns the disk.
    pub(crate) fn check(&self, file: &[u8], is_kill: bool) -> Result<Vec<u64>, String> {
        check(&self.shape, &self.oracle, file, is_kill)
    }
}

/// The same without a rig.
pub(crate) fn check(
    shape: &Shape,
    oracle: &Oracle,
    file: &[u8],
    is_kill: bool,
) -> Result<Vec<u64>, String> {
    shape.opening(file)?;
    shape.engine(file, false)?;
    let disk = shape.read_all(file)?;
    for (sector, value) in (0..).zip(&disk) {
        let is_right = if is_kill {
            oracle.is_current(sector, *value, u64::MAX)
        } else {
            oracle.survives_cut(sector, *value)
        };
        if !is_right {
            let model = oracle.describe(sector);
            return Err(format!("{value:#x} at sector {sector} of the disk: {model}"));
        }
    }
    Ok(disk)
}
