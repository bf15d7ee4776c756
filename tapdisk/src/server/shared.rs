//! What the thread of a disk shows to the control thread, so that `list` and `stats` never wait for
//! it.
//!
//! Counters are atomics, written once in a turn; the rest stands behind a mutex that is locked only
//! when the disk changes its state, and never while anything blocks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tapdisk_control::list;

use crate::disk::life::Life;
use crate::frontend::blktap::BlktapDoor;
use crate::frontend::nbd::NbdDoor;
use crate::image::ImageType;
use crate::request::DiskInfo;
use crate::statistics::CountersReader;
use crate::vbd::Vbd;

/// One image of the chain, as `stats` names it.
#[derive(Clone, Debug)]
pub struct ImageLabel {
    /// Its path.
    pub path: PathBuf,
    /// Its type.
    pub kind: &'static ImageType,
    /// Goes through the page cache.
    pub buffered: bool,
}

/// What changes when the disk changes its state.
#[derive(Clone, Debug)]
pub struct Public {
    /// The state.
    pub life: Life,
    /// `type:path` while open or paused.
    pub name: Option<OsString>,
    /// The chain, leaf first; empty while closed or paused.
    pub images: Vec<ImageLabel>,
    /// Size and sectors, once opened.
    pub info: Option<DiskInfo>,
}

/// Numbers that the thread stores after each turn.
#[derive(Debug, Default)]
struct Gauges {
    in_flight: AtomicU64,
    deferred: AtomicU64,
    awaiting_space: AtomicU64,
    has_lost: AtomicBool,
    clients: AtomicU64,
    nbd_taken: AtomicU64,
    nbd_answered: AtomicU64,
    ring_taken: AtomicU64,
    ring_answered: AtomicU64,
    ring_kicks_in: AtomicU64,
    ring_kicks_out: AtomicU64,
}

/// The gauges, as plain numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct GaugeValues {
    /// I/Os that run, and I/Os that ever had to wait for room.
    pub queue: [u64; 2],
    /// Requests that wait until the storage has space.
    pub awaiting_space: u64,
    /// The storage may have lost what was answered.
    pub has_lost: bool,
    /// NBD: clients, requests taken, requests answered.
    pub nbd: [u64; 3],
    /// Ring: requests taken and answered, polls with requests, notifications sent.
    pub ring: [u64; 4],
}

impl GaugeValues {
    /// What `list` shows besides the life of the disk.
    #[must_use]
    pub fn state_bits(&self) -> u32 {
        let waits = if self.awaiting_space > 0 { list::WAITING_FOR_SPACE } else { 0 };
        waits | if self.has_lost { list::WRITES_LOST } else { 0 }
    }
}

/// One disk, as others see it.
#[derive(Debug)]
pub struct DiskShared {
    /// Its number.
    pub minor: u16,
    /// The name of its queue's engine.
    pub engine: String,
    /// Whether the kernel's ring is one of its doors.
    pub has_ring: bool,
    /// Its counters.
    pub counters: CountersReader,
    public: Mutex<Public>,
    gauges: Gauges,
}

impl DiskShared {
    /// A disk without image.
    #[must_use]
    pub fn new(minor: u16, engine: String, has_ring: bool, counters: CountersReader) -> Self {
        let public = Public { life: Life::Attached, name: None, images: Vec::new(), info: None };
        Self {
            minor,
            engine,
            has_ring,
            counters,
            public: Mutex::new(public),
            gauges: Gauges::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Public> {
        // Nothing that runs under it can panic half-way.
        self.public.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all that changes with the state.
    #[must_use]
    pub fn public(&self) -> Public {
        self.lock().clone()
    }

    /// Only the state.
    #[must_use]
    pub fn life(&self) -> Life {
        self.lock().life
    }

    /// The disk is in another state.
    pub fn set_life(&self, life: Life) {
        self.lock().life = life;
    }

    /// The disk has another name.
    pub fn set_name(&self, name: Option<OsString>) {
        self.lock().name = name;
    }

    /// The disk has another chain.
    pub fn set_images(&self, images: Vec<ImageLabel>, info: Option<DiskInfo>) {
        let mut public = self.lock();
        public.images = images;
        public.info = info.or(public.info);
    }

    /// Shows whether the storage may have lost what was answered.
    pub fn set_lost(&self, has_lost: bool) {
        self.gauges.has_lost.store(has_lost, Ordering::Relaxed);
    }

    /// Shows the numbers of this turn.
    pub fn publish(&self, vbd: &mut Vbd, nbd: Option<&NbdDoor>, ring: Option<&BlktapDoor>) {
        let gauges = &self.gauges;
        gauges.awaiting_space.store(count(vbd.awaiting_space()), Ordering::Relaxed);
        self.set_lost(vbd.has_lost());
        let queue = vbd.queue();
        gauges.in_flight.store(count(queue.in_flight()), Ordering::Relaxed);
        gauges.deferred.store(queue.stats().deferred, Ordering::Relaxed);
        let clients = count(nbd.map_or(0, NbdDoor::connected));
        let nbd = nbd.map(NbdDoor::stats).unwrap_or_default();
        gauges.clients.store(clients, Ordering::Relaxed);
        gauges.nbd_taken.store(nbd.requests, Ordering::Relaxed);
        gauges.nbd_answered.store(nbd.answers, Ordering::Relaxed);
        let ring = ring.map(BlktapDoor::statistics).unwrap_or_default();
        gauges.ring_taken.store(ring.taken, Ordering::Relaxed);
        gauges.ring_answered.store(ring.answered, Ordering::Relaxed);
        gauges.ring_kicks_in.store(ring.kicks_in, Ordering::Relaxed);
        gauges.ring_kicks_out.store(ring.kicks_out, Ordering::Relaxed);
    }

    /// The numbers of the last turn.
    #[must_use]
    pub fn gauges(&self) -> GaugeValues {
        let load = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        let gauges = &self.gauges;
        GaugeValues {
            queue: [load(&gauges.in_flight), load(&gauges.deferred)],
            awaiting_space: load(&gauges.awaiting_space),
            has_lost: gauges.has_lost.load(Ordering::Relaxed),
            nbd: [load(&gauges.clients), load(&gauges.nbd_taken), load(&gauges.nbd_answered)],
            ring: [
                load(&gauges.ring_taken),
                load(&gauges.ring_answered),
                load(&gauges.ring_kicks_in),
                load(&gauges.ring_kicks_out),
            ],
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
