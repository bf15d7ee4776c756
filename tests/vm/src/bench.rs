//! What a request costs in a kernel: through tapdisk and the blktap2 driver, beside the kernel's
//! own null_blk and loop, all in one machine in one run.
//!
//! Twice. In an ordinary machine rates are rates: the devices take turns, medians stand with their
//! minimum and maximum. In the other one the clock counts instructions, all of them: kernel, client
//! (fio) and tapdisk. What a device's row differs by from that of null_blk is what is below it.

use std::path::Path;

use tapdisk_vm::{INSTRUCTION_NS, Machine, Result, VmError, build_module};

/// Files lie on a disk in memory: nothing waits for anything but a processor.
const PREPARE: &str = "set -e
    insmod /lib/modules/blktap.ko
    rmmod brd; insmod /lib/modules/$(uname -r)/brd.ko rd_nr=1 rd_size=262144
    mkfs.ext4 -q -O ^has_journal /dev/ram0; mount /dev/ram0 /mnt
    dd if=/dev/urandom of=/mnt/disk bs=1M count=64 2>/dev/null
    vhd-util create -n /mnt/disk.vhd -s 64
    losetup --direct-io=on /dev/loop0 /mnt/disk
    tap-ctl create -a null:64M; tap-ctl create -a aio:/mnt/disk
    tap-ctl create -a vhd:/mnt/disk.vhd
    dd if=/mnt/disk of=/dev/xen/blktap-2/tapdev2 bs=1M oflag=direct 2>/dev/null
    for queue in /sys/block/*/queue; do echo none >$queue/scheduler; done";

struct Device {
    name: &'static str,
    path: &'static str,
}

/// The first one is what the others are compared with, then each pair.
const DEVICES: [Device; 5] = [
    Device { name: "null_blk", path: "/dev/nullb0" },
    Device { name: "tapdev, null:", path: "/dev/xen/blktap-2/tapdev0" },
    Device { name: "loop, a raw file", path: "/dev/loop0" },
    Device { name: "tapdev, aio: the same file", path: "/dev/xen/blktap-2/tapdev1" },
    Device { name: "tapdev, vhd: the same data", path: "/dev/xen/blktap-2/tapdev2" },
];

struct Pattern {
    name: &'static str,
    words: &'static str,
    kibibytes: u32,
    requests: u32,
}

const PATTERNS: [Pattern; 4] = [
    Pattern {
        name: "4k random read, depth 1",
        words: "randread --iodepth=1",
        kibibytes: 4,
        requests: 12_000,
    },
    Pattern {
        name: "4k random read, depth 32",
        words: "randread --iodepth=32",
        kibibytes: 4,
        requests: 20_000,
    },
    Pattern {
        name: "4k random write, depth 32",
        words: "randwrite --iodepth=32",
        kibibytes: 4,
        requests: 20_000,
    },
    Pattern {
        name: "128k read, depth 8",
        words: "read --iodepth=8",
        kibibytes: 128,
        requests: 2_000,
    },
];

/// Both tables; rates of so many rounds.
pub(crate) fn run(rounds: u32) -> Result<()> {
    instructions()?;
    rates(rounds)
}

fn instructions() -> Result<()> {
    let machine = boot(true)?;
    println!("\ninstructions for a request, of kernel, fio and tapdisk");
    for pattern in &PATTERNS {
        println!("{:<34} {:>9} {:>12}", pattern.name, "", "to null_blk");
        let mut base = None;
        for device in &DEVICES {
            let [few, many] = [pattern.requests / 4, pattern.requests];
            let first = nanoseconds(&machine, device, pattern, few)?;
            let second = nanoseconds(&machine, device, pattern, many)?;
            // The slope: what starting takes is in both.
            let each = (second - first) / f64::from(many - few) / f64::from(INSTRUCTION_NS);
            let base = *base.get_or_insert(each);
            println!("  {:<32} {each:>9.0} {:>12.2}", device.name, each / base);
        }
    }
    machine.power_off()
}

fn rates(rounds: u32) -> Result<()> {
    let machine = boot(false)?;
    let how = if machine.is_accelerated() { "executed by the processor" } else { "emulated" };
    println!("\nrequests in a second, {how}; {rounds} rounds, the devices taking turns");
    for pattern in &PATTERNS {
        let mut rates = DEVICES.map(|_| Vec::new());
        for _ in 0..rounds {
            for (device, rates) in DEVICES.iter().zip(&mut rates) {
                let time = nanoseconds(&machine, device, pattern, pattern.requests)?;
                rates.push(f64::from(pattern.requests) * 1e9 / time);
            }
        }
        println!("{:<34} {:>9} {:>21} {:>12}", pattern.name, "median", "min to max", "to null_blk");
        let mut base = None;
        for (device, rates) in DEVICES.iter().zip(&mut rates) {
            rates.sort_by(f64::total_cmp);
            let median = rates[rates.len() / 2];
            let span = format!("{:.0} to {:.0}", rates[0], rates[rates.len() - 1]);
            let base = *base.get_or_insert(median);
            println!("  {:<32} {median:>9.0} {span:>21} {:>12.2}", device.name, median / base);
        }
    }
    machine.power_off()
}

fn boot(is_counted: bool) -> Result<Machine> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plan = Machine::plain()
        .label("bench")
        .processors(1)
        .with_modules(&["null_blk", "brd"])
        .with_foreign_module(build_module(&top.join("../kernel"), "blktap")?)
        .with_packages(&["fio", "libaio1"])
        .with_programs(&["fio", "losetup"]);
    let plan = if is_counted { plan.with_counted_instructions() } else { plan };
    let machine = plan.boot()?;
    let prepared = machine.sh(PREPARE)?;
    if prepared.status == 0 {
        return Ok(machine);
    }
    Err(VmError::Failed(format!("The disks were not made: {}", prepared.stderr)))
}

/// How long so many requests take, by the machine's clock.
fn nanoseconds(
    machine: &Machine,
    device: &Device,
    pattern: &Pattern,
    requests: u32,
) -> Result<f64> {
    let Pattern { words, kibibytes, .. } = pattern;
    let line = format!(
        "fio --name=b --filename={} --rw={words} --bs={kibibytes}k --direct=1 --size=64m \
         --ioengine=libaio --io_size={}k --norandommap --randseed=1 \
         --iodepth_batch_submit=32 --iodepth_batch_complete_max=32 --gtod_reduce=1 \
         --output-format=terse --terse-version=3",
        device.path,
        requests * kibibytes,
    );
    let ran = machine.sh(&line)?;
    let time = milliseconds(&ran.stdout);
    time.map(|time| time * 1e6).ok_or_else(|| VmError::Failed(format!("fio said {ran:?}")))
}

/// From fio's terse line: how long it read or wrote, whichever it did.
fn milliseconds(text: &str) -> Option<f64> {
    // Fields of version 3, counted from 0.
    const READING: usize = 8;
    const WRITING: usize = 49;
    let line = text.lines().find(|line| line.starts_with("3;"))?;
    let fields: Vec<&str> = line.split(';').collect();
    let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let time = number(READING)? + number(WRITING)?;
    (time > 0.0).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_in_what_fio_prints() {
        let mut fields = vec!["0"; 60];
        fields[0] = "3";
        fields[8] = "250";
        assert_eq!(milliseconds(&format!("note\n{}\n", fields.join(";"))), Some(250.0));
        fields[8] = "0";
        fields[49] = "3";
        assert_eq!(milliseconds(&fields.join(";")), Some(3.0));
        assert_eq!(milliseconds("fio: error\n"), None);
    }
}
