//! A disk: its vbd, its doors, and the turn of the loop that moves requests between them.
//!
//! ```text
//!   one turn:  reap -> maintain -> pull -> work -> submit once -> reap -> work -> answer
//!              -> flush once
//! ```
//!
//! The turn knows no thread and no clock: [`thread`] runs it in production, tests and benches run
//! it by hand.

mod again;
mod commands;
pub mod life;
pub mod pace;
#[cfg(feature = "sim")]
pub mod rig;
pub mod thread;

use crate::frontend::blktap::BlktapDoor;
use crate::frontend::nbd::NbdDoor;
use crate::frontend::{Frontend, Intake};
use crate::statistics::{DOORS_MAX, PageKind};
use crate::time::Now;
use crate::vbd::{DoorIndex, Vbd};
use pace::Pace;

const RING: DoorIndex = 0;
const NBD: DoorIndex = 1;

/// The statistics pages of a disk's doors, by their numbers.
#[must_use]
pub fn door_pages(has_ring: bool) -> [Option<PageKind>; DOORS_MAX] {
    [has_ring.then_some(PageKind::Blktap), Some(PageKind::Nbd)]
}

/// A vbd and its doors.
pub struct Disk {
    /// The requests.
    pub vbd: Vbd,
    /// The kernel's ring, with a driver.
    pub ring: Option<BlktapDoor>,
    /// The NBD server, while open.
    pub nbd: Option<NbdDoor>,
    pace: Pace,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Disk").field("vbd", &self.vbd).finish_non_exhaustive()
    }
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// There is more to do that no event will announce: do not sleep.
    pub more: bool,
    /// How many requests were answered.
    pub answered: usize,
    /// The watchdog barks: requests run and none has ended for long.
    pub stuck: bool,
}

impl Disk {
    /// A disk without doors.
    #[must_use]
    pub fn new(vbd: Vbd) -> Self {
        Self { vbd, ring: None, nbd: None, pace: Pace::default() }
    }

    /// Its doors, with their numbers.
    pub fn doors(&mut self) -> impl Iterator<Item = (DoorIndex, &mut dyn Frontend)> {
        let ring = self.ring.as_mut().map(|door| (RING, door as &mut dyn Frontend));
        let nbd = self.nbd.as_mut().map(|door| (NBD, door as &mut dyn Frontend));
        ring.into_iter().chain(nbd)
    }

    /// The door of that number, if it is there.
    pub fn door(&mut self, index: DoorIndex) -> Option<&mut dyn Frontend> {
        match index {
            RING => self.ring.as_mut().map(|door| door as &mut dyn Frontend),
            NBD => self.nbd.as_mut().map(|door| door as &mut dyn Frontend),
            _ => None,
        }
    }

    /// What the loop saw of the load.
    pub fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// One turn, which begins `now`. `clock` is read after the I/O that runs inline.
    ///
    /// Doors are pulled whatever the state of the disk is: one that is suspended takes no requests,
    /// but does what its own deadlines are for.
    pub fn turn(&mut self, now: Now, clock: impl FnOnce() -> Now) -> Turned {
        self.vbd.set_now(now);
        let reaped = self.vbd.reap();
        self.pace.reaped(reaped);
        if let Some(door) = &mut self.nbd {
            // Before what waits is tried again.
            door.abandon(&mut self.vbd.intake(NBD));
        }
        let stuck = self.vbd.maintain();
        let before = self.vbd.outstanding();
        let mut more = self.pull();
        let pulled = self.vbd.outstanding() - before;
        let lone = self.pace.pulled(pulled, before);
        self.vbd.work();
        self.vbd.queue().submit(lone);
        self.vbd.set_now(clock());
        self.vbd.reap();
        self.vbd.work();
        let answered = self.answer();
        self.pace.answered(answered);
        more |= self.vbd.queue().is_ready();
        let has_room = self.vbd.intake(RING).has_room();
        more |= has_room && self.ring.as_ref().is_some_and(BlktapDoor::is_ready);
        Turned { more, answered, stuck }
    }

    fn pull(&mut self) -> bool {
        let mut more = false;
        if let Some(door) = &mut self.ring {
            more |= door.pull(&mut self.vbd.intake(RING));
        }
        if let Some(door) = &mut self.nbd {
            more |= door.pull(&mut self.vbd.intake(NBD));
        }
        more
    }

    fn answer(&mut self) -> usize {
        let Self { vbd, ring, nbd, .. } = self;
        let answered = vbd.answers(|door, request, answer, memory| match door {
            RING => {
                let door = ring.as_mut().expect("a door outlives its requests");
                door.answer(request, answer, memory);
            }
            _ => {
                let door = nbd.as_mut().expect("a door outlives its requests");
                door.answer(request, answer, memory);
            }
        });
        if let Some(door) = ring {
            door.flush(vbd.memory());
        }
        if let Some(door) = nbd {
            door.flush(vbd.memory());
        }
        answered
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod thread_tests;
