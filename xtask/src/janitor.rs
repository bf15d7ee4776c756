//! Cleaning up for certain: a shell that outlives us and ends what we started.
//!
//! It ignores the signals of a terminal and waits for the end of its standard input, which comes
//! when we end, in whatever way. Then it ends, by process id, what it was told of and every tapdisk
//! whose control socket lies in the first folder, unmounts what was mounted in the second, and
//! removes both folders.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Result;
use crate::command;

/// `$1` is the run directory, `$2` the folder for files. A process is ended only while it still has
/// the start time that it had when it was named: its number may belong to another one by then.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
# Nothing for one that is gone or only waits to be collected.
started() { sed -n 's/.*) \([^Z] .*\)/\1/p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
known=
while read -r pid; do known="$known $pid:$(started "$pid")"; done
for socket in "$1"/ctl*; do
    pid=${socket##*/ctl}
    case "$pid" in *[!0-9]*|'') continue;; esac
    case "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" in
        *tapdisk*) known="$known $pid:$(started "$pid")";;
    esac
done
alive() { [ -n "${1#*:}" ] && [ "$(started "${1%%:*}")" = "${1#*:}" ]; }
for signal in TERM KILL; do
    any=
    for process in $known; do
        if alive "$process"; then kill -s "$signal" "${process%%:*}" 2>/dev/null; any=yes; fi
    done
    [ -z "$any" ] && break
    for turn in 1 2 3 4 5 6 7 8 9 10; do
        any=
        for process in $known; do alive "$process" && any=yes; done
        [ -z "$any" ] && break
        sleep 0.1
    done
done
for process in $known; do rm -rf -- "/dev/shm/td3-${process%%:*}"; done
umount "$2/mounted" 2>/dev/null
rm -rf -- "$1" "$2"
"#;

/// Owns two temporary folders and what runs in them.
#[derive(Debug)]
pub(crate) struct Janitor {
    run: PathBuf,
    files: PathBuf,
    shell: Child,
}

impl Janitor {
    /// Makes both folders.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let run = command::temporary_folder(&std::env::temp_dir(), name)?;
        let files = command::temporary_folder(&command::target(""), name)?;
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "janitor"])
            .args([&run, &files])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("Cannot run sh: {error}"))?;
        Ok(Self { run, files, shell })
    }

    /// For sockets: a short path, as a socket's address holds 107 bytes.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// For images: beside the build, as /tmp may be memory, which has no direct I/O.
    pub(crate) fn files(&self) -> &Path {
        &self.files
    }

    /// Where something may be mounted, which is unmounted in the end.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.files.join("mounted")
    }

    /// Ends this process too.
    pub(crate) fn watch(&mut self, pid: u32) -> Result<()> {
        let stdin = self.shell.stdin.as_mut().expect("piped, and closed only by drop");
        writeln!(stdin, "{pid}").map_err(|error| format!("The janitor is gone: {error}"))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends by itself; without it there is nothing more that we could do.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_what_it_watches_and_removes_its_folders() {
        let mut janitor = Janitor::new("janitor-test").unwrap();
        let folders = [janitor.run().to_path_buf(), janitor.files().to_path_buf()];
        std::fs::write(folders[1].join("file"), "x").unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        janitor.watch(child.id()).unwrap();
        drop(janitor);
        assert!(!child.wait().unwrap().success(), "ended by a signal");
        assert!(folders.iter().all(|folder| !folder.exists()));
    }

    #[test]
    fn unmounts_what_is_mounted_in_its_folder() {
        let janitor = Janitor::new("janitor-mount").unwrap();
        let point = janitor.mount_point();
        std::fs::create_dir(&point).unwrap();
        let mut mount = command::tool("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&point);
        if let Err(reason) = command::capture(&mut mount) {
            println!("skipped: {reason}");
            return;
        }
        std::fs::write(point.join("file"), "x").unwrap();
        drop(janitor);
        assert!(!point.exists());
    }

    #[test]
    fn does_not_share_its_folders() {
        let janitor = Janitor::new("janitor-twice").unwrap();
        assert!(Janitor::new("janitor-twice").is_err());
        assert!(janitor.files().is_dir());
    }
}
