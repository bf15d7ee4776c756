//! Taps, their nodes and their files in sysfs: the running kernel's alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use blktap_ioctl::{Control, ControlError, DeviceParams, Places, Ring};
use nix::errno::Errno;

use crate::kernel::{Generation, errno, mapped, only_driver};

const REASON: &str = "it has no control device";

#[test]
fn the_lowest_free_minor_is_next() {
    if !only_driver(REASON) {
        return;
    }
    let control = Control::open(Places::default()).unwrap();
    let taps: Vec<_> = (0..30).map(|_| control.allocate().unwrap().minor).collect();
    assert_eq!(taps, (0..30).collect::<Vec<_>>());
    for minor in [7, 3, 20] {
        control.free(minor).unwrap();
    }
    for expected in [3, 7, 20, 30] {
        assert_eq!(control.allocate().unwrap().minor, expected);
    }
    for minor in 0..31 {
        control.free(minor).unwrap();
    }
}

#[test]
fn a_tap_is_busy_while_its_ring_is_open_or_mapped() {
    if !only_driver(REASON) {
        return;
    }
    let control = Control::open(Places::default()).unwrap();
    let tap = control.allocate().unwrap();
    let is_busy = || matches!(control.free(tap.minor), Err(ControlError::Busy { .. }));
    let ring = Ring::open(&tap.ring_path).unwrap();
    assert!(is_busy());
    assert_eq!(errno(&Ring::open(&tap.ring_path).unwrap_err()), Errno::EBUSY);
    let ring = ring.map().unwrap();
    assert!(is_busy());
    drop(ring);
    control.free(tap.minor).unwrap();
    assert!(matches!(control.free(tap.minor), Err(ControlError::NotAllocated { .. })));
    assert!(matches!(control.free(u32::from(u16::MAX)), Err(ControlError::NotAllocated { .. })));
    assert_eq!(errno(&Ring::open(&tap.ring_path).unwrap_err()), Errno::ENXIO);
}

#[test]
fn a_tap_has_its_files_in_sysfs() {
    if !only_driver(REASON) {
        return;
    }
    let (_tap, mut ring, user) = mapped(Generation::Dkms);
    let crate::kernel::user::User::Driver(driver) = &user else { unreachable!("it is") };
    let minor = driver.tap.minor;
    let read = |name: &str| {
        fs::read_to_string(format!("/sys/class/blktap2/blktap!blktap{minor}/{name}")).unwrap()
    };
    let devices = || fs::read_to_string("/sys/class/blktap2/devices").unwrap();
    assert_eq!(read("name"), format!("{minor}\n"));
    assert_eq!(read("task"), format!("{}\n", std::process::id()));
    assert_eq!(read("pool"), "default\n");
    assert_eq!(devices(), "");
    ring.create_device(&DeviceParams::new(64)).unwrap();
    assert_eq!(devices(), format!("{minor} {minor}\n"));
    fs::write(format!("/sys/class/blktap2/blktap!blktap{minor}/name"), "vhd:/x y\n").unwrap();
    assert_eq!(read("name"), "vhd:/x y\n");
    assert_eq!(devices(), format!("{minor} vhd:/x y\n"));
    assert!(read("debug").contains("capacity: 64 sectors of 512 bytes"), "{}", read("debug"));
    drop(ring);
    assert_eq!(read("task"), "");
    assert_eq!(devices(), "");
}

#[test]
fn the_control_device_has_its_names() {
    if !only_driver(REASON) {
        return;
    }
    let places = Places::default();
    assert_eq!(places.driver().unwrap().unwrap().name, "blktap/control");
    let majors = places.majors().unwrap();
    let control = Control::open(places).unwrap();
    let tap = control.allocate().unwrap();
    let dev = fs::read_to_string("/sys/class/blktap2/blktap!blktap0/dev").unwrap();
    assert_eq!(dev.trim(), format!("{}:{}", majors.ring.unwrap(), tap.minor));
    for node in ["/dev/blktap/control", "/dev/blktap/blktap0"] {
        assert_eq!(fs::metadata(node).unwrap().permissions().mode() & 0o777, 0o600, "{node}");
    }
    for (file, text) in [
        ("default_pool", "default\n"),
        ("pools/default/size", "704\n"),
        ("pools/default/free", "704\n"),
    ] {
        let path = format!("/sys/class/misc/blktap!control/{file}");
        assert_eq!(fs::read_to_string(path).unwrap(), text, "{file}");
    }
    control.free(tap.minor).unwrap();
    fs::metadata("/dev/blktap/blktap0").unwrap_err();
}
