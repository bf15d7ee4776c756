//! The names and files of this host, for [`vhd::chain`] and [`vhd::gate`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use vhd::host::Host;

use crate::file::ImageFile;

/// This host.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHost;

impl Host for LocalHost {
    type File = ImageFile;

    fn open(&self, path: &Path) -> vhd::Result<ImageFile> {
        Ok(ImageFile::open(path)?)
    }

    fn identity(&self, file: &ImageFile) -> vhd::Result<(u64, u64)> {
        let metadata = file.file().metadata()?;
        if file.is_device() {
            // One device may have several nodes.
            return Ok((u64::MAX, metadata.rdev()));
        }
        Ok((metadata.dev(), metadata.ino()))
    }

    fn real_path(&self, path: &Path) -> vhd::Result<PathBuf> {
        Ok(fs::canonicalize(path)?)
    }

    fn is_readable(&self, path: &Path) -> bool {
        access(path, AccessFlags::R_OK).is_ok()
    }

    fn exists(&self, path: &Path) -> bool {
        access(path, AccessFlags::F_OK).is_ok()
    }

    fn current_directory(&self) -> vhd::Result<PathBuf> {
        Ok(std::env::current_dir()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file_system() {
        let directory = std::env::temp_dir().join(format!("vhd-host-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let (file, link) = (directory.join("file"), directory.join("link"));
        fs::write(&file, [0; 512]).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let real = fs::canonicalize(&file).unwrap();
        assert_eq!(LocalHost.real_path(&link), Ok(real));
        assert!(LocalHost.is_readable(&link) && LocalHost.exists(&link));
        let identity = |path: &Path| LocalHost.identity(&LocalHost.open(path).unwrap()).unwrap();
        assert_eq!(identity(&file), identity(&link));
        fs::write(directory.join("other"), [0; 512]).unwrap();
        assert_ne!(identity(&file), identity(&directory.join("other")));
        let error = LocalHost.open(&directory.join("none")).unwrap_err();
        assert_eq!(error.errno(), 2);
        assert!(!LocalHost.exists(&directory.join("none")));
        fs::remove_dir_all(&directory).unwrap();
    }
}
