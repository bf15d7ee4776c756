//! Moves what a child holds into its parent: a VHD or a raw image.
//!
//! `docs/vhd-operations.md` says why a cut at any point is safe: the child covers all that is
//! written, and nothing of the child changes.

use super::disk::{Disk, Field};
use super::writer::{Source, Writer};
use super::{Coding, File, Files, Opens, Plan, Progress, Steps};
use crate::bits;
use crate::error::{ErrorKind, Part, Result};
use crate::footer::DiskType;
use crate::units::Sector;

const CHILD: File = File::Image;
const PARENT: File = File::Ancestor(0);

/// A coalesce under way.
#[derive(Debug)]
pub struct Coalesce {
    queue: Steps,
    child: Disk,
    target: Target,
    /// The next block of the child.
    next: u32,
    sectors: u64,
    is_done: bool,
}

#[derive(Debug)]
enum Target {
    /// A raw image, or a fixed disk, which is one with a footer behind it.
    Flat,
    /// A raw image, which is in no key, of an encrypted disk.
    Plain,
    Sparse(Box<Writer>),
}

/// Copies the sectors of a differencing disk into its parent, [`File::Ancestor`] 0.
///
/// Those of an encrypted disk stay as they are in a parent with the same hash of a key, for which
/// no key is needed, and are decrypted for a raw parent.
///
/// # Errors
/// What opening the two gives; a disk without parent, or with another parent than this; ERANGE for
/// data past the end of the parent; ENOSPC for a device without room; EACCES, where the key of an
/// encrypted disk is needed; EINVAL, for another key, or two images that have not the same.
pub fn coalesce(files: &dyn Files, opens: Opens<'_>) -> Result<Coalesce> {
    let child = Disk::open(files, CHILD)?;
    let sparse = child.sparse()?;
    if child.footer.disk_type != DiskType::Differencing {
        let field = Field { part: Part::Footer, field: "type", wanted: "differencing" };
        return Err(field.error(child.footer.disk_type.code().into()));
    }
    let mut queue = Steps::default();
    let wanted = sparse.header.parent_uuid;
    if wanted.is_nil() {
        let end = files.is_device(PARENT).then(|| files.open(PARENT)?.length()).transpose()?;
        refuse_past_end(files, &child, end)?;
        let (is_encrypted, next) = (child.open_with(opens)?, 0);
        let target = if is_encrypted { Target::Plain } else { Target::Flat };
        return Ok(Coalesce { queue, child, target, next, sectors: 0, is_done: false });
    }
    let parent = Disk::open(files, PARENT)?;
    if parent.footer.uuid != wanted {
        return Err(ErrorKind::ParentUuid { found: parent.footer.uuid, wanted }.into());
    }
    refuse_other_key(&child, &parent, opens)?;
    refuse_past_end(files, &child, Some(parent.footer.current_size))?;
    let target = match &parent.sparse {
        None => Target::Flat,
        Some(_) => {
            let new = new_blocks(&child, &parent)?;
            Target::Sparse(Box::new(Writer::new(files, parent, new, false, &mut queue)?))
        }
    };
    Ok(Coalesce { queue, child, target, next: 0, sectors: 0, is_done: false })
}

impl Coalesce {
    /// Sectors that were copied so far.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    fn put_block(&mut self, files: &dyn Files, block: u32, place: Sector) -> Result<()> {
        let sparse = self.child.sparse()?;
        let bitmap = sparse.read_bitmap(files.open(CHILD)?, place)?;
        let data = sparse.data_offset(place);
        let (first, count) = sectors_of(&self.child, block)?;
        for run in bits::runs(&bitmap, 0..count).filter(|run| run.is_set) {
            let start = first.saturating_add(run.start.into());
            let end = start.saturating_add(run.count.into());
            let from = data.saturating_add(u64::from(run.start) << 9);
            match &mut self.target {
                Target::Flat => {
                    let length = u64::from(run.count) << 9;
                    self.queue.copy((CHILD, from), (PARENT, start << 9), length);
                }
                Target::Plain => {
                    let length = u64::from(run.count) << 9;
                    let (from, to) = ((CHILD, from), (PARENT, start << 9));
                    self.queue.code(Coding::Decrypt, from, length, to, (start, length));
                }
                Target::Sparse(writer) => {
                    let source = Source::Copy(CHILD, from);
                    writer.put(files, &mut self.queue, start..end, source)?;
                }
            }
            self.sectors = self.sectors.saturating_add(run.count.into());
        }
        Ok(())
    }
}

impl Plan for Coalesce {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, files: &dyn Files) -> Result<bool> {
        let blocks = self.child.sparse()?.blocks;
        while self.next < blocks {
            let block = self.next;
            self.next = block.saturating_add(1);
            if let Some(place) = self.child.sparse()?.block(block) {
                self.put_block(files, block, place)?;
                return Ok(true);
            }
        }
        if self.is_done {
            return Ok(false);
        }
        self.is_done = true;
        match &mut self.target {
            Target::Flat | Target::Plain => self.queue.barrier(),
            Target::Sparse(writer) => writer.finish(&mut self.queue)?,
        }
        Ok(true)
    }

    // What is read are bitmaps, and sectors of the child.
    fn copies_are_apart(&self) -> bool {
        true
    }

    fn progress(&self) -> Progress {
        let total = self.child.sparse.as_ref().map_or(0, |sparse| sparse.blocks);
        Progress { done: self.next.into(), total: total.into() }
    }
}

/// What is copied as it is stored must be in one key, or in none.
fn refuse_other_key(child: &Disk, parent: &Disk, opens: Opens<'_>) -> Result<()> {
    if opens.is_some() {
        child.open_with(opens)?;
        return parent.open_with(opens).map(drop);
    }
    match (&child.keyhash, &parent.keyhash) {
        (one, other) if one == other => Ok(()),
        // The two may have another nonce and the same key: who has it can tell.
        (Some(_), Some(_)) => Err(ErrorKind::Encrypted.into()),
        _ => Err(ErrorKind::OtherKey.into()),
    }
}

/// The first sector of a block, and how many the disk has there.
fn sectors_of(disk: &Disk, block: u32) -> Result<(u64, u32)> {
    let size = disk.sparse()?.block_size().sectors();
    let first = u64::from(block).saturating_mul(size.into());
    let left = (disk.footer.current_size >> 9).saturating_sub(first);
    Ok((first, u32::try_from(left).unwrap_or(u32::MAX).min(size)))
}

/// Sectors past the end of the parent have no place there; `end` in bytes, if there is one.
fn refuse_past_end(files: &dyn Files, child: &Disk, end: Option<u64>) -> Result<()> {
    let Some(size) = end else { return Ok(()) };
    let sparse = child.sparse()?;
    for (block, place) in sparse.allocated() {
        let (first, count) = sectors_of(child, block)?;
        if first.saturating_add(count.into()) <= size >> 9 {
            continue;
        }
        let bitmap = sparse.read_bitmap(files.open(CHILD)?, place)?;
        let over = |run: &bits::Run| {
            let end = u64::from(run.start).saturating_add(run.count.into());
            run.is_set && first.saturating_add(end) > size >> 9
        };
        if let Some(run) = bits::runs(&bitmap, 0..count).find(over) {
            let found = first.saturating_add(run.start.into()).max(size >> 9) << 9;
            return Err(ErrorKind::PastEnd { found, size }.into());
        }
    }
    Ok(())
}

/// Blocks that the parent may need: those that it does not have, where the child has one.
fn new_blocks(child: &Disk, parent: &Disk) -> Result<u32> {
    let (from, to) = (child.sparse()?, parent.sparse()?);
    let (mut count, mut next) = (0_u32, 0_u64);
    let size = to.block_size().bytes();
    for (block, _) in from.allocated() {
        let start = u64::from(block).saturating_mul(from.block_size().bytes());
        let end = start.saturating_add(from.block_size().bytes()).min(parent.footer.current_size);
        let first = start.checked_div(size).unwrap_or(0).max(next);
        next = end.div_ceil(size).max(next);
        for block in first..next {
            let is_new = u32::try_from(block).is_ok_and(|block| to.block(block).is_none());
            count = count.saturating_add(u32::from(is_new));
        }
    }
    Ok(count)
}
