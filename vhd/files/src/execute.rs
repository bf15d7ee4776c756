//! Performs plans on files: each step in its order, each barrier as it must be.
//!
//! It is the one place where an offline operation changes anything. What is written is durable at a
//! barrier and not before; which step follows which is the plan's business.

use std::ffi::OsStr;
use std::fs::File as SystemFile;
use std::io;
use std::path::{Path, PathBuf};

use vhd::ErrorKind;
use vhd::plan::{Coding, File, Files, Milestone, PIECE_BYTES_MAX, Plan, Progress, Step};
use vhd::read_at::ReadAt;

use crate::buffer::AlignedBuffer;
use crate::encryption::{Encryption, Key};
use crate::file::ImageFile;
use crate::lock::Policy;
use behind::{Behind, Ended};

mod behind;

/// Smaller pieces are written at once: to hand them over takes as long.
const BEHIND_BYTES_MIN: usize = 64 << 10;

/// Watches a plan, and may hold it up or end it.
pub trait Observer {
    /// So much of it is done.
    fn progress(&mut self, progress: Progress) {
        let _ = progress;
    }

    /// So many bytes were written or copied: who limits the rate waits here.
    fn moved(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// A point with a name. Returns false to end there, as if the power were cut.
    fn reached(&mut self, milestone: Milestone) -> bool {
        let _ = milestone;
        true
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Observer for Unwatched {}

/// Why a plan was not performed to its end.
#[derive(Debug)]
pub struct Failed {
    /// The file at which it failed, if it was one.
    pub path: Option<PathBuf>,
    /// What was wrong.
    pub error: vhd::Error,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(out, "{}: {}", path.display(), self.error),
            None => self.error.fmt(out),
        }
    }
}

impl std::error::Error for Failed {}

/// How a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it is done.
    Done,
    /// The observer ended it.
    Stopped(Milestone),
}

/// A file of a plan: open, or a name for one that is to be made.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    file: Option<ImageFile>,
    /// Written since it was last made durable.
    is_dirty: bool,
    /// Made or removed since its directory was last made durable.
    is_renamed: bool,
}

impl Place {
    fn open(file: ImageFile) -> Self {
        let path = file.path().to_owned();
        Self { path, file: Some(file), is_dirty: false, is_renamed: false }
    }

    fn named(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, is_dirty: false, is_renamed: false }
    }
}

/// The files of a plan.
#[derive(Debug)]
pub struct OpenFiles {
    image: Place,
    journal: Option<Place>,
    ancestors: Vec<Place>,
    policy: Policy,
    /// Of an encrypted disk, if the plan needs it.
    encryption: Option<Encryption>,
    buffer: Option<AlignedBuffer>,
    /// Writes while the next piece is read, once there was one to write so.
    behind: Option<Behind>,
}

impl OpenFiles {
    /// With an image that is open. Files that the plan makes are locked as `policy` says.
    #[must_use]
    pub fn with_image(image: ImageFile, policy: Policy) -> Self {
        Self::of(Place::open(image), policy)
    }

    /// With an image that the plan makes.
    #[must_use]
    pub fn with_new_image(path: &Path, policy: Policy) -> Self {
        Self::of(Place::named(path), policy)
    }

    fn of(image: Place, policy: Policy) -> Self {
        let (journal, ancestors, encryption) = (None, Vec::new(), None);
        Self { image, journal, ancestors, policy, encryption, buffer: None, behind: None }
    }

    /// And a journal that is open.
    #[must_use]
    pub fn and_journal(self, journal: ImageFile) -> Self {
        Self { journal: Some(Place::open(journal)), ..self }
    }

    /// And a journal that the plan makes.
    #[must_use]
    pub fn and_new_journal(self, path: &Path) -> Self {
        Self { journal: Some(Place::named(path)), ..self }
    }

    /// And the key of an encrypted disk.
    #[must_use]
    pub fn and_key(self, key: &Key) -> Self {
        Self { encryption: Some(Encryption::new(key)), ..self }
    }

    /// And the next ancestor: the first one is the parent.
    #[must_use]
    pub fn and_ancestor(mut self, ancestor: ImageFile) -> Self {
        self.ancestors.push(Place::open(ancestor));
        self
    }

    /// The name of one of them.
    #[must_use]
    pub fn path(&self, file: File) -> Option<&Path> {
        self.place(file).map(|place| place.path.as_path())
    }

    /// The image, if it is open.
    #[must_use]
    pub fn image(&self) -> Option<&ImageFile> {
        self.image.file.as_ref()
    }

    fn place(&self, file: File) -> Option<&Place> {
        match file {
            File::Image => Some(&self.image),
            File::Journal => self.journal.as_ref(),
            File::Ancestor(number) => self.ancestors.get(usize::from(number)),
        }
    }

    fn place_mut(&mut self, file: File) -> vhd::Result<&mut Place> {
        let place = match file {
            File::Image => Some(&mut self.image),
            File::Journal => self.journal.as_mut(),
            File::Ancestor(number) => self.ancestors.get_mut(usize::from(number)),
        };
        place.ok_or_else(absent)
    }

    /// A file that is open, about to be written.
    fn writing(&mut self, file: File) -> vhd::Result<&ImageFile> {
        let place = self.place_mut(file)?;
        place.is_dirty = true;
        place.file.as_ref().ok_or_else(absent)
    }

    /// `is_apart`: what a copy writes may be under way when this returns.
    fn perform(&mut self, step: &Step, is_apart: bool) -> vhd::Result<()> {
        match step {
            Step::Create { file } => self.create(*file)?,
            Step::Write { file, offset, bytes } => {
                let written = self.writing(*file)?.write_all_at(bytes, *offset);
                written.map_err(|error| vhd::Error::from(error).or_at(*offset))?;
            }
            Step::Zero { file, offset, length } => {
                let zeroed = self.writing(*file)?.zero(*offset, *length);
                zeroed.map_err(|error| vhd::Error::from(error).or_at(*offset))?;
            }
            Step::Copy { from, from_offset, to, to_offset, length } => {
                let (from, to) = ((*from, *from_offset, *length), (*to, *to_offset));
                self.copy(from, to, *length, None, is_apart)?;
            }
            Step::Code { coding, from, from_offset, there, to, to_offset, length, sector } => {
                let (from, to) = ((*from, *from_offset, *there), (*to, *to_offset));
                self.copy(from, to, *length, Some((*coding, *sector)), is_apart)?;
            }
            Step::SetLength { file, length } => self.writing(*file)?.set_length(*length)?,
            Step::PunchHole { file, offset, length } => {
                self.writing(*file)?.punch_hole(*offset, *length)?;
            }
            Step::Remove { file } => self.remove(*file)?,
            Step::Barrier => self.sync()?,
            Step::Reached(_) => {}
        }
        Ok(())
    }

    fn create(&mut self, file: File) -> vhd::Result<()> {
        let policy = self.policy;
        let place = self.place_mut(file)?;
        if place.file.as_ref().is_some_and(ImageFile::is_device) {
            return Ok(());
        }
        let (created, _) = ImageFile::create(&place.path, policy)?;
        place.file = Some(created);
        place.is_renamed = true;
        Ok(())
    }

    fn remove(&mut self, file: File) -> vhd::Result<()> {
        let place = self.place_mut(file)?;
        if place.file.as_ref().is_some_and(ImageFile::is_device) {
            return Ok(());
        }
        std::fs::remove_file(&place.path)?;
        place.file = None;
        place.is_dirty = false;
        place.is_renamed = true;
        Ok(())
    }

    /// `from` with how many of the bytes are there; the rest is zeros.
    fn copy(
        &mut self,
        from: (File, u64, u64),
        to: (File, u64),
        length: u64,
        coding: Option<(Coding, u64)>,
        is_apart: bool,
    ) -> vhd::Result<()> {
        assert!(from.2 <= length && length <= PIECE_BYTES_MAX, "a plan copies pieces");
        let length = usize::try_from(length).expect("a piece");
        let there = usize::try_from(from.2).expect("a piece");
        let size = usize::try_from(PIECE_BYTES_MAX).expect("a piece").next_multiple_of(4096);
        let spare = self.buffer.take().or_else(|| self.behind.as_mut()?.take_spare());
        let mut buffer = spare.unwrap_or_else(|| AlignedBuffer::new(size));
        let piece = buffer.get_mut(..length).expect("at most the largest piece");
        let (data, zeros) = piece.split_at_mut(there);
        let read = if there == 0 { Ok(()) } else { self.open(from.0)?.read_at(from.1, data) };
        zeros.fill(0);
        // Also when that failed: of two errors the first one is told.
        self.end_of_write()?;
        read.map_err(|error| error.or_at(from.1))?;
        if let Some((coding, sector)) = coding {
            let encryption = self.encryption.as_ref().ok_or(ErrorKind::Encrypted)?;
            match coding {
                Coding::Encrypt => encryption.encrypt(sector, piece),
                Coding::Decrypt => encryption.decrypt(sector, piece),
            }
        }
        let failed = |error: io::Error| vhd::Error::from(error).or_at(to.1);
        if is_apart
            && length >= BEHIND_BYTES_MIN
            && let Some(mut behind) = self.take_behind()
        {
            let begun = self.writing(to.0).and_then(|open| {
                behind.begin((to.0, open), to.1, (buffer, length)).map_err(failed)
            });
            self.behind = Some(behind);
            return begun;
        }
        let piece = buffer.get(..length).expect("at most the largest piece");
        let written = self.writing(to.0)?.write_all_at(piece, to.1);
        self.buffer = Some(buffer);
        written.map_err(failed)
    }

    /// The thread that writes, if the system lets us have one.
    fn take_behind(&mut self) -> Option<Behind> {
        self.behind.take().or_else(|| Behind::start().ok())
    }

    /// What is written behind has ended.
    fn end_of_write(&mut self) -> vhd::Result<()> {
        let ended = self.behind.as_mut().and_then(Behind::end);
        let Some(Ended { offset, written, .. }) = ended else { return Ok(()) };
        written.map_err(|error| vhd::Error::from(error).or_at(offset))
    }

    /// The same, at the end of copies: the error has the name of the file.
    fn settle(&mut self) -> Result<(), Failed> {
        let ended = self.behind.as_mut().and_then(Behind::end);
        let Some(Ended { file, offset, written }) = ended else { return Ok(()) };
        written.map_err(|error| Failed {
            path: self.path(file).map(Path::to_owned),
            error: vhd::Error::from(error).or_at(offset),
        })
    }

    /// Everything so far is durable: contents first, then names.
    fn sync(&mut self) -> vhd::Result<()> {
        let places = [&mut self.image].into_iter().chain(&mut self.journal);
        for place in places.chain(&mut self.ancestors) {
            if place.is_dirty
                && let Some(file) = &place.file
            {
                file.sync()?;
            }
            place.is_dirty = false;
            if place.is_renamed {
                sync_directory(&place.path)?;
            }
            place.is_renamed = false;
        }
        Ok(())
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let here = Path::new(".");
    let directory = if directory.as_os_str() == OsStr::new("") { here } else { directory };
    SystemFile::open(directory)?.sync_all()
}

fn absent() -> vhd::Error {
    ErrorKind::Io { errno: vhd::error::errno::ENOENT }.into()
}

impl Files for OpenFiles {
    fn open(&self, file: File) -> vhd::Result<&dyn ReadAt> {
        let file = self.place(file).and_then(|place| place.file.as_ref());
        Ok(file.ok_or_else(absent)?)
    }

    fn is_device(&self, file: File) -> bool {
        let file = self.place(file).and_then(|place| place.file.as_ref());
        file.is_some_and(ImageFile::is_device)
    }
}

/// Performs a plan to its end.
///
/// # Errors
/// What the plan found, or what storage says that the plan has no answer to. What was done before
/// stays.
pub fn execute(
    plan: &mut dyn Plan,
    files: &mut OpenFiles,
    observer: &mut dyn Observer,
) -> Result<End, Failed> {
    let end = run(plan, files, observer);
    // Nothing is under way any more, whatever the end was.
    let settled = files.settle();
    end.and_then(|end| settled.map(|()| end))
}

fn run(
    plan: &mut dyn Plan,
    files: &mut OpenFiles,
    observer: &mut dyn Observer,
) -> Result<End, Failed> {
    let is_apart = plan.copies_are_apart();
    let mut failed_at = None;
    loop {
        let next = plan.next(files);
        let next = next.map_err(|error| Failed { path: failed_at.clone(), error })?;
        let Some(step) = next else { return Ok(End::Done) };
        if !matches!(step, Step::Copy { .. } | Step::Code { .. }) {
            files.settle()?;
        }
        if let Step::Reached(milestone) = step
            && !observer.reached(milestone)
        {
            return Ok(End::Stopped(milestone));
        }
        match files.perform(&step, is_apart) {
            Ok(()) => observer.moved(moved(&step)),
            Err(error) => {
                let path = file_of(&step).and_then(|file| files.path(file)).map(Path::to_owned);
                failed_at.clone_from(&path);
                plan.failed(error).map_err(|error| Failed { path, error })?;
            }
        }
        observer.progress(plan.progress());
    }
}

fn moved(step: &Step) -> u64 {
    match step {
        Step::Write { bytes, .. } => bytes.len() as u64,
        Step::Copy { length, .. } | Step::Code { length, .. } => *length,
        _ => 0,
    }
}

fn file_of(step: &Step) -> Option<File> {
    match step {
        Step::Create { file }
        | Step::Write { file, .. }
        | Step::Zero { file, .. }
        | Step::SetLength { file, .. }
        | Step::PunchHole { file, .. }
        | Step::Remove { file } => Some(*file),
        Step::Copy { to, .. } | Step::Code { to, .. } => Some(*to),
        Step::Barrier | Step::Reached(_) => None,
    }
}

#[cfg(test)]
mod tests;
