//! What is scanned: files, or volumes of a group.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use vhd::{Error, ErrorKind};

use crate::console::errno_of;
use crate::glob;
use crate::lvm::{self, Segment};
use crate::vhd_util::image::{self, Image, Reading};

/// Where the bytes of a target are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In a file or device.
    File(PathBuf),
    /// In a volume, of which only the first segment is looked at; none if that is not linear.
    Volume(Option<Segment>),
}

/// Something that is to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As it was named.
    pub(super) name: PathBuf,
    /// Without links and the like.
    pub(super) canonical: Option<PathBuf>,
    /// Of the file or volume, in bytes.
    pub(super) size: u64,
    /// A parent that is no VHD.
    pub(super) is_raw: bool,
    /// Where it is.
    pub(super) source: Source,
    /// Why it is not opened, if it is neither a file nor a device: of what is in a directory a pipe
    /// would wait for a writer.
    pub(super) refused: Option<Errno>,
}

/// What is to be scanned, and what cannot be: name, errno, and why.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) targets: Vec<Target>,
    /// Volumes of the group that were not asked for: parents may be among them.
    pub(super) others: Vec<Target>,
    pub(super) errors: Vec<(String, i32, String)>,
}

impl Target {
    /// A name that leads nowhere.
    pub(super) fn missing(name: &Path) -> Self {
        let (source, refused) = (Source::File(name.to_owned()), None);
        Self { name: name.to_owned(), canonical: None, size: 0, is_raw: false, source, refused }
    }

    fn of_file(name: &Path, with_canonical: bool) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(name)?;
        let kind = metadata.file_type();
        let is_refused = !kind.is_file() && !kind.is_block_device();
        let refused =
            is_refused.then_some(if kind.is_dir() { Errno::EISDIR } else { Errno::EINVAL });
        let size = if kind.is_block_device() {
            image::length(name).map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?
        } else {
            metadata.len()
        };
        let canonical = with_canonical.then(|| image::canonical(name).ok()).flatten();
        let source = Source::File(name.to_owned());
        Ok(Self { name: name.to_owned(), canonical, size, is_raw: false, source, refused })
    }

    /// Opens it.
    pub(super) fn open(&self, reading: Reading) -> vhd::Result<Image> {
        match &self.source {
            Source::File(path) => match self.refused {
                Some(errno) => Err(Error::from(ErrorKind::Io { errno: errno as i32 })),
                None => image::open(path, reading),
            },
            Source::Volume(Some(segment)) => image::open_segment(&self.name, segment, reading),
            Source::Volume(None) => {
                Err(ErrorKind::NotSupported("The volume does not start with a linear segment")
                    .into())
            }
        }
    }

    /// The parent of this one, which names it so, if that is a file; the errno if there is none.
    pub(super) fn parent_file(&self, name: &Path, path: Option<&Path>) -> Result<Self, i32> {
        // A name alone is one of the child's directory.
        let directory = self.name.parent().unwrap_or(Path::new(""));
        let file = path.map_or_else(|| directory.join(name), Path::to_owned);
        let target = Self::of_file(&file, path.is_some()).map_err(|error| errno_of(&error))?;
        Ok(Self { name: name.to_owned(), ..target })
    }
}

/// Files that match a pattern, and those that are named.
pub(super) fn of_files(pattern: Option<&OsStr>, files: &[OsString], with_canonical: bool) -> Found {
    let mut found = Found::default();
    let mut names: Vec<PathBuf> = Vec::new();
    if let Some(pattern) = pattern {
        let matched = glob::find(pattern);
        names.extend(matched.paths);
        for (directory, error) in matched.errors {
            let name = directory.display().to_string();
            found.errors.push((name.clone(), errno_of(&error), format!("{name}: {error}")));
        }
    }
    names.extend(files.iter().map(PathBuf::from));
    for name in names {
        match Target::of_file(&name, with_canonical) {
            Ok(target) => found.targets.push(target),
            Err(error) => {
                let name = name.display().to_string();
                found.errors.push((name.clone(), errno_of(&error), format!("{name}: {error}")));
            }
        }
    }
    found
}

/// Volumes of a group that match a pattern, and those that are named.
pub(super) fn of_group(group: &OsStr, pattern: Option<&OsStr>, names: &[OsString]) -> Found {
    let mut found = Found::default();
    let volumes = match lvm::volumes(group) {
        Ok(volumes) => volumes,
        Err(error) => {
            let name = group.display().to_string();
            found.errors.push((name, Errno::EINVAL as i32, error.to_string()));
            return found;
        }
    };
    let pattern = pattern.unwrap_or_default();
    let Some(patterns) = glob::alternatives(pattern.as_bytes()) else {
        let name = pattern.display().to_string();
        found.errors.push((name, Errno::E2BIG as i32, "The pattern has too many braces".into()));
        return found;
    };
    let is_wanted = |name: &str| {
        names.iter().any(|wanted| wanted == name)
            || patterns.iter().any(|pattern| glob::matches(pattern, name.as_bytes()))
    };
    let targets = volumes.into_iter().map(|volume| Target {
        name: PathBuf::from(&volume.name),
        canonical: Some(PathBuf::from(&volume.name)),
        size: volume.size,
        is_raw: false,
        source: Source::Volume(volume.first),
        refused: None,
    });
    (found.targets, found.others) =
        targets.partition(|target| target.name.to_str().is_some_and(is_wanted));
    for name in names {
        if !found.targets.iter().any(|target| target.name.as_os_str() == name) {
            let name = name.display().to_string();
            let why = format!("There is no volume {name} in {}", group.display());
            found.errors.push((name, Errno::ENOENT as i32, why));
        }
    }
    found
}

/// The volume's name in that of its node in `/dev/mapper`: `GROUP-VOLUME`, each `-` in either
/// doubled.
pub(super) fn volume_of(node: &str) -> String {
    let bytes = node.as_bytes();
    let (mut at, mut start) = (0, 0);
    while at < bytes.len() {
        if bytes[at] != b'-' {
            at += 1;
        } else if bytes.get(at + 1) == Some(&b'-') {
            at += 2;
        } else {
            start = at + 1;
            at += 1;
        }
    }
    node[start..].replace("--", "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_behind_the_one_dash_that_is_not_doubled() {
        for (node, volume) in [
            ("VG_XenStorage--12--ab-VHD--77--cd", "VHD-77-cd"),
            ("vg-lv", "lv"),
            ("VHD-77", "77"),
            ("plain", "plain"),
            ("", ""),
            ("a-", ""),
            ("vg-a---b", "b"),
        ] {
            assert_eq!(volume_of(node), volume, "{node}");
        }
    }
}
