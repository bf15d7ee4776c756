//! The NBD door between a hostile peer and a disk of zeros and noise, over a real socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mio::{Events, Poll};
use tapdisk::frontend::nbd::{NbdConfig, NbdDoor};
use tapdisk::frontend::{Frontend, Intake};
use tapdisk::memory::Memory;
use tapdisk::request::{Answer, DiskInfo, Extent, ExtentKind, Op, Request};
use tapdisk::status::Status;
use tapdisk::time::Now;

const DISK_BYTES: usize = 64 << 10;
const MEMORY_BYTES: usize = 8 << 20;

/// Far more turns than any input of the longest length needs.
const TURNS_MAX: u32 = 100_000;

/// A door, a disk behind it, a peer in front.
#[derive(Debug)]
pub struct Rig {
    door: NbdDoor,
    disk: Disk,
    poll: Poll,
    events: Events,
    peer: UnixStream,
    /// The door did not do all that it could.
    has_more: bool,
    free_at_start: u64,
}

#[derive(Debug)]
struct Disk {
    memory: Memory,
    bytes: Vec<u8>,
    running: Vec<Request>,
    is_read_only: bool,
}

impl Rig {
    /// A peer that has just connected.
    #[must_use]
    pub fn new(is_read_only: bool) -> Self {
        let config = NbdConfig { clients_max: 2, requests_per_client: 16, ..NbdConfig::default() };
        let config = NbdConfig { bytes_per_client: 4 << 20, ..config };
        let mut door = NbdDoor::without_listener(config);
        let poll = Poll::new().expect("epoll");
        door.register(poll.registry(), 0).expect("nothing to register yet");
        let mut memory = Memory::new(MEMORY_BYTES).expect("8 MiB");
        memory.reserve_connections(config.connections_bytes()).expect("less than that");
        let free_at_start = memory.free_bytes();
        let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
        peer.set_nonblocking(true).expect("a socket can be non-blocking");
        door.add(ours).expect("it is the first");
        // Extents of both kinds.
        let bytes = (0..DISK_BYTES).map(|index| u8::from(index / 2048 % 3 == 1)).collect();
        let disk = Disk { memory, bytes, running: Vec::new(), is_read_only };
        let events = Events::with_capacity(16);
        Self { door, disk, poll, events, peer, has_more: true, free_at_start }
    }

    /// Sends bytes, `piece` at a time, and reads whatever comes back. Ends early when the door
    /// hangs up.
    pub fn send(&mut self, mut bytes: &[u8], piece: usize) {
        let mut turns = 0;
        while !bytes.is_empty() {
            turns += 1;
            assert!(turns < TURNS_MAX, "the door takes nothing: {}", self.describe());
            match self.peer.write(&bytes[..piece.clamp(1, bytes.len())]) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            self.settle();
            if !self.drain() {
                return;
            }
        }
    }

    /// Hangs up; everything that the connection held must come back.
    pub fn hang_up(mut self) {
        self.peer.shutdown(std::net::Shutdown::Both).expect("it is a connected socket");
        self.settle();
        self.disk.finish_all(&mut self.door);
        self.door.close(self.poll.registry(), &mut self.disk.memory);
        assert_eq!(self.disk.memory.free_bytes(), self.free_at_start, "the door leaks");
        assert_eq!(self.door.connected(), 0);
    }

    /// Turns the loop until it would sleep.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("epoll");
            if self.events.is_empty() && !self.has_more {
                return;
            }
            for event in &self.events {
                self.door.ready(event.token().0, event.into());
            }
            self.has_more = self.door.pull(&mut self.disk);
            self.disk.finish_all(&mut self.door);
            self.door.flush(&mut self.disk.memory);
            self.drain();
        }
        panic!("the loop spins: {}", self.describe());
    }

    /// Reads what has come; whether the door is still there.
    fn drain(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        loop {
            match self.peer.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        let _ = self.door.describe(&mut text);
        text
    }
}

impl Intake for Disk {
    fn has_room(&self) -> bool {
        self.running.len() < 8
    }

    fn start(&mut self, fill: impl FnOnce(&mut Request)) {
        let mut request = Request::NONE;
        fill(&mut request);
        assert!(self.has_room(), "started without room");
        self.running.push(request);
    }

    fn abandon(&mut self, peer: u16) -> bool {
        let is_of = |request: &&Request| request.token.peer == peer;
        self.running.iter().filter(is_of).any(|request| request.op.is_change())
    }

    fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn info(&self) -> DiskInfo {
        DiskInfo { size: DISK_BYTES as u64, sector_size: 512, read_only: self.is_read_only }
    }

    fn now(&self) -> Now {
        Now::default()
    }
}

impl Disk {
    /// Latest first: replies may overtake each other.
    fn finish_all(&mut self, door: &mut NbdDoor) {
        while let Some(request) = self.running.pop() {
            let answer = self.perform(&request);
            door.answer(&request, answer, &mut self.memory);
        }
    }

    fn perform(&mut self, request: &Request) -> Answer {
        if request.op.has_data() {
            assert_eq!(request.segments.bytes(), request.len, "{request:?}");
        }
        let end = request.offset.checked_add(request.len).expect("the door checks for overflow");
        let is_outside = end > DISK_BYTES as u64 || !(request.offset | end).is_multiple_of(512);
        if is_outside || (self.is_read_only && request.op.is_change()) {
            return Status::Failed(nix::errno::Errno::EINVAL).into();
        }
        let index = |at: u64| usize::try_from(at).expect("inside a small disk");
        let range = index(request.offset)..index(end);
        let mut at = range.start;
        match request.op {
            Op::Read | Op::Write => {
                for segment in request.segments.as_slice() {
                    let bytes = &mut self.bytes[at..at + segment.len as usize];
                    if request.op == Op::Read {
                        self.memory.copy_in(*segment, bytes);
                    } else {
                        self.memory.copy_out(*segment, bytes);
                    }
                    at += segment.len as usize;
                }
            }
            Op::WriteZeroes => self.bytes[range].fill(0),
            Op::Flush | Op::Trim => {}
            Op::BlockStatus => {
                let is_zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
                let first = is_zero(&self.bytes[range.start..range.start + 512]);
                let sectors = self.bytes[range].chunks(512);
                let count = sectors.take_while(|sector| is_zero(sector) == first).count();
                let kind = if first { ExtentKind::Hole } else { ExtentKind::Data };
                let extent = Some(Extent { len: count as u64 * 512, kind });
                return Answer { status: Status::Done, extent };
            }
        }
        Status::Done.into()
    }
}
