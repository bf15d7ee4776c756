//! The laws of paths.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::testing::MemoryHost;

fn of(host: &MemoryHost, path: &str) -> String {
    canonical(host, Path::new(path)).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_relative_path_is_relative_to_the_current_directory_and_links_are_followed() {
    let host = MemoryHost::default()
        .with("/vhds/a.vhd", vec![])
        .with_link("/other/link.vhd", "/vhds/a.vhd");
    assert_eq!(of(&host, "a.vhd"), "/vhds/a.vhd");
    assert_eq!(of(&host, "./x/..//a.vhd"), "/vhds/a.vhd");
    assert_eq!(of(&host, "../other/link.vhd"), "/vhds/a.vhd");
    assert_eq!(canonical(&host, Path::new("b.vhd")).unwrap_err().errno(), 2);
}

#[test]
fn volumes_keep_their_name_in_the_mapper() {
    let host = MemoryHost::default()
        .with("/dev/dm-1", vec![])
        .with("/dev/sda", vec![])
        .with_link("/dev/mapper/VG--1-VHD--a--b", "/dev/dm-1")
        .with_link("/dev/VG-1/VHD-a-b", "/dev/dm-1")
        .with_link("/dev/disk/by", "/dev/sda");
    assert_eq!(of(&host, "/dev/mapper/VG--1-VHD--a--b"), "/dev/mapper/VG--1-VHD--a--b");
    assert_eq!(of(&host, "/dev/VG-1/VHD-a-b"), "/dev/mapper/VG--1-VHD--a--b");
    assert_eq!(of(&host, "/dev/./VG-1//VHD-a-b"), "/dev/mapper/VG--1-VHD--a--b");
    assert_eq!(canonical(&host, Path::new("/dev/mapper/gone")).unwrap_err().errno(), 2);
    assert_eq!(of(&host, "/dev/dm-1"), "/dev/dm-1");
    assert_eq!(of(&host, "/dev/disk/by"), "/dev/sda");
}

#[test]
fn replicated_devices_keep_their_name_when_it_leads_to_one() {
    let host = MemoryHost::default()
        .with("/dev/drbd1000", vec![])
        .with("/dev/drbdx", vec![])
        .with_link("/dev/drbd/by-res/r1/0", "/dev/drbd1000")
        .with_link("/dev/drbd/by-res/r2/0", "/dev/drbdx");
    assert_eq!(of(&host, "/dev/drbd/by-res/r1/0"), "/dev/drbd/by-res/r1/0");
    assert_eq!(of(&host, "/dev/drbd/by-res/r2/0"), "/dev/drbdx");
}

#[test]
fn a_parent_is_stored_relative_to_its_child() {
    for (from, to, wanted) in [
        ("/d/child.vhd", "/d/p.vhd", "./p.vhd"),
        ("/d/child.vhd", "/d/bases/one/p.vhd", "./bases/one/p.vhd"),
        ("/d/c/m.vhd", "/d/a/b/p.vhd", "../a/b/p.vhd"),
        ("/d/e/f/leaf.vhd", "/c/m.vhd", "../../../c/m.vhd"),
        ("/dev/mapper/VG-c", "/dev/mapper/VG-p", "./VG-p"),
        ("/c.vhd", "/p.vhd", "./p.vhd"),
    ] {
        assert_eq!(relative(Path::new(from), Path::new(to)).as_deref(), Ok(wanted));
        let back = normalised(&Path::new(from).parent().unwrap().join(wanted));
        assert_eq!(back, Path::new(to));
    }
}

#[test]
fn a_parent_whose_path_is_not_utf_8_is_refused() {
    let to = PathBuf::from(OsString::from_vec(b"/d/\xff.vhd".to_vec()));
    let error = relative(Path::new("/d/c.vhd"), &to).unwrap_err();
    assert_eq!(error.errno(), 84);
}
