//! Another parent, another place for the footer, no data any more.
//!
//! `docs/vhd-operations.md` says why the header of a disk that gets another parent moves twice.

use std::ops::Range;

use super::disk::{Disk, Field, Sparse};
use super::{File, Files, Milestone, Steps};
use crate::bat;
use crate::error::{ErrorKind, Part, Result};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, HEADER_OFFSET};
use crate::header::{HEADER_SIZE, Header, ParentName};
use crate::locator::{self, Locator};
use crate::units::{BlockIndex, Timestamp, Uuid};

const IMAGE: File = File::Image;
const FOOTER_BYTES: u64 = FOOTER_SIZE as u64;
const HEADER_BYTES: u64 = HEADER_SIZE as u64;

/// Who an image's parent is.
#[derive(Clone, Copy, Debug)]
pub struct NewParent<'a> {
    /// Without directories.
    pub name: &'a str,
    /// Relative to the directory of the image, with slashes: `./parent.vhd`.
    pub path: &'a str,
    /// Its identity; nil for a raw image.
    pub uuid: Uuid,
    /// When it was last changed.
    pub timestamp: Timestamp,
}

/// Gives a differencing disk another parent.
///
/// # Errors
/// What opening the image gives; a disk that is not differencing; ENAMETOOLONG, for a path that
/// does not fit where the old one was.
pub fn modify_parent(files: &dyn Files, parent: &NewParent<'_>) -> Result<Steps> {
    let disk = Disk::open(files, IMAGE)?;
    let sparse = disk.sparse()?;
    if disk.footer.disk_type != DiskType::Differencing {
        let field = Field { part: Part::Footer, field: "type", wanted: "differencing" };
        return Err(field.error(disk.footer.disk_type.code().into()));
    }
    let home = Home::of(&disk, sparse, parent)?;
    let mut steps = Steps::default();
    steps.reached(Milestone::ReparentBegin);
    if home.offset != sparse.layout.header_offset {
        home.move_back(&mut steps, &disk, disk.footer_at_end()?);
        steps.reached(Milestone::ReparentLocator);
    } else if let Some(place) = home.free_place(&disk, sparse)? {
        home.move_through(&mut steps, &disk, place);
    } else {
        home.write_texts(&mut steps);
        steps.barrier();
        steps.reached(Milestone::ReparentLocator);
        steps.write(IMAGE, home.offset, &home.header.emit());
        steps.barrier();
    }
    steps.reached(Milestone::ReparentEnd);
    Ok(steps)
}

/// The new header and texts, in the places where they will stay.
struct Home {
    offset: u64,
    header: Header,
    /// Texts by the number of their locator.
    texts: Vec<(usize, Vec<u8>)>,
    /// Where the footer will be, when the header was somewhere else.
    footer_at: Option<u64>,
}

impl Home {
    fn of(disk: &Disk, sparse: &Sparse, parent: &NewParent<'_>) -> Result<Self> {
        let mut header = sparse.header;
        header.parent_uuid = parent.uuid;
        header.parent_timestamp = parent.timestamp;
        header.parent_name = ParentName::encode(parent.name)?;
        let mut texts = Vec::new();
        for (number, locator) in header.locators.iter_mut().enumerate() {
            if locator.space == 0 || !locator.platform.is_read() {
                continue;
            }
            let text = locator::encode(locator.platform, parent.path);
            let (found, limit) = (length_of(&text), locator.space_bytes());
            if found > limit {
                let part = Part::Locator(u8::try_from(number).unwrap_or(u8::MAX));
                return Err(ErrorKind::NameTooLong { part, found, limit }.into());
            }
            locator.length = u32::try_from(found).expect("within a space of 32 bits");
            texts.push((number, text));
        }
        let mut home = Self { offset: sparse.layout.header_offset, header, texts, footer_at: None };
        home.return_from_elsewhere(disk, sparse);
        Ok(home)
    }

    /// A change that was cut off may have left the header and the texts in free space: they go to
    /// where this family of programs puts them, if that is free.
    fn return_from_elsewhere(&mut self, disk: &Disk, sparse: &Sparse) {
        if self.offset == HEADER_OFFSET {
            return;
        }
        let is_text = |part: &Part| matches!(part, Part::Locator(_));
        let parts = sparse.parts().into_iter();
        let others: Vec<_> =
            parts.filter(|(part, _)| *part != Part::Header && !is_text(part)).collect();
        let end = others.iter().fold(0, |end, (_, range)| range.end.max(end));
        let mut at = end.next_multiple_of(512).max(HEADER_OFFSET.saturating_add(HEADER_BYTES));
        let mut locators = self.header.locators;
        for (number, _) in &self.texts {
            if let Some(locator) = locators.get_mut(*number) {
                locator.offset = at;
                at = at.saturating_add(locator.space_bytes().next_multiple_of(512));
            }
        }
        let room = HEADER_OFFSET..HEADER_OFFSET.saturating_add(HEADER_BYTES);
        let is_free = |place: &Range<u64>| {
            others.iter().all(|(_, range)| !overlap(range, place))
                && sparse.block_ranges().all(|range| !overlap(&range, place))
        };
        if !is_free(&room) || !is_free(&(end.next_multiple_of(512)..at)) {
            return;
        }
        self.offset = HEADER_OFFSET;
        self.header.locators = locators;
        if !disk.is_device {
            self.footer_at = Some(sparse.block_ranges().fold(at, |end, range| range.end.max(end)));
        }
    }

    /// Of header and texts, one behind the other.
    fn size(&self) -> u64 {
        let spaces = self.texts.iter().filter_map(|(number, _)| self.header.locators.get(*number));
        spaces.fold(HEADER_BYTES, |size, locator| size.saturating_add(space_of(locator)))
    }

    /// Space that nothing refers to: in front of the blocks, behind them, or behind the footer of a
    /// file; none on a device that is full.
    fn free_place(&self, disk: &Disk, sparse: &Sparse) -> Result<Option<Place>> {
        let (size, footer_at) = (self.size(), disk.footer_at_end()?);
        let busy: Vec<_> = sparse.parts().into_iter().map(|(_, range)| range).collect();
        let end = sparse.placement().end_of_data();
        let starts = busy.iter().map(|range| range.end.next_multiple_of(512)).chain([end]);
        for offset in starts {
            let place = offset..offset.saturating_add(size);
            let is_free = place.end <= footer_at
                && busy.iter().all(|range| !overlap(range, &place))
                && sparse.block_ranges().all(|range| !overlap(&range, &place));
            if is_free {
                return Ok(Some(Place { offset, footer_at, old_footer_at: footer_at }));
            }
        }
        let offset = footer_at.saturating_add(FOOTER_BYTES).next_multiple_of(512);
        let (footer_at, old_footer_at) = (offset.saturating_add(size), footer_at);
        Ok((!disk.is_device).then_some(Place { offset, footer_at, old_footer_at }))
    }

    fn write_texts(&self, steps: &mut Steps) {
        write_texts(steps, &self.header, &self.texts);
    }

    /// By way of `place`: at every time both footers refer to whole headers.
    fn move_through(&self, steps: &mut Steps, disk: &Disk, place: Place) {
        let mut header = self.header;
        let mut at = place.offset.saturating_add(HEADER_BYTES);
        for (number, _) in &self.texts {
            if let Some(locator) = header.locators.get_mut(*number) {
                let space = space_of(locator);
                locator.offset = at;
                locator.space = u32::try_from(space).expect("it is inside of the old space");
                at = at.saturating_add(space);
            }
        }
        steps.write(IMAGE, place.offset, &header.emit());
        write_texts(steps, &header, &self.texts);
        for footer_at in [place.old_footer_at, place.footer_at] {
            if disk.footer_offset != Some(footer_at) {
                steps.write(IMAGE, footer_at, &disk.footer.emit());
            }
        }
        steps.barrier();
        let away = Footer { data_offset: place.offset, ..disk.footer };
        disk.write_footers(steps, place.footer_at, &away);
        steps.barrier();
        // From here on the locators name the new parent.
        steps.reached(Milestone::ReparentLocator);
        self.move_back(steps, disk, place.footer_at);
        if place.old_footer_at < place.footer_at {
            // The footer that was there is the one that is there now.
            steps.set_length(IMAGE, place.old_footer_at.saturating_add(FOOTER_BYTES));
            steps.barrier();
        }
    }

    /// To where they stay, which nothing refers to meanwhile; the footer at the end is at `place`.
    fn move_back(&self, steps: &mut Steps, disk: &Disk, place: u64) {
        self.write_texts(steps);
        steps.write(IMAGE, self.offset, &self.header.emit());
        steps.barrier();
        let back = Footer { data_offset: self.offset, ..disk.footer };
        disk.write_footers(steps, place, &back);
        steps.barrier();
        if let Some(last) = self.footer_at.filter(|last| *last < place) {
            steps.write(IMAGE, last, &back.emit());
            steps.barrier();
            steps.set_length(IMAGE, last.saturating_add(FOOTER_BYTES));
            steps.barrier();
        }
    }
}

fn write_texts(steps: &mut Steps, header: &Header, texts: &[(usize, Vec<u8>)]) {
    for (number, text) in texts {
        let Some(locator) = header.locators.get(*number) else { continue };
        let mut room = text.clone();
        // The old text may have been longer.
        let size = usize::try_from(locator.space_bytes()).unwrap_or(usize::MAX);
        room.resize(room.len().next_multiple_of(512).max(512).min(size), 0);
        steps.write(IMAGE, locator.offset, &room);
    }
}

/// Bytes of the text, in whole sectors: not all the room that it may have.
fn space_of(locator: &Locator) -> u64 {
    u64::from(locator.length).next_multiple_of(512)
}

fn length_of(text: &[u8]) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

/// Free space for a while.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    /// Where the footer at the end is meanwhile.
    footer_at: u64,
    old_footer_at: u64,
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Puts the footer at the end of a file of `size` bytes, or of a device that has so many or will.
///
/// # Errors
/// What opening the image gives; EINVAL, for less than the data needs.
pub fn modify_size(files: &dyn Files, size: u64) -> Result<Steps> {
    let disk = Disk::open(files, IMAGE)?;
    let end = match &disk.sparse {
        Some(sparse) => sparse.placement().end_of_data(),
        None => disk.footer.current_size,
    };
    let limit = end.saturating_add(FOOTER_BYTES);
    let (what, unit) = ("Physical size", "bytes");
    if size < limit {
        return Err(ErrorKind::TooSmall { what, found: size, limit, unit }.into());
    }
    if disk.is_device && size > disk.length {
        let (found, limit) = (size, disk.length);
        return Err(ErrorKind::TooLarge { what, found, limit, unit }.into());
    }
    let place = size.saturating_sub(FOOTER_BYTES);
    let mut steps = Steps::default();
    if disk.footer_offset == Some(place) && disk.length == size {
        return Ok(steps);
    }
    disk.write_footers(&mut steps, place, &disk.footer);
    steps.barrier();
    disk.cut_behind(&mut steps, place);
    Ok(steps)
}

/// Takes all blocks away: a dynamic disk is zero then, a differencing one what its parent is.
///
/// # Errors
/// What opening the image gives; EINVAL, for a fixed disk.
pub fn modify_zero(files: &dyn Files) -> Result<Steps> {
    let mut disk = Disk::open(files, IMAGE)?;
    disk.sparse()?;
    let mut steps = Steps::default();
    let sparse = disk.sparse.as_mut().expect("a fixed disk was refused");
    if let Some(batmap) = &mut sparse.batmap
        && (batmap.clear_from(0) || !batmap.is_valid)
    {
        batmap.write(&mut steps, IMAGE);
        steps.barrier();
    }
    let used: Vec<BlockIndex> = sparse.bat.allocated().map(|(block, _)| block).collect();
    let mut sectors: Vec<u32> = Vec::new();
    for block in used {
        sparse.bat.set(block, None);
        sectors.push(block.0 / bat::ENTRIES_PER_SECTOR);
    }
    sectors.dedup();
    sectors.iter().for_each(|number| sparse.write_table_sector(&mut steps, IMAGE, *number));
    steps.barrier();
    let end = sparse.placement().end_of_data();
    let place = disk.footer_place(end)?;
    if Some(place) != disk.footer_offset {
        disk.write_footers(&mut steps, place, &disk.footer);
        steps.barrier();
        disk.cut_behind(&mut steps, place);
    }
    Ok(steps)
}
