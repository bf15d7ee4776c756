//! Disks in use, while something happens to them.

use std::time::Duration;

use super::{LONG, Lab, fio};

/// What a control command may take at most, whatever a disk does: five times a loaded machine's.
const AT_ONCE: Duration = Duration::from_secs(20);

#[test]
fn pauses_are_not_seen_by_a_load_that_verifies() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 32M /sr/pause.img");
    let tap = lab.create("aio:/sr/pause.img", "");
    let words =
        "--rw=randwrite --bsrange=512-64k --direct=1 --ioengine=libaio --iodepth=32 --loops=2";
    let load = lab.start(["sh", "-c", &fio(&tap.device, "32m", words)]).unwrap();
    let ids = format!("-p {} -m {}", tap.pid, tap.minor);
    lab.sh(&format!(
        "set -e
         while [ $(cat /sys/block/tda/stat | awk '{{ print $5 }}') = 0 ]; do usleep 10000; done
         for n in $(seq 15); do
             tap-ctl pause {ids}; tap-ctl list | grep -q state=0x2a; tap-ctl unpause {ids}
         done"
    ));
    let ran = load.wait(LONG).unwrap();
    assert_eq!(ran.status, 0, "{ran:?}");
    lab.destroy(&tap);
    lab.leave();
}

#[test]
fn a_disk_goes_on_with_another_image() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("set -e
         for name in one two; do yes $name | head -c 1048576 >/sr/$name.img; done");
    let tap = lab.create("aio:/sr/one.img", "");
    let ids = format!("-p {} -m {}", tap.pid, tap.minor);
    let device = &tap.device;
    lab.sh(&format!(
        "set -e
         exec 3<{device}
         dd if={device} bs=1M count=1 iflag=direct status=none | cmp - /sr/one.img
         tap-ctl pause {ids}
         dd if={device} of=/tmp/got bs=1M count=1 iflag=direct status=none & waiter=$!
         tap-ctl unpause {ids} -a aio:/sr/two.img
         wait $waiter; cmp /tmp/got /sr/two.img
         rm /tmp/got"
    ));
    lab.destroy(&tap);
    lab.sh("rm /sr/one.img /sr/two.img");
    lab.leave();
}

#[test]
fn a_mounted_disk_is_not_destroyed() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 32M /sr/busy.img");
    let tap = lab.create("aio:/sr/busy.img", "");
    let device = &tap.device;
    lab.sh(&format!("mkfs.ext4 -q {device} && mount {device} /mnt && echo before >/mnt/file"));
    let ran = lab.run(["tap-ctl", "destroy", "-p", &tap.pid, "-m", &tap.minor]).unwrap();
    assert_eq!(ran.status, nix::errno::Errno::EBUSY as i32, "{ran:?}");
    lab.sh(&format!(
        "set -e
         echo after >>/mnt/file; sync; umount /mnt; e2fsck -fn {device}
         mount {device} /mnt; printf 'before\\nafter\\n' | cmp - /mnt/file; umount /mnt"
    ));
    lab.destroy(&tap);
    lab.leave();
}

#[test]
fn a_killed_server_holds_up_nobody() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 64M /sr/kill.img; truncate -s 1M /sr/other.img");
    for round in 0..3 {
        let tap = lab.create("aio:/sr/kill.img", "");
        let other = lab.create("aio:/sr/other.img", "");
        let device = &tap.device;
        // The device stays open after the load has ended.
        let mut holder =
            lab.start(["sh", "-c", &format!("exec 3<{device}; echo up; read x")]).unwrap();
        holder.wait_for("up", LONG).unwrap();
        let words = format!(
            "fio --name=k --filename={device} --rw=randrw --bsrange=512-128k --direct=1 --size=64m \
             --ioengine=libaio --iodepth=32 --numjobs=2 --time_based --runtime=600 --output=/dev/null"
        );
        let load = lab.start(["sh", "-c", &words]).unwrap();
        lab.sh(&format!(
            "while [ $(awk '{{ print $5 }}' /sys/block/tda/stat) -lt $((100 + {round} * 50)) ]
             do usleep 1000; done; kill -9 {}",
            tap.pid
        ));
        let ran = load.wait(LONG).unwrap();
        assert_ne!(ran.status, 0, "readers get errors: {ran:?}");
        // It cannot be reaped while the device is open, and holds up nobody.
        for command in [
            "tap-ctl list".to_owned(),
            "tap-ctl list -m 0".into(),
            format!("tap-ctl list -p {}", tap.pid),
            "tap-ctl check".into(),
            format!("tap-ctl stats -p {} -m {}", other.pid, other.minor),
            format!("dd if={} of=/dev/null bs=64k count=1 iflag=direct", other.device),
        ] {
            lab.run_within(AT_ONCE, ["sh", "-c", &command]).unwrap().expect_success();
        }
        for command in ["pause", "unpause", "stats", "close", "detach", "destroy"] {
            let words = ["tap-ctl", command, "-p", &tap.pid, "-m", &tap.minor];
            let ran = lab.run_within(AT_ONCE, words).unwrap();
            assert_ne!(ran.status, 0, "{command}: the server is dead: {ran:?}");
        }
        let ran = lab.run_within(AT_ONCE, ["tap-ctl", "free", "-m", &tap.minor]).unwrap();
        assert_eq!(ran.status, nix::errno::Errno::EBUSY as i32, "{ran:?}");
        holder.close_input().unwrap();
        holder.wait(LONG).unwrap();
        lab.sh(&format!(
            "while kill -0 {} 2>/dev/null; do usleep 10000; done; tap-ctl free -m {}",
            tap.pid, tap.minor
        ));
        let again = lab.create("aio:/sr/kill.img", "");
        assert_eq!(again.minor, tap.minor);
        lab.sh(&fio(&again.device, "4m", "--rw=write --bs=64k --direct=1"));
        lab.destroy(&again);
        lab.destroy(&other);
    }
    lab.leave();
}

#[test]
fn a_file_system_survives_the_death_of_its_server() {
    let Some(lab) = Lab::enter() else { return };
    lab.sh("truncate -s 256M /sr/death.img");
    let tap = lab.create("aio:/sr/death.img", "");
    lab.sh(&format!(
        "set -e
         mkfs.ext4 -q {device}; mount {device} /mnt
         cp -a /usr/bin /mnt/before; sync; (cd /mnt; find before -type f | xargs md5sum) >/tmp/sums
         (while cp -a /usr/bin /mnt/$RANDOM; do :; done) >/dev/null 2>&1 & load=$!
         usleep 300000; kill -9 {pid}; wait $load || :
         umount /mnt
         while kill -0 {pid} 2>/dev/null; do usleep 10000; done
         tap-ctl free -m {minor}",
        device = tap.device,
        pid = tap.pid,
        minor = tap.minor,
    ));
    let tap = lab.create("aio:/sr/death.img", "");
    lab.sh(&format!(
        "set -e
         mount {device} /mnt; cd /mnt; md5sum -c -s /tmp/sums; cd /; umount /mnt
         e2fsck -fn {device}",
        device = tap.device
    ));
    lab.destroy(&tap);
    lab.sh("rm /sr/death.img");
    lab.leave();
}
