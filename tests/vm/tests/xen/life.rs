//! What happens to a guest in its life, with disks attached in both ways: it reboots, is saved and
//! restored, gets and loses a disk, and is destroyed.

use std::time::Duration;

use tapdisk_vm::{Guest, Machine};

use crate::MACHINE;
use crate::disk::{self, Tap};

/// Saving and restoring moves a guest's memory through an emulated dom0.
const LONG: Duration = Duration::from_secs(300);

/// The guest reboots itself; returns the one that comes up.
fn reboot(machine: &Machine, name: &str, guest: &Guest) -> Guest {
    // It takes the console's agent with it: there is no answer.
    let _reboot = guest.start(["reboot", "-f"]).unwrap();
    machine.guest_after(name, guest).unwrap()
}

/// The guest goes into a file and comes back; returns it as it goes on.
fn save_and_restore(machine: &Machine, name: &str, guest: &Guest) -> Guest {
    let file = format!("/sr/{name}.saved");
    machine.run_within(LONG, ["xl", "save", name, &file]).unwrap().expect_success();
    // While it is in the file nobody has the disk that the script makes.
    assert_eq!(disk::list(machine, &["-f", &format!("/sr/{name}-script.img")]), "");
    machine.run_within(LONG, ["xl", "restore", &file]).unwrap().expect_success();
    let restored = machine.guest_after(name, guest).unwrap();
    machine.run(["rm", &file]).unwrap().expect_success();
    restored
}

/// `reboots`: how many after the restore. What a restart leaves behind shows in the next one.
fn live(kind: &str, reboots: u32) {
    let Some(machine) = MACHINE.lend() else { return };
    let name = format!("life-{kind}");
    let (by_phy, by_script) = (format!("{name}-phy.img"), format!("{name}-script.img"));
    let images = [disk::image(&machine, &by_phy, 32), disk::image(&machine, &by_script, 32)];
    let tap = Tap::create(&machine, &images[0]);
    let disks = [
        format!("phy:{},xvda,w", tap.device),
        format!("script=block-tap,vdev=xvdb,access=rw,target=aio:{}", images[1]),
    ];
    let guest = disk::create(&machine, &name, kind, &[&disks[0], &disks[1]]);
    let sums = ["xvda", "xvdb"].map(|device| disk::fill(&guest, device));
    let hold = |guest: &Guest, when: &str| {
        for (device, sums) in ["xvda", "xvdb"].iter().zip(&sums) {
            assert_eq!(&disk::sums(guest, device), sums, "{device} after the {when}");
        }
    };

    let guest = reboot(&machine, &name, &guest);
    hold(&guest, "reboot");
    let mut guest = save_and_restore(&machine, &name, &guest);
    hold(&guest, "restore");
    for _ in 0..reboots {
        guest = reboot(&machine, &name, &guest);
        hold(&guest, "reboot after the restore");
    }
    disk::destroy(&machine, &name, guest);
    tap.destroy(&machine);
    disk::nothing_is_left(&machine);
    for (image, sums) in images.iter().zip(&sums) {
        disk::check_image(&machine, image, sums);
    }
}

#[test]
fn disks_of_a_pv_guest_outlive_reboots_and_a_restore() {
    live("pv", 1);
}

#[test]
fn disks_of_a_pvh_guest_outlive_reboots_and_a_restore() {
    // For dom0 it does what the other one does, in minutes of an emulated processor.
    live("pvh", 0);
}

#[test]
fn a_disk_comes_and_goes_under_a_running_guest() {
    let Some(machine) = MACHINE.lend() else { return };
    let guest = disk::create(&machine, "plug", "pv", &[]);
    let image = disk::image(&machine, "plug.img", 16);
    let tap = Tap::create(&machine, &image);
    let disks = [
        format!("phy:{},xvdb,w", tap.device),
        format!("script=block-tap,vdev=xvdc,access=rw,target=aio:{}", {
            disk::image(&machine, "plug-script.img", 16)
        }),
    ];
    for round in 1..=4 {
        for (device, words) in ["xvdb", "xvdc"].iter().zip(&disks) {
            machine.run(["xl", "block-attach", "plug", words]).unwrap().expect_success();
            let line = format!(
                "set -e; until [ -b /dev/{device} ]; do usleep 100000; done
                 [ {round} = 1 ] || [ $(head -c 5 /dev/{device}) = round ]
                 printf 'round %05d' {round} | dd of=/dev/{device} conv=fsync,sync bs=512 2>/dev/null"
            );
            guest.sh(&line).unwrap().expect_success();
            machine.run(["xl", "block-detach", "plug", device]).unwrap().expect_success();
        }
    }
    // A guest that is destroyed with its disks attached takes them along.
    for words in &disks {
        machine.run(["xl", "block-attach", "plug", words]).unwrap().expect_success();
    }
    disk::destroy(&machine, "plug", guest);
    tap.destroy(&machine);
    disk::nothing_is_left(&machine);
    for name in ["plug.img", "plug-script.img"] {
        let read = machine.run(["head", "-c", "11", &format!("/sr/{name}")]).unwrap();
        assert_eq!(read.expect_success(), "round 00004", "{name}");
    }
}
