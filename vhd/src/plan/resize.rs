//! Another virtual size. `docs/vhd-operations.md` has the order of writes and why it is safe.
//!
//! [`resize`] takes the way that is needed: within the table only the footers change; a table that
//! must grow takes the place of the first blocks, which needs a journal; [`super::revert`] undoes
//! what did not come to its end.

use super::disk::{self, Disk, Field, Sparse};
use super::journal::{self, EntryType, JournalHeader};
use super::{File, Files, Milestone, PIECE_BYTES_MAX, Plan, Steps};
use crate::bat::{self, Bat};
use crate::batmap::{self, BatmapHeader};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::footer::{FOOTER_SIZE, Footer};
use crate::geometry::Geometry;
use crate::header::HEADER_SIZE;
use crate::layout::{DYNAMIC_SIZE_MAX, Placement};
use crate::units::BlockIndex;

const IMAGE: File = File::Image;
const FOOTER_BYTES: u64 = FOOTER_SIZE as u64;

/// Grows a disk to at least `size` bytes, or a fixed one to that or less, with a journal if needed.
///
/// Dynamic and differencing disks are rounded up to whole blocks. When it fails after the image
/// was poisoned, [`super::revert::revert`] has to follow.
///
/// # Errors
/// What opening the image gives; a size that is too large, too small, or not in whole sectors;
/// ENOSPC on a device with too little room; ENOSYS for less than a dynamic disk has: see
/// [`shrink`].
pub fn resize(files: &dyn Files, size: u64) -> Result<Box<dyn Plan>> {
    let disk = Disk::open(files, IMAGE)?;
    let Some(sparse) = &disk.sparse else {
        return fixed(files, &disk, size);
    };
    let size = whole_blocks(&disk.footer, sparse, size)?;
    if size < disk.footer.current_size {
        return Err(ErrorKind::NotSupported("dynamic shrink not fully implemented").into());
    }
    if blocks_of(sparse, size) <= sparse.bat.len() {
        return Ok(Box::new(within_table(disk, size)?));
    }
    Ok(Box::new(past_table(files, &disk, sparse, size)?))
}

/// Grows a dynamic or differencing disk as far as its table allows: only the footers change.
///
/// # Errors
/// What opening the image gives; EINVAL for a fixed disk, for less than it has and more than fits.
pub fn resize_in_table(files: &dyn Files, size: u64) -> Result<Steps> {
    let disk = Disk::open(files, IMAGE)?;
    let sparse = disk.sparse()?;
    let size = whole_blocks(&disk.footer, sparse, size)?;
    if size < disk.footer.current_size {
        return Err(too_small(size, disk.footer.current_size));
    }
    sparse.header.hold(size.div_ceil(sparse.block_size().bytes()))?;
    within_table(disk, size)
}

/// Cuts a dynamic or differencing disk. Blocks past its new end are gone, their place in the file
/// becomes holes.
///
/// # Errors
/// What opening the image gives; EINVAL for a fixed disk, for more than it has, and for nothing.
pub fn shrink(files: &dyn Files, size: u64) -> Result<Steps> {
    let mut disk = Disk::open(files, IMAGE)?;
    let size = whole_blocks(&disk.footer, disk.sparse()?, size)?;
    if size > disk.footer.current_size {
        let (found, limit) = (size, disk.footer.current_size);
        return Err(too_large(found, limit));
    }
    let mut steps = Steps::default();
    let (file, old, footer) = (disk.file, disk.footer.current_size, of_size(&disk.footer, size));
    let place = disk.footer_at_end()?;
    let sparse = disk.sparse.as_mut().expect("a fixed disk was refused");
    let (keep, all) = (blocks_of(sparse, size), sparse.blocks);
    let gone: Vec<_> = sparse.allocated().filter(|(block, _)| *block >= keep).collect();
    forget_hints(sparse, &mut steps, file, keep, [old, size]);
    let mut table = Steps::default();
    forget_blocks(sparse, &mut table, file, keep..all);
    let length = u64::from(sparse.block_size().total_sectors()) << 9;
    disk.write_footers(&mut steps, place, &footer);
    steps.barrier();
    steps.append(table);
    for (_, place) in gone {
        steps.push(super::Step::PunchHole { file, offset: place.offset(), length });
    }
    steps.barrier();
    Ok(steps)
}

fn within_table(mut disk: Disk, size: u64) -> Result<Steps> {
    let mut steps = Steps::default();
    let (file, old, footer) = (disk.file, disk.footer.current_size, of_size(&disk.footer, size));
    let place = disk.footer_at_end()?;
    let sparse = disk.sparse.as_mut().expect("a fixed disk has no table");
    // Whatever a table says past its end was never part of the disk, and new space is zero.
    let (keep, all) = (sparse.blocks, blocks_of(sparse, size));
    forget_hints(sparse, &mut steps, file, keep, [old, size]);
    forget_blocks(sparse, &mut steps, file, keep..all);
    disk.write_footers(&mut steps, place, &footer);
    steps.barrier();
    disk.cut_behind(&mut steps, place);
    Ok(steps)
}

/// Keeps the batmap's bits of the first `keep` blocks, so that its checksum is right for a disk of
/// both sizes, before and after.
fn forget_hints(sparse: &mut Sparse, steps: &mut Steps, file: File, keep: u32, sizes: [u64; 2]) {
    let Some(map) = &mut sparse.batmap else { return };
    let [before, after] = sizes.map(batmap::summed_size);
    let counts = u32::try_from(before.min(after)).unwrap_or(u32::MAX).saturating_mul(8);
    let was_valid = map.is_valid;
    let is_changed = map.clear_from(keep.min(counts));
    map.cover(before.max(after));
    if is_changed || !was_valid || after > before {
        map.write(steps, file);
        steps.barrier();
    }
}

/// Takes blocks out of the table, where they are there.
fn forget_blocks(sparse: &mut Sparse, steps: &mut Steps, file: File, blocks: std::ops::Range<u32>) {
    let mut sectors: Vec<u32> = Vec::new();
    for block in blocks {
        if sparse.bat.get(BlockIndex(block)).is_some() {
            sparse.bat.set(BlockIndex(block), None);
            sectors.push(block / bat::ENTRIES_PER_SECTOR);
        }
    }
    sectors.dedup();
    if !sectors.is_empty() {
        sectors.into_iter().for_each(|number| sparse.write_table_sector(steps, file, number));
        steps.barrier();
    }
}

/// What a table that must grow makes of the places in the file.
struct Growth {
    header: crate::header::Header,
    bat: Bat,
    batmap: Option<disk::Batmap>,
    /// Text of locators, and where it goes.
    locators: Vec<(u64, Vec<u8>)>,
    /// Of the new metadata, in bytes.
    end_of_headers: u64,
    /// From, to, in bytes.
    moves: Vec<(u64, u64)>,
    end_of_data: u64,
}

fn past_table(files: &dyn Files, disk: &Disk, old: &Sparse, size: u64) -> Result<Journaled> {
    let growth = Growth::of(files, old, size)?;
    let footer = of_size(&disk.footer, size);
    let place = disk.footer_place(growth.end_of_data)?;
    let start = old.end_of_parts();
    let undo = start..growth.end_of_headers;
    let journal = journal_steps(files, disk, undo)?;
    let mut steps = Steps::default();
    let poisoned = Footer { is_poisoned: true, ..disk.footer };
    match disk.footer_offset {
        Some(place) => disk.write_footers(&mut steps, place, &poisoned),
        None => steps.write(IMAGE, 0, &poisoned.emit()),
    }
    if Some(place) != disk.footer_offset {
        // Else a block whose last sector a guest wrote would lie where footers are looked for.
        steps.write(IMAGE, place, &poisoned.emit());
    }
    steps.barrier();
    steps.reached(Milestone::ResizeBegin);
    let block = u64::from(old.block_size().total_sectors()) << 9;
    for (from, to) in &growth.moves {
        steps.copy((IMAGE, *from), (IMAGE, *to), block);
    }
    steps.zero(IMAGE, start, growth.end_of_headers.saturating_sub(start));
    steps.reached(Milestone::ResizeDataMoved);
    steps.reached(Milestone::ResizeMetadataMoved);
    growth.write(&mut steps, old.layout.header_offset);
    disk.write_footers(&mut steps, place, &Footer { is_poisoned: true, ..footer });
    steps.barrier();
    disk.cut_behind(&mut steps, place);
    steps.reached(Milestone::ResizeEnd);
    disk.write_footers(&mut steps, place, &footer);
    steps.barrier();
    Ok(Journaled::new(files, disk, journal, steps))
}

impl Growth {
    fn of(files: &dyn Files, old: &Sparse, size: u64) -> Result<Self> {
        let file = files.open(IMAGE)?;
        let entries = blocks_of(old, size);
        let mut header = old.header;
        header.table_entries = entries;
        if old.layout.header_offset > header.table_offset {
            let wanted = "in front of the table; change the parent again, to mend this";
            let field = Field { part: Part::Footer, field: "offset of the header", wanted };
            return Err(field.error(old.layout.header_offset));
        }
        let mut batmap = old.batmap.clone();
        let mut end = batmap::header_offset(header.table_offset, entries).saturating_add(512);
        if let Some(batmap) = &mut batmap {
            let new = BatmapHeader::new(header.table_offset, entries);
            let BatmapHeader { marker, keyhash, .. } = batmap.header;
            batmap.header = BatmapHeader { marker, keyhash, ..new };
            batmap.header_offset = batmap::header_offset(header.table_offset, entries);
            batmap.cover(u64::from(new.sectors) << 9);
            end = end.max(new.end());
        }
        let locators = move_locators(file, &mut header, &mut end)?;
        let mut bat = Bat::new(entries)?;
        let mut placement = Placement::new(old.block_size(), end);
        old.allocated().for_each(|(_, place)| placement.take(place));
        let mut moves = Vec::new();
        for (block, mut place) in old.allocated() {
            if place.offset() < end {
                let to = placement.allocate()?;
                moves.push((place.offset(), to.offset()));
                place = to;
            }
            bat.set(BlockIndex(block), Some(place));
        }
        let end_of_data = placement.end_of_data();
        Ok(Self { header, bat, batmap, locators, end_of_headers: end, moves, end_of_data })
    }

    /// All parts but the footers, each to its place.
    fn write(self, steps: &mut Steps, header_offset: u64) {
        steps.write(IMAGE, header_offset, &self.header.emit());
        steps.write(IMAGE, self.header.table_offset, &self.bat.emit());
        if let Some(mut batmap) = self.batmap {
            batmap.write(steps, IMAGE);
        }
        for (offset, text) in self.locators {
            steps.write(IMAGE, offset, &text);
        }
    }
}

/// Puts locators that are behind the table behind `end`, and `end` behind them.
fn move_locators(
    file: &dyn crate::read_at::ReadAt,
    header: &mut crate::header::Header,
    end: &mut u64,
) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut texts = Vec::new();
    for locator in &mut header.locators {
        if locator.space == 0 {
            continue;
        }
        let space = locator.space_bytes();
        if space > crate::locator::TEXT_SIZE_MAX.into() {
            let (found, limit) = (space, crate::locator::TEXT_SIZE_MAX.into());
            let (what, unit) = ("Parent locator", "bytes");
            return Err(ErrorKind::TooLarge { what, found, limit, unit }.into());
        }
        if locator.offset < header.table_offset {
            continue;
        }
        let text = disk::read(file, locator.offset, space)?;
        locator.offset = *end;
        texts.push((*end, text));
        *end = end.saturating_add(space);
    }
    Ok(texts)
}

/// The journal: what is there now, of all that will change.
fn journal_steps(files: &dyn Files, disk: &Disk, undo: std::ops::Range<u64>) -> Result<Steps> {
    let file = files.open(IMAGE)?;
    let place = disk.footer_at_end()?;
    let footer = disk.footer.emit().to_vec();
    let mut metadata = vec![(EntryType::Footer, place, footer.clone())];
    if disk.sparse.is_some() {
        metadata.push((EntryType::FooterCopy, 0, footer));
    }
    let mut data = Vec::new();
    let mut add = |entry_type, offset, size| -> Result<()> {
        metadata.push((entry_type, offset, disk::read(file, offset, size)?));
        Ok(())
    };
    if let Some(sparse) = &disk.sparse {
        add(EntryType::Header, sparse.layout.header_offset, HEADER_SIZE as u64)?;
        for locator in sparse.header.locators.iter().filter(|locator| locator.space != 0) {
            add(EntryType::Locator, locator.offset, locator.space_bytes())?;
        }
        let table = bat::size_on_disk(sparse.bat.len());
        add(EntryType::Bat, sparse.header.table_offset, table)?;
        if let Some(batmap) = &sparse.batmap {
            add(EntryType::BatmapHeader, batmap.header_offset, 512)?;
            let size = u64::try_from(batmap.map.len()).unwrap_or(u64::MAX);
            add(EntryType::Batmap, batmap.header.offset, size)?;
        }
        // Behind the footer nothing is kept: the old length comes back.
        let (mut at, end) = (undo.start, undo.end.min(place).min(disk.length));
        while at < end {
            let size = end.saturating_sub(at).min(PIECE_BYTES_MAX);
            data.push((EntryType::Data, at, disk::read(file, at, size)?));
            at = at.saturating_add(size);
        }
    }
    let mut steps = Steps::default();
    let empty = JournalHeader::empty(disk.footer.uuid, place);
    if files.is_device(File::Journal) {
        // An older journal must not seem to go on with these entries.
        steps.write(File::Journal, 0, &empty.emit());
        steps.barrier();
    }
    let mut end = empty.end;
    let mut append = |steps: &mut Steps, entries: &[(EntryType, u64, Vec<u8>)]| {
        let start = end;
        for (entry_type, offset, bytes) in entries {
            let bytes = journal::emit_entry(*entry_type, *offset, bytes);
            steps.write(File::Journal, end, &bytes);
            end = end.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        (start, u32::try_from(entries.len()).unwrap_or(u32::MAX))
    };
    let (metadata_offset, metadata_entries) = append(&mut steps, &metadata);
    let (data_offset, data_entries) = append(&mut steps, &data);
    let header = JournalHeader {
        data_entries,
        metadata_entries,
        data_offset,
        metadata_offset,
        end,
        ..empty
    };
    steps.barrier();
    steps.write(File::Journal, 0, &header.emit());
    steps.barrier();
    Ok(steps)
}

/// Says that nothing has to be put back, and goes away.
pub(super) fn end_journal(files: &dyn Files, steps: &mut Steps, header: &JournalHeader) {
    let empty = JournalHeader::empty(header.uuid, header.footer_offset);
    steps.write(File::Journal, 0, &empty.emit());
    if !files.is_device(File::Journal) {
        steps.push(super::Step::Remove { file: File::Journal });
    }
    steps.barrier();
}

/// A journal, then changes, then no journal.
struct Journaled {
    queue: Steps,
    /// Not begun yet, in order.
    stages: std::collections::VecDeque<Steps>,
    stage: Stage,
    error: Option<Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The journal is not there.
    Creating,
    /// The image is as it was.
    Writing,
    /// Only a revert brings back what was.
    Changing,
}

impl Journaled {
    fn new(files: &dyn Files, disk: &Disk, journal: Steps, mut changes: Steps) -> Self {
        let header = JournalHeader::empty(disk.footer.uuid, disk.footer_offset.unwrap_or(0));
        end_journal(files, &mut changes, &header);
        let mut queue = Steps::default();
        if !files.is_device(File::Journal) {
            queue.push(super::Step::Create { file: File::Journal });
        }
        let stages = [journal, changes].into();
        Self { queue, stages, stage: Stage::Creating, error: None }
    }
}

impl Plan for Journaled {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, _files: &dyn Files) -> Result<bool> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.stage = match self.stage {
            Stage::Creating => Stage::Writing,
            Stage::Writing | Stage::Changing => Stage::Changing,
        };
        let next = self.stages.pop_front();
        let is_more = next.is_some();
        self.queue = next.unwrap_or_default();
        Ok(is_more)
    }

    fn failed(&mut self, error: Error) -> Result<()> {
        if self.stage != Stage::Writing || self.error.is_some() {
            return Err(self.error.take().unwrap_or(error));
        }
        // The image was not touched: a journal that says nothing is only in the way.
        self.error = Some(error);
        self.queue.clear();
        self.queue.push(super::Step::Remove { file: File::Journal });
        Ok(())
    }
}

fn fixed(files: &dyn Files, disk: &Disk, size: u64) -> Result<Box<dyn Plan>> {
    let (old, new) = (disk.footer.current_size, size);
    if new == 0 || !new.is_multiple_of(512) {
        return Err(too_small(new, 512));
    }
    if new > i64::MAX.unsigned_abs().saturating_sub(FOOTER_BYTES) {
        return Err(too_large(new, i64::MAX.unsigned_abs().saturating_sub(FOOTER_BYTES)));
    }
    let place = disk.footer_offset.unwrap_or(old);
    let footer = of_size(&disk.footer, new);
    let mut steps = Steps::default();
    if disk.is_device {
        disk.footer_place(new)?;
    }
    if disk.is_device || new <= place {
        // What was behind the disk becomes part of it.
        steps.zero(IMAGE, old, new.saturating_sub(old));
        if new > old {
            steps.barrier();
        }
        steps.write(IMAGE, place, &footer.emit());
        steps.barrier();
        if !disk.is_device && new != place {
            steps.write(IMAGE, new, &footer.emit());
            steps.barrier();
            steps.set_length(IMAGE, new.saturating_add(FOOTER_BYTES));
            steps.barrier();
        }
        return Ok(Box::new(steps));
    }
    let journal = journal_steps(files, disk, 0..0)?;
    steps.write(IMAGE, new, &disk.footer.emit());
    steps.barrier();
    let end = place.saturating_add(FOOTER_BYTES).min(new);
    steps.zero(IMAGE, old, end.saturating_sub(old));
    steps.barrier();
    // In one epoch with the end of the journal: both footers that may be there are whole.
    steps.write(IMAGE, new, &footer.emit());
    Ok(Box::new(Journaled::new(files, disk, journal, steps)))
}

fn of_size(footer: &Footer, size: u64) -> Footer {
    Footer { current_size: size, geometry: Geometry::of(size), ..*footer }
}

fn blocks_of(sparse: &Sparse, size: u64) -> u32 {
    u32::try_from(size.div_ceil(sparse.block_size().bytes())).unwrap_or(u32::MAX)
}

/// A size in whole blocks that the format can hold; the size of the disk itself is always one.
fn whole_blocks(footer: &Footer, sparse: &Sparse, size: u64) -> Result<u64> {
    if size == 0 {
        return Err(too_small(0, sparse.block_size().bytes()));
    }
    if size == footer.current_size {
        return Ok(size);
    }
    let whole = size.checked_next_multiple_of(sparse.block_size().bytes());
    let most = u64::from(bat::ENTRIES_MAX).saturating_mul(sparse.block_size().bytes());
    let most = most.min(DYNAMIC_SIZE_MAX);
    whole.filter(|whole| *whole <= most).ok_or_else(|| too_large(size, most))
}

fn too_small(found: u64, limit: u64) -> Error {
    ErrorKind::TooSmall { what: "Virtual size", found, limit, unit: "bytes" }.into()
}

fn too_large(found: u64, limit: u64) -> Error {
    ErrorKind::TooLarge { what: "Virtual size", found, limit, unit: "bytes" }.into()
}
