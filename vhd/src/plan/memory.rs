//! Files in memory: the storage of tests, with the meaning of every [`Step`].

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::crash::Recording;
use super::{Coding, File, Files, Plan, Step};
use crate::error::{Error, ErrorKind, Result, errno};
use crate::read_at::ReadAt;

/// Small files by their role; what is not in it does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    files: BTreeMap<File, Vec<u8>>,
    devices: BTreeSet<File>,
}

/// An error of the storage: the `after`-th time that something is read or a step performed, once.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// 0 is the first time.
    pub after: u64,
    /// Which error.
    pub errno: i32,
}

/// Makes the plan of an operation from what is in the files.
pub type MakePlan<'a> = dyn Fn(&dyn Files) -> Result<Box<dyn Plan>> + 'a;

impl Storage {
    /// With a file more, or another one in its place.
    #[must_use]
    pub fn with(mut self, file: File, bytes: Vec<u8>) -> Self {
        self.files.insert(file, bytes);
        self
    }

    /// With a device, whose length and name never change.
    #[must_use]
    pub fn with_device(mut self, file: File, bytes: Vec<u8>) -> Self {
        self.devices.insert(file);
        self.with(file, bytes)
    }

    /// Performs a whole plan, and keeps its steps.
    ///
    /// # Errors
    /// The plan's.
    pub fn run(&mut self, plan: &mut dyn Plan) -> Result<Recording> {
        let (start, mut steps) = (self.clone(), Vec::new());
        while let Some(step) = plan.next(self)? {
            self.perform(&step);
            steps.push(step);
        }
        Ok(Recording::new(start, steps))
    }

    /// Makes a plan and performs it on storage that fails once. Returns whether it did.
    ///
    /// A write that fails has written some of its sectors.
    ///
    /// # Errors
    /// The plan's, and with that the storage's.
    pub fn run_with_fault(&mut self, fault: Fault, make: &MakePlan<'_>) -> (bool, Result<()>) {
        let left = Cell::new(Some(fault.after));
        let result = self.run_failing(&left, fault.errno, make);
        (left.get().is_none(), result)
    }

    fn run_failing(
        &mut self,
        left: &Cell<Option<u64>>,
        errno: i32,
        make: &MakePlan<'_>,
    ) -> Result<()> {
        let mut plan = make(&Failing::new(self, left, errno))?;
        loop {
            let next = plan.next(&Failing::new(self, left, errno))?;
            let Some(step) = next else { return Ok(()) };
            match tick(left, errno) {
                Ok(()) => self.perform(&step),
                Err(error) => {
                    self.perform_half(&step);
                    plan.failed(error)?;
                }
            }
        }
    }

    fn perform_half(&mut self, step: &Step) {
        if let Step::Write { file, offset, bytes } = step {
            let sectors = bytes.len() >> 10;
            let half = bytes.get(..sectors << 9).unwrap_or_default().to_vec();
            self.perform(&Step::Write { file: *file, offset: *offset, bytes: half });
        }
    }

    /// The bytes of a file, if it exists.
    #[must_use]
    pub fn bytes(&self, file: File) -> Option<&[u8]> {
        self.files.get(&file).map(Vec::as_slice)
    }

    /// Performs a step.
    ///
    /// # Panics
    /// On a step that no storage could perform: creating what exists, or changing, reading or
    /// removing what does not, or past the end of a device or of memory.
    pub fn perform(&mut self, step: &Step) {
        match step {
            Step::Barrier | Step::Reached(_) => {}
            Step::SetLength { file, .. } | Step::Create { file } | Step::Remove { file }
                if self.devices.contains(file) => {}
            Step::Create { file } => {
                assert!(self.files.insert(*file, Vec::new()).is_none(), "{file:?} exists");
            }
            Step::Remove { file } => {
                assert!(self.files.remove(file).is_some(), "{file:?} does not exist");
            }
            Step::SetLength { file, length } => self.existing(*file).resize(index(*length), 0),
            Step::Write { file, offset, bytes } => self.write(*file, *offset, bytes),
            Step::Zero { file, offset, length } => {
                self.write(*file, *offset, &vec![0; index(*length)]);
            }
            Step::PunchHole { file, offset, length } => {
                let (start, bytes) = (index(*offset), self.existing(*file));
                let end = start.saturating_add(index(*length)).min(bytes.len());
                bytes.get_mut(start..end).unwrap_or_default().fill(0);
            }
            Step::Copy { to, to_offset, .. } | Step::Code { to, to_offset, .. } => {
                let piece = self.moved(step).expect("a copy is of bytes that exist");
                self.write(*to, *to_offset, &piece);
            }
        }
    }

    /// What a step that copies would write now. None for other steps, and for bytes that are not
    /// there.
    pub(super) fn moved(&self, step: &Step) -> Option<Vec<u8>> {
        let piece = |from: &File, offset: u64, length: u64| {
            let rest = self.files.get(from)?.get(index(offset)..)?;
            Some(rest.get(..index(length))?.to_vec())
        };
        match step {
            Step::Copy { from, from_offset, length, .. } => piece(from, *from_offset, *length),
            Step::Code { coding, from, from_offset, there, length, sector, .. } => {
                // Where nothing is read, the place does not matter.
                let read = (*there > 0).then(|| piece(from, *from_offset, *there));
                let mut bytes = read.map_or(Some(Vec::new()), |read| read)?;
                bytes.resize(index(*length), 0);
                code(*coding, *sector, &mut bytes);
                Some(bytes)
            }
            _ => None,
        }
    }

    fn write(&mut self, file: File, offset: u64, piece: &[u8]) {
        let (start, bytes) = (index(offset), &*self.existing(file));
        let end = start.checked_add(piece.len()).expect("files in memory are small");
        let is_growing = bytes.len() < end;
        assert!(!is_growing || !self.devices.contains(&file), "{file:?} ends before {end}");
        let bytes = self.existing(file);
        if bytes.len() < end && !piece.is_empty() {
            bytes.resize(end, 0);
        }
        bytes.get_mut(start..end).unwrap_or_default().copy_from_slice(piece);
    }

    fn existing(&mut self, file: File) -> &mut Vec<u8> {
        self.files.get_mut(&file).unwrap_or_else(|| panic!("{file:?} does not exist"))
    }

    /// For [`super::crash`]: what became durable of an epoch, piece by piece.
    pub(super) fn files_mut(&mut self) -> &mut BTreeMap<File, Vec<u8>> {
        &mut self.files
    }
}

impl Files for Storage {
    fn open(&self, file: File) -> Result<&dyn ReadAt> {
        match self.files.get(&file) {
            Some(bytes) => Ok(bytes),
            None => Err(ErrorKind::Io { errno: errno::ENOENT }.into()),
        }
    }

    fn is_device(&self, file: File) -> bool {
        self.devices.contains(&file)
    }
}

/// Files of which the n-th access fails.
struct Failing<'a> {
    storage: &'a Storage,
    files: BTreeMap<File, FailingFile<'a>>,
}

struct FailingFile<'a> {
    bytes: &'a [u8],
    left: &'a Cell<Option<u64>>,
    errno: i32,
}

impl<'a> Failing<'a> {
    fn new(storage: &'a Storage, left: &'a Cell<Option<u64>>, errno: i32) -> Self {
        let failing = |(file, bytes): (&File, &'a Vec<u8>)| {
            (*file, FailingFile { bytes: bytes.as_slice(), left, errno })
        };
        Self { storage, files: storage.files.iter().map(failing).collect() }
    }
}

impl Files for Failing<'_> {
    fn open(&self, file: File) -> Result<&dyn ReadAt> {
        match self.files.get(&file) {
            Some(bytes) => Ok(bytes),
            None => Err(ErrorKind::Io { errno: errno::ENOENT }.into()),
        }
    }

    fn is_device(&self, file: File) -> bool {
        self.storage.is_device(file)
    }
}

impl ReadAt for FailingFile<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        tick(self.left, self.errno)?;
        self.bytes.read_at(offset, buffer)
    }

    fn length(&self) -> Result<u64> {
        tick(self.left, self.errno)?;
        self.bytes.length()
    }
}

fn tick(left: &Cell<Option<u64>>, errno: i32) -> Result<()> {
    match left.get() {
        Some(0) => {
            left.set(None);
            Err(Error::from(ErrorKind::Io { errno }))
        }
        Some(more) => {
            left.set(more.checked_sub(1));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Whole sectors, in the one key of all disks in memory: no secret, but each sector and each byte
/// in it is coded in another way, and encrypting is not decrypting.
pub fn code(coding: Coding, first: u64, data: &mut [u8]) {
    for (sector, bytes) in (first..).zip(data.chunks_mut(512)) {
        let [low, high, ..] = sector.to_le_bytes();
        let start = low.wrapping_mul(7).wrapping_add(high).wrapping_add(0x5a);
        let steps = std::iter::successors(Some(start), |step| Some(step.wrapping_mul(5) | 1));
        for (byte, step) in bytes.iter_mut().zip(steps) {
            *byte = match coding {
                Coding::Encrypt => byte.wrapping_add(step),
                Coding::Decrypt => byte.wrapping_sub(step),
            };
        }
    }
}

/// Into a file in memory.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("files in memory are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: File = File::Image;

    #[test]
    fn a_write_past_the_end_leaves_zeros_before_it() {
        let mut storage = Storage::default().with(IMAGE, vec![1]);
        storage.perform(&Step::Write { file: IMAGE, offset: 3, bytes: vec![2, 2] });
        assert_eq!(storage.bytes(IMAGE), Some(&[1, 0, 0, 2, 2][..]));
    }

    #[test]
    fn a_hole_past_the_end_does_not_make_a_file_longer() {
        let mut storage = Storage::default().with(IMAGE, vec![1; 4]);
        storage.perform(&Step::PunchHole { file: IMAGE, offset: 2, length: 9 });
        assert_eq!(storage.bytes(IMAGE), Some(&[1, 1, 0, 0][..]));
        storage.perform(&Step::PunchHole { file: IMAGE, offset: 9, length: 9 });
        assert_eq!(storage.bytes(IMAGE), Some(&[1, 1, 0, 0][..]));
    }

    #[test]
    fn a_write_that_fails_has_written_half_of_its_sectors() {
        let make = |_: &dyn Files| {
            let mut steps = crate::plan::Steps::default();
            steps.write(IMAGE, 512, &[7; 5 * 512]);
            Ok(Box::new(steps) as Box<dyn Plan>)
        };
        let mut storage = Storage::default().with(IMAGE, vec![1; 4096]);
        let (has_failed, result) = storage.run_with_fault(Fault { after: 0, errno: 5 }, &make);
        assert_eq!((has_failed, result.unwrap_err().errno()), (true, 5));
        let bytes = storage.bytes(IMAGE).unwrap();
        assert!(bytes[512..3 * 512].iter().all(|byte| *byte == 7));
        assert_eq!(bytes.iter().filter(|byte| **byte == 1).count(), 4096 - 2 * 512);
    }

    #[test]
    fn a_copy_takes_what_earlier_steps_wrote() {
        let mut storage = Storage::default().with(IMAGE, vec![0; 4]).with(File::Journal, vec![]);
        storage.perform(&Step::Write { file: IMAGE, offset: 1, bytes: vec![7] });
        let (from, to) = (IMAGE, File::Journal);
        storage.perform(&Step::Copy { from, from_offset: 1, to, to_offset: 0, length: 2 });
        assert_eq!(storage.bytes(to), Some(&[7, 0][..]));
    }
}
