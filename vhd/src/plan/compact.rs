//! Gives back what a disk does not need: blocks without data, and what is free in the file.

use super::disk::Disk;
use super::{File, Files, Plan, Progress, Step, Steps};
use crate::bat;
use crate::bits;
use crate::error::Result;
use crate::footer::DiskType;
use crate::layout::BLOCK_ALIGNMENT_SECTORS;
use crate::units::{BlockIndex, Sector};

const IMAGE: File = File::Image;

/// Blocks that leave the table together.
const BATCH_BLOCKS: usize = 64;

/// A compact under way.
#[derive(Debug)]
pub struct Compact {
    queue: Steps,
    disk: Disk,
    /// The next block that is looked at.
    next: u32,
    /// Blocks that will leave the table, and where they are.
    gone: Vec<(u32, Sector)>,
    /// How many left it.
    freed: u32,
    /// The batmap has to be written, whether a bit of it changes or not.
    is_batmap_new: bool,
    is_done: bool,
}

/// Takes blocks without data out of the table of a dynamic or differencing disk, punches holes
/// where nothing is referred to, and cuts the file behind its last block.
///
/// Blocks that are all zero count as without data in a dynamic disk, where no block says the same,
/// but for an encrypted one.
///
/// # Errors
/// What opening the image gives; EINVAL, for a fixed disk.
pub fn compact(files: &dyn Files) -> Result<Compact> {
    let mut disk = Disk::open(files, IMAGE)?;
    disk.sparse()?;
    let is_batmap_new = disk.mend_batmap(files)?;
    let (queue, gone) = (Steps::default(), Vec::new());
    Ok(Compact { queue, disk, next: 0, gone, freed: 0, is_batmap_new, is_done: false })
}

impl Compact {
    /// Blocks that were given back so far.
    #[must_use]
    pub fn freed_blocks(&self) -> u32 {
        self.freed
    }

    fn look_at(&mut self, files: &dyn Files, block: u32, place: Sector) -> Result<()> {
        let sparse = self.disk.sparse()?;
        let count = sparse.block_size().sectors();
        let file = files.open(IMAGE)?;
        let bitmap = sparse.read_bitmap(file, place)?;
        let mut is_empty = bits::is_empty(&bitmap, count);
        // What is zero as it is stored is something else in a key.
        let may_be_zero = self.disk.footer.disk_type == DiskType::Dynamic;
        if !is_empty && may_be_zero && self.disk.keyhash.is_none() {
            let size = usize::try_from(sparse.block_size().bytes()).expect("at most 2 MiB");
            let mut data = vec![0; size];
            file.read_at(sparse.data_offset(place), &mut data)?;
            let sector = |number: u32| {
                let start = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(512);
                data.get(start..start.saturating_add(512)).unwrap_or_default()
            };
            let is_zero = |number: u32| sector(number).iter().all(|byte| *byte == 0);
            is_empty = (0..count).all(|number| !bits::get(&bitmap, number) || is_zero(number));
        }
        if is_empty {
            self.gone.push((block, place));
            return Ok(());
        }
        let data = sparse.data_offset(place);
        for run in bits::runs(&bitmap, 0..count).filter(|run| !run.is_set) {
            let start = u64::from(run.start).next_multiple_of(BLOCK_ALIGNMENT_SECTORS);
            let end = u64::from(run.start).saturating_add(run.count.into());
            let length = end.saturating_sub(start) & !BLOCK_ALIGNMENT_SECTORS.saturating_sub(1);
            if length > 0 {
                let offset = data.saturating_add(start << 9);
                self.queue.push(Step::PunchHole { file: IMAGE, offset, length: length << 9 });
            }
        }
        Ok(())
    }

    /// Batmap, table, holes.
    fn forget(&mut self) {
        let gone = std::mem::take(&mut self.gone);
        let sparse = self.disk.sparse.as_mut().expect("a fixed disk was refused");
        let blocks: Vec<u32> = gone.iter().map(|(block, _)| *block).collect();
        if let Some(batmap) = &mut sparse.batmap
            && (batmap.clear_all(&blocks) || self.is_batmap_new)
        {
            batmap.write(&mut self.queue, IMAGE);
            self.queue.barrier();
            self.is_batmap_new = false;
        }
        if gone.is_empty() {
            return;
        }
        let mut sectors: Vec<u32> = Vec::new();
        for block in blocks {
            sparse.bat.set(BlockIndex(block), None);
            sectors.push(block / bat::ENTRIES_PER_SECTOR);
            self.freed = self.freed.saturating_add(1);
        }
        sectors.dedup();
        for number in sectors {
            sparse.write_table_sector(&mut self.queue, IMAGE, number);
        }
        self.queue.barrier();
        let length = u64::from(sparse.block_size().total_sectors()) << 9;
        for (_, place) in gone {
            let offset = place.offset();
            self.queue.push(Step::PunchHole { file: IMAGE, offset, length });
        }
    }

    /// The footer behind the last block, and nothing behind the footer.
    fn cut(&mut self) -> Result<()> {
        let end = self.disk.sparse()?.placement().end_of_data();
        let place = self.disk.footer_place(end)?;
        if self.disk.footer_offset.is_none_or(|old| place < old) {
            self.disk.write_footers(&mut self.queue, place, &self.disk.footer);
            self.queue.barrier();
            self.disk.cut_behind(&mut self.queue, place);
        } else {
            self.queue.barrier();
        }
        Ok(())
    }
}

impl Plan for Compact {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, files: &dyn Files) -> Result<bool> {
        let blocks = self.disk.sparse()?.blocks;
        while self.next < blocks {
            let block = self.next;
            self.next = block.saturating_add(1);
            if let Some(place) = self.disk.sparse()?.block(block) {
                self.look_at(files, block, place)?;
                if self.gone.len() >= BATCH_BLOCKS {
                    self.forget();
                }
                return Ok(true);
            }
        }
        if self.is_done {
            return Ok(false);
        }
        self.is_done = true;
        self.forget();
        self.cut()?;
        Ok(true)
    }

    fn progress(&self) -> Progress {
        let total = self.disk.sparse.as_ref().map_or(0, |sparse| sparse.blocks);
        Progress { done: self.next.into(), total: total.into() }
    }
}
