//! A guest's flush and discard, counted where they arrive.

use std::time::Duration;

use crate::MACHINE;
use crate::disk::{self, Tap};

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_flush_becomes_fdatasync_and_a_discard_a_hole() {
    let Some(machine) = MACHINE.lend() else { return };
    let image = disk::image(&machine, "f.img", 64);
    let tap = Tap::create(&machine, &image);
    let guest = disk::create(&machine, "flush", "pv", &[&format!("phy:{},xvda,w", tap.device)]);
    let trace = "io_submit,fdatasync,fsync,fallocate,io_uring_enter";
    let words = ["strace", "-f", "-e", trace, "-o", "/tmp/calls", "-p", &tap.pid];
    let strace = machine.start(words).unwrap();
    machine.sh("until [ -e /tmp/calls ]; do usleep 50000; done").unwrap();
    let traced = format!(
        "until grep -q 'TracerPid:.*[1-9]' /proc/{}/status; do usleep 50000; done",
        tap.pid
    );
    machine.sh(&traced).unwrap();
    let count = |what: &str| {
        let ran = machine.run(["grep", "-c", "-E", what, "/tmp/calls"]).unwrap();
        ran.stdout.trim().parse::<u32>().unwrap()
    };
    let blocks = || {
        let ran = machine.run(["stat", "-c", "%b", &image]).unwrap();
        ran.expect_success().trim().parse::<u64>().unwrap()
    };
    const FLUSH: &str = "fdatasync\\(|fsync\\(|IOCB_CMD_FDSYNC|IOCB_CMD_FSYNC";

    // The guest's kernel knows of both.
    let queue = guest.sh("cd /sys/block/xvda/queue; cat write_cache discard_granularity").unwrap();
    assert_eq!(queue.expect_success(), "write back\n4096\n");
    guest
        .sh("dd if=/dev/urandom of=/dev/xvda bs=1M count=8 oflag=direct")
        .unwrap()
        .expect_success();
    let before = count(FLUSH);
    for _ in 0..5 {
        let line = "dd if=/dev/zero of=/dev/xvda bs=4k count=1 conv=fsync 2>/dev/null";
        guest.sh(line).unwrap().expect_success();
    }
    let flushes = count(FLUSH) - before;
    assert!(flushes >= 5, "{flushes} flushes for 5 fsyncs");

    let full = blocks();
    guest.sh("blkdiscard -o 4194304 -l 2097152 /dev/xvda").unwrap().expect_success();
    assert!(count("fallocate\\(.*PUNCH_HOLE") > 0, "no hole was punched");
    assert!(blocks() <= full - 4096, "{} of {full} blocks are left", blocks());
    let line =
        "dd if=/dev/xvda bs=1M skip=4 count=2 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";
    assert_eq!(guest.sh(line).unwrap().expect_success().trim(), "0", "a hole reads as zeros");

    strace.signal(15).unwrap();
    strace.wait(BOUND).unwrap();
    disk::destroy(&machine, "flush", guest);
    tap.destroy(&machine);
    disk::nothing_is_left(&machine);
}
