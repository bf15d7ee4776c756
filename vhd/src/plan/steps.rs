//! A queue of steps; one that is complete from the start is a plan by itself.

use std::collections::VecDeque;

use super::{Coding, File, Files, Milestone, PIECE_BYTES_MAX, Plan, Step};
use crate::error::Result;

/// Steps in order, each of bounded size whatever it is made from.
#[derive(Clone, Debug, Default)]
pub struct Steps(VecDeque<Step>);

impl Steps {
    /// The first one.
    pub fn pop(&mut self) -> Option<Step> {
        self.0.pop_front()
    }

    /// One more.
    pub fn push(&mut self, step: Step) {
        self.0.push_back(step);
    }

    /// All of another queue, behind what is there.
    pub fn append(&mut self, mut later: Self) {
        self.0.append(&mut later.0);
    }

    /// Forgets all that were not taken.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Bytes, in pieces.
    pub fn write(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let piece_max = usize::try_from(PIECE_BYTES_MAX).expect("two MiB fit");
        let mut at = offset;
        for piece in bytes.chunks(piece_max) {
            self.push(Step::Write { file, offset: at, bytes: piece.to_vec() });
            at = at.saturating_add(PIECE_BYTES_MAX);
        }
    }

    /// Zeros, if there is room for any.
    pub fn zero(&mut self, file: File, offset: u64, length: u64) {
        if length > 0 {
            self.push(Step::Zero { file, offset, length });
        }
    }

    /// Bytes from elsewhere, in pieces; each end is a file and an offset.
    pub fn copy(&mut self, from: (File, u64), to: (File, u64), length: u64) {
        let (mut done, (from, from_offset), (to, to_offset)) = (0_u64, from, to);
        while done < length {
            let piece = length.saturating_sub(done).min(PIECE_BYTES_MAX);
            self.push(Step::Copy {
                from,
                from_offset: from_offset.saturating_add(done),
                to,
                to_offset: to_offset.saturating_add(done),
                length: piece,
            });
            done = done.saturating_add(piece);
        }
    }

    /// Sectors of a disk from elsewhere, in pieces; each end is a file and an offset. `there` bytes
    /// are read, the rest is zeros; `sector` is the number of the first one.
    pub fn code(
        &mut self,
        coding: Coding,
        (from, from_offset): (File, u64),
        there: u64,
        (to, to_offset): (File, u64),
        (sector, length): (u64, u64),
    ) {
        let mut done = 0_u64;
        while done < length {
            let piece = length.saturating_sub(done).min(PIECE_BYTES_MAX);
            self.push(Step::Code {
                coding,
                from,
                from_offset: from_offset.saturating_add(done),
                there: there.saturating_sub(done).min(piece),
                to,
                to_offset: to_offset.saturating_add(done),
                length: piece,
                sector: sector.saturating_add(done >> 9),
            });
            done = done.saturating_add(piece);
        }
    }

    /// A new length.
    pub fn set_length(&mut self, file: File, length: u64) {
        self.push(Step::SetLength { file, length });
    }

    /// What is before is durable before what is after starts.
    pub fn barrier(&mut self) {
        self.push(Step::Barrier);
    }

    /// A point with a name.
    pub fn reached(&mut self, milestone: Milestone) {
        self.push(Step::Reached(milestone));
    }
}

impl Plan for Steps {
    fn queue(&mut self) -> &mut Steps {
        self
    }

    fn advance(&mut self, _files: &dyn Files) -> Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_step_is_larger_than_a_piece() {
        let mut steps = Steps::default();
        let half = usize::try_from(PIECE_BYTES_MAX).unwrap() + 7;
        steps.write(File::Image, 5, &vec![1; half]);
        steps.copy((File::Journal, 1), (File::Image, 9), PIECE_BYTES_MAX * 2 + 1);
        let mut pieces = Vec::new();
        while let Some(step) = steps.pop() {
            pieces.push(match step {
                Step::Write { offset, bytes, .. } => {
                    (offset, 0, u64::try_from(bytes.len()).unwrap())
                }
                Step::Copy { from_offset, to_offset, length, .. } => {
                    (to_offset, from_offset, length)
                }
                other => panic!("{other:?}"),
            });
        }
        let piece = PIECE_BYTES_MAX;
        let wanted = [
            (5, 0, piece),
            (5 + piece, 0, 7),
            (9, 1, piece),
            (9 + piece, 1 + piece, piece),
            (9 + 2 * piece, 1 + 2 * piece, 1),
        ];
        assert_eq!(pieces, wanted);
    }

    #[test]
    fn the_largest_block_with_its_bitmap_is_one_piece_and_a_byte_more_is_two() {
        let largest = u64::from(crate::header::BlockSize::DEFAULT.total_sectors()) * 512;
        for (length, pieces) in [(largest, 1), (largest + 1, 2)] {
            let mut steps = Steps::default();
            steps.copy((File::Journal, 0), (File::Image, 0), length);
            assert_eq!(std::iter::from_fn(|| steps.pop()).count(), pieces);
        }
    }

    #[test]
    fn sectors_that_are_coded_keep_their_numbers_from_piece_to_piece() {
        let (piece, mut steps) = (PIECE_BYTES_MAX, Steps::default());
        let (from, to) = ((File::Ancestor(0), 5 << 9), (File::Image, 7 << 9));
        steps.code(Coding::Encrypt, from, piece + 100, to, (3, 2 * piece + 512));
        let mut pieces = Vec::new();
        while let Some(Step::Code { from_offset, there, to_offset, length, sector, .. }) =
            steps.pop()
        {
            pieces.push((from_offset, there, to_offset, length, sector));
        }
        let sectors = piece / 512;
        let at = |sector: u64, pieces: u64| (sector << 9) + pieces * piece;
        let wanted = [
            (at(5, 0), piece, at(7, 0), piece, 3),
            (at(5, 1), 100, at(7, 1), piece, 3 + sectors),
            (at(5, 2), 0, at(7, 2), 512, 3 + 2 * sectors),
        ];
        assert_eq!(pieces, wanted);
    }
}
