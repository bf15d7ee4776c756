//! The driver of blktap2 in a machine: its laws, and disks that tapdisk serves through it.
//!
//! All tests have the same kind of machine. Each says what the kernel's log must not have: a
//! warning of any kind, whatever else happened.

mod disk;
mod drive;
mod laws;
mod live;
mod nbd;
mod vhd;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tapdisk_vm::{Lent, Machine, Result, Shared, build_module, build_test};

/// For what takes longer than a command: five times what a loaded machine without hardware
/// virtualisation needs.
const LONG: Duration = Duration::from_secs(600);

/// Laws that a process of its own shows.
const LAWS: &str = "/usr/lib/blktap-laws";

/// Disks by the hundred, likewise.
const DISKS: &str = "/usr/lib/blktap-disks";

pub(crate) static MACHINE: Shared = Shared::new(boot);

fn module() -> Result<PathBuf> {
    build_module(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel"), "blktap")
}

fn boot() -> Result<Machine> {
    let machine = Machine::plain()
        .label("blktap")
        // More would spin for each other where the host has less to give.
        .processors(1)
        .with_storage(2 << 30)
        .with_modules(&["nbd", "null_blk", "virtio_scsi", "sr_mod", "xfs"])
        .with_foreign_module(module()?)
        .with_file(build_test("blktap-ioctl", "laws")?, LAWS)
        .with_file(build_test("tapdisk-tests", "driver")?, DISKS)
        .with_packages(&["fio", "libaio1", "nbd-client", "libnl-3-200", "libnl-genl-3-200"])
        .with_packages(&["xfsprogs", "libinih1", "liburcu8"])
        .with_programs(&["fio", "nbd-client", "blockdev", "losetup", "mkfs.xfs", "xfs_repair"])
        .with_qemu_words(&drive::WORDS)
        .boot()?;
    machine.run(["insmod", "/lib/modules/blktap.ko"])?.expect_success();
    Ok(machine)
}

/// Removes every disk, whatever state it is in.
const CLEAR: &str = "
    cd /; nbd-client -d /dev/nbd0 >/dev/null 2>&1; umount /mnt 2>/dev/null
    killall -9 fio tapdisk 2>/dev/null
    while pidof tapdisk >/dev/null; do usleep 10000; done
    for tap in /sys/class/blktap2/blktap*; do
        [ ! -e $tap ] || tap-ctl free -m ${tap##*blktap}
    done
    rm -f /sr/*.img /sr/*.vhd /tmp/enough; true";

/// The machine, with the driver, for one test.
struct Lab(Lent<'static>);

impl Deref for Lab {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

/// A disk in the machine.
struct Tap {
    device: String,
    minor: String,
    pid: String,
}

/// Fio writes with patterns and reads them back; a byte that differs ends it with an error.
fn fio(target: &str, size: &str, words: &str) -> String {
    format!(
        "fio --name=v --filename={target} --size={size} --verify=crc32c --verify_fatal=1 \
         --do_verify=1 --randrepeat=0 --allow_file_create=0 --output=/tmp/fio.out {words} \
         || {{ cat /tmp/fio.out >&2; false; }}"
    )
}

impl Lab {
    /// Nothing, when there can be no machine here.
    fn enter() -> Option<Self> {
        let lab = Self(MACHINE.lend()?);
        // What a test that failed has left.
        lab.run_within(LONG, ["sh", "-c", CLEAR]).unwrap().expect_success();
        lab.run(["dmesg", "-c"]).unwrap().expect_success();
        Some(lab)
    }

    /// A line of shell that has to succeed; its output.
    fn sh(&self, line: &str) -> String {
        self.run_within(LONG, ["sh", "-c", line]).unwrap().expect_success()
    }

    /// A disk of this image; `options` are further ones of `tap-ctl create`.
    fn create(&self, image: &str, options: &str) -> Tap {
        let device = self.sh(&format!("tap-ctl create -a {image} {options}")).trim().to_owned();
        let minor = device.rsplit("tapdev").next().unwrap().to_owned();
        let list = self.sh(&format!("tap-ctl list -m {minor}"));
        let pid = list.split_whitespace().find_map(|word| word.strip_prefix("pid="));
        let pid = pid.unwrap_or_else(|| panic!("{list}")).to_owned();
        Tap { device, minor, pid }
    }

    /// Removes it, orderly.
    fn destroy(&self, tap: &Tap) {
        self.sh(&format!("tap-ctl destroy -p {} -m {}", tap.pid, tap.minor));
    }

    /// The end of a test: no tap is left, the kernel has not warned.
    fn leave(self) {
        let left = self.sh("cat /sys/class/blktap2/devices; ls /sys/class/blktap2");
        assert_eq!(left, "devices\nverbosity\n");
        let warned = self.kernel_warnings().unwrap();
        assert!(warned.is_empty(), "{}", self.run(["dmesg"]).unwrap().stdout);
    }
}
