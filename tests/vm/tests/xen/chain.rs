//! A guest's disk is a chain of five VHDs, four of which are made while the guest writes.

use std::time::Duration;

use crate::MACHINE;
use crate::disk::{self, Tap};

const BOUND: Duration = Duration::from_secs(180);

#[test]
fn a_guest_lives_on_a_chain_of_five() {
    let Some(machine) = MACHINE.lend() else { return };
    let path = |layer: u32| match layer {
        4 => "/sr/chain3.top.vhd".to_owned(),
        _ => format!("/sr/chain{layer}.vhd"),
    };
    machine.sh("rm -f /sr/chain*.vhd; vhd-util create -n /sr/chain0.vhd -s 64").unwrap();
    let disk =
        |layer: u32| format!("script=block-tap,vdev=xvda,access=rw,target=vhd:{}", path(layer));
    let guest = disk::create(&machine, "chain", "pv", &[&disk(0)]);
    let mut sums = disk::fill(&guest, "xvda");
    let tap = Tap::find(&machine, &path(0));
    for layer in 1..=4 {
        // Each piece is durable before the next: some come before, some after the exchange.
        let line = format!(
            "set -e; mount /dev/xvda /mnt; cd /mnt
             for piece in 1 2 3 4 5 6; do
                 dd if=/dev/urandom bs=128k count=1 conv=fsync 2>/dev/null >>load{layer}
                 [ $piece != 2 ] || echo some
             done
             sha256sum load{layer}; cd /; umount /mnt"
        );
        let mut load = guest.start(["sh", "-c", &line]).unwrap();
        load.wait_for("some\n", BOUND).unwrap();
        if layer < 4 {
            let snapshot =
                ["tap-ctl", "snapshot", "-p", &tap.pid, "-m", &tap.minor, "-n", &path(layer)];
            machine.run(snapshot).unwrap().expect_success();
        } else {
            // The last one as for a guest with any disks.
            let said = machine.run(["xmsnap", "chain", "top"]).unwrap().expect_success();
            assert!(said.contains("goes on in vhd:/sr/chain3.top.vhd"), "{said}");
        }
        let ran = load.wait(BOUND).unwrap();
        sums.push_str(ran.expect_success().trim_start_matches("some\n"));
    }
    let sum_all = "set -e; echo 3 >/proc/sys/vm/drop_caches; mount -o ro /dev/xvda /mnt; cd /mnt
        sha256sum [0-9]* link folder/file load?; cd /; umount /mnt";
    assert_eq!(guest.sh(sum_all).unwrap().expect_success(), sums);
    machine.run(["xl", "block-detach", "chain", "xvda"]).unwrap().expect_success();
    let checked =
        "set -e; for n in 0 1 2 3 3.top; do vhd-util check -n /sr/chain$n.vhd; done >/dev/null
        vhd-util query -d -n /sr/chain3.top.vhd";
    let depth = machine.sh(checked).unwrap().expect_success();
    assert!(depth.trim().ends_with('5'), "{depth}");

    machine.run(["xl", "block-attach", "chain", &disk(4)]).unwrap().expect_success();
    guest.sh("until [ -b /dev/xvda ]; do usleep 100000; done").unwrap().expect_success();
    assert_eq!(guest.sh(sum_all).unwrap().expect_success(), sums);
    disk::destroy(&machine, "chain", guest);
    disk::nothing_is_left(&machine);
    // Merged into its first image, others can read it, too.
    let merged =
        "set -e; for n in 3.top 3 2 1; do vhd-util coalesce -n /sr/chain$n.vhd; done >/dev/null";
    machine.sh(merged).unwrap().expect_success();
    disk::check_image(&machine, &path(0), &sums);
    machine.sh("rm /sr/chain*.vhd").unwrap();
}
