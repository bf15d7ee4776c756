//! Puts sectors into a dynamic or differencing disk, block by block, in an order that is safe.
//!
//! Data, and for new blocks bitmaps, go to places that nothing refers to; a barrier; then what
//! refers to them: table entries of new blocks, bitmaps of those that were there. The next batch's
//! data follows without a barrier. The footer moves to the new end of the file before all of that.

use std::collections::BTreeSet;

use super::disk::Disk;
use super::{Coding, File, Files, Steps};
use crate::bat;
use crate::bits;
use crate::error::Result;
use crate::footer::DiskType;
use crate::layout::Placement;
use crate::units::{BlockIndex, Sector};

/// Blocks whose references wait for one barrier: with blocks of 2 MiB this is 128 MiB of data.
const BATCH_BLOCKS: usize = 64;

/// Where sectors come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A file, and the offset in bytes.
    Copy(File, u64),
    /// The same, with the offset at which the file ends: behind that are zeros.
    CopyUntil(File, u64, u64),
    /// Nowhere: they are zero.
    Zeros,
    /// As [`Source::CopyUntil`], of a file that is not in the key of this disk.
    EncryptUntil(File, u64, u64),
}

impl Source {
    /// For an encrypted disk; other images of it are in its key already.
    pub(super) fn encrypted(self) -> Self {
        match self {
            // Of no file anything is read: which one that is does not matter.
            Self::Zeros => Self::EncryptUntil(File::Image, 0, 0),
            Self::CopyUntil(file, from, end) => Self::EncryptUntil(file, from, end),
            Self::Copy(..) | Self::EncryptUntil(..) => self,
        }
    }

    /// What comes so many bytes later.
    fn after(self, bytes: u64) -> Self {
        match self {
            Self::Zeros => Self::Zeros,
            Self::Copy(file, from) => Self::Copy(file, from.saturating_add(bytes)),
            Self::CopyUntil(file, from, end) => {
                Self::CopyUntil(file, from.saturating_add(bytes), end)
            }
            Self::EncryptUntil(file, from, end) => {
                Self::EncryptUntil(file, from.saturating_add(bytes), end)
            }
        }
    }
}

/// The state of writing into a disk.
#[derive(Debug)]
pub(super) struct Writer {
    disk: Disk,
    placement: Placement,
    /// Every block that is touched gets all its sectors.
    is_filling: bool,
    open: Option<OpenBlock>,
    /// Sectors of the table that have new entries.
    table: BTreeSet<u32>,
    /// Bitmaps of blocks that were there, and their places.
    bitmaps: Vec<(Sector, Vec<u8>)>,
    /// New blocks whose entries wait.
    waiting: usize,
    /// Blocks of which all sectors are there now.
    full: Vec<u32>,
    /// The batmap has to be written, whether a bit of it changes or not.
    is_batmap_new: bool,
    /// Where the footer is.
    footer_at: u64,
}

#[derive(Debug)]
struct OpenBlock {
    block: u32,
    place: Sector,
    bitmap: Vec<u8>,
    is_new: bool,
    is_changed: bool,
}

impl Writer {
    /// Prepares for at most `new_blocks` more blocks.
    ///
    /// # Errors
    /// A fixed disk; ENOSPC, on a device without room for them or past what the table can name.
    pub(super) fn new(
        files: &dyn Files,
        mut disk: Disk,
        new_blocks: u32,
        is_filling: bool,
        steps: &mut Steps,
    ) -> Result<Self> {
        let is_batmap_new = disk.mend_batmap(files)?;
        let placement = disk.sparse()?.placement();
        let mut end = placement;
        for _ in 0..new_blocks {
            end.allocate()?;
        }
        let old = disk.footer_at_end()?;
        let footer_at = disk.footer_place(end.end_of_data())?.max(old);
        if disk.footer_offset != Some(footer_at) {
            disk.write_footers(steps, footer_at, &disk.footer);
            steps.barrier();
            disk.cut_behind(steps, footer_at);
        }
        Ok(Self {
            disk,
            placement,
            is_filling,
            open: None,
            table: BTreeSet::new(),
            bitmaps: Vec::new(),
            waiting: 0,
            full: Vec::new(),
            is_batmap_new,
            footer_at,
        })
    }

    /// The disk, with the places of blocks as they will be.
    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Sectors of the disk, from `sector` on, which are inside of it; blocks in ascending order.
    ///
    /// # Errors
    /// What reading a bitmap gives; no place for a block.
    pub(super) fn put(
        &mut self,
        files: &dyn Files,
        steps: &mut Steps,
        sectors: std::ops::Range<u64>,
        source: Source,
    ) -> Result<()> {
        let block_sectors = u64::from(self.disk.sparse()?.block_size().sectors());
        let mut at = sectors.start;
        while at < sectors.end {
            let block = at.checked_div(block_sectors).unwrap_or(0);
            let first = block.saturating_mul(block_sectors);
            let end = first.saturating_add(block_sectors).min(sectors.end);
            let within = at.saturating_sub(first)..end.saturating_sub(first);
            let bits = u32::try_from(within.start).expect("inside a block")
                ..u32::try_from(within.end).expect("inside a block");
            let done = at.saturating_sub(sectors.start) << 9;
            let block = u32::try_from(block).expect("the sectors are inside the disk");
            self.put_in_block(files, steps, block, bits, source.after(done))?;
            at = end;
        }
        Ok(())
    }

    fn put_in_block(
        &mut self,
        files: &dyn Files,
        steps: &mut Steps,
        block: u32,
        bits: std::ops::Range<u32>,
        source: Source,
    ) -> Result<()> {
        if self.open.as_ref().is_none_or(|open| open.block != block) {
            self.close(steps)?;
            let all = self.disk.sparse()?.block_size().sectors();
            let is_whole = self.is_filling || bits.len() == usize::try_from(all).unwrap_or(0);
            self.open = Some(self.open_block(files, steps, block, is_whole)?);
        }
        let (file, sparse) = (self.disk.file, self.disk.sparse()?);
        let open = self.open.as_mut().expect("it was just opened");
        let data = sparse.data_offset(open.place);
        let to = data.saturating_add(u64::from(bits.start) << 9);
        let length = u64::from(bits.end.saturating_sub(bits.start)) << 9;
        match source {
            Source::Zeros => steps.zero(file, to, length),
            Source::Copy(from, offset) => steps.copy((from, offset), (file, to), length),
            Source::CopyUntil(from, offset, end) => {
                let there = end.saturating_sub(offset).min(length);
                steps.copy((from, offset), (file, to), there);
                steps.zero(file, to.saturating_add(there), length.saturating_sub(there));
            }
            Source::EncryptUntil(from, offset, end) => {
                let there = end.saturating_sub(offset).min(length);
                let first = u64::from(block).saturating_mul(sparse.block_size().sectors().into());
                let sectors = (first.saturating_add(bits.start.into()), length);
                steps.code(Coding::Encrypt, (from, offset), there, (file, to), sectors);
            }
        }
        let before = bits::count(&open.bitmap, sparse.block_size().sectors());
        bits::set_range(&mut open.bitmap, bits);
        open.is_changed |= bits::count(&open.bitmap, sparse.block_size().sectors()) != before;
        Ok(())
    }

    fn open_block(
        &mut self,
        files: &dyn Files,
        steps: &mut Steps,
        block: u32,
        is_whole: bool,
    ) -> Result<OpenBlock> {
        let file = self.disk.file;
        let sparse = self.disk.sparse()?;
        if let Some(place) = sparse.block(block) {
            let bitmap = sparse.read_bitmap(files.open(file)?, place)?;
            return Ok(OpenBlock { block, place, bitmap, is_new: false, is_changed: false });
        }
        let place = self.placement.allocate()?;
        let size = sparse.block_size();
        // Programs that look at no bitmaps read zeros there, whatever a device held.
        if !is_whole && self.disk.footer.disk_type == DiskType::Dynamic {
            steps.zero(file, sparse.data_offset(place), size.bytes());
        }
        let bytes = usize::try_from(size.bitmap_sectors() << 9).expect("a few sectors");
        Ok(OpenBlock { block, place, bitmap: vec![0; bytes], is_new: true, is_changed: true })
    }

    /// The block that was written to is complete.
    fn close(&mut self, steps: &mut Steps) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let file = self.disk.file;
        let sparse = self.disk.sparse.as_mut().expect("a fixed disk was refused");
        if bits::is_full(&open.bitmap, sparse.block_size().sectors()) {
            self.full.push(open.block);
        }
        if open.is_new {
            steps.write(file, open.place.offset(), &open.bitmap);
            sparse.bat.set(BlockIndex(open.block), Some(open.place));
            self.table.insert(open.block / bat::ENTRIES_PER_SECTOR);
            self.waiting = self.waiting.saturating_add(1);
        } else if open.is_changed {
            self.bitmaps.push((open.place, open.bitmap));
        }
        if self.waiting.saturating_add(self.bitmaps.len()) >= BATCH_BLOCKS {
            self.refer(steps)?;
        }
        Ok(())
    }

    /// What was written is durable, and from now on referred to.
    fn refer(&mut self, steps: &mut Steps) -> Result<()> {
        if self.waiting == 0 && self.bitmaps.is_empty() {
            return Ok(());
        }
        steps.barrier();
        let sparse = self.disk.sparse()?;
        for number in std::mem::take(&mut self.table) {
            sparse.write_table_sector(steps, self.disk.file, number);
        }
        for (place, bitmap) in std::mem::take(&mut self.bitmaps) {
            steps.write(self.disk.file, place.offset(), &bitmap);
        }
        self.waiting = 0;
        Ok(())
    }

    /// All was put.
    ///
    /// # Errors
    /// None but those of the other functions.
    pub(super) fn finish(&mut self, steps: &mut Steps) -> Result<()> {
        self.close(steps)?;
        self.refer(steps)?;
        steps.barrier();
        let file = self.disk.file;
        let sparse = self.disk.sparse.as_mut().expect("a fixed disk was refused");
        if let Some(batmap) = &mut sparse.batmap
            && (batmap.set_all(&self.full) || self.is_batmap_new)
        {
            batmap.write(steps, file);
            steps.barrier();
        }
        let end = self.disk.footer_place(self.placement.end_of_data())?;
        if end < self.footer_at {
            steps.write(file, end, &self.disk.footer.emit());
            steps.barrier();
            steps.set_length(file, end.saturating_add(512));
            steps.barrier();
        }
        Ok(())
    }
}
