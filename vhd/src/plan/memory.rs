//! Files in memory: the storage of tests, with the meaning of every [`Step`].

use std::collections::BTreeMap;

use super::{File, Step};

/// Small files by their role; what is not in it does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    files: BTreeMap<File, Vec<u8>>,
}

impl Storage {
    /// With a file more, or another one in its place.
    #[must_use]
    pub fn with(mut self, file: File, bytes: Vec<u8>) -> Self {
        self.files.insert(file, bytes);
        self
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
    /// removing what does not, or past the end of memory.
    pub fn perform(&mut self, step: &Step) {
        match step {
            Step::Barrier => {}
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
            Step::Copy { from, from_offset, to, to_offset, length } => {
                let piece = self.existing(*from).get(index(*from_offset)..);
                let piece = piece.and_then(|rest| rest.get(..index(*length)));
                let piece = piece.expect("a copy is of bytes that exist").to_vec();
                self.write(*to, *to_offset, &piece);
            }
        }
    }

    fn write(&mut self, file: File, offset: u64, piece: &[u8]) {
        let (start, bytes) = (index(offset), self.existing(file));
        let end = start.checked_add(piece.len()).expect("files in memory are small");
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
    fn a_copy_takes_what_earlier_steps_wrote() {
        let mut storage = Storage::default().with(IMAGE, vec![0; 4]).with(File::Journal, vec![]);
        storage.perform(&Step::Write { file: IMAGE, offset: 1, bytes: vec![7] });
        let (from, to) = (IMAGE, File::Journal);
        storage.perform(&Step::Copy { from, from_offset: 1, to, to_offset: 0, length: 2 });
        assert_eq!(storage.bytes(to), Some(&[7, 0][..]));
    }
}
