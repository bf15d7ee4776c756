//! The gate through which parents are opened.
//!
//! A differencing image names its parent, and whoever made the image chose the name: it could be
//! `/etc/shadow`, a raw file that the guest would then read. So a parent opens only inside of
//! directories that may be opened: that of the child that the user named, with all below it, and
//! those that the operator lists. Of volumes in `/dev/mapper` it is the volume group, of replicated
//! devices all of them; the directories `/` and `/dev` are too much to allow without being told.
//! Whether a parent is raw or a VHD is what the child says, and never guessed from its contents.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::image::Image;
use crate::locator::LOCATOR_COUNT;
use crate::paths;
use crate::read_at::ReadAt;

/// Images in a chain, at most, unless the operator says otherwise. Storage managers stop at 30.
pub const DEPTH_MAX: u32 = 64;

/// Which parents may be opened, and how many.
#[derive(Clone, Debug)]
pub struct Gate {
    directories: Directories,
    is_vhd_free: bool,
    depth_max: u32,
}

#[derive(Clone, Debug)]
enum Directories {
    All,
    Listed(Vec<Allowed>),
}

#[derive(Clone, Debug)]
enum Allowed {
    /// A directory with all below it.
    Tree(PathBuf),
    /// Volumes of a group: paths that start so, up to and with the `-` behind the group.
    Group(Vec<u8>),
}

impl Allowed {
    fn permits(&self, path: &Path) -> bool {
        match self {
            Self::Tree(directory) => path.starts_with(directory),
            Self::Group(start) => {
                let rest = path.as_os_str().as_bytes().strip_prefix(start.as_slice());
                // Two `-` stand for one inside of a longer name.
                rest.is_some_and(|rest| !rest.starts_with(b"-") && !rest.contains(&b'/'))
            }
        }
    }
}

impl Gate {
    /// The directory of `child` with all below it.
    ///
    /// # Errors
    /// There is no `child`.
    pub fn of_child(host: &impl Host, child: &Path) -> Result<Self> {
        let own = neighbourhood(&paths::canonical(host, child)?).into_iter().collect();
        Ok(Self { directories: Directories::Listed(own), is_vhd_free: false, depth_max: DEPTH_MAX })
    }

    /// Everywhere: for a person who works on images that are trusted.
    #[must_use]
    pub fn everywhere() -> Self {
        Self { directories: Directories::All, is_vhd_free: true, depth_max: DEPTH_MAX }
    }

    /// And one more directory with all below it.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn and(mut self, host: &impl Host, directory: &Path) -> Result<Self> {
        if let Directories::Listed(list) = &mut self.directories {
            list.push(Allowed::Tree(host.real_path(directory)?));
        }
        Ok(self)
    }

    /// And VHDs anywhere, which have to carry the UUID that the child names; raw images, which are
    /// told from other files by nothing, still in these directories only.
    #[must_use]
    pub fn with_vhd_anywhere(self) -> Self {
        Self { is_vhd_free: true, ..self }
    }

    /// With another limit to the number of images.
    #[must_use]
    pub fn with_depth_max(self, depth_max: u32) -> Self {
        Self { depth_max, ..self }
    }

    /// Images in a chain, at most.
    #[must_use]
    pub fn depth_max(&self) -> u32 {
        self.depth_max
    }

    /// May the image of this canonical path be opened as a parent, a raw one or not?
    #[must_use]
    pub fn permits(&self, path: &Path, is_raw: bool) -> bool {
        match &self.directories {
            Directories::All => true,
            Directories::Listed(_) if self.is_vhd_free && !is_raw => true,
            Directories::Listed(list) => list.iter().any(|allowed| allowed.permits(path)),
        }
    }

    /// The canonical path of an image's parent: of its locators, in their order, the first that
    /// leads to a file that can be read and may be opened.
    ///
    /// A relative path is relative to `child`, canonical too; an absolute one that leads nowhere is
    /// tried as a relative one.
    ///
    /// # Errors
    /// No locator leads to such a file.
    pub fn parent<R: ReadAt>(
        &self,
        host: &impl Host,
        child: &Path,
        image: &Image<R>,
    ) -> Result<PathBuf> {
        let mut error = None;
        for number in 0..u8::try_from(LOCATOR_COUNT).unwrap_or(u8::MAX) {
            let name = match image.locator_path(number) {
                Ok(Some(name)) => name,
                Ok(None) => continue,
                Err(found) => {
                    error.get_or_insert(found);
                    continue;
                }
            };
            match self.resolve(host, child, &name, image.has_raw_parent()) {
                Ok(path) => return Ok(path),
                Err(found) => keep_most_telling(&mut error, found),
            }
        }
        Err(error.unwrap_or_else(|| ErrorKind::NoLocator.into()))
    }

    /// The canonical path that a name in `child` stands for, of a raw image or a VHD.
    ///
    /// # Errors
    /// It leads to no file that can be read, or to one that may not be opened.
    pub fn resolve(
        &self,
        host: &impl Host,
        child: &Path,
        name: &str,
        is_raw: bool,
    ) -> Result<PathBuf> {
        let path = locate(host, child, name)?;
        if !self.permits(&path, is_raw) {
            return Err(ErrorKind::ParentForbidden { path: path.display().to_string() }.into());
        }
        Ok(path)
    }
}

/// The canonical path that a name in `child` stands for, which may not be allowed.
///
/// # Errors
/// It leads to no file that can be read.
pub fn locate(host: &impl Host, child: &Path, name: &str) -> Result<PathBuf> {
    let directory = child.parent().unwrap_or(child);
    let absolute = Path::new(name);
    let relative = directory.join(name.trim_start_matches('/'));
    let is_absolute = absolute.is_absolute() && host.is_readable(absolute);
    let path = if is_absolute { absolute } else { relative.as_path() };
    if name.is_empty() || !host.is_readable(path) {
        return Err(ErrorKind::ParentNotFound { name: name.to_owned() }.into());
    }
    paths::canonical(host, path)
}

/// Where the parents of an image are, of which nothing else is known.
fn neighbourhood(child: &Path) -> Option<Allowed> {
    let directory = child.parent()?;
    match directory.as_os_str().as_bytes() {
        b"/" | b"/dev" => None,
        b"/dev/mapper" => {
            let bytes = child.as_os_str().as_bytes();
            let end = group_end(bytes.strip_prefix(b"/dev/mapper/".as_slice())?)?;
            bytes
                .get(..end.saturating_add(b"/dev/mapper/".len()))
                .map(|it| Allowed::Group(it.to_vec()))
        }
        bytes if bytes.starts_with(b"/dev/drbd/by-res/") => {
            Some(Allowed::Tree(PathBuf::from("/dev/drbd/by-res")))
        }
        _ => Some(Allowed::Tree(directory.to_owned())),
    }
}

/// One behind the `-` that ends the group in `GROUP-VOLUME`; a doubled one is part of a name.
fn group_end(name: &[u8]) -> Option<usize> {
    let mut at = 0_usize;
    loop {
        let dash = name.get(at..)?.iter().position(|byte| *byte == b'-')?.saturating_add(at);
        let next = dash.saturating_add(1);
        if name.get(next) != Some(&b'-') {
            return Some(next);
        }
        at = next.saturating_add(1);
    }
}

/// A file that is there but may not be opened is of more interest than one that is not there.
fn keep_most_telling(kept: &mut Option<Error>, found: Error) {
    let is_forbidden = |error: &Error| matches!(error.kind(), ErrorKind::ParentForbidden { .. });
    match kept {
        Some(error) if is_forbidden(error) || !is_forbidden(&found) => {}
        _ => *kept = Some(found),
    }
}

#[cfg(test)]
mod tests;
