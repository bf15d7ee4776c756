//! A guest of Xen whose disk tapdisk serves, step by step: what a person would type in dom0 and in
//! the guest, and what it printed.

use std::time::{Duration, Instant};

use tapdisk_vm::{Machine, Ran, Remote, Result, VmError};

const STORAGE_BYTES: u64 = 1 << 30;
const IMAGE: &str = "/sr/guest.img";

/// The most lines of a program's output that are shown.
const LINES_MAX: usize = 24;

/// The longest that a guest may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(120);

/// The whole story.
pub(crate) fn run() -> Result<()> {
    chapter("A machine with Xen, and Linux as its dom0");
    println!("(starting: half a minute where it is emulated, more on a busy machine;");
    println!("what it needs is downloaded the first time)");
    let start = Instant::now();
    let plan = Machine::xen().label("demo").with_storage(STORAGE_BYTES);
    let machine = crate::with_driver(plan).boot()?;
    let how = if machine.is_accelerated() { "by the processor" } else { "emulated" };
    println!("(QEMU, {how}; dom0 took commands after {:.0} s)", start.elapsed().as_secs_f32());
    dom0(&machine, "xl info | grep -E 'xen_version|virt_caps|total_memory'")?;
    dom0(&machine, "insmod /lib/modules/blktap.ko && tap-ctl check")?;

    chapter("A raw image, and a guest whose disk it is");
    dom0(&machine, &format!("truncate -s 128M {IMAGE}"))?;
    let disk = format!("script=block-tap,vdev=xvda,access=rw,target=aio:{IMAGE}");
    let file = machine.guest_file("guest", "pv", &[&disk])?;
    dom0(&machine, &format!("grep -E '^(name|type|memory|disk)' {file}"))?;
    println!("(the script block-tap calls `tap-ctl create`; blkback exports the block device)");
    dom0(&machine, &format!("xl create {file}"))?;
    dom0(&machine, "tap-ctl list")?;
    dom0(&machine, "xl list")?;

    chapter("The guest writes, and reads back from the disk what it wrote");
    let guest = machine.guest("guest")?;
    in_guest(&guest, "uname -r; cat /proc/partitions")?;
    in_guest(&guest, "mke2fs -q -t ext4 /dev/xvda && mount /dev/xvda /mnt")?;
    in_guest(&guest, "dd if=/dev/urandom of=/mnt/file bs=1M count=32 conv=fsync")?;
    let wrote = in_guest(&guest, "sha256sum /mnt/file && umount /mnt")?;
    let again = "echo 3 >/proc/sys/vm/drop_caches; mount /dev/xvda /mnt; sha256sum /mnt/file";
    let read = in_guest(&guest, again)?;
    if wrote != read {
        return Err(VmError::Failed("The guest read something else than it wrote".into()));
    }
    println!("(the same, read from the disk: the cache was dropped)");
    in_guest(&guest, "fstrim /mnt; umount /mnt")?;

    chapter("What tapdisk did");
    dom0(&machine, "tap-ctl list")?;
    dom0(&machine, "tap-ctl stats -p $(pidof tapdisk) -m 0")?;
    println!("(secs: sectors of 512 bytes, read and written; fail: those that the storage failed)");

    chapter("The guest shuts down, and its disk goes with it");
    println!("guest# poweroff -f");
    let _poweroff = guest.start(["poweroff", "-f"])?;
    println!("(waiting until the guest is gone)");
    let gone = "while xl list guest >/dev/null 2>&1; do sleep 0.5; done";
    machine.run_within(SHUTDOWN, ["sh", "-c", gone])?.expect_success();
    dom0(&machine, "xl list")?;
    let left = dom0(&machine, "tap-ctl list")?;
    if !left.trim().is_empty() {
        return Err(VmError::Failed(format!("A disk is left: {left}")));
    }
    println!("(no disk is left: block-tap called `tap-ctl destroy`)");

    chapter("The image, read in dom0 without any of us");
    dom0(&machine, &format!("e2fsck -f -n {IMAGE}"))?;
    let image = dom0(&machine, &format!("mount -o loop,ro {IMAGE} /mnt && sha256sum /mnt/file"))?;
    if image != wrote {
        return Err(VmError::Failed("The image has something else than the guest wrote".into()));
    }
    machine.power_off()?;
    println!("\nAll of it matched, in {:.0} s.", start.elapsed().as_secs_f32());
    Ok(())
}

fn chapter(title: &str) {
    println!("\n== {title}");
}

fn dom0(machine: &Machine, line: &str) -> Result<String> {
    println!("dom0# {line}");
    shown(machine.sh(line)?)
}

fn in_guest(guest: &Remote, line: &str) -> Result<String> {
    println!("guest# {line}");
    shown(guest.sh(line)?)
}

/// Shows what a command printed; an error when it failed.
fn shown(ran: Ran) -> Result<String> {
    let lines: Vec<&str> = ran.stdout.lines().chain(ran.stderr.lines()).collect();
    for line in lines.iter().filter(|line| !line.trim().is_empty()).take(LINES_MAX) {
        println!("    {line}");
    }
    if lines.len() > LINES_MAX {
        println!("    ...");
    }
    if ran.status == 0 {
        return Ok(ran.stdout);
    }
    Err(VmError::Failed(format!("It failed with {}", ran.status)))
}
