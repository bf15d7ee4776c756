//! Makes the footers equal, and the batmap right, after a crash.

use super::disk::{Disk, Sparse};
use super::{File, Files, Plan, Steps};
use crate::error::Result;
use crate::footer::{FOOTER_SIZE, Footer};
use crate::image::{FooterPlace, Image, LoadOptions};
use crate::read_at::ReadAt;
use crate::units::Uuid;

const IMAGE: File = File::Image;

/// What to repair an image by.
#[derive(Clone, Copy, Debug)]
pub struct RepairOptions {
    /// Take the copy at the start for the truth, whatever is at the end.
    pub by_copy: bool,
    /// Random: the identity of an image that has none.
    pub new_uuid: Uuid,
}

/// Writes both footers anew, from the one at the end or, where there is none, from the copy; and
/// the batmap, where its checksum is wrong.
///
/// # Errors
/// What opening the image gives: also that its resize was interrupted, which only a revert mends.
pub fn repair(files: &dyn Files, options: RepairOptions) -> Result<Box<dyn Plan>> {
    let file = files.open(IMAGE)?;
    let mut disk = Disk::open(files, IMAGE)?;
    let mut image = Image::load(file, LoadOptions::default())?;
    if options.by_copy {
        image =
            Image::load(file, LoadOptions { footer_copy_only: true, ..LoadOptions::default() })?;
    }
    let mut footer = *image.footer();
    if footer.uuid.is_nil() {
        footer.uuid = options.new_uuid;
    }
    if image.footer_place() == FooterPlace::EndShort && !disk.is_device {
        // One of 511 bytes: the file becomes a byte longer.
        disk.length = disk.length.saturating_add(1);
    }
    let mut steps = Steps::default();
    let place = disk.footer_at_end()?;
    let bytes = footer.emit();
    if disk.sparse.is_some() && !is_there(file, 0, &bytes)? {
        steps.write(IMAGE, 0, &bytes);
        steps.barrier();
    }
    if !is_there(file, place, &bytes)? {
        steps.write(IMAGE, place, &bytes);
        steps.barrier();
    }
    disk.cut_behind(&mut steps, place);
    let is_damaged = |sparse: &Sparse| sparse.batmap.as_ref().is_some_and(|map| !map.is_valid);
    let damaged = disk.sparse.as_ref().is_some_and(is_damaged).then_some(disk);
    Ok(Box::new(Repair { queue: steps, damaged }))
}

fn is_there(file: &dyn ReadAt, offset: u64, footer: &[u8; FOOTER_SIZE]) -> Result<bool> {
    let mut found = [0; FOOTER_SIZE];
    if offset.saturating_add(FOOTER_SIZE as u64) > file.length()? {
        return Ok(false);
    }
    file.read_at(offset, &mut found)?;
    Ok(found == *footer && Footer::parse(&found).is_ok())
}

struct Repair {
    queue: Steps,
    /// The disk whose batmap is made anew, once the footers are.
    damaged: Option<Disk>,
}

impl Plan for Repair {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, files: &dyn Files) -> Result<bool> {
        let Some(mut disk) = self.damaged.take() else { return Ok(false) };
        disk.mend_batmap(files)?;
        if let Some(batmap) = disk.sparse.as_mut().and_then(|sparse| sparse.batmap.as_mut()) {
            batmap.write(&mut self.queue, IMAGE);
            self.queue.barrier();
        }
        Ok(true)
    }
}
