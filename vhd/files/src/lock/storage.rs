//! Whether other hosts may have an image in use too: by the type of its file system.

use std::fs::File;

use nix::sys::statfs::fstatfs;

/// File systems that several hosts may mount, by their magic numbers (statfs(2), linux/magic.h).
/// One that is not here counts as this host's own; those in user space (FUSE) may be anything.
const SHARED: [i64; 14] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB 2
    0x517b,      // SMB
    0x6573_5546, // FUSE: GlusterFS, SSHFS; also virtiofs
    0x00c3_6400, // Ceph
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x1983_0326, // BeeGFS
    0x0102_1997, // 9P
    0x5346_414f, // AFS
    0x786f_4256, // VirtualBox's shared folders
];

/// Whether several hosts may have the file system of this file mounted. A block device is what this
/// host has attached, whatever lies behind: its locks are this host's.
#[must_use]
pub fn is_shared_between_hosts(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| is_shared_magic(found.filesystem_type().0))
}

fn is_shared_magic(magic: i64) -> bool {
    SHARED.contains(&magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        assert!(is_shared_magic(0x6969) && is_shared_magic(0xff53_4d42));
        // ext4, XFS, btrfs, tmpfs, overlay, devtmpfs' ramfs.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x8584_58f6] {
            assert!(!is_shared_magic(local), "{local:#x}");
        }
    }
}
