//! The laws of a disk's thread: each command is answered once, in every state, and the thread ends
//! when nothing of it is under way.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use blktap_ioctl::sim::{self, Driver, Outcome, Segments, SimDevice, SimOptions};
use mio::{Poll, Waker};
use nix::errno::Errno;

use super::Disk;
use super::life::Life;
use super::thread::{Command, DiskConfig, DiskThread, Envelope, OpenRequest, WAKER, Wiring};
use crate::frontend::blktap::BlktapDoor;
use crate::image::{ImageSpec, OpenFlags};
use crate::memory::Memory;
use crate::queue::sim::{Fault, Sim};
use crate::queue::{Queue, QueueConfig};
use crate::server::shared::DiskShared;
use crate::statistics::{DiskCounters, DiskPages};
use crate::vbd::retry::RetryPolicy;
use crate::vbd::{QUEUE_CAPACITY, Vbd};

/// A disk with a simulated driver and a simulated queue; its image is a file.
struct Rig {
    thread: DiskThread,
    commands: Sender<Envelope>,
    answers: Receiver<(u64, Result<(), Errno>)>,
    waker: Waker,
    device: SimDevice,
    image: PathBuf,
}

impl Rig {
    fn new(name: &str) -> Self {
        Self::with(name, SimOptions::default())
    }

    fn with(name: &str, options: SimOptions) -> Self {
        let stem = format!("disk-thread-{}-{name}", std::process::id());
        let image = std::env::temp_dir().join(&stem);
        std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), WAKER).unwrap();
        let config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
        let mut memory = Memory::new(8 << 20).unwrap();
        let (ring, device) = sim::create(options).unwrap();
        let ring = BlktapDoor::new(ring, &mut memory).unwrap();
        let counters = DiskCounters::new();
        let shared = DiskShared::new(0, "simulated".to_owned(), true, counters.reader());
        let (commands, receiver) = channel();
        let (answer, answers) = channel();
        let respond = move |ticket, result: Result<(), crate::error::DiskError>| {
            answer.send((ticket, result.map_err(|error| error.errno()))).unwrap();
        };
        let wiring = Wiring {
            shared: Arc::new(shared),
            pages: DiskPages::default(),
            commands: receiver,
            respond: Box::new(respond),
            log: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let mut disk = Disk::new(Vbd::new(Queue::simulated(1, config), memory, counters));
        disk.ring = Some(ring);
        let nbd_path = std::env::temp_dir().join(stem + ".nbd");
        let config = DiskConfig { layers: Vec::new(), nbd_path, ring_path: None };
        let thread = DiskThread::new(disk, poll, config, wiring).unwrap();
        let mut rig = Self { thread, commands, answers, waker, device, image };
        rig.send(1, rig.open());
        rig.turns(1);
        assert_eq!(rig.answer(), Some((1, Ok(()))));
        rig
    }

    fn spec(&self) -> ImageSpec {
        ImageSpec::parse(OsStr::new(&format!("aio:{}", self.image.display()))).unwrap()
    }

    fn open(&self) -> Command {
        Command::Open(OpenRequest {
            spec: self.spec(),
            name: "aio:image".into(),
            flags: OpenFlags::default(),
            retry: RetryPolicy::default(),
        })
    }

    fn send(&self, ticket: u64, command: Command) {
        self.commands.send(Envelope { ticket, command }).unwrap();
    }

    /// Turns of the loop; none of them sleeps. Whether the thread goes on.
    fn turns(&mut self, count: usize) -> bool {
        (0..count).all(|_| {
            self.waker.wake().unwrap();
            self.thread.turn()
        })
    }

    fn answer(&self) -> Option<(u64, Result<(), Errno>)> {
        self.answers.try_recv().ok()
    }

    fn sim(&mut self) -> &mut Sim {
        self.thread.disk.vbd.queue().sim().unwrap()
    }

    /// A read from the ring that the storage does not end.
    fn stuck_read(&mut self) {
        let number = self.sim().accepted();
        self.sim().inject(number, Fault::Stuck);
        self.device.submit_read(1, 0, Segments::plain(512)).unwrap();
        self.turns(3);
        assert_eq!(self.thread.disk.vbd.outstanding(), 1);
    }

    fn ended(&self) -> Vec<Outcome> {
        let mut ended = Vec::new();
        self.device.completions(|completion| ended.push(completion.outcome));
        ended
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.image);
        let _ = std::fs::remove_file(&self.thread.config.nbd_path);
    }
}

/// Another client may have opened it since the control thread looked: a thread that ended with an
/// image open would drop what runs, and make nothing durable.
#[test]
fn a_disk_that_is_open_is_not_detached() {
    let mut rig = Rig::new("open");
    rig.send(2, Command::Detach);
    assert!(rig.turns(3));
    assert_eq!(rig.answer(), Some((2, Err(Errno::EBUSY))));
    assert_eq!(rig.thread.life, Life::Running);
}

#[test]
fn a_command_whose_client_does_not_wait_is_answered() {
    let mut rig = Rig::new("cancel");
    rig.stuck_read();
    for (ticket, command) in [(2, Command::Pause), (3, Command::Close)] {
        rig.send(ticket, command);
        rig.turns(3);
        assert_eq!(rig.answer(), None);
        rig.send(0, Command::Cancel(ticket));
        rig.turns(3);
        assert_eq!(rig.answer(), Some((ticket, Err(Errno::ECANCELED))));
    }
    assert_eq!(rig.answer(), None);
}

/// The control thread has given it up, and nobody will send it anything any more.
#[test]
fn a_thread_that_was_left_behind_ends_when_its_io_does() {
    for forced in [true, false] {
        let mut rig = Rig::new(if forced { "left" } else { "torn" });
        rig.stuck_read();
        if forced {
            rig.send(2, Command::ForceClose);
            rig.send(0, Command::Detach);
        }
        rig.commands = channel().0;
        assert!(rig.turns(10), "memory that the storage may still write to stays");
        rig.sim().release();
        rig.sim().run_all();
        assert!(!rig.turns(10));
        assert_eq!(rig.thread.life, Life::Closed);
    }
}

/// The guest has the device open and cannot let go of it while its requests have no end.
#[test]
fn a_device_that_is_held_open_fails_its_requests_after_a_forced_close() {
    let mut rig = Rig::new("held");
    rig.device.open().unwrap();
    rig.send(2, Command::ForceClose);
    rig.turns(3);
    assert_eq!(rig.answer(), Some((2, Ok(()))));
    rig.device.submit_read(1, 0, Segments::plain(512)).unwrap();
    rig.turns(3);
    assert!(matches!(rig.ended()[..], [Err(_)]));
    rig.send(3, Command::Detach);
    assert!(rig.turns(3));
    assert_eq!(rig.answer(), Some((3, Err(Errno::EBUSY))));
    rig.device.close();
    rig.send(4, Command::Detach);
    assert!(!rig.turns(1));
}

/// blktap ends them with errors.
#[test]
fn a_resume_that_fails_lets_requests_wait_for_the_next_or_for_the_end() {
    for is_closed in [false, true] {
        resume_in_vain(is_closed);
    }
}

fn resume_in_vain(is_closed: bool) {
    let mut rig = Rig::new(if is_closed { "vain-end" } else { "vain" });
    rig.sim().inject(0, Fault::Error(Errno::EAGAIN));
    rig.device.submit_read(1, 0, Segments::plain(512)).unwrap();
    rig.turns(3);
    rig.sim().run_all();
    rig.turns(3);
    assert_eq!(rig.ended().len(), 0, "it waits for its second try");
    rig.send(2, Command::Pause);
    rig.turns(3);
    assert_eq!(rig.answer(), Some((2, Ok(()))));
    let elsewhere = rig.image.with_extension("elsewhere");
    std::fs::rename(&rig.image, &elsewhere).unwrap();
    rig.send(3, Command::Resume(None, "".into()));
    rig.turns(3);
    assert_eq!(rig.answer(), Some((3, Err(Errno::ENOENT))));
    assert_eq!(rig.thread.life, Life::Paused { failed: true });
    assert_eq!((rig.ended().len(), rig.thread.disk.vbd.outstanding()), (0, 1));
    std::fs::rename(&elsewhere, &rig.image).unwrap();
    if is_closed {
        rig.send(4, Command::ForceClose);
        rig.turns(3);
        assert_eq!(rig.answer(), Some((4, Ok(()))));
        assert!(matches!(rig.ended()[..], [Err(_)]));
    } else {
        rig.send(4, Command::Resume(None, "".into()));
        rig.turns(3);
        assert_eq!(rig.answer(), Some((4, Ok(()))));
        // Its second is up, or nearly.
        while rig.thread.disk.vbd.outstanding() > 0 {
            rig.thread.turn();
            rig.sim().run_all();
        }
        assert!(matches!(rig.ended()[..], [Ok(())]));
    }
    assert_eq!(rig.thread.disk.vbd.outstanding(), 0);
}

/// The image is closed: who asked for that has nothing to do again.
#[test]
fn a_pause_and_a_close_are_done_also_when_the_storage_lost_something() {
    let mut rig = Rig::with("lost", SimOptions { driver: Driver::Dkms, ..SimOptions::default() });
    let flush = |rig: &mut Rig, fault: Option<Errno>| {
        let next = rig.sim().accepted();
        if let Some(errno) = fault {
            rig.sim().inject(next, Fault::Error(errno));
        }
        rig.device.submit_flush(1).unwrap();
        rig.turns(3);
        rig.sim().run_all();
        rig.turns(3);
        rig.ended().pop().unwrap()
    };
    let is_lost = |rig: &Rig| rig.thread.wiring.shared.gauges().has_lost;
    assert!(flush(&mut rig, Some(Errno::EIO)).is_err());
    rig.send(2, Command::Pause);
    rig.turns(3);
    assert_eq!((rig.answer(), is_lost(&rig)), (Some((2, Ok(()))), true));
    rig.send(3, Command::Resume(None, "".into()));
    rig.turns(3);
    assert_eq!(rig.answer(), Some((3, Ok(()))));
    assert!(flush(&mut rig, None).is_err(), "of what was answered after the last one");
    assert!(flush(&mut rig, None).is_ok());
    assert!(flush(&mut rig, Some(Errno::EIO)).is_err());
    rig.send(4, Command::Close);
    rig.turns(3);
    assert_eq!((rig.answer(), is_lost(&rig)), (Some((4, Ok(()))), true));
    rig.send(5, rig.open());
    rig.turns(3);
    assert_eq!((rig.answer(), rig.thread.disk.vbd.has_lost()), (Some((5, Ok(()))), false));
}

/// The storage hangs, perhaps for ever: nobody is left waiting for it.
#[test]
fn a_forced_close_lets_nbd_peers_go_while_io_hangs() {
    use std::io::Read;
    let mut rig = Rig::new("peers");
    let path = rig.thread.config.nbd_path.clone();
    let mut peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
    rig.stuck_read();
    rig.send(2, Command::ForceClose);
    rig.turns(3);
    assert_eq!(rig.answer(), None, "it is not closed while its I/O is out");
    let mut greeting = Vec::new();
    peer.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18, "the connection has ended");
    assert!(!path.exists());
    rig.sim().release();
    rig.sim().run_all();
    rig.turns(3);
    assert_eq!(rig.answer(), Some((2, Ok(()))));
}
