//! The kernel's own NBD client on our NBD door.

use super::{LONG, Lab, Tap, fio};

/// Connects the kernel's client with a disk's socket.
fn connect(lab: &Lab, tap: &Tap) {
    let socket = lab.sh(&format!(
        "tap-ctl list -m {} --json | sed -n 's/.*\"door\": \"\\(.*\\)\".*/\\1/p'",
        tap.minor
    ));
    lab.sh(&format!(
        "nbd-client -unix {} /dev/nbd0 -N disk -b 512 && [ $(blockdev --getsize64 /dev/nbd0) -gt 0 ]",
        socket.trim()
    ));
}

#[test]
fn the_kernels_nbd_client_is_served() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 64M /sr/nbd.img");
    let tap = lab.create("aio:/sr/nbd.img", "");
    connect(&lab, &tap);
    lab.sh("set -e
         mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 /mnt; cp -a /usr/bin /mnt
         (cd /mnt; find . -type f | xargs md5sum) >/tmp/sums
         umount /mnt; e2fsck -fn /dev/nbd0; echo 3 >/proc/sys/vm/drop_caches
         mount /dev/nbd0 /mnt; (cd /mnt; md5sum -c -s /tmp/sums); umount /mnt");
    lab.sh(&fio(
        "/dev/nbd0",
        "32m",
        "--rw=randwrite --bsrange=512-1m --direct=1 --ioengine=libaio --iodepth=16",
    ));
    lab.sh(&fio("/dev/nbd0", "16m", "--rw=randwrite --bsrange=512-64k --fsync=32"));
    lab.sh("nbd-client -d /dev/nbd0");
    // Through the other door it is the same disk.
    lab.sh(&format!("cmp {} /sr/nbd.img", tap.device));
    lab.destroy(&tap);
    lab.leave();
}

#[test]
fn a_disconnect_under_load_ends_in_errors_and_in_nothing_else() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 64M /sr/cut.img");
    let tap = lab.create("aio:/sr/cut.img", "");
    for _ in 0..3 {
        connect(&lab, &tap);
        let words = "fio --name=k --filename=/dev/nbd0 --rw=randrw --bsrange=4k-256k --direct=1 \
                     --size=64m --ioengine=libaio --iodepth=32 --time_based --runtime=600 \
                     --output=/dev/null";
        let load = lab.start(["sh", "-c", words]).unwrap();
        lab.sh("while [ $(awk '{ print $5 }' /sys/block/nbd0/stat) -lt 50 ]; do usleep 1000; done
             nbd-client -d /dev/nbd0");
        let ran = load.wait(LONG).unwrap();
        assert_ne!(ran.status, 0, "{ran:?}");
        lab.sh(&format!("dd if={} of=/dev/null bs=64k count=4 iflag=direct", tap.device));
    }
    lab.destroy(&tap);
    lab.leave();
}
