//! A disk behind the kernel's ring, simulated: production code from the ring's page to the file.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use blktap_ioctl::sim::{self, Driver, Outcome, Segments, SimDevice, SimOptions};
use nix::errno::Errno;

use super::*;
use crate::chain::Chain;
use crate::frontend::Ready;
use crate::image::{ImageSpec, OpenFlags};
use crate::memory::Memory;
use crate::queue::{EngineKind, Queue, QueueConfig};
use crate::statistics::DiskCounters;
use crate::vbd::QUEUE_CAPACITY;
use crate::vbd::retry::RetryPolicy;

const SIZE: u64 = 1 << 20;
/// Of a peer that is there.
const READY: Ready = Ready { readable: true, writable: true, ends: false, is_gone: false };

struct Rig {
    disk: Disk,
    device: SimDevice,
    path: PathBuf,
    ended: Vec<(u64, Outcome, Vec<u8>)>,
}

impl Rig {
    fn new(name: &str, engine: EngineKind, options: SimOptions) -> Self {
        let path = std::env::temp_dir().join(format!("disk-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
        let queue = Queue::new(engine, config).unwrap();
        let mut vbd = Vbd::new(queue, Memory::new(4096).unwrap(), DiskCounters::new());
        let text = format!("aio:{}", path.display());
        let spec = ImageSpec::parse(OsStr::new(&text)).unwrap();
        let image = spec.open(OpenFlags::default(), vbd.queue()).unwrap();
        vbd.insert_chain(Chain::new(Vec::new(), vec![image]), false, RetryPolicy::default());
        let info = vbd.info();
        let mut disk = Disk::new(vbd);
        let (ring, device) = sim::create(options).unwrap();
        let mut door = BlktapDoor::new(ring, disk.vbd.memory()).unwrap();
        door.create_device(info).unwrap();
        disk.ring = Some(door);
        Self { disk, device, path, ended: Vec::new() }
    }

    /// Turns until the device has nothing in use.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            // The poll of the simulated kernel happens when the door looks; an event says so.
            self.disk.ring.as_mut().unwrap().ready(0, READY);
            if !self.disk.turn(Now::default(), Now::default).more {
                // As the loop would, but the ring is looked at in any case.
                self.disk.vbd.queue().wait_batch(1, std::time::Duration::from_secs(10));
            }
            let ended = &mut self.ended;
            self.device.completions(|completion| {
                ended.push((completion.cookie, completion.outcome, completion.data.to_vec()));
            });
            if self.device.in_use() == 0 {
                return;
            }
        }
        panic!("requests do not end: {:?}", self.disk);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn what_goes_into_the_ring_is_in_the_file_and_comes_back() {
    for (engine, name) in [(EngineKind::Aio, "aio"), (EngineKind::Sync, "sync")] {
        let mut rig = Rig::new(name, engine, SimOptions::default());
        let data: Vec<u8> = (1..=88_u8).flat_map(|sector| [sector; 512]).collect();
        rig.device.submit_write(1, 16, Segments::plain(45056), &data).unwrap();
        rig.settle();
        let file = std::fs::read(&rig.path).unwrap();
        assert_eq!(file[16 * 512..16 * 512 + 45056], data);
        rig.device.submit_read(2, 16, Segments::plain(45056)).unwrap();
        rig.settle();
        assert_eq!(rig.ended.len(), 2);
        assert!(rig.ended.iter().all(|(_, outcome, _)| *outcome == Ok(())));
        assert_eq!(rig.ended[1].2, data);
        assert_eq!(rig.device.violations(), 0);
    }
}

#[test]
fn more_requests_than_slots_all_end() {
    let mut rig = Rig::new("many", EngineKind::Aio, SimOptions::default());
    for cookie in 0..100 {
        rig.device.submit_read(cookie, cookie * 8, Segments::plain(4096)).unwrap();
    }
    rig.settle();
    let mut cookies: Vec<u64> = rig.ended.iter().map(|(cookie, ..)| *cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..100).collect::<Vec<_>>());
}

#[test]
fn one_notification_answers_all_requests_of_a_turn() {
    let mut rig = Rig::new("batch", EngineKind::Sync, SimOptions::default());
    for cookie in 0..32 {
        rig.device.submit_read(cookie, cookie * 8, Segments::plain(4096)).unwrap();
    }
    rig.settle();
    let statistics = rig.disk.ring.as_ref().unwrap().statistics();
    assert_eq!((statistics.taken, statistics.answered, statistics.kicks_out), (32, 32, 1));
}

#[test]
fn a_flush_of_the_ring_is_answered_where_the_driver_has_it() {
    let options = SimOptions { driver: Driver::Dkms, ..SimOptions::default() };
    let mut rig = Rig::new("flush", EngineKind::Aio, options);
    rig.device.submit_write(1, 0, Segments::plain(512), &[3; 512]).unwrap();
    rig.device.submit_flush(2).unwrap();
    rig.device.submit_trim(3, 1024, 8).unwrap();
    rig.settle();
    assert_eq!(rig.ended.len(), 3);
    assert!(rig.ended.iter().all(|(_, outcome, _)| *outcome == Ok(())), "{:?}", rig.ended);
}

#[test]
fn a_malformed_entry_is_answered_with_an_error_and_the_ring_goes_on() {
    let mut rig = Rig::new("malformed", EngineKind::Aio, SimOptions::default());
    let mut entry = [0; 112];
    entry[0] = 77;
    entry[1] = 1;
    entry[8] = 5;
    rig.device.hostile().publish(&entry);
    rig.settle();
    rig.disk.turn(Now::default(), Now::default);
    let response = rig.device.hostile().response(0);
    assert_eq!(response[0], 5);
    assert_eq!(i16::from_ne_bytes([response[10], response[11]]), -1);
    rig.device.submit_read(1, 0, Segments::plain(512)).unwrap();
    rig.settle();
    assert_eq!(rig.ended.len(), 1);
    assert_eq!(rig.disk.ring.as_ref().unwrap().statistics().faults, 1);
}

#[test]
fn a_producer_index_out_of_step_ends_the_ring_and_not_the_process() {
    let mut rig = Rig::new("index", EngineKind::Aio, SimOptions::default());
    rig.device.hostile().set_req_prod(1000);
    for _ in 0..3 {
        rig.disk.ring.as_mut().unwrap().ready(0, READY);
        assert!(
            !rig.disk.turn(Now::default(), Now::default).more,
            "a dead ring does not keep the loop busy"
        );
    }
    let mut text = String::new();
    rig.disk.ring.as_ref().unwrap().describe(&mut text).unwrap();
    assert!(text.contains("not read any more"), "{text}");
}

#[test]
fn a_device_in_use_is_not_removed_and_serves_on() {
    let mut rig = Rig::new("busy", EngineKind::Aio, SimOptions::default());
    rig.device.open().unwrap();
    let removal = rig.disk.ring.as_mut().unwrap().remove_device().unwrap();
    assert_eq!(removal, crate::frontend::blktap::Removal::Busy);
    rig.device.submit_read(1, 0, Segments::plain(512)).unwrap();
    rig.settle();
    assert_eq!(rig.ended[0].1, Ok(()));
    rig.device.close();
    let removal = rig.disk.ring.as_mut().unwrap().remove_device().unwrap();
    assert_eq!(removal, crate::frontend::blktap::Removal::Removed);
    assert_eq!(rig.device.submit_read(2, 0, Segments::plain(512)), Err(Errno::ENXIO));
}

#[test]
fn a_suspended_ring_leaves_requests_where_they_are() {
    let mut rig = Rig::new("suspend", EngineKind::Aio, SimOptions::default());
    rig.disk.ring.as_mut().unwrap().suspend();
    rig.device.submit_read(1, 0, Segments::plain(512)).unwrap();
    for _ in 0..10 {
        rig.disk.ring.as_mut().unwrap().ready(0, READY);
        rig.disk.turn(Now::default(), Now::default);
    }
    assert_eq!(rig.disk.vbd.outstanding(), 0);
    rig.disk.ring.as_mut().unwrap().resume();
    rig.settle();
    assert_eq!(rig.ended.len(), 1);
}

/// A disk on a simulated queue, with an NBD door.
fn simulated(name: &str) -> Disk {
    let config = QueueConfig { capacity: QUEUE_CAPACITY, ..QueueConfig::default() };
    let memory = Memory::new(8 << 20).unwrap();
    let mut vbd = Vbd::new(Queue::simulated(1, config), memory, DiskCounters::new());
    let path = std::env::temp_dir().join(format!("disk-{}-{name}", std::process::id()));
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let spec = ImageSpec::parse(OsStr::new(&format!("aio:{}", path.display()))).unwrap();
    let image = spec.open(OpenFlags::default(), vbd.queue()).unwrap();
    std::fs::remove_file(&path).unwrap();
    vbd.insert_chain(Chain::new(Vec::new(), vec![image]), false, RetryPolicy::default());
    let mut disk = Disk::new(vbd);
    let config = crate::frontend::nbd::NbdConfig::default();
    disk.vbd.memory().reserve_connections(config.connections_bytes()).unwrap();
    disk.nbd = Some(NbdDoor::without_listener(config));
    disk
}

/// A client of number `number` that shakes hands and asks for `count` sectors at once.
fn nbd_reads(disk: &mut Disk, number: usize, count: u64) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    disk.nbd.as_mut().unwrap().add(ours).unwrap();
    let mut bytes = Vec::from(3_u32.to_be_bytes());
    bytes.extend_from_slice(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    for cookie in 0..count {
        bytes.extend_from_slice(b"\x25\x60\x95\x13\0\0\0\0");
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&512_u32.to_be_bytes());
    }
    theirs.write_all(&bytes).unwrap();
    for _ in 0..100 {
        disk.nbd.as_mut().unwrap().ready(number + 1, READY);
        disk.turn(Now::default(), Now::default);
    }
    theirs
}

/// The loop sleeps as long as its doors let it: a deadline that has passed, and that no turn takes
/// away, would keep a processor busy.
#[test]
fn a_suspended_door_lets_the_loop_sleep() {
    let mut disk = simulated("sleep");
    // More than a client may have at a time.
    let _client = nbd_reads(&mut disk, 0, 200);
    assert_eq!(disk.vbd.outstanding(), 128);
    // It pauses while they run; they end.
    disk.doors().for_each(|(_, door)| door.suspend());
    disk.vbd.queue().sim().unwrap().run_all();
    for _ in 0..10 {
        disk.turn(Now::default(), Now::default);
    }
    assert_eq!(disk.vbd.outstanding(), 0, "a suspended door takes nothing");
    assert_eq!(disk.nbd.as_ref().unwrap().deadline(), Now::NEVER);
}

/// All slots are taken by NBD clients when a request comes into the ring. Its event is gone by the
/// time they are free.
#[test]
fn a_ring_that_found_no_room_is_looked_at_when_there_is_some() {
    let mut disk = simulated("room");
    let (ring, device) = sim::create(SimOptions::default()).unwrap();
    let mut door = BlktapDoor::new(ring, disk.vbd.memory()).unwrap();
    door.create_device(disk.vbd.info()).unwrap();
    disk.ring = Some(door);
    let _clients = [nbd_reads(&mut disk, 0, 128), nbd_reads(&mut disk, 1, 128)];
    assert_eq!(disk.vbd.outstanding(), 256);
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    disk.ring.as_mut().unwrap().ready(0, READY);
    assert!(!disk.turn(Now::default(), Now::default).more, "with no room there is nothing to do");
    disk.vbd.queue().sim().unwrap().run_all();
    let mut turns = 0;
    while disk.turn(Now::default(), Now::default).more {
        turns += 1;
        assert!(turns < 100, "the loop spins");
    }
    assert_eq!(disk.vbd.outstanding(), 1, "that of the ring");
}
