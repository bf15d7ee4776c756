//! A guest of the simulation: it asks through the kernel's ring, which is simulated, too.

use blktap_ioctl::Ring;
use blktap_ioctl::sim::{self, Driver, Segments, SimDevice, SimOptions};

use crate::client::{Ask, Reply};

/// Sectors of one request, at most: eleven pages.
const SECTORS_MAX: u64 = 88;
/// Requests of a ring.
const DEPTH: usize = 32;
/// What its requests fail with.
const EIO: u32 = 5;

/// The guest's side of the block device.
pub(crate) struct Guest {
    device: SimDevice,
    has_opened: bool,
}

impl Guest {
    /// A driver that has FLUSH and TRIM, and the ring that its server gets.
    pub(crate) fn new() -> (Ring, Self) {
        let options = SimOptions { driver: Driver::Dkms, ..SimOptions::default() };
        let (ring, device) = sim::create(options).expect("shared memory");
        (ring, Self { device, has_opened: false })
    }

    /// The device is there: from now on it cannot be removed.
    pub(crate) fn open(&mut self) {
        self.device.open().expect("the device of an open disk");
        self.has_opened = true;
    }

    /// It may be removed.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.has_opened) {
            self.device.close();
        }
    }

    /// Whether the driver can be asked this now.
    pub(crate) fn takes(&self, ask: Ask) -> bool {
        let is_known = !ask.is_fua() && !matches!(ask, Ask::Zero { .. });
        is_known && ask.range().1 <= SECTORS_MAX && self.device.in_use() < DEPTH && self.has_opened
    }

    /// Asks.
    pub(crate) fn send(&self, number: u64, ask: Ask, payload: &[u8]) {
        let (sector, count) = ask.range();
        let segments = |count: u64| Segments::plain(usize::try_from(count * 512).expect("few"));
        let sent = match ask {
            Ask::Read { .. } => self.device.submit_read(number, sector, segments(count)),
            Ask::Write { .. } => self.device.submit_write(number, sector, segments(count), payload),
            Ask::Trim { .. } => self.device.submit_trim(number, sector, count),
            Ask::Flush => self.device.submit_flush(number),
            Ask::Zero { .. } => unreachable!("not through a ring"),
        };
        sent.expect("the driver was asked whether it can");
    }

    /// Takes what has ended.
    pub(crate) fn receive(&self, mut each: impl FnMut(Reply)) {
        self.device.completions(|completion| {
            let error = if completion.outcome.is_ok() { 0 } else { EIO };
            each(Reply { number: completion.cookie, error, data: completion.data.to_vec() });
        });
        assert_eq!(self.device.violations(), 0, "a driver may crash on such responses");
    }
}
