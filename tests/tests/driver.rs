//! Disks through the blktap2 driver of the running kernel: many at once, many after another, and
//! one whose server is killed after its users have closed it.
//!
//! Skipped where the kernel has no driver, or others use it. In a virtual machine the stage `vm`
//! runs this program.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use blktap_ioctl::{Control, Places, Tap};
use nix::libc::O_DIRECT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, close};
use tapdisk::memory::Memory;
use tapdisk::queue::{EngineKind, Io, IoOp, Queue, QueueConfig, Tag};
use tapdisk_control::message::Params;
use tapdisk_control::spawn::{daemon_program, spawn};
use tapdisk_control::{Client, Paths, minor};
use tapdisk_tests::{has_ended, skip, wait_until};

const DISKS: u8 = 200;
const CYCLES: u32 = 500;

/// Bytes of each image.
const SIZE: u64 = 1 << 20;

/// A daemon that serves disks of the driver, one test at a time.
struct Bench {
    paths: Paths,
    control: Control,
    client: Client,
    images: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

struct Disk {
    tap: Tap,
    minor: u16,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Bench {
    fn new(name: &str) -> Option<Self> {
        let places = Places::default();
        let Ok(Some(_)) = places.driver() else {
            skip("this kernel has no blktap driver");
            return None;
        };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Where images lie must have direct I/O: a test's folder may be in memory.
        let root = std::env::var_os("DRIVER_IMAGES").map_or_else(std::env::temp_dir, PathBuf::from);
        let images = root.join(format!("driver-{name}-{}", std::process::id()));
        fs::create_dir_all(&images).unwrap();
        let paths = Paths::default();
        let client = Client::new(&paths, spawn(&daemon_program()).unwrap());
        let control = Control::open(places).unwrap();
        Some(Self { paths, control, client, images, _alone: alone })
    }

    fn image(&self, number: u32) -> PathBuf {
        let path = self.images.join(number.to_string());
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        path
    }

    fn attach(&self, image: &Path) -> Disk {
        let tap = self.control.allocate().unwrap();
        let minor = u16::try_from(tap.minor).unwrap();
        minor::mark(&self.paths, minor).unwrap();
        self.client.attach(minor).unwrap();
        let path = format!("aio:{}", image.display()).into();
        self.client.open(minor, Params { path, ..Params::default() }).unwrap();
        Disk { tap, minor }
    }

    fn remove(&self, disk: &Disk) {
        self.client.close(disk.minor, false, None).unwrap();
        self.client.detach(disk.minor).unwrap();
        self.control.free(disk.tap.minor).unwrap();
        minor::free(&self.paths, disk.minor).unwrap();
    }

    /// After its last disk the daemon ends by itself.
    fn end(self) {
        let pid = self.client.process();
        wait_until("the daemon ends", || has_ended(pid));
        fs::remove_dir_all(&self.images).unwrap();
    }
}

/// A page, where a page starts.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn open(disk: &Disk) -> File {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(O_DIRECT);
    options.open(&disk.tap.device_path).unwrap()
}

fn write(disk: &Disk, offset: u64, mark: u8) {
    let device = open(disk);
    device.write_all_at(&Page([mark; 4096]).0, offset).unwrap();
    device.sync_all().unwrap();
}

fn read(disk: &Disk, offset: u64) -> [u8; 4096] {
    let mut page = Page([0; 4096]);
    open(disk).read_exact_at(&mut page.0, offset).unwrap();
    page.0
}

#[test]
fn two_hundred_disks_at_once_keep_their_data_apart() {
    let Some(bench) = Bench::new("many") else { return };
    let disks: Vec<(u8, Disk)> =
        (0..DISKS).map(|mark| (mark, bench.attach(&bench.image(mark.into())))).collect();
    let listed = fs::read_to_string("/sys/class/blktap2/devices").unwrap();
    assert_eq!(listed.lines().count(), usize::from(DISKS));
    for (mark, disk) in &disks {
        write(disk, SIZE - 4096, *mark);
    }
    for (mark, disk) in disks.iter().rev() {
        assert_eq!(read(disk, SIZE - 4096), [*mark; 4096], "disk {mark}");
    }
    for (mark, disk) in &disks {
        bench.remove(disk);
        let file = File::open(bench.images.join(mark.to_string())).unwrap();
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, SIZE - 4096).unwrap();
        assert_eq!(bytes, [*mark; 4096], "image {mark}");
    }
    bench.end();
}

/// What the kernel keeps for itself, in KiB.
fn kernel_memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let value = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let kept = ["SUnreclaim:", "PageTables:", "KernelStack:", "VmallocUsed:"];
    let lines = text.lines().filter(|line| kept.iter().any(|name| line.starts_with(name)));
    lines.map(value).sum()
}

#[test]
fn disks_come_and_go_and_leave_nothing_behind() {
    let Some(bench) = Bench::new("cycles") else { return };
    let stays = bench.attach(&bench.image(0));
    let image = bench.image(1);
    let cycle = |number: u32| {
        let disk = bench.attach(&image);
        assert_eq!(disk.minor, 1, "the lowest free one, each time");
        let mark = number.to_le_bytes()[0];
        write(&disk, 0, mark);
        assert_eq!(read(&disk, 0), [mark; 4096]);
        bench.remove(&disk);
    };
    (0..100).for_each(cycle);
    let before = kernel_memory_kib();
    (100..CYCLES).for_each(cycle);
    let after = kernel_memory_kib();
    // A leak of a ring would be 1.4 MB each time, of a disk some 10 KiB.
    assert!(after < before + 2048, "the kernel kept {before} KiB, then {after}");
    assert_eq!(read(&stays, 0), [0; 4096]);
    bench.remove(&stays);
    bench.end();
}

/// Linux AIO of a user who has closed the disk since: each I/O holds the open file, and the end of
/// the last one closes it. More than fit into the ring. The queue is never dropped, as it would
/// close the descriptor, too; memory is dropped after the last I/O.
struct Orphans {
    queue: ManuallyDrop<Queue>,
    _memory: Memory,
}

impl Orphans {
    const COUNT: u32 = 40;

    fn new(disk: &Disk) -> Self {
        let config = QueueConfig { merge_iovecs: 1, ..QueueConfig::default() };
        let mut queue = Queue::new(EngineKind::Aio, config).unwrap();
        let mut memory = Memory::new(Self::COUNT as usize * 4096).unwrap();
        let device = Arc::new(open(disk));
        let descriptor = device.as_raw_fd();
        let file = queue.add_file(device).unwrap();
        for number in 0..Self::COUNT {
            let segment = memory.allocate(4096).unwrap();
            // Every other page: the block layer would merge neighbours.
            let offset = u64::from(number) * 8192;
            let tag = Tag(number.into());
            let io = Io { tag, op: IoOp::Read, file, offset, len: 4096, segments: &[segment] };
            queue.push(&memory, &io);
        }
        queue.submit(false);
        close(descriptor).unwrap();
        Self { queue: ManuallyDrop::new(queue), _memory: memory }
    }

    fn ended(&mut self) -> usize {
        self.queue
            .reap(|completion| assert!(completion.status.errno().is_some(), "nobody served it"))
    }
}

/// Also of the one whose ring is released last: the first release waits for the users of its disk.
#[test]
fn a_killed_server_fails_all_its_disks_while_they_are_open() {
    let Some(bench) = Bench::new("several") else { return };
    let disks = [0, 1, 2].map(|number| bench.attach(&bench.image(number)));
    let users = [0, 1, 2].map(|number: usize| Arc::new(open(&disks[number])));
    kill(Pid::from_raw(bench.client.process()), Signal::SIGKILL).unwrap();
    for user in &users {
        let user = Arc::clone(user);
        let read = thread::spawn(move || user.read_exact_at(&mut Page([0; 4096]).0, 0));
        wait_until("a read of a disk without a server fails", || read.is_finished());
        read.join().unwrap().unwrap_err();
    }
    assert!(users.iter().all(|user| Arc::strong_count(user) == 1), "they are open");
    drop(users);
    for disk in &disks {
        wait_until("the tap is free", || bench.control.free(disk.tap.minor).is_ok());
        minor::free_after_driver(&bench.paths, disk.minor).unwrap();
    }
    bench.end();
}

/// Whether the requests wait before the ring or have been moved into it.
#[test]
fn a_server_can_be_killed_after_users_closed_the_disk_with_io_under_way() {
    for is_in_ring in [false, true] {
        let Some(bench) = Bench::new("orphans") else { return };
        let disk = bench.attach(&bench.image(0));
        let server = Pid::from_raw(bench.client.process());
        if is_in_ring {
            // It polls the ring, and answers nothing.
            bench.client.pause(disk.minor, None).unwrap();
        } else {
            kill(server, Signal::SIGSTOP).unwrap();
        }
        let mut orphans = Orphans::new(&disk);
        assert_eq!(orphans.ended(), 0);
        kill(server, Signal::SIGKILL).unwrap();
        wait_until("the tap is free", || bench.control.free(disk.tap.minor).is_ok());
        let mut ended = 0;
        wait_until("all I/O has ended", || {
            ended += orphans.ended();
            ended == Orphans::COUNT as usize
        });
        assert!(orphans.queue.is_idle());
        minor::free_after_driver(&bench.paths, disk.minor).unwrap();
        bench.end();
    }
}
