//! A file system whose storage has all its blocks.
//!
//! The first write to a place that a thin volume, a sparse file or a virtual machine's disk never
//! had waits until the storage has found room for it, whoever writes. A file system on a file that
//! was written from end to end does not meet that: what is left is what the writer does, and the
//! file system.

use std::fs;
use std::path::{Path, PathBuf};

use super::Ground;
use crate::Result;
use crate::command::{self, tool};

/// Room for what is written to fresh images, and for its own journal.
const GIBIBYTES: u64 = 10;

/// One that is mounted, until it is dropped; after that, the janitor sees to it.
pub(super) struct Written {
    folder: PathBuf,
    file: PathBuf,
}

impl Written {
    /// Makes and mounts it. An error says what it lacks: root, room, a loop device.
    pub(super) fn new(ground: &Ground) -> Result<Self> {
        let (folder, file) = (ground.janitor.mount_point(), ground.folder().join("written"));
        let written = Self { folder, file };
        fs::create_dir(&written.folder)
            .map_err(|error| format!("Cannot make {}: {error}", written.folder.display()))?;
        for part in 0..GIBIBYTES {
            let mut dd = tool("dd");
            dd.arg(format!("if={}", ground.folder().join("image").display()));
            dd.arg(format!("of={}", written.file.display())).arg(format!("seek={}", part << 10));
            command::capture(dd.args(["bs=1M", "oflag=direct", "conv=notrunc", "status=none"]))?;
        }
        let mut attach = tool("losetup");
        attach.args(["--find", "--show", "--direct-io=on"]).arg(&written.file);
        let device = command::capture(&mut attach)?.trim().to_owned();
        // It is the mount that keeps it: once detached, it goes with that.
        let mounted = written.mount(&device);
        command::capture(tool("losetup").args(["--detach", &device]))?;
        mounted.map(|()| written)
    }

    fn mount(&self, device: &str) -> Result<()> {
        let mut make = tool("mkfs.ext4");
        // Nothing is left for later, and no block is given back to the file.
        let now = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        command::capture(make.args(["-q", "-F", "-E", now, device]))?;
        let mut mount = tool("mount");
        command::capture(mount.args(["-o", "nodiscard", device]).arg(&self.folder)).map(drop)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // The janitor tries again, and says nothing either: there is nobody left to tell.
        let _ = command::capture(tool("umount").arg(&self.folder));
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_dir(&self.folder);
    }
}
