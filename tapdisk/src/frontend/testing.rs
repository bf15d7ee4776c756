//! The inside of a disk as a door sees it, for tests of doors: a vector of bytes that answers when
//! it is told to, in any order.

use nix::errno::Errno;

use super::{Frontend, Intake};
use crate::memory::Memory;
use crate::request::{Answer, DiskInfo, Extent, ExtentKind, Op, Request};
use crate::status::Status;
use crate::time::Now;

/// Holds what was started until the test lets it end.
#[derive(Debug)]
pub(crate) struct MockIntake {
    pub(crate) memory: Memory,
    pub(crate) info: DiskInfo,
    pub(crate) disk: Vec<u8>,
    pub(crate) now: Now,
    /// How many requests may be under way.
    pub(crate) room: usize,
    /// Started and not answered, oldest first.
    pub(crate) running: Vec<Request>,
    /// All that was ever started.
    pub(crate) started: Vec<Request>,
    /// What the next requests end with instead of being done.
    pub(crate) failures: Vec<Errno>,
    /// Whose requests are not to be tried again.
    pub(crate) abandoned: Vec<u16>,
}

impl MockIntake {
    /// A disk of zeros with an arena of `memory_bytes`.
    pub(crate) fn new(disk_bytes: usize, memory_bytes: usize) -> Self {
        Self {
            memory: Memory::new(memory_bytes).unwrap(),
            info: DiskInfo { size: disk_bytes as u64, sector_size: 512, read_only: false },
            disk: vec![0; disk_bytes],
            now: Now(1_000_000_000_000),
            room: 64,
            running: Vec::new(),
            started: Vec::new(),
            failures: Vec::new(),
            abandoned: Vec::new(),
        }
    }

    /// Ends the `index`th of what is running. Returns what it was.
    pub(crate) fn finish(&mut self, index: usize, door: &mut dyn Frontend) -> Request {
        let request = self.running.remove(index);
        let answer = match self.check(&request) {
            Err(errno) => Status::Failed(errno).into(),
            Ok(()) => self.perform(&request),
        };
        door.answer(&request, answer, &mut self.memory);
        request
    }

    /// Ends all that is running, oldest first.
    pub(crate) fn finish_all(&mut self, door: &mut dyn Frontend) {
        while !self.running.is_empty() {
            self.finish(0, door);
        }
    }

    /// What the core checks for every door.
    fn check(&mut self, request: &Request) -> Result<(), Errno> {
        if let Some(errno) = self.failures.pop() {
            return Err(errno);
        }
        if request.op.is_change() && self.info.read_only {
            return Err(Errno::EROFS);
        }
        let end = request.offset.checked_add(request.len).expect("the door checks for overflow");
        if end > self.info.size {
            return Err(if request.op.is_change() { Errno::ENOSPC } else { Errno::EINVAL });
        }
        let unit = u64::from(self.info.sector_size);
        if !request.offset.is_multiple_of(unit) || !request.len.is_multiple_of(unit) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn perform(&mut self, request: &Request) -> Answer {
        let start = usize::try_from(request.offset).unwrap();
        let range = start..start + usize::try_from(request.len).unwrap();
        let mut at = range.start;
        match request.op {
            Op::Read | Op::Write => {
                for segment in request.segments.as_slice() {
                    let bytes = &mut self.disk[at..at + segment.len as usize];
                    if request.op == Op::Read {
                        self.memory.copy_in(*segment, bytes);
                    } else {
                        self.memory.copy_out(*segment, bytes);
                    }
                    at += segment.len as usize;
                }
                assert_eq!(at, range.end, "the segments are as long as the request");
            }
            Op::WriteZeroes => self.disk[range].fill(0),
            Op::Flush | Op::Trim => {}
            Op::BlockStatus => return self.extent(range),
        }
        Status::Done.into()
    }

    /// Sectors of zeros are holes; an extent ends where this changes.
    fn extent(&self, range: std::ops::Range<usize>) -> Answer {
        let mut sectors = self.disk[range].chunks(512);
        let is_hole = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
        let first = is_hole(sectors.next().unwrap());
        let more = sectors.take_while(|sector| is_hole(sector) == first).count();
        let kind = if first { ExtentKind::Hole } else { ExtentKind::Data };
        let extent = Extent { len: (more as u64 + 1) * 512, kind };
        Answer { status: Status::Done, extent: Some(extent) }
    }
}

impl Intake for MockIntake {
    fn has_room(&self) -> bool {
        self.running.len() < self.room
    }

    fn start(&mut self, fill: impl FnOnce(&mut Request)) {
        assert!(self.has_room());
        let mut request = Request::NONE;
        fill(&mut request);
        if request.op.has_data() {
            assert_eq!(request.segments.bytes(), request.len);
        }
        self.running.push(request);
        self.started.push(request);
    }

    fn abandon(&mut self, peer: u16) -> bool {
        if !self.abandoned.contains(&peer) {
            self.abandoned.push(peer);
        }
        let is_of = |request: &&Request| request.token.peer == peer;
        self.running.iter().filter(is_of).any(|request| request.op.is_change())
    }

    fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn info(&self) -> DiskInfo {
        self.info
    }

    fn now(&self) -> Now {
        self.now
    }
}
