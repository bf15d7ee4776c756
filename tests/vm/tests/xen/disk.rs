//! Images and taps in dom0, and what a guest does with its disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use tapdisk_vm::{Guest, Machine, Remote};

/// A raw image in dom0, on a file system with direct I/O.
pub(crate) fn image(machine: &Machine, name: &str, mebibytes: u32) -> String {
    let path = format!("/sr/{name}");
    machine.sh(&format!("rm -f {path}; truncate -s {mebibytes}M {path}")).unwrap().expect_success();
    path
}

/// A tap that serves an image.
pub(crate) struct Tap {
    pub(crate) device: String,
    pub(crate) pid: String,
    pub(crate) minor: String,
}

impl Tap {
    pub(crate) fn create(machine: &Machine, image: &str) -> Self {
        let target = format!("aio:{image}");
        let device = machine.run(["tap-ctl", "create", "-a", &target]).unwrap().expect_success();
        Self { device: device.trim().into(), ..Self::find(machine, image) }
    }

    /// The one that serves an image, whoever made it.
    pub(crate) fn find(machine: &Machine, image: &str) -> Self {
        let row = list(machine, &["-f", image]);
        let field = |key: &str| {
            let value = row.split(' ').find_map(|word| word.strip_prefix(key));
            value.unwrap_or_else(|| panic!("no {key} in {row:?}")).to_owned()
        };
        Self { device: String::new(), pid: field("pid="), minor: field("minor=") }
    }

    pub(crate) fn destroy(&self, machine: &Machine) {
        let words = ["tap-ctl", "destroy", "-p", &self.pid, "-m", &self.minor];
        machine.run(words).unwrap().expect_success();
    }
}

/// What `tap-ctl list` prints with these words.
pub(crate) fn list(machine: &Machine, words: &[&str]) -> String {
    let ran = machine.run(["tap-ctl", "list"].iter().chain(words)).unwrap();
    ran.expect_success().trim_end().to_owned()
}

/// Nothing of a test is left: no guest, no tap; and the next one gets the first minor.
pub(crate) fn nothing_is_left(machine: &Machine) {
    let guests = machine.run(["xl", "list"]).unwrap().expect_success();
    assert_eq!(guests.lines().count(), 2, "{guests}");
    assert_eq!(list(machine, &[]), "");
    let first = machine.run(["tap-ctl", "allocate"]).unwrap().expect_success();
    assert!(first.trim().ends_with("tapdev0"), "{first}");
    machine.run(["tap-ctl", "free", "-m", "0"]).unwrap().expect_success();
    assert_eq!(machine.kernel_warnings().unwrap(), "", "in dom0");
}

/// Creates a guest, and waits until it takes commands.
pub(crate) fn create(machine: &Machine, name: &str, kind: &str, disks: &[&str]) -> Guest {
    let file = machine.guest_file(name, kind, disks).unwrap();
    machine.run(["xl", "create", &file]).unwrap().expect_success();
    machine.guest(name).unwrap()
}

/// Destroys a guest, whose kernel must have had nothing to warn of.
pub(crate) fn destroy(machine: &Machine, name: &str, guest: Guest) {
    assert_eq!(guest.kernel_warnings().unwrap(), "", "in the guest {name}");
    drop(guest);
    machine.run(["xl", "destroy", name]).unwrap().expect_success();
}

/// Makes a file system on a guest's disk, with files of many sizes; returns their checksums.
pub(crate) fn fill(guest: &Remote, device: &str) -> String {
    let line = format!(
        "set -e; mke2fs -q -t ext4 /dev/{device}; mount /dev/{device} /mnt; cd /mnt
         for size in 1 511 512 4097 65536 1234567; do
             dd if=/dev/urandom of=$size bs=$size count=1 iflag=fullblock 2>/dev/null
         done
         ln -s 512 link; mkdir folder; echo words >folder/file
         sha256sum [0-9]* link folder/file; cd /; umount /mnt"
    );
    guest.sh(&line).unwrap().expect_success()
}

/// The files that [`fill`] made, read from the disk: their checksums.
pub(crate) fn sums(guest: &Remote, device: &str) -> String {
    let line = format!(
        "set -e; sync; echo 3 >/proc/sys/vm/drop_caches; mount -o ro /dev/{device} /mnt; cd /mnt
         sha256sum [0-9]* link folder/file; cd /; umount /mnt"
    );
    guest.sh(&line).unwrap().expect_success()
}

/// The image, checked on this side of everything: its file system is clean, and its files are
/// those that the guest wrote.
pub(crate) fn check_image(machine: &Machine, image: &str, sums: &str) {
    machine.run(["sync"]).unwrap().expect_success();
    let storage = machine.disk_file("sr");
    let mut copy = storage.with_extension("copy");
    dump(&storage, image.trim_start_matches("/sr"), &copy);
    if image.ends_with(".vhd") {
        match convert(&copy) {
            Some(raw) => copy = raw,
            None => return,
        }
    }
    let checked = Command::new(tapdisk_vm::find_program("e2fsck").unwrap())
        .args(["-f", "-n"])
        .arg(&copy)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let file = storage.with_extension("file");
        // debugfs does not follow links.
        dump(&copy, &format!("/{}", if name == "link" { "512" } else { name }), &file);
        let found = Command::new("sha256sum").arg(&file).output().unwrap();
        assert!(found.stdout.starts_with(sum.as_bytes()), "{name} differs");
    }
}

/// What QEMU reads in a VHD without a parent.
fn convert(image: &Path) -> Option<PathBuf> {
    let Some(qemu_img) = tapdisk_vm::find_program("qemu-img") else {
        tapdisk_vm::skip("qemu-img is not installed");
        return None;
    };
    let raw = image.with_extension("raw");
    // By its size, not by the geometry, which rounds it.
    let spec = format!("driver=vpc,force_size_calc=current_size,file.filename={}", image.display());
    let mut convert = Command::new(qemu_img);
    let convert = convert.args(["convert", "--image-opts", &spec, "-O", "raw"]).arg(&raw);
    let converted = convert.output().unwrap();
    assert!(converted.status.success(), "{converted:?}");
    Some(raw)
}

/// Takes a file out of a file system in an image.
fn dump(image: &Path, name: &str, to: &Path) {
    let _ = std::fs::remove_file(to);
    let request = format!("dump {name} {}", to.display());
    let mut debugfs = Command::new(tapdisk_vm::find_program("debugfs").unwrap());
    let output = debugfs.args(["-R", &request]).arg(image).output().unwrap();
    assert!(to.is_file(), "{request}: {output:?}");
}
