//! How much of an image is written, and how much of that is new to its ancestors.

use crate::cache::Cache;
use crate::error::Result;
use crate::image::{BITMAP_SIZE_MAX, Image};
use crate::read_at::ReadAt;
use crate::units::BlockIndex;

/// Counts of sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Of the blocks that are there.
    pub allocated: u64,
    /// That are there by the bitmaps of these.
    pub written: u64,
    /// Of these, that the parent has not.
    pub not_in_parent: u64,
    /// Of these, that no ancestor has.
    pub not_in_ancestors: u64,
}

/// Counts the sectors of `image`; its ancestors, the parent first, are those that have blocks.
///
/// # Errors
/// The image has no blocks; storage fails.
pub fn stats<R: ReadAt>(image: &Image<R>, ancestors: &[&Image<R>]) -> Result<Stats> {
    let size = image.block_size()?;
    let mut caches: Vec<Cache> = ancestors.iter().map(|_| Cache::default()).collect();
    let mut stats = Stats::default();
    let mut failed = Ok(());
    image.for_each_block(|block, place| {
        if failed.is_err() {
            return;
        }
        failed = image.bitmap(block, place).and_then(|mut bitmap| {
            stats.allocated = stats.allocated.saturating_add(size.sectors().into());
            stats.written = stats.written.saturating_add(count(&bitmap, size.sectors()));
            for (number, (ancestor, cache)) in ancestors.iter().zip(&mut caches).enumerate() {
                if ancestor.block_size()? == size {
                    remove(&mut bitmap, ancestor, cache, block)?;
                }
                if number == 0 {
                    let left = count(&bitmap, size.sectors());
                    stats.not_in_parent = stats.not_in_parent.saturating_add(left);
                }
            }
            let left = count(&bitmap, size.sectors());
            stats.not_in_ancestors = stats.not_in_ancestors.saturating_add(left);
            if ancestors.is_empty() {
                stats.not_in_parent = stats.not_in_parent.saturating_add(left);
            }
            Ok(())
        });
    })?;
    failed.map(|()| stats)
}

fn count(bitmap: &[u8], sectors: u32) -> u64 {
    crate::bits::count(bitmap, sectors).into()
}

/// Clears the bits that an ancestor has set.
fn remove<R: ReadAt>(
    bitmap: &mut [u8; BITMAP_SIZE_MAX],
    ancestor: &Image<R>,
    cache: &mut Cache,
    block: BlockIndex,
) -> Result<()> {
    if block.0 >= ancestor.block_count()? {
        return Ok(());
    }
    if let Some(place) = cache.entry(ancestor, block)? {
        let theirs = cache.bitmap(ancestor, block, place)?;
        for (ours, theirs) in bitmap.iter_mut().zip(theirs) {
            *ours &= !theirs;
        }
    }
    Ok(())
}
