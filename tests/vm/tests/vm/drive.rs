//! An optical drive, which no other machine of the tests has: without a medium, and with one.

use tapdisk_vm::{Machine, VmError};

/// The exit status for ENOMEDIUM: a storage manager knows an empty drive by it.
const ENOMEDIUM: i32 = 123;

#[test]
fn an_empty_drive_has_no_medium_and_a_full_one_is_served_read_only() {
    let drives = [
        "-device",
        "virtio-scsi-pci,id=scsi",
        "-device",
        "scsi-cd,bus=scsi.0,scsi-id=0",
        "-drive",
        "if=none,id=medium,media=cdrom,readonly=on,file.driver=null-co,file.size=1M,format=raw",
        "-device",
        "scsi-cd,bus=scsi.0,scsi-id=1,drive=medium",
    ];
    let plan = Machine::plain().label("drive").with_modules(&["virtio_scsi", "sr_mod"]);
    let machine = match plan.with_qemu_words(&drives).boot() {
        Ok(machine) => machine,
        Err(VmError::Unavailable(reason)) => return tapdisk_vm::skip(&reason),
        Err(error) => panic!("{error}"),
    };
    let wait = "until [ -b /dev/sr0 -a -b /dev/sr1 ]; do usleep 10000; done";
    machine.sh(wait).unwrap().expect_success();
    let ran = machine.run(["tap-ctl", "create", "-R", "-a", "aio:/dev/sr0"]).unwrap();
    assert_eq!((ran.status, &*ran.stderr), (ENOMEDIUM, "No medium found\n"), "{ran:?}");
    // For writing too, which a drive refuses otherwise.
    let ran = machine.run(["tap-ctl", "create", "-a", "aio:/dev/sr0"]).unwrap();
    assert_ne!(ran.status, 0, "{ran:?}");
    machine.sh("tap-ctl create -R -a aio:/dev/sr1").unwrap().expect_success();
    let list = machine.run(["tap-ctl", "list"]).unwrap().expect_success();
    assert!(list.contains("args=aio:/dev/sr1"), "{list}");
    assert_eq!(list.lines().count(), 1, "nothing is left of the empty one: {list}");
    machine.power_off().unwrap();
}
