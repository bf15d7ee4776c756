//! Open and close of a leaf that is changed: the writes before the first request and after the
//! last, as a list that its owner works through in order. See docs/durability.md, "Open and close".

use super::Engine;

impl Engine {
    /// What to do after the last change, in a file that has this footer. `batmap`: parts of the
    /// file and what they become.
    ///
    /// Nothing that depends on what the disk says, when an fdatasync has failed: a table that it
    /// lost may name places that the one in memory does not, and sectors that are whole in memory
    /// may not be there. The next open finds the file as after a kill.
    ///
    /// # Panics
    /// When blocks of an image without blocks have changed.
    #[must_use]
    pub fn closing(
        &self,
        footer: &[u8; 512],
        is_device: bool,
        batmap: Vec<(u64, Vec<u8>)>,
    ) -> Vec<FileStep> {
        if !self.is_changed() || self.lost().is_some() {
            return vec![FileStep::Flush];
        }
        let end = self.end_sector().expect("an image whose blocks change has some");
        closing(footer, end, is_device, batmap)
    }
}

/// One thing to do to the leaf's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStep {
    /// fdatasync.
    Flush,
    /// Write all of it.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What: whole sectors.
        bytes: Vec<u8>,
    },
    /// Cut the file, or make it longer.
    SetLength {
        /// In bytes.
        length: u64,
    },
}

/// What is found in the file when it is opened for writing.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The footer in use.
    pub footer: &'a [u8; 512],
    /// The first 512 bytes.
    pub copy: &'a [u8; 512],
    /// The last 512 bytes.
    pub last: &'a [u8; 512],
    /// Bytes of the file or device.
    pub length: u64,
    /// It is a block device, and keeps its size.
    pub is_device: bool,
    /// The sector behind the last referenced block.
    pub end_sector: u64,
}

/// What to do before the first change.
#[must_use]
pub fn opening(found: &Found<'_>) -> Vec<FileStep> {
    let footer = found.footer.to_vec();
    // What a killed process wrote was read just now, and may still be lost: places that its table
    // freed must not be used before that.
    let mut steps = vec![FileStep::Flush];
    if found.copy != found.footer {
        steps.push(FileStep::Write { offset: 0, bytes: footer.clone() });
        steps.push(FileStep::Flush);
    }
    let end = found.end_sector * 512;
    if found.is_device {
        if found.last != found.footer {
            let offset = found.length.saturating_sub(512);
            steps.push(FileStep::Write { offset, bytes: footer });
            steps.push(FileStep::Flush);
        }
    } else if found.length != end + 512 || found.last != found.footer {
        // Cut first: what the file grows over later must read as zeros.
        steps.push(FileStep::SetLength { length: end });
        steps.push(FileStep::Write { offset: end, bytes: footer });
        steps.push(FileStep::Flush);
    }
    steps
}

/// What to do after the last change. `batmap`: parts of the file and what they become. A device's
/// footer is where it was.
fn closing(
    footer: &[u8; 512],
    end_sector: u64,
    is_device: bool,
    batmap: Vec<(u64, Vec<u8>)>,
) -> Vec<FileStep> {
    let end = end_sector * 512;
    let mut steps = vec![FileStep::Flush];
    steps.extend(batmap.into_iter().map(|(offset, bytes)| FileStep::Write { offset, bytes }));
    if !is_device {
        steps.push(FileStep::Write { offset: end, bytes: footer.to_vec() });
        steps.push(FileStep::SetLength { length: end + 512 });
    }
    steps.push(FileStep::Flush);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [u8; 512] = [1; 512];
    const BAD: [u8; 512] = [2; 512];

    fn found() -> Found<'static> {
        Found {
            footer: &GOOD,
            copy: &GOOD,
            last: &GOOD,
            length: 4096 + 512,
            is_device: false,
            end_sector: 8,
        }
    }

    fn writes(steps: &[FileStep]) -> Vec<u64> {
        let offset = |step: &FileStep| match step {
            FileStep::Write { offset, .. } => Some(*offset),
            _ => None,
        };
        steps.iter().filter_map(offset).collect()
    }

    #[test]
    fn a_clean_image_is_not_written() {
        assert_eq!(opening(&found()), [FileStep::Flush]);
    }

    #[test]
    fn the_copy_is_durable_before_the_end_is_touched() {
        let steps = opening(&Found { copy: &BAD, length: 9999, ..found() });
        assert_eq!(writes(&steps), [0, 4096]);
        assert_eq!(steps[2], FileStep::Flush);
        assert_eq!(steps[3], FileStep::SetLength { length: 4096 });
        assert_eq!(steps.last(), Some(&FileStep::Flush));
    }

    #[test]
    fn a_device_keeps_its_size() {
        let found = Found { is_device: true, last: &BAD, length: 1 << 20, ..found() };
        let steps = opening(&found);
        assert_eq!(writes(&steps), [(1 << 20) - 512]);
        let steps = closing(&GOOD, 8, true, vec![(1024, vec![0; 512])]);
        assert_eq!(writes(&steps), [1024]);
        assert!(!steps.iter().any(|step| matches!(step, FileStep::SetLength { .. })));
    }
}
