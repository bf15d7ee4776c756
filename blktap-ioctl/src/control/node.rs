//! Device nodes: told apart from stale ones, and made.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::Path;

use libc::dev_t;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// A device, as its node names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) is_block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Device {
    pub(super) fn character(major: u32, minor: u32) -> Self {
        Self { is_block: false, major, minor }
    }

    pub(super) fn block(major: u32, minor: u32) -> Self {
        Self { is_block: true, major, minor }
    }

    fn number(self) -> dev_t {
        makedev(u64::from(self.major), u64::from(self.minor))
    }

    fn is(self, metadata: &Metadata) -> bool {
        let kind = metadata.file_type();
        let is_kind = if self.is_block { kind.is_block_device() } else { kind.is_char_device() };
        is_kind && metadata.rdev() == self.number()
    }
}

/// Opens a node if it is there and is that device. A stale one is not opened: whose it is, is
/// unknown.
pub(super) fn open_node(path: &Path, device: Device) -> io::Result<Option<File>> {
    match fs::metadata(path) {
        Ok(metadata) if device.is(&metadata) => {}
        Ok(_) => return Ok(None),
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // Somebody may have exchanged it in between.
    let metadata = file.metadata()?;
    Ok(device.is(&metadata).then_some(file))
}

/// Makes a node for root alone, and the directory that it is in. One that is there is unlinked: it
/// may be of an earlier life of the driver, with other majors.
pub(super) fn make_node(path: &Path, device: Device) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => return Err(error),
        _ => {}
    }
    let kind = if device.is_block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    Ok(mknod(path, kind, Mode::S_IRUSR | Mode::S_IWUSR, device.number())?)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A directory of this test, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("blktap-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_not_that_device_is_not_opened() {
        let scratch = Scratch::new("other");
        let path = scratch.0.join("node");
        assert!(open_node(&path, Device::character(1, 3)).unwrap().is_none());
        fs::write(&path, "a file").unwrap();
        assert!(open_node(&path, Device::character(1, 3)).unwrap().is_none());
        let null = Path::new("/dev/null");
        assert!(open_node(null, Device::character(1, 5)).unwrap().is_none());
        assert!(open_node(null, Device::block(1, 3)).unwrap().is_none());
        assert!(open_node(null, Device::character(1, 3)).unwrap().is_some());
    }

    #[test]
    fn a_stale_node_gives_way_to_a_new_one() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("deep/node");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "stale").unwrap();
        match make_node(&path, Device::character(1, 3)) {
            Ok(()) => {
                let metadata = fs::metadata(&path).unwrap();
                assert!(Device::character(1, 3).is(&metadata));
                assert_eq!(metadata.mode() & 0o777, 0o600);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped in part: mknod needs CAP_MKNOD");
                assert!(!path.exists());
            }
            Err(error) => panic!("{error}"),
        }
    }
}
