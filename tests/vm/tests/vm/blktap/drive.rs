//! Optical drives: one without a medium, and one with.

use super::Lab;

/// The exit status for ENOMEDIUM: a storage manager knows an empty drive by it.
const ENOMEDIUM: i32 = 123;

/// QEMU's words for both drives: `/dev/sr0` and `/dev/sr1`.
pub(super) const WORDS: [&str; 8] = [
    "-device",
    "virtio-scsi-pci,id=scsi",
    "-device",
    "scsi-cd,bus=scsi.0,scsi-id=0",
    "-drive",
    // Without zeros it reads as whatever was in memory.
    "if=none,id=medium,media=cdrom,readonly=on,format=raw,\
     file.driver=null-co,file.size=1M,file.read-zeroes=on",
    "-device",
    "scsi-cd,bus=scsi.0,scsi-id=1,drive=medium",
];

#[test]
fn an_empty_drive_has_no_medium_and_a_full_one_is_served_read_only() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("until [ -b /dev/sr0 -a -b /dev/sr1 ]; do usleep 10000; done");
    let ran = lab.run(["tap-ctl", "create", "-R", "-a", "aio:/dev/sr0"]).unwrap();
    assert_eq!((ran.status, &*ran.stderr), (ENOMEDIUM, "No medium found\n"), "{ran:?}");
    // For writing too, which a drive refuses otherwise.
    let ran = lab.run(["tap-ctl", "create", "-a", "aio:/dev/sr0"]).unwrap();
    assert_ne!(ran.status, 0, "{ran:?}");
    assert_eq!(lab.sh("tap-ctl list"), "", "nothing is left of it");
    let tap = lab.create("aio:/dev/sr1", "-R");
    lab.sh(&format!("dd if={} bs=1M iflag=direct | cmp - /dev/sr1", tap.device));
    lab.destroy(&tap);
    lab.leave();
}
