//! Undoes a resize that did not come to its end, from its journal.
//!
//! `docs/vhd-operations.md` has the order. All of the journal is checked before the first write.

use std::collections::VecDeque;

use super::disk::{self, Field, Footers};
use super::journal::{self, Entry, EntryType, JournalHeader};
use super::{File, Files, Plan, Steps, resize};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::footer::{DiskType, FOOTER_SIZE, Footer};
use crate::read_at::ReadAt;
use crate::units::Uuid;

const IMAGE: File = File::Image;
const FOOTER_BYTES: u64 = FOOTER_SIZE as u64;

/// Puts back what a resize changed, if it did not come to its end; then the journal goes away.
///
/// A disk whose footer at the end is whole has not been changed yet, or is done and may have been
/// used since: it stays as it is.
///
/// # Errors
/// ENOENT without a journal; a journal that is damaged, or of another image.
pub fn revert(files: &dyn Files) -> Result<Box<dyn Plan>> {
    let (image, journal) = (files.open(IMAGE)?, files.open(File::Journal)?);
    let header = journal::read_header(journal)?;
    let entries = journal::read_entries(journal, &header)?;
    let Footers { end, copy } = disk::read_footers(image)?;
    refuse_other_image(image, &header, [end.map(|(_, footer)| footer), copy])?;
    refuse_other_places(journal, &header, &entries)?;
    let mut steps = Steps::default();
    if let Some((_, footer)) = end.filter(|(_, footer)| !footer.is_poisoned) {
        if footer.disk_type != DiskType::Fixed && copy != Some(footer) {
            steps.write(IMAGE, 0, &footer.emit());
            steps.barrier();
        }
        resize::end_journal(files, &mut steps, &header);
        return Ok(Box::new(steps));
    }
    if header.is_empty() {
        unpoison(&mut steps, end, copy);
        resize::end_journal(files, &mut steps, &header);
        return Ok(Box::new(steps));
    }
    let (footers, others) = entries.into_iter().partition(|entry| entry.entry_type.is_footer());
    let length = header.footer_offset.saturating_add(FOOTER_BYTES);
    let length = (!files.is_device(IMAGE)).then_some(length);
    Ok(Box::new(Revert { queue: steps, others, footers, length, header, is_done: false }))
}

/// All was done, only the poison was left: by programs that emptied the journal first.
fn unpoison(steps: &mut Steps, end: Option<(u64, Footer)>, copy: Option<Footer>) {
    for (offset, footer) in copy.map(|copy| (0, copy)).into_iter().chain(end) {
        steps.write(IMAGE, offset, &Footer { is_poisoned: false, ..footer }.emit());
        steps.barrier();
    }
}

struct Revert {
    queue: Steps,
    others: VecDeque<Entry>,
    footers: VecDeque<Entry>,
    /// The old one; a device has no other.
    length: Option<u64>,
    header: JournalHeader,
    is_done: bool,
}

impl Plan for Revert {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, files: &dyn Files) -> Result<bool> {
        if self.is_done {
            return Ok(false);
        }
        let journal = files.open(File::Journal)?;
        if let Some(entry) = self.others.pop_front() {
            self.queue.write(IMAGE, entry.offset, &journal::read_data(journal, &entry)?);
            return Ok(true);
        }
        self.is_done = true;
        let steps = &mut self.queue;
        steps.barrier();
        for wanted in [EntryType::Footer, EntryType::FooterCopy] {
            for entry in self.footers.iter().filter(|entry| entry.entry_type == wanted) {
                steps.write(IMAGE, entry.offset, &journal::read_data(journal, entry)?);
            }
            if let (EntryType::FooterCopy, Some(length)) = (wanted, self.length) {
                steps.set_length(IMAGE, length);
            }
            steps.barrier();
        }
        resize::end_journal(files, steps, &self.header);
        Ok(true)
    }
}

/// A journal of another image would put that one's metadata over this one's.
fn refuse_other_image(
    image: &dyn ReadAt,
    header: &JournalHeader,
    footers: [Option<Footer>; 2],
) -> Result<()> {
    let mut bytes = [0; FOOTER_SIZE];
    // A fixed disk that was cut off while it grew has its footer where it was before.
    let end = header.footer_offset.saturating_add(FOOTER_BYTES);
    let mut old = None;
    if end <= image.length()? {
        image.read_at(header.footer_offset, &mut bytes)?;
        old = Footer::parse(&bytes).ok();
    }
    let mut found = footers.into_iter().flatten().chain(old).map(|footer| footer.uuid).peekable();
    if found.peek().is_none() {
        let kind = ErrorKind::Cookie { part: Part::Footer, found: crate::bytes::take(&bytes, 0) };
        return Err(Error::at(header.footer_offset, kind));
    }
    match found.find(|uuid| *uuid != header.uuid) {
        Some(Uuid([a, b, c, d, e, f, g, h, ..])) => {
            let wanted = "that of the image";
            let field = Field { part: Part::Journal, field: "start of the UUID", wanted };
            Err(field.error(u64::from_be_bytes([a, b, c, d, e, f, g, h])))
        }
        None => Ok(()),
    }
}

/// Entries lie in the old image, and footers where footers are.
fn refuse_other_places(
    journal: &dyn ReadAt,
    header: &JournalHeader,
    entries: &[Entry],
) -> Result<()> {
    for entry in entries {
        let end = entry.offset.checked_add(entry.size.into());
        let is_right = match entry.entry_type {
            EntryType::Footer => entry.offset == header.footer_offset && is_whole(journal, entry)?,
            EntryType::FooterCopy => entry.offset == 0 && is_whole(journal, entry)?,
            _ => entry.offset >= FOOTER_BYTES && end.is_some_and(|end| end <= header.footer_offset),
        };
        if !is_right {
            let wanted = "inside the old image, whole footers at its start and end";
            let field = Field { part: Part::Journal, field: "place of an entry", wanted };
            return Err(field.error(entry.offset).or_at(entry.data_at));
        }
    }
    Ok(())
}

/// Is the data of an entry a footer that is not poisoned?
fn is_whole(journal: &dyn ReadAt, entry: &Entry) -> Result<bool> {
    let data = journal::read_data(journal, entry)?;
    let bytes = <&[u8; FOOTER_SIZE]>::try_from(data.as_slice()).ok();
    let footer = bytes.and_then(|bytes| Footer::parse(bytes).ok());
    Ok(footer.is_some_and(|footer| !footer.is_poisoned))
}
