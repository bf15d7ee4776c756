//! What a door sees of its disk.

use super::{DoorIndex, Vbd};
use crate::frontend::Intake;
use crate::memory::Memory;
use crate::request::{DiskInfo, Request};
use crate::time::Now;

/// A door's view of its disk while it pulls.
#[derive(Debug)]
pub struct VbdIntake<'a> {
    pub(super) vbd: &'a mut Vbd,
    pub(super) door: DoorIndex,
}

impl Intake for VbdIntake<'_> {
    #[inline]
    fn has_room(&self) -> bool {
        self.vbd.slots.has_free()
    }

    #[inline(always)]
    fn start(&mut self, fill: impl FnOnce(&mut Request)) {
        self.vbd.start(self.door, fill);
    }

    fn abandon(&mut self, peer: u16) -> bool {
        self.vbd.abandon(self.door, peer)
    }

    #[inline]
    fn memory(&mut self) -> &mut Memory {
        &mut self.vbd.memory
    }

    fn info(&self) -> DiskInfo {
        self.vbd.info
    }

    fn now(&self) -> Now {
        self.vbd.now
    }
}
