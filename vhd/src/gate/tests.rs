//! The laws of the gate.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::image::LoadOptions;
use crate::testing::{MemoryHost, Spec};

fn host() -> MemoryHost {
    let mut host = MemoryHost::default();
    for path in [
        "/vhds/child.vhd",
        "/vhds/parent.vhd",
        "/vhds/sub/parent.vhd",
        "/etc/shadow",
        "/vhdsx/parent.vhd",
        "/top.vhd",
        "/dev/sda",
        "/dev/sdb",
        "/dev/mapper/VG-a",
        "/dev/mapper/VG-b",
        "/dev/mapper/VG--2-c",
        "/dev/mapper/root",
        "/dev/drbd1",
        "/dev/drbd2",
    ] {
        host = host.with(path, path.as_bytes().to_vec());
    }
    host.with_link("/vhds/link.vhd", "/etc/shadow")
        .with_link("/dev/drbd/by-res/one/0", "/dev/drbd1")
        .with_link("/dev/drbd/by-res/two/0", "/dev/drbd2")
}

fn resolve(child: &str, name: &str) -> Result<PathBuf> {
    let host = host();
    let gate = Gate::of_child(&host, Path::new(child)).unwrap();
    gate.resolve(&host, Path::new(child), name, true)
}

fn is_forbidden(child: &str, name: &str) -> bool {
    let found = resolve(child, name);
    found.is_err_and(|error| matches!(error.kind(), ErrorKind::ParentForbidden { .. }))
}

#[test]
fn opens_what_is_in_the_directory_of_the_child_and_below() {
    for (name, wanted) in [
        ("./parent.vhd", "/vhds/parent.vhd"),
        ("parent.vhd", "/vhds/parent.vhd"),
        ("./sub/../parent.vhd", "/vhds/parent.vhd"),
        ("./sub/parent.vhd", "/vhds/sub/parent.vhd"),
        ("/vhds/parent.vhd", "/vhds/parent.vhd"),
        // An absolute path of another system, which leads nowhere on this one.
        ("/sub/parent.vhd", "/vhds/sub/parent.vhd"),
    ] {
        assert_eq!(resolve("/vhds/child.vhd", name), Ok(PathBuf::from(wanted)), "{name}");
    }
}

#[test]
fn opens_nothing_elsewhere_by_any_way() {
    for name in ["/etc/shadow", "./../etc/shadow", "link.vhd", "../vhdsx/parent.vhd", "/dev/sda"] {
        assert!(is_forbidden("/vhds/child.vhd", name), "{name}");
    }
    assert_eq!(resolve("/vhds/child.vhd", "").unwrap_err().errno(), 2);
    assert_eq!(resolve("/vhds/child.vhd", "gone.vhd").unwrap_err().errno(), 2);
}

#[test]
fn opens_what_the_operator_lists() {
    let host = host();
    let child = Path::new("/vhds/child.vhd");
    let gate = Gate::of_child(&host, child).unwrap().and(&host, Path::new("/etc/shadow")).unwrap();
    assert!(gate.resolve(&host, child, "../etc/shadow", true).is_ok());
    assert!(gate.resolve(&host, child, "../vhdsx/parent.vhd", true).is_err());
    assert!(Gate::everywhere().resolve(&host, child, "../vhdsx/parent.vhd", true).is_ok());
}

#[test]
fn opens_vhds_anywhere_when_told_so_but_raw_images_not() {
    let host = host();
    let child = Path::new("/vhds/child.vhd");
    let gate = Gate::of_child(&host, child).unwrap().with_vhd_anywhere();
    assert!(gate.resolve(&host, child, "../vhdsx/parent.vhd", false).is_ok());
    assert!(gate.resolve(&host, child, "../vhdsx/parent.vhd", true).is_err());
    assert!(gate.resolve(&host, child, "./parent.vhd", true).is_ok());
}

#[test]
fn a_volume_opens_its_own_group_only() {
    assert!(resolve("/dev/mapper/VG-a", "./VG-b").is_ok());
    assert!(is_forbidden("/dev/mapper/VG-a", "./VG--2-c"));
    assert!(is_forbidden("/dev/mapper/VG--2-c", "./VG-b"));
    assert!(is_forbidden("/dev/mapper/VG-a", "./root"));
    assert!(is_forbidden("/dev/mapper/root", "./VG-a"));
    assert!(is_forbidden("/dev/mapper/VG-a", "../sda"));
}

#[test]
fn a_replicated_device_opens_the_others() {
    assert!(resolve("/dev/drbd/by-res/one/0", "./../two/0").is_ok());
    assert!(is_forbidden("/dev/drbd/by-res/one/0", "/dev/sda"));
}

#[test]
fn a_child_in_the_root_or_among_the_devices_opens_nothing_unless_told_so() {
    assert!(is_forbidden("/top.vhd", "./vhds/parent.vhd"));
    assert!(is_forbidden("/dev/sda", "./sdb"));
}

#[test]
fn says_that_a_parent_is_forbidden_rather_than_that_another_is_missing() {
    let spec = Spec::child_of(&Spec::new(1 << 20), "../../etc/shadow");
    let file = spec.make();
    let image = Image::load(&file, LoadOptions::default()).unwrap();
    let host = host();
    let child = Path::new("/vhds/sub/child.vhd");
    let gate = Gate::everywhere().parent(&host, child, &image);
    assert_eq!(gate, Ok(PathBuf::from("/etc/shadow")));
    let gate = Gate::of_child(&host, Path::new("/vhds/sub/parent.vhd")).unwrap();
    let error = gate.parent(&host, child, &image).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ParentForbidden { .. }), "{error}");
    assert_eq!(error.errno(), 13);
    // Whichever comes first.
    for slots in [0..1, 1..3] {
        let mut file = spec.make();
        for locator in &image.header().unwrap().locators[slots] {
            let text = crate::locator::encode(locator.platform, "../../etc/absent");
            crate::testing::put(&mut file, locator.offset, &text);
        }
        let image = Image::load(&file, LoadOptions::default()).unwrap();
        let error = gate.parent(&host, child, &image).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ParentForbidden { .. }), "{error}");
    }
}

#[test]
fn of_parents_that_are_missing_the_first_is_named() {
    let mut file = Spec::child_of(&Spec::new(1 << 20), "first.vhd").make();
    let header = *Image::load(&file, LoadOptions::default()).unwrap().header().unwrap();
    for locator in &header.locators[1..3] {
        let text = crate::locator::encode(locator.platform, "./other.vhd");
        crate::testing::put(&mut file, locator.offset, &text);
    }
    let image = Image::load(&file, LoadOptions::default()).unwrap();
    let child = Path::new("/vhds/child.vhd");
    let error = Gate::everywhere().parent(&host(), child, &image).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::ParentNotFound { name: String::from("./first.vhd") });
}

/// On a real host the directory of the child is there, and can be read.
#[test]
fn an_empty_name_does_not_stand_for_the_directory() {
    let host = host().with("/vhds", vec![0; 512]);
    let child = Path::new("/vhds/child.vhd");
    let error = Gate::everywhere().resolve(&host, child, "", true).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::ParentNotFound { name: String::new() });
}

#[test]
fn an_image_without_locators_has_no_parent_to_open() {
    let file = Spec::new(1 << 20).make();
    let image = Image::load(&file, LoadOptions::default()).unwrap();
    let error = Gate::everywhere().parent(&host(), Path::new("/vhds/child.vhd"), &image);
    assert_eq!(error.unwrap_err().kind(), &ErrorKind::NoLocator);
}
