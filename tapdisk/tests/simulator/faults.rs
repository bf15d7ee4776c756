//! What goes wrong: with the storage, which the daemon has to live with, and what the simulation
//! does wrong on purpose, to show that it is noticed.

use nix::errno::Errno;
use tapdisk::queue::sim::{Fault, UnderWay};
use vhd::testing::Random;

/// What a simulation does wrong, to show that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// An fdatasync does nothing.
    IdleFlush,
    /// A flush that failed is tried again.
    FlushAgain,
    /// A write is answered, and was never done.
    LostWrite,
}

/// The faults of one life of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// I/O fails.
    pub(crate) are_there: bool,
    /// It goes through the page cache, and an fdatasync may find no space.
    pub(crate) is_cached: bool,
    /// It is a file as it is: nothing but an fdatasync tells of a loss.
    pub(crate) is_raw: bool,
    pub(crate) mistake: Option<Mistake>,
}

impl Faults {
    /// How an I/O fails, if it does.
    pub(crate) fn of(self, random: &mut Random, io: UnderWay) -> Option<Fault> {
        match self.mistake {
            Some(Mistake::IdleFlush) if io.is_sync => return Some(Fault::Idle),
            Some(Mistake::LostWrite) if io.has_data && !io.is_read && random.one_in(200) => {
                return Some(Fault::Idle);
            }
            _ => {}
        }
        let rate = if self.is_raw && io.is_sync { 3 } else { 15 };
        if !self.are_there || !random.one_in(rate) {
            return None;
        }
        let passing = [Errno::EIO, Errno::EAGAIN, Errno::ETIMEDOUT][index(random.below(3))];
        if io.is_sync {
            // Space is told by writes where I/O is direct.
            let errno = if self.is_cached && random.one_in(3) { Errno::ENOSPC } else { passing };
            return Some(Fault::Error(errno));
        }
        if io.is_read {
            return Some(match random.below(3) {
                0 => Fault::Short(random.below(io.len / 512 + 1) * 512),
                _ => Fault::Error(passing),
            })
            .filter(|fault| *fault != Fault::Short(0));
        }
        let errno = if random.one_in(3) { Errno::ENOSPC } else { passing };
        if !io.has_data {
            let unknown = random.one_in(3);
            return Some(Fault::Error(if unknown { Errno::EOPNOTSUPP } else { errno }));
        }
        let part = random.below(io.len / 512 + 1) * 512;
        Some(match random.below(5) {
            0 if part > 0 => Fault::Short(part),
            1 => Fault::Torn(part, errno),
            2 => Fault::Partly(random.next(), errno),
            _ => Fault::Error(errno),
        })
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}
