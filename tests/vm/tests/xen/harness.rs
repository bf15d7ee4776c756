//! What tests rely on when they run something in a guest.

use crate::MACHINE;

#[test]
fn a_guest_of_each_kind_runs_commands() {
    let Some(machine) = MACHINE.lend() else { return };
    for kind in ["pv", "pvh"] {
        machine.sh("truncate -s 64M /sr/loop.img").unwrap().expect_success();
        machine.sh("losetup /dev/loop0 /sr/loop.img").unwrap().expect_success();
        let disk = "phy:/dev/loop0,xvda,w";
        let file = machine.guest_file(kind, kind, &[disk]).unwrap();
        machine.run(["xl", "create", &file]).unwrap().expect_success();
        let guest = machine.guest(kind).unwrap();
        guest.run(["mke2fs", "-q", "-t", "ext4", "/dev/xvda"]).unwrap().expect_success();
        machine.run(["xl", "destroy", kind]).unwrap().expect_success();
        machine.sh("losetup -d /dev/loop0").unwrap().expect_success();
        machine.run(["e2fsck", "-f", "-n", "/sr/loop.img"]).unwrap().expect_success();
    }
}
