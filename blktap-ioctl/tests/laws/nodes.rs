//! Taps, their nodes and their files in sysfs: the running kernel's alone.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use blktap_ioctl::{Control, ControlError, DeviceParams, Places, RawRing, Ring};
use nix::errno::Errno;

use crate::kernel::{Generation, errno, info, mapped, only_driver};

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

/// Lowers the number of taps that there may be, until it is dropped.
struct FewTaps;

const TAPS_MAX: &str = "/sys/module/blktap/parameters/taps_max";

impl FewTaps {
    fn allow(taps: u32) -> Self {
        fs::write(TAPS_MAX, taps.to_string()).unwrap();
        Self
    }
}

impl Drop for FewTaps {
    fn drop(&mut self) {
        let _ = fs::write(TAPS_MAX, "16384");
    }
}

#[test]
fn without_a_free_minor_nothing_is_allocated_until_one_is_freed() {
    if !only_driver(REASON) {
        return;
    }
    let control = Control::open(Places::default()).unwrap();
    let _few = FewTaps::allow(20);
    let minors: Vec<_> = (0..20).map(|_| control.allocate().unwrap().minor).collect();
    for _ in 0..3 {
        assert!(matches!(control.allocate(), Err(ControlError::Exhausted)));
    }
    control.free(13).unwrap();
    assert_eq!(control.allocate().unwrap().minor, 13);
    assert!(matches!(control.allocate(), Err(ControlError::Exhausted)));
    minors.iter().for_each(|minor| control.free(*minor).unwrap());
}

#[test]
fn the_control_device_knows_no_call_of_a_ring() {
    if !only_driver(REASON) {
        return;
    }
    let file = File::options().read(true).write(true).open("/dev/blktap/control").unwrap();
    let control = RawRing::from(file);
    assert_eq!(control.create_device(&mut info()), Err(Errno::ENOTTY));
    assert_eq!(control.remove_device(), Err(Errno::ENOTTY));
    assert_eq!(errno(&control.respond().unwrap_err()), Errno::ENOTTY);
    for call in control.legacy_calls() {
        assert_eq!(errno(&call.unwrap_err()), Errno::ENOTTY);
    }
}

#[test]
fn a_tap_outlives_the_descriptors_it_was_made_with() {
    if !only_driver(REASON) {
        return;
    }
    // Taps belong to nobody: whoever knows the number frees it, also on another descriptor.
    let tap = Control::open(Places::default()).unwrap().allocate().unwrap();
    let ring = Ring::open(&tap.ring_path).unwrap();
    drop(ring);
    assert!(fs::metadata(&tap.ring_path).is_ok());
    Control::open(Places::default()).unwrap().free(tap.minor).unwrap();
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
