//! Storage of a test's own: loop devices, small file systems, and real storage that hangs.
//!
//! All of it needs privileges; each says why it is not to be had, and the test skips itself.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Ran, has_program, skip};

fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Ran {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}")).into()
}

/// A loop device; detached when this is dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A block device of this file, with sectors of this many bytes.
    #[must_use]
    pub fn attach(file: &Path, sector: u32) -> Option<Self> {
        if !has_program("losetup") {
            return None;
        }
        let sector = sector.to_string();
        let options = ["--find", "--show", "--sector-size", &sector].map(OsStr::new);
        let ran = run("losetup", &[&options[..], &[file.as_os_str()]].concat());
        if ran.status != 0 {
            skip(&format!("no loop device with sectors of {sector}: {}", ran.stderr.trim()));
            return None;
        }
        Some(Self { path: PathBuf::from(ran.stdout.trim()) })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach".as_ref(), self.path.as_os_str()]);
    }
}

/// A mounted file system; unmounted when this is dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// One in memory with room for this much, as mount has it (`1m`).
    #[must_use]
    pub fn in_memory(path: &Path, size: &str) -> Option<Self> {
        let size = format!("size={size}");
        Self::new(path, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    /// ext4 in a file, which is made, beside the place where it is mounted.
    #[must_use]
    pub fn ext4(path: &Path) -> Option<Self> {
        if !has_program("mkfs.ext4") {
            return None;
        }
        let file = path.with_extension("ext4");
        let sparse = std::fs::File::create(&file).and_then(|sparse| sparse.set_len(64 << 20));
        sparse.expect("a sparse file takes no room");
        let file = file.to_str().expect("names of tests are UTF-8");
        run("mkfs.ext4", &["-q", "-F", file]).expect_success();
        Self::new(path, &["-t", "ext4", "-o", "loop", file])
    }

    fn new(path: &Path, arguments: &[&str]) -> Option<Self> {
        if !has_program("mount") {
            return None;
        }
        std::fs::create_dir(path).expect("room for a directory");
        let arguments = arguments.iter().map(OsStr::new).chain([path.as_os_str()]);
        let ran = run("mount", &arguments.collect::<Vec<_>>());
        if ran.status != 0 {
            skip(&format!("no file system can be mounted: {}", ran.stderr.trim()));
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes all writes to it hang in the kernel, uninterruptibly, until [`Frozen::thaw`].
    ///
    /// # Panics
    /// When it cannot be frozen.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        let device = |path: &Path| std::fs::metadata(path).expect("it is there").dev();
        let parent = self.path.parent().expect("a mount point has a parent");
        // The host's own file system, frozen, would be the end of this test and all others.
        assert_ne!(device(&self.path), device(parent), "{} is not mounted", self.path.display());
        // Thaws when this process ends, however it does: nothing could kill what hangs there.
        let thaw =
            "fsfreeze --freeze \"$0\" && echo frozen && cat >/dev/null; fsfreeze --unfreeze \"$0\"";
        let mut guard = Command::new("sh")
            .args(["-c".as_ref(), thaw.as_ref(), self.path.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("every system has a shell");
        let mut word = [0; 6];
        let stdout = guard.stdout.as_mut().expect("piped above");
        let told = std::io::Read::read_exact(stdout, &mut word);
        assert!(told.is_ok() && &word == b"frozen", "{} cannot be frozen", self.path.display());
        Frozen { guard }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l".as_ref(), self.path.as_os_str()]);
    }
}

/// A file system that hangs.
#[derive(Debug)]
pub struct Frozen {
    guard: Child,
}

impl Frozen {
    /// Lets everything go on.
    pub fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
