//! Gives a disk all its blocks, and all their sectors: from its parents, or zeros.

use std::ops::Range;

use super::disk::Disk;
use super::writer::{Source, Writer};
use super::{File, Files, Opens, Plan, Progress, Steps};
use crate::bits;
use crate::error::Result;
use crate::footer::DiskType;
use crate::units::Uuid;

const IMAGE: File = File::Image;

/// Fills the blocks in which `sectors` lie, or all of them.
///
/// The parents are [`File::Ancestor`] 0 and on, as far as images name parents. An encrypted disk is
/// filled with data in its key: those of its parents, which have that key, as they are stored,
/// while zeros and what a raw parent holds are encrypted.
///
/// # Errors
/// What opening the images gives; a fixed disk; no room for the blocks; EACCES, for an encrypted
/// disk without its key; EINVAL, for one of which not all images are in this key.
pub fn fill(
    files: &dyn Files,
    sectors: Option<Range<u64>>,
    opens: Opens<'_>,
) -> Result<Box<dyn Plan>> {
    let disk = Disk::open(files, IMAGE)?;
    let is_encrypted = disk.open_with(opens)?;
    let below = ancestors(files, &disk, opens)?;
    let sparse = disk.sparse()?;
    let (size, all) = (u64::from(sparse.block_size().sectors()), sparse.blocks);
    let blocks = match sectors {
        None => 0..all,
        Some(range) => {
            let block = |sector: u64| u32::try_from(sector).unwrap_or(u32::MAX);
            let first = range.start.checked_div(size).unwrap_or(0);
            block(first)..block(range.end.div_ceil(size)).min(all)
        }
    };
    let new = blocks.clone().filter(|block| sparse.block(*block).is_none()).count();
    let new = u32::try_from(new).expect("no more than there are blocks");
    let mut queue = Steps::default();
    let writer = Writer::new(files, disk, new, true, &mut queue)?;
    Ok(Box::new(Fill { queue, writer, below, is_encrypted, blocks, is_done: false }))
}

/// Whatever is below an image.
enum Below {
    /// A raw image of so many bytes, or a fixed disk.
    Flat(File, u64),
    Sparse(Box<Disk>),
}

fn ancestors(files: &dyn Files, disk: &Disk, opens: Opens<'_>) -> Result<Vec<Below>> {
    let mut below = Vec::new();
    let mut parent = parent_of(disk);
    for number in 0_u16.. {
        let Some(uuid) = parent else { break };
        let file = File::Ancestor(number);
        if uuid.is_nil() {
            below.push(Below::Flat(file, files.open(file)?.length()?));
            break;
        }
        let disk = Disk::open(files, file)?;
        disk.open_with(opens)?;
        parent = parent_of(&disk);
        below.push(match disk.sparse {
            Some(_) => Below::Sparse(Box::new(disk)),
            None => Below::Flat(file, disk.footer.current_size),
        });
    }
    Ok(below)
}

fn parent_of(disk: &Disk) -> Option<Uuid> {
    let sparse = disk.sparse.as_ref()?;
    (disk.footer.disk_type == DiskType::Differencing).then_some(sparse.header.parent_uuid)
}

struct Fill {
    queue: Steps,
    writer: Writer,
    below: Vec<Below>,
    is_encrypted: bool,
    /// Those that are left.
    blocks: Range<u32>,
    is_done: bool,
}

impl Fill {
    fn put_block(&mut self, files: &dyn Files, block: u32) -> Result<()> {
        let disk = self.writer.disk();
        let sparse = disk.sparse()?;
        let bitmap = match sparse.block(block) {
            Some(place) => sparse.read_bitmap(files.open(IMAGE)?, place)?,
            None => Vec::new(),
        };
        let count = sparse.block_size().sectors();
        let first = u64::from(block).saturating_mul(count.into());
        for run in bits::runs(&bitmap, 0..count).filter(|run| !run.is_set) {
            let mut at = first.saturating_add(run.start.into());
            let end = at.saturating_add(run.count.into());
            while at < end {
                let (source, count) = source_of(files, &self.below, at, end.saturating_sub(at))?;
                let piece = at..at.saturating_add(count);
                at = piece.end;
                let source = if self.is_encrypted { source.encrypted() } else { source };
                self.writer.put(files, &mut self.queue, piece, source)?;
            }
        }
        Ok(())
    }
}

/// Where the sectors from `at` on come from, and how many of `count` do: at least one.
fn source_of(files: &dyn Files, below: &[Below], at: u64, count: u64) -> Result<(Source, u64)> {
    let mut count = count;
    for image in below {
        let size = match image {
            Below::Flat(_, size) => *size,
            Below::Sparse(disk) => disk.footer.current_size,
        };
        // The end of a raw image may be in the middle of a sector, which is not lost.
        let left = size.div_ceil(512).saturating_sub(at);
        if left == 0 {
            continue;
        }
        count = count.min(left);
        match image {
            Below::Flat(file, end) => {
                return Ok((Source::CopyUntil(*file, at << 9, *end), count));
            }
            Below::Sparse(disk) => {
                let sparse = disk.sparse()?;
                let sectors = u64::from(sparse.block_size().sectors());
                let block = u32::try_from(at.checked_div(sectors).unwrap_or(0)).unwrap_or(u32::MAX);
                let bit = at.checked_rem(sectors).unwrap_or(0);
                count = count.min(sectors.saturating_sub(bit));
                let Some(place) = sparse.block(block) else { continue };
                let bitmap = sparse.read_bitmap(files.open(disk.file)?, place)?;
                let bit = u32::try_from(bit).expect("inside a block");
                let most = u32::try_from(count).expect("inside a block");
                let bits = bit..bit.saturating_add(most);
                let Some(run) = bits::first_run(&bitmap, bits) else { continue };
                count = count.min(run.count.into());
                if run.is_set {
                    let from = sparse.data_offset(place).saturating_add(u64::from(bit) << 9);
                    return Ok((Source::Copy(disk.file, from), count));
                }
            }
        }
    }
    Ok((Source::Zeros, count))
}

impl Plan for Fill {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, files: &dyn Files) -> Result<bool> {
        if let Some(block) = self.blocks.next() {
            self.put_block(files, block)?;
            return Ok(true);
        }
        if self.is_done {
            return Ok(false);
        }
        self.is_done = true;
        self.writer.finish(&mut self.queue)?;
        Ok(true)
    }

    // What is read are bitmaps, and sectors of the parents.
    fn copies_are_apart(&self) -> bool {
        true
    }

    fn progress(&self) -> Progress {
        Progress { done: self.blocks.start.into(), total: self.blocks.end.into() }
    }
}
