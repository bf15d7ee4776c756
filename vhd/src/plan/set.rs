//! Changes single fields: hidden, marker, key hash.

use super::disk::{Batmap, Disk};
use super::{File, Files, Plan, Steps};
use crate::batmap::KeyHash;
use crate::error::{Error, ErrorKind, Result, errno};
use crate::footer::{FOOTER_SIZE, FOOTER_SIZE_SHORT, Footer};
use crate::image::{FooterPlace, Image, LoadOptions};

const IMAGE: File = File::Image;

/// Hides an image, or shows it: any number but 0 hides.
///
/// When there is no space for the footer at the end, its copy alone is enough to hide: a full
/// storage can still say what may be deleted.
///
/// # Errors
/// What opening the image gives.
pub fn set_hidden(files: &dyn Files, value: u8) -> Result<Box<dyn Plan>> {
    // Only footers are read: storage managers do this often, and to damaged images too.
    let image = Image::load(files.open(IMAGE)?, LoadOptions::default())?;
    let footer = Footer { hidden: value, ..*image.footer() };
    let has_copy = image.header().is_some();
    let length = image.file_size();
    let behind = |size: usize| length.saturating_sub(u64::try_from(size).unwrap_or(0));
    let place = match image.footer_place() {
        FooterPlace::End => behind(FOOTER_SIZE),
        FooterPlace::EndShort => behind(FOOTER_SIZE_SHORT),
        FooterPlace::Start if files.is_device(IMAGE) => behind(FOOTER_SIZE),
        FooterPlace::Start => image.end_of_data()?,
    };
    let (mut queue, mut end, mut last) = (Steps::default(), Steps::default(), Steps::default());
    if has_copy {
        queue.write(IMAGE, 0, &footer.emit());
    }
    end.write(IMAGE, place, &footer.emit());
    last.barrier();
    let is_copy_enough = has_copy && value != 0;
    Ok(Box::new(SetHidden { queue, end: Some(end), last: Some(last), is_copy_enough }))
}

struct SetHidden {
    queue: Steps,
    end: Option<Steps>,
    last: Option<Steps>,
    is_copy_enough: bool,
}

impl Plan for SetHidden {
    fn queue(&mut self) -> &mut Steps {
        &mut self.queue
    }

    fn advance(&mut self, _files: &dyn Files) -> Result<bool> {
        let next = self.end.take().or_else(|| self.last.take());
        let is_more = next.is_some();
        self.queue = next.unwrap_or_default();
        Ok(is_more)
    }

    fn failed(&mut self, error: Error) -> Result<()> {
        let is_at_end = self.end.is_none() && self.last.is_some();
        if is_at_end && self.is_copy_enough && error.errno() == errno::ENOSPC {
            return Ok(());
        }
        Err(error)
    }
}

/// Sets the marker, a number that is free for a storage manager.
///
/// # Errors
/// What opening the image gives; ENOSYS, for one without a batmap, whose header holds it.
pub fn set_marker(files: &dyn Files, value: u8) -> Result<Steps> {
    let disk = Disk::open(files, IMAGE)?;
    let mut batmap = batmap_of(disk)?;
    batmap.header.marker = value;
    Ok(header_only(&batmap))
}

/// Sets what the key of an encrypted disk is recognised by, or nothing.
///
/// # Errors
/// What opening the image gives; ENOSYS, for one without a batmap, whose header holds it, and for
/// one that holds data, which is not in that key.
pub fn set_keyhash(files: &dyn Files, keyhash: Option<KeyHash>) -> Result<Steps> {
    let disk = Disk::open(files, IMAGE)?;
    if disk.sparse.as_ref().is_some_and(|sparse| sparse.allocated().next().is_some()) {
        let why = "The image holds data, which cannot be encrypted in place";
        return Err(ErrorKind::NotSupported(why).into());
    }
    let mut batmap = batmap_of(disk)?;
    batmap.header.keyhash = keyhash;
    Ok(header_only(&batmap))
}

fn batmap_of(disk: Disk) -> Result<Batmap> {
    let batmap = disk.sparse.and_then(|sparse| sparse.batmap);
    let why = "The image has no batmap, whose header holds this";
    batmap.ok_or_else(|| ErrorKind::NotSupported(why).into())
}

fn header_only(batmap: &Batmap) -> Steps {
    let mut steps = Steps::default();
    steps.write(IMAGE, batmap.header_offset, &batmap.header.emit());
    steps.barrier();
    steps
}
