//! tapdisk dies while a guest uses its disk.

use std::time::Duration;

use nix::errno::Errno;

use crate::MACHINE;
use crate::disk::{self, Tap};

/// What a command may take that waits for nothing: ten times a loaded machine's.
const AT_ONCE: Duration = Duration::from_secs(30);

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_guest_outlives_its_killed_tapdisk_and_no_minor_is_lost() {
    let Some(machine) = MACHINE.lend() else { return };
    let images = [disk::image(&machine, "c.img", 64), disk::image(&machine, "d.img", 64)];
    let tap = Tap::create(&machine, &images[0]);
    let script = format!("script=block-tap,vdev=xvdb,access=rw,target=aio:{}", images[1]);
    let phy = format!("phy:{},xvda,w", tap.device);
    let guest = disk::create(&machine, "crash", "pv", &[&phy, &script]);
    let sums = disk::fill(&guest, "xvda");

    for (image, device, disk) in [(&images[0], "xvda", &phy), (&images[1], "xvdb", &script)] {
        let tap = Tap::find(&machine, image);
        // Behind the file system: what is overwritten here is nobody's.
        let load = format!(
            "echo up; while dd if=/dev/zero of=/dev/{device} bs=64k seek=900 count=100 \
             oflag=direct 2>/tmp/why; do :; done; echo failed; cat /tmp/why"
        );
        let mut load = guest.start(["sh", "-c", &load]).unwrap();
        load.wait_for("up", BOUND).unwrap();
        machine.run(["kill", "-9", &tap.pid]).unwrap().expect_success();
        let ran = load.wait(BOUND).unwrap();
        assert!(ran.stdout.contains("Input/output error"), "{ran:?}");

        // It cannot end before blkback lets go of the device; nobody else waits for that.
        let at_once = |words: &[&str]| {
            let ran = machine.run_within(AT_ONCE, ["tap-ctl"].iter().chain(words)).unwrap();
            (ran.status, ran.stdout)
        };
        let (status, list) = at_once(&["list"]);
        assert!(status == 0 && list.contains(&format!("minor={}", tap.minor)), "{list}");
        assert_eq!(at_once(&["list", "-p", &tap.pid]), (0, String::new()));
        assert_eq!(at_once(&["check"]).0, 0);
        for command in ["stats", "pause", "close", "detach", "destroy"] {
            let (status, said) = at_once(&[command, "-p", &tap.pid, "-m", &tap.minor]);
            assert_ne!(status, 0, "{command}: nobody is there: {said}");
        }
        assert_eq!(at_once(&["free", "-m", &tap.minor]).0, Errno::EBUSY as i32);

        machine.run(["xl", "block-detach", "crash", device]).unwrap().expect_success();
        let gone = format!("while [ -e /proc/{}/stat ]; do usleep 50000; done", tap.pid);
        machine.sh(&gone).unwrap().expect_success();
        if device == "xvda" {
            machine.run(["tap-ctl", "free", "-m", &tap.minor]).unwrap().expect_success();
            let again = Tap::create(&machine, image);
            assert_eq!(again.minor, tap.minor);
        }
        machine.run(["xl", "block-attach", "crash", disk]).unwrap().expect_success();
        let there = format!("until [ -b /dev/{device} ]; do usleep 100000; done");
        guest.sh(&there).unwrap().expect_success();
    }
    assert_eq!(disk::sums(&guest, "xvda"), sums);
    disk::destroy(&machine, "crash", guest);
    Tap::find(&machine, &images[0]).destroy(&machine);
    disk::nothing_is_left(&machine);
    disk::check_image(&machine, &images[0], &sums);
}
