//! Who holds a lock. An open file description belongs to no process, so the kernel says "-1" where
//! it names the holder of other locks; but `/proc/PID/fdinfo/FD` has a line for each lock of that
//! open file:
//!
//! ```text
//! lock:   1: OFDLCK  ADVISORY  WRITE -1 08:01:131090 0 EOF
//!            kind              mode     device:inode
//! ```
//!
//! Looked at only after a lock was refused, and only to tell a person where to look.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that holds a lock on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number, as this process sees it.
    pub pid: u32,
    /// Its name, as in `ps -o comm`; empty when it could not be read.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {}", self.pid)?;
        if self.name.is_empty() { Ok(()) } else { write!(formatter, " ({})", self.name) }
    }
}

/// The first process in /proc with a lock on this very file. `None` when there is none to be seen:
/// it ended meanwhile, belongs to another user or container, or runs on another host.
pub(super) fn find(file: &File) -> Option<Holder> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?;
    let mut pids: Vec<u32> =
        processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let pid = pids.into_iter().find(|pid| has_lock(*pid, wanted.dev(), wanted.ino()))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, name: name.trim_end().to_owned() })
}

fn has_lock(pid: u32, dev: u64, inode: u64) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let Ok(descriptors) = fs::read_dir(process.join("fdinfo")) else { return false };
    descriptors.filter_map(Result::ok).any(|entry| {
        let is_locked = fs::read_to_string(entry.path())
            .is_ok_and(|text| locked_inodes(&text).any(|found| found == inode));
        // The line's device is that of the superblock, which stat(2) does not show for every file
        // system. To follow the link is to ask that very file.
        is_locked
            && fs::metadata(process.join("fd").join(entry.file_name()))
                .is_ok_and(|found| found.dev() == dev && found.ino() == inode)
    })
}

/// The inodes in the lines of fcntl(2) locks, of either kind.
fn locked_inodes(fdinfo: &str) -> impl Iterator<Item = u64> {
    fdinfo.lines().filter_map(|line| {
        let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
        let is_fcntl = matches!(words.next()?, "OFDLCK" | "POSIX");
        let place = words.nth(3)?;
        is_fcntl.then(|| place.rsplit(':').next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_inode_of_fcntl_locks_and_of_no_others() {
        let text = "pos:\t0\nflags:\t02100002\nmnt_id:\t29\n\
                    lock:\t1: OFDLCK ADVISORY  WRITE -1 fd:00:1185 0 EOF\n\
                    lock:\t2: FLOCK  ADVISORY  WRITE 77 fd:00:1186 0 EOF\n\
                    lock:\t3: POSIX  ADVISORY  READ 77 00:2f:99 0 0\n\
                    lock:\t4: OFDLCK\nlock:\nlock:\t5: OFDLCK ADVISORY WRITE -1 nonsense 0 EOF\n";
        assert_eq!(locked_inodes(text).collect::<Vec<_>>(), [1185, 99]);
    }

    #[test]
    fn a_holder_is_told_with_its_name_where_there_is_one() {
        let holder = |name: &str| Holder { pid: 7, name: name.to_owned() }.to_string();
        assert_eq!(holder("tapdisk"), "process 7 (tapdisk)");
        assert_eq!(holder(""), "process 7");
    }
}
