//! VHDs through the kernel's ring: file systems on them, snapshots under load, chains.

use std::process::Command;

use super::{LONG, Lab, Tap, fio};

/// A dynamic image in the machine, of so many mebibytes.
fn image(lab: &Lab, name: &str, mebibytes: u32) -> String {
    let path = format!("/sr/{name}");
    lab.sh(&format!("rm -f {path}; vhd-util create -n {path} -s {mebibytes}"));
    path
}

/// QEMU reads the same from the image as the kernel did from the disk, whose checksum this is. Only
/// for images without a parent: QEMU knows no others of this format.
fn read_by_qemu(lab: &Lab, image: &str, sum: &str) {
    let Some(qemu_img) = tapdisk_vm::find_program("qemu-img") else {
        return tapdisk_vm::skip("qemu-img is not installed");
    };
    lab.sh(&format!("cp {image} /share/image.vhd; sync"));
    let [image, raw] = ["image.vhd", "image.raw"].map(|name| lab.share().join(name));
    // By its size, not by the geometry, which rounds it.
    let spec = format!("driver=vpc,force_size_calc=current_size,file.filename={}", image.display());
    let mut convert = Command::new(qemu_img);
    let convert = convert.args(["convert", "--image-opts", &spec, "-O", "raw"]).arg(&raw);
    let converted = convert.output().unwrap();
    assert!(converted.status.success(), "{converted:?}");
    let found = Command::new("md5sum").arg(&raw).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.split(' ').next(), Some(sum.trim()));
    std::fs::remove_file(image).unwrap();
    std::fs::remove_file(raw).unwrap();
}

/// What a reader of the whole disk finds.
fn sum(lab: &Lab, tap: &Tap) -> String {
    lab.sh(&format!("dd if={} bs=1M iflag=direct status=none | md5sum | cut -d' ' -f1", tap.device))
}

/// `make` makes the file system on `$device`, `check` looks whether it is clean.
fn hold_a_file_system(make: &str, check: &str, mebibytes: u32) {
    let Some(lab) = Lab::enter() else { return };
    let image = image(&lab, "fs.vhd", mebibytes);
    let tap = lab.create(&format!("vhd:{image}"), "");
    lab.sh(&format!(
        "set -e; device={device}
         {make}; mount $device /mnt
         mkdir /mnt/1 /mnt/2; cp -a /usr/bin /mnt/1
         for n in $(seq 100); do head -c $((n * 97)) /dev/urandom >/mnt/2/$n; done
         cd /mnt; find . -type f | sort | xargs md5sum >/tmp/sums; cd /
         umount /mnt; {check}
         echo 3 >/proc/sys/vm/drop_caches
         mount $device /mnt; cd /mnt; md5sum -c -s /tmp/sums
         rm -r 1; fstrim /mnt; sync; grep ' ./2' /tmp/sums >/tmp/left; md5sum -c -s /tmp/left
         cd /; umount /mnt; {check}",
        device = tap.device
    ));
    let sum = sum(&lab, &tap);
    lab.destroy(&tap);
    lab.sh(&format!("vhd-util check -n {image}"));
    read_by_qemu(&lab, &image, &sum);
    lab.sh(&format!("rm {image}"));
    lab.leave();
}

#[test]
fn ext4_on_a_vhd_is_what_was_written_to_it() {
    hold_a_file_system("mkfs.ext4 -q $device", "e2fsck -fn $device", 128);
}

/// Its smallest size is 300 MiB.
#[test]
fn xfs_on_a_vhd_is_what_was_written_to_it() {
    hold_a_file_system("mkfs.xfs -q $device", "xfs_repair -n $device", 320);
}

/// Four snapshots, each with writes before and after it, under a mounted file system in which
/// every byte is verified.
#[test]
fn snapshots_under_a_load_that_verifies_lose_nothing() {
    let Some(lab) = Lab::enter() else { return };
    let image = image(&lab, "s0.vhd", 128);
    let tap = lab.create(&format!("vhd:{image}"), "");
    let ids = format!("-p {} -m {}", tap.pid, tap.minor);
    let device = &tap.device;
    lab.sh(&format!(
        "set -e; mkfs.ext4 -q {device}; mount {device} /mnt
         cp -a /usr/bin /mnt/before; (cd /mnt; find before -type f | xargs md5sum) >/tmp/sums"
    ));
    let words = "--rw=randwrite --bsrange=512-64k --direct=1 --ioengine=libaio --iodepth=32";
    let verify = fio("/mnt/file", "16m", words).replace("--allow_file_create=0", "");
    let line = format!("until [ -e /tmp/enough ]; do {{ {verify}; }} || exit 1; done");
    let load = lab.start(["sh", "-c", &line]).unwrap();
    lab.sh(&format!(
        "set -e
         writes() {{ awk '{{ print $5 }}' /sys/block/tda/stat; }}
         for n in 1 2 3 4; do
             start=$(writes); until [ $(writes) -gt $((start + 50)) ]; do usleep 10000; done
             tap-ctl snapshot {ids} -n /sr/s$n.vhd
         done
         start=$(writes); until [ $(writes) -gt $((start + 50)) ]; do usleep 10000; done
         >/tmp/enough"
    ));
    let ran = load.wait(LONG).unwrap();
    assert_eq!(ran.status, 0, "{ran:?}");
    lab.sh(&format!(
        "set -e; cd /mnt; md5sum -c -s /tmp/sums; cd /; umount /mnt; e2fsck -fn {device}"
    ));
    assert!(lab.sh("tap-ctl list").contains("args=vhd:/sr/s4.vhd"));
    let before = sum(&lab, &tap);
    lab.destroy(&tap);
    let depth = lab
        .sh("set -e; for n in 0 1 2 3 4; do vhd-util check -n /sr/s$n.vhd; done >/dev/null
         vhd-util query -d -n /sr/s4.vhd");
    assert!(depth.trim().ends_with('5'), "{depth}");
    let tap = lab.create("vhd:/sr/s4.vhd", "");
    assert_eq!(sum(&lab, &tap), before, "after it was opened again");
    lab.destroy(&tap);
    // Merged into the first one it can be read by others, too.
    lab.sh("set -e; for n in 4 3 2 1; do vhd-util coalesce -n /sr/s$n.vhd; done >/dev/null");
    read_by_qemu(&lab, &image, &before);
    lab.sh("rm /sr/s?.vhd /tmp/enough");
    lab.leave();
}
