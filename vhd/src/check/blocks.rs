//! The blocks of one image: inside of the file, behind the headers, none over another.

use super::CheckOptions;
use super::finding::{Finding, FindingKind as Kind};
use crate::bat::ENTRIES_MAX;
use crate::bits;
use crate::error::{ErrorKind, Result};
use crate::header::BlockSize;
use crate::image::Image;
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, SECTOR_SIZE, Sector};

/// What direct I/O wants memory to be a multiple of.
const PAGE: usize = 4096;

/// Findings of one kind that are listed one by one, before the rest is only counted.
const LISTED_MAX: usize = 16;

/// Where blocks may be, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What was found.
pub(super) struct Blocks {
    pub(super) findings: Vec<Finding>,
    /// A bit for each block of the disk: is it there?
    pub(super) present: Vec<u8>,
}

/// A block that is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    place: Sector,
    block: BlockIndex,
}

/// Checks all blocks that the table names.
pub(super) fn check<R: ReadAt>(
    image: &Image<R>,
    area: Area,
    options: CheckOptions,
) -> Result<Blocks> {
    let count = image.block_count()?;
    if count > ENTRIES_MAX {
        let (what, unit) = ("Block allocation table", "entries");
        let (found, limit) = (count.into(), ENTRIES_MAX.into());
        return Err(ErrorKind::TooLarge { what, found, limit, unit }.into());
    }
    let size = image.block_size()?;
    let bytes = usize::try_from(count.div_ceil(8)).expect("bounded above");
    let mut present = vec![0; bytes];
    let mut placed = Vec::new();
    let mut outside = Vec::new();
    image.for_each_block(|block, place| {
        bits::set(&mut present, block.0, true);
        if options.read_data || !options.ignore_overlap {
            placed.push(Placed { place, block });
        }
        if outside.len() < LISTED_MAX
            && let Some(finding) = outside_of(area, size, block, place)
        {
            outside.push(finding);
        }
    })?;
    let mut findings = outside;
    if !options.ignore_overlap {
        findings.extend(overlaps(&mut placed, size));
    }
    // In the order of the disk, as who goes through it block by block finds them.
    findings.sort_by_key(|finding| finding.block().map_or(u32::MAX, |block| block.0));
    if findings.is_empty() && options.read_data {
        findings.extend(stray_data(image, placed, size)?);
    }
    Ok(Blocks { findings, present })
}

fn outside_of(area: Area, size: BlockSize, block: BlockIndex, place: Sector) -> Option<Finding> {
    let length = u64::from(size.total_sectors()).saturating_mul(SECTOR_SIZE);
    if place.offset() < area.start {
        return Some(Finding::new(Kind::OverHeaders { block, place }));
    }
    let end = place.offset().saturating_add(length);
    (end > area.end).then(|| Finding::new(Kind::OverFooter { block, place }))
}

/// The blocks that lie over another, those with the lowest numbers first.
///
/// All are of one size, so in the order of their places a block lies over another only if it lies
/// over one of its neighbours.
fn overlaps(placed: &mut [Placed], size: BlockSize) -> Vec<Finding> {
    let reach = size.total_sectors();
    let is_over = |one: &Placed, other: &Placed| one.place.0.abs_diff(other.place.0) < reach;
    placed.sort_unstable();
    let mut guilty = Vec::new();
    for pair in placed.windows(2) {
        if let [one, other] = pair
            && is_over(one, other)
        {
            guilty.extend([*one, *other]);
        }
    }
    guilty.sort_unstable_by_key(|block| block.block);
    guilty.dedup();
    let mut findings = Vec::new();
    let mut named = Vec::new();
    for one in guilty.iter().take(LISTED_MAX) {
        let others = guilty.iter().filter(|other| other.block != one.block && is_over(one, other));
        let Some(other) = others.min_by_key(|other| other.block) else { continue };
        // Named once, by the one that comes first.
        if other.block > one.block {
            let (block, place) = (one.block, one.place);
            let (other, other_place) = (other.block, other.place);
            named.extend([block, other]);
            findings.push(Finding::new(Kind::OverBlock { block, place, other, other_place }));
        }
    }
    named.sort_unstable();
    named.dedup();
    let more = guilty.len().saturating_sub(named.len());
    if more > 0 {
        findings.push(Finding::new(Kind::MoreOverlaps(u32::try_from(more).unwrap_or(u32::MAX))));
    }
    findings
}

/// The first sector of a block that has data and is not there, of each block.
fn stray_data<R: ReadAt>(
    image: &Image<R>,
    mut placed: Vec<Placed>,
    size: BlockSize,
) -> Result<Vec<Finding>> {
    placed.sort_unstable_by_key(|block| block.block);
    let bytes = usize::try_from(size.bytes()).expect("at most 2 MiB");
    // Starts at a page: then direct I/O goes right there.
    let mut memory = vec![0; bytes.saturating_add(PAGE)];
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    let data = memory.get_mut(start..).and_then(|rest| rest.get_mut(..bytes)).unwrap_or_default();
    let mut findings = Vec::new();
    for Placed { block, place } in placed {
        if findings.len() >= LISTED_MAX {
            break;
        }
        let bitmap = match image.bitmap(block, place) {
            Ok(bitmap) => bitmap,
            Err(error) => {
                findings.push(Finding::caused(Kind::ReadBitmap(block), error));
                break;
            }
        };
        let offset = place.offset().saturating_add(u64::from(size.bitmap_sectors()) << 9);
        let available = image.source().length()?.saturating_sub(offset);
        // A file may end inside its last block: what is not there is not data either.
        let there = usize::try_from(available).unwrap_or(usize::MAX).min(bytes);
        let piece = data.get_mut(..there).unwrap_or_default();
        if let Err(error) = image.source().read_at(offset, piece) {
            findings.push(Finding::caused(Kind::ReadData(block), error));
            break;
        }
        if let Some(sector) = first_stray(piece, &bitmap) {
            findings.push(Finding::new(Kind::DataWhereClear { block, sector }));
        }
    }
    Ok(findings)
}

fn first_stray(data: &[u8], bitmap: &[u8]) -> Option<u32> {
    let sectors = (0..).zip(data.chunks(512));
    let mut stray = sectors.filter(|(sector, bytes)| {
        !bits::get(bitmap, *sector) && bytes.iter().fold(0, |all, byte| all | byte) != 0
    });
    stray.next().map(|(sector, _)| sector)
}
