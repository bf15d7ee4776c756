//! A disk of tapdisk as a block device: file systems, fio, sizes of sectors, many of them.

use super::{DISKS, LONG, Lab, fio};

#[test]
fn a_file_system_is_what_was_written_to_it() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 256M /sr/fs.img");
    let tap = lab.create("aio:/sr/fs.img", "");
    let device = &tap.device;
    lab.sh(&format!(
        "set -e
         mkfs.ext4 -q {device}; mount {device} /mnt
         for copy in 1 2; do
             mkdir /mnt/$copy; cp -a /usr/bin /mnt/$copy/
             for n in $(seq 150); do head -c $((n * 97)) /dev/urandom >/mnt/$copy/$n; done
         done
         cd /mnt; find . -type f | sort | xargs md5sum >/tmp/sums; cd /
         umount /mnt; e2fsck -fn {device}
         echo 3 >/proc/sys/vm/drop_caches
         mount {device} /mnt; cd /mnt; md5sum -c -s /tmp/sums
         rm -r 1; fstrim -v /mnt; sync; grep ' ./2' /tmp/sums >/tmp/left; md5sum -c -s /tmp/left
         cd /; umount /mnt; e2fsck -fn {device}"
    ));
    lab.destroy(&tap);
    // Without the driver and without us: the image is the file system.
    lab.sh("set -e
         e2fsck -fn /sr/fs.img
         mount -o loop,ro /sr/fs.img /mnt; cd /mnt; md5sum -c -s /tmp/left; cd /; umount /mnt
         rm /sr/fs.img");
    lab.leave();
}

#[test]
fn fio_reads_back_what_it_wrote_in_any_size() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 64M /sr/fio.img");
    let tap = lab.create("aio:/sr/fio.img", "");
    let queued = "--direct=1 --ioengine=libaio --iodepth=40";
    let buffered = "--direct=0 --ioengine=psync --fsync=64 --invalidate=1";
    for (size, words) in [
        ("64m", format!("--rw=randwrite --bsrange=512-1m {queued}")),
        ("1m", format!("--rw=randwrite --bs=512 {queued}")),
        ("8m", format!("--rw=randwrite --bs=4k {queued} --fsync=100")),
        ("32m", format!("--rw=write --bs=1m {queued}")),
        ("32m", format!("--rw=randwrite --bsrange=512-1m {buffered}")),
        ("1m", format!("--rw=randwrite --bs=512 {buffered}")),
    ] {
        lab.sh(&fio(&tap.device, size, &words));
    }
    // Sectors at the ends, and reads that lie across the image's end.
    lab.sh(&format!(
        "set -e
         dd if=/dev/urandom of=/tmp/last bs=512 count=1
         dd if=/tmp/last of={device} bs=512 seek=131071 oflag=direct
         dd if={device} bs=512 skip=131071 iflag=direct | cmp - /tmp/last
         dd if=/sr/fio.img bs=512 skip=131071 | cmp - /tmp/last
         dd if=/tmp/last of={device} bs=512 seek=131072 oflag=direct && exit 9
         rm /tmp/last",
        device = tap.device
    ));
    lab.destroy(&tap);
    lab.sh("rm /sr/fio.img");
    lab.leave();
}

#[test]
fn a_read_only_disk_is_not_written() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 16M /sr/ro.img; mkfs.ext4 -q /sr/ro.img; md5sum /sr/ro.img >/tmp/sum");
    let tap = lab.create("aio:/sr/ro.img", "-R");
    let device = &tap.device;
    lab.sh(&format!(
        "set -e
         [ $(blockdev --getro {device}) = 1 ]
         dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct && exit 9
         dd if=/dev/zero of={device} bs=4096 count=1 conv=fsync && exit 9
         mount -o ro {device} /mnt; ls /mnt/lost+found; umount /mnt"
    ));
    lab.destroy(&tap);
    lab.sh("md5sum -c -s /tmp/sum; rm /sr/ro.img");
    lab.leave();
}

#[test]
fn a_disk_of_larger_sectors_has_larger_sectors() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 64M /sr/4k.img");
    let loop_device = lab.sh("losetup -f --show -b 4096 --direct-io=on /sr/4k.img");
    let tap = lab.create(&format!("aio:{}", loop_device.trim()), "");
    let device = &tap.device;
    lab.sh(&format!(
        "set -e
         [ $(blockdev --getss {device}) = 4096 ]; [ $(blockdev --getsize64 {device}) = 67108864 ]
         fio --name=small --filename={device} --size=64k --rw=read --bs=512 --direct=1 \
             --ioengine=psync >/dev/null 2>&1 && exit 9
         mkfs.ext4 -q {device}; mount {device} /mnt; cp -a /usr/bin /mnt; umount /mnt
         e2fsck -fn {device}"
    ));
    lab.sh(&fio(device, "16m", "--rw=randwrite --bsrange=4k-256k --direct=1 --ioengine=libaio"));
    lab.destroy(&tap);
    lab.sh(&format!("losetup -d {}; rm /sr/4k.img", loop_device.trim()));
    lab.leave();
}

/// Two hundred at once, five hundred after another; one whose server is killed.
#[test]
fn many_disks_leave_nothing_behind() {
    let Some(lab) = Lab::enter() else { return };
    let line = format!("DRIVER_IMAGES=/sr exec {DISKS} --nocapture");
    let ran = lab.run_within(LONG, ["sh", "-c", &line]).unwrap();
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("4 passed") && !ran.stderr.contains("skipped"), "{ran:?}");
    lab.leave();
}
