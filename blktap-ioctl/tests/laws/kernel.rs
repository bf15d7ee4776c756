//! The two kernels, and the users of a tap's block device on each.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blktap_ioctl::abi::{DeviceInfoBoth, ResponseEntry};
use blktap_ioctl::sim::{self, Driver, SimOptions};
use blktap_ioctl::{
    Control, DeviceParams, MappedRing, Places, RawRing, Ring, RingRequest, Tap, TrimParams,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use self::user::User;

#[path = "user.rs"]
pub(crate) mod user;

/// How long anything may take before a law fails instead of hanging. Nothing waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sectors of 512 bytes of the disks of most laws.
pub(crate) const SECTORS: u64 = 4096;

/// The layout of `CREATE_DEVICE`, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// 56 bytes.
    Xcp,
    /// 40 bytes: flush and trim.
    Dkms,
}

pub(crate) const BOTH: [Generation; 2] = [Generation::Xcp, Generation::Dkms];

/// Whether the laws are those of the running kernel's driver.
pub(crate) fn is_driver() -> bool {
    std::env::var_os("BLKTAP_KERNEL").is_some_and(|kernel| kernel == "driver")
}

/// Says why a law has nothing to show on the simulated kernel.
pub(crate) fn only_driver(reason: &str) -> bool {
    if !is_driver() {
        println!("skipped on the simulated kernel: {reason}");
    }
    is_driver()
}

/// The driver's generation is one parameter of the module, for all taps.
static PARAMETER: Mutex<()> = Mutex::new(());

fn options(generation: Generation) -> SimOptions {
    let driver = match generation {
        Generation::Xcp => Driver::Xcp,
        Generation::Dkms => Driver::Dkms,
    };
    SimOptions { driver, ..SimOptions::default() }
}

/// A tap of the driver; freed when this is dropped. Meanwhile other laws wait.
#[derive(Debug)]
pub(crate) struct Taken(Option<(Control, Tap, MutexGuard<'static, ()>)>);

impl Taken {
    fn new(hold: MutexGuard<'static, ()>) -> Self {
        let control = Control::open(Places::default()).unwrap();
        let tap = control.allocate().unwrap();
        Self(Some((control, tap, hold)))
    }

    fn tap(&self) -> &Tap {
        &self.0.as_ref().expect("it is the driver's").1
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Self(Some((control, tap, _))) = self {
            let freed = control.free(tap.minor);
            if !std::thread::panicking() {
                freed.unwrap();
            }
        }
    }
}

fn choose(generation: Generation) -> MutexGuard<'static, ()> {
    let guard = PARAMETER.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = match generation {
        Generation::Xcp => "56",
        Generation::Dkms => "40",
    };
    std::fs::write("/sys/module/blktap/parameters/device_info_bytes", bytes).unwrap();
    guard
}

/// A tap, its ring open and not mapped, and its users. What a law does not end itself ends in the
/// right order: the device is closed, then the ring, which waits for that, and the tap is freed.
fn tap(generation: Generation) -> (Taken, Ring, User) {
    if is_driver() {
        let hold = choose(generation);
        let taken = Taken::new(hold);
        let ring = Ring::open(&taken.tap().ring_path).unwrap();
        let user = User::Driver(user::Driver::new(taken.tap()));
        (taken, ring, user)
    } else {
        let (ring, device) = sim::create(options(generation)).unwrap();
        (Taken(None), ring, User::Sim(device))
    }
}

/// The same, for a server that keeps no rule.
pub(crate) fn raw_tap(generation: Generation) -> (Taken, RawRing, User) {
    if is_driver() {
        let hold = choose(generation);
        let taken = Taken::new(hold);
        let ring = RawRing::open(&taken.tap().ring_path).unwrap();
        let user = User::Driver(user::Driver::new(taken.tap()));
        (taken, ring, user)
    } else {
        let (ring, device) = sim::create_raw(options(generation)).unwrap();
        (Taken(None), ring, User::Sim(device))
    }
}

/// The same, mapped.
pub(crate) fn mapped(generation: Generation) -> (Taken, MappedRing, User) {
    let (taken, ring, user) = tap(generation);
    (taken, ring.map().unwrap(), user)
}

/// A device with all that the 40-byte generation has.
pub(crate) fn params() -> DeviceParams {
    let trim = TrimParams { granularity: 512, alignment: 0, reads_zero: false };
    DeviceParams { flush: true, trim: Some(trim), ..DeviceParams::new(SECTORS) }
}

/// A tap that is served, with flush and trim, and open for the user.
pub(crate) fn served() -> (Taken, MappedRing, User) {
    let (taken, mut ring, mut user) = mapped(Generation::Dkms);
    ring.create_device(&params()).unwrap();
    user.open().unwrap();
    (taken, ring, user)
}

/// A device of [`SECTORS`] sectors, as bytes.
pub(crate) fn info() -> DeviceInfoBoth {
    DeviceInfoBoth {
        capacity: SECTORS,
        sector_size: 512,
        physical_sector_size: 512,
        ..DeviceInfoBoth::default()
    }
}

/// The same as [`served`], without rules.
pub(crate) fn raw_served(generation: Generation) -> (Taken, RawRing, User) {
    let (taken, mut ring, mut user) = raw_tap(generation);
    ring.map().unwrap();
    ring.create_device(&mut info()).unwrap();
    user.open().unwrap();
    (taken, ring, user)
}

/// Waits, as a server does, until the ring is worth polling: 10 s, or until it is.
pub(crate) fn wait(ring: impl AsFd) {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
}

/// Takes `count` requests, all of them well-formed.
pub(crate) fn take(ring: &mut MappedRing, count: usize) -> Vec<RingRequest> {
    let start = Instant::now();
    let mut taken = Vec::new();
    loop {
        ring.poll_now().unwrap();
        taken.extend(std::iter::from_fn(|| ring.take()).map(Result::unwrap));
        if taken.len() >= count {
            assert_eq!(taken.len(), count, "{taken:?}");
            return taken;
        }
        assert!(start.elapsed() < PATIENCE, "{} of {count} requests came", taken.len());
        wait(&*ring);
    }
}

/// The same, by index.
pub(crate) fn publish(ring: &RawRing, req_prod: u32) {
    let start = Instant::now();
    while !ring.poll().unwrap() || ring.header()[0] != req_prod {
        if ring.header()[0] == req_prod {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{:?}, wanted {req_prod}", ring.header());
        std::thread::yield_now();
    }
}

/// A response to a read.
pub(crate) fn response(id: u64) -> ResponseEntry {
    ResponseEntry { id, ..ResponseEntry::default() }
}

/// Answers all of `requests`.
pub(crate) fn answer(ring: &mut MappedRing, requests: &[RingRequest]) {
    for request in requests {
        ring.respond(request.id, 0);
    }
    ring.push_responses().unwrap();
}

/// The result of a call, in numbers.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}
