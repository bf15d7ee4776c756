//! What goes wrong is told to the person who typed `xl`.

use crate::MACHINE;
use crate::disk;

#[test]
fn a_missing_image_is_named_by_xl() {
    let Some(machine) = MACHINE.lend() else { return };
    let disk = "script=block-tap,vdev=xvda,access=rw,target=aio:/sr/no-such.img";
    let file = machine.guest_file("missing", "pv", &[disk]).unwrap();
    let ran = machine.run(["xl", "create", &file]).unwrap();
    assert_ne!(ran.status, 0, "{ran:?}");
    let said = ran.stderr.lines().find(|line| line.contains("block-tap: "));
    let said = said.unwrap_or_else(|| panic!("{ran:?}"));
    assert!(said.contains("/sr/no-such.img"), "{said}");
    assert!(said.contains("No such file or directory"), "{said}");
    disk::nothing_is_left(&machine);
}

#[test]
fn a_target_without_a_type_is_refused() {
    let Some(machine) = MACHINE.lend() else { return };
    let disk = "script=block-tap,vdev=xvda,access=rw,target=/sr/some.img";
    let file = machine.guest_file("typeless", "pv", &[disk]).unwrap();
    let ran = machine.run(["xl", "create", &file]).unwrap();
    assert_ne!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.contains("TYPE:/PATH is wanted"), "{ran:?}");
    disk::nothing_is_left(&machine);
}
