//! `integrity`: remembers a sum of each sector that is written and compares it when it is read.
//!
//! A sector's entry is one of: unknown (never written here), a sum, or busy (writes under way). A
//! read is compared only where no write began or ended between its start and its end: the sum of
//! the entries, taken at both times, says so. Two writes to one sector at once leave it unknown,
//! because nothing says which came last.
//!
//! Costs 8 bytes of memory for each 512 of the disk, so disks above [`SIZE_MAX`] are refused.

use nix::errno::Errno;

use super::{Layer, Verdict};
use crate::error::DiskError;
use crate::memory::Memory;
use crate::request::{DiskInfo, Op, Request, SECTOR_SIZE};
use crate::status::Status;

/// 16 GiB: a table of 256 MiB.
const SIZE_MAX: u64 = 16 << 30;

const UNKNOWN: u64 = 0;
/// Set in every sum, so that none is `UNKNOWN` or busy.
const SUM: u64 = 1 << 63;
/// Set, without `SUM`, while writes are under way; the count of them is in the low bits.
const BUSY: u64 = 1 << 62;
/// Set beside `BUSY` when more than one write was under way.
const TAINTED: u64 = 1 << 61;

pub(super) struct Integrity {
    entries: Box<[u64]>,
    /// For each slot, the entries of its read at its start, folded.
    folded: Box<[u64]>,
}

impl Integrity {
    pub(super) fn new(info: DiskInfo, slots: usize) -> Result<Self, DiskError> {
        let sectors = usize::try_from(info.size / u64::from(SECTOR_SIZE)).unwrap_or(usize::MAX);
        if info.size > SIZE_MAX {
            return Err(DiskError::new(
                Errno::EFBIG,
                format!(
                    "Found a disk of {} bytes where the integrity layer takes {SIZE_MAX}",
                    info.size
                ),
            ));
        }
        Ok(Self { entries: vec![UNKNOWN; sectors].into(), folded: vec![0; slots].into() })
    }

    fn range(&self, request: &Request) -> std::ops::Range<usize> {
        let sector =
            |bytes: u64| usize::try_from(bytes / u64::from(SECTOR_SIZE)).unwrap_or(usize::MAX);
        let end = sector(request.offset.saturating_add(request.len)).min(self.entries.len());
        sector(request.offset).min(end)..end
    }

    fn fold(&self, request: &Request) -> u64 {
        self.entries[self.range(request)]
            .iter()
            .fold(0, |sum: u64, entry| sum.rotate_left(5).wrapping_add(*entry))
    }

    fn begin_write(&mut self, request: &Request) {
        let range = self.range(request);
        for entry in &mut self.entries[range] {
            *entry = if *entry & (SUM | BUSY) == BUSY { (*entry + 1) | TAINTED } else { BUSY | 1 };
        }
    }

    fn end_write(&mut self, request: &Request, known: bool, memory: &Memory) {
        let range = self.range(request);
        let mut sums = sums(request, memory);
        for entry in &mut self.entries[range] {
            let sum = sums.next().filter(|_| known).unwrap_or(UNKNOWN);
            let writes = *entry & 0xffff_ffff;
            *entry = match (writes, *entry & TAINTED) {
                (0 | 1, 0) => sum,
                (0 | 1, _) => UNKNOWN,
                _ => *entry - 1,
            };
        }
    }

    fn check_read(&self, slot: usize, request: &Request, memory: &Memory) -> Status {
        if self.folded[slot] != self.fold(request) {
            return Status::Done;
        }
        let wrong = self.entries[self.range(request)]
            .iter()
            .zip(sums(request, memory))
            .any(|(entry, sum)| entry & SUM != 0 && *entry != sum);
        if wrong { Status::Failed(Errno::EILSEQ) } else { Status::Done }
    }
}

/// The sums of a request's sectors, in order.
fn sums<'a>(request: &'a Request, memory: &'a Memory) -> impl Iterator<Item = u64> + 'a {
    request.segments.as_slice().iter().flat_map(move |segment| {
        (0..segment.len / SECTOR_SIZE).map(move |sector| {
            let mut bytes = [0; SECTOR_SIZE as usize];
            memory.copy_out(segment.part(sector * SECTOR_SIZE, SECTOR_SIZE), &mut bytes);
            sum(&bytes)
        })
    })
}

/// FNV-1a over words: notices a sector that is another's, stale, or torn.
fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, word| {
        (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    sum | SUM
}

impl Layer for Integrity {
    fn name(&self) -> &'static str {
        "integrity"
    }

    fn before(&mut self, slot: usize, request: &Request, _: &mut Memory) -> Verdict {
        match request.op {
            Op::Read => self.folded[slot] = self.fold(request),
            Op::Write | Op::Trim | Op::WriteZeroes => self.begin_write(request),
            Op::Flush | Op::BlockStatus => {}
        }
        Verdict::Pass
    }

    fn after(
        &mut self,
        slot: usize,
        request: &Request,
        status: Status,
        memory: &mut Memory,
    ) -> Status {
        match request.op {
            Op::Read if status == Status::Done => self.check_read(slot, request, memory),
            Op::Write | Op::Trim | Op::WriteZeroes => {
                let known = request.op == Op::Write && status == Status::Done;
                self.end_write(request, known, memory);
                status
            }
            Op::Read | Op::Flush | Op::BlockStatus => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Segment;
    use crate::request::{Segments, Token};

    const INFO: DiskInfo = DiskInfo { size: 1 << 20, sector_size: 512, read_only: false };

    struct Disk {
        layer: Integrity,
        memory: Memory,
        buffer: Segment,
    }

    impl Disk {
        fn new() -> Self {
            let mut memory = Memory::new(4096).unwrap();
            let buffer = memory.allocate(1024).unwrap();
            Self { layer: Integrity::new(INFO, 4).unwrap(), memory, buffer }
        }

        fn request(&self, op: Op) -> Request {
            let segments = Segments::one(self.buffer);
            let token = Token::default();
            Request { token, op, fua: false, may_punch: false, offset: 512, len: 1024, segments }
        }

        fn begin(&mut self, slot: usize, op: Op) {
            let request = self.request(op);
            assert_eq!(self.layer.before(slot, &request, &mut self.memory), Verdict::Pass);
        }

        fn end(&mut self, slot: usize, op: Op, byte: u8) -> Status {
            self.memory.copy_in(self.buffer, &[byte; 1024]);
            let request = self.request(op);
            self.layer.after(slot, &request, Status::Done, &mut self.memory)
        }
    }

    #[test]
    fn a_read_of_something_else_than_was_written_fails() {
        let mut disk = Disk::new();
        disk.begin(0, Op::Write);
        disk.end(0, Op::Write, 7);
        disk.begin(1, Op::Read);
        assert_eq!(disk.end(1, Op::Read, 7), Status::Done);
        disk.begin(1, Op::Read);
        assert_eq!(disk.end(1, Op::Read, 8), Status::Failed(Errno::EILSEQ));
    }

    #[test]
    fn a_read_beside_a_write_is_not_judged() {
        let mut disk = Disk::new();
        disk.begin(0, Op::Write);
        disk.end(0, Op::Write, 7);
        disk.begin(1, Op::Read);
        disk.begin(0, Op::Write);
        disk.end(0, Op::Write, 9);
        assert_eq!(disk.end(1, Op::Read, 7), Status::Done);
    }

    #[test]
    fn two_writes_at_once_leave_the_sectors_unknown() {
        let mut disk = Disk::new();
        disk.begin(0, Op::Write);
        disk.begin(1, Op::Write);
        disk.end(0, Op::Write, 1);
        disk.end(1, Op::Write, 2);
        disk.begin(2, Op::Read);
        assert_eq!(disk.end(2, Op::Read, 1), Status::Done);
    }

    #[test]
    fn refuses_a_disk_whose_table_would_be_too_large() {
        let info = DiskInfo { size: SIZE_MAX + 512, ..INFO };
        assert!(Integrity::new(info, 4).is_err());
    }
}
