//! What a request costs in a kernel: through tapdisk and the blktap2 driver, beside the kernel's
//! own null_blk and loop, all in one machine in one run.
//!
//! Twice. In an ordinary machine rates are rates: the devices take turns, medians stand with their
//! minimum and maximum. In the other one the clock counts instructions, all of them: kernel, client
//! (fio) and tapdisk. What a device's row differs by from that of null_blk is what is below it.
//!
//! `cargo xtask bench vm` prints all of it; the stage `vm` measures a short form in each run.

use std::fmt;
use std::path::Path;

use crate::{INSTRUCTION_NS, Machine, Result, VmError, build_module};

/// Files lie on a disk in memory: nothing waits for anything but a processor.
const PREPARE: &str = "set -e
    insmod /lib/modules/blktap.ko
    rmmod brd; insmod /lib/modules/$(uname -r)/brd.ko rd_nr=1 rd_size=262144
    mkfs.ext4 -q -O ^has_journal /dev/ram0; mount /dev/ram0 /mnt
    dd if=/dev/urandom of=/mnt/part bs=1M count=1 2>/dev/null
    for number in $(seq 64); do cat /mnt/part; done >/mnt/disk; rm /mnt/part";

/// After all disks were made. What writes later would be counted with their requests.
const SETTLE: &str = "for queue in /sys/block/*/queue; do echo none >$queue/scheduler; done; sync";

struct Device {
    name: &'static str,
    path: &'static str,
    make: &'static str,
}

/// The first one is what the others are compared with; the minors are those of this order.
const DEVICES: [Device; 5] = [
    Device { name: "null_blk", path: "/dev/nullb0", make: "true" },
    Device { name: NULL, path: "/dev/xen/blktap-2/tapdev0", make: "tap-ctl create -a null:64M" },
    Device {
        name: "loop, a raw file",
        path: "/dev/loop0",
        make: "losetup --direct-io=on /dev/loop0 /mnt/disk",
    },
    Device {
        name: "tapdev, aio: the same file",
        path: "/dev/xen/blktap-2/tapdev1",
        make: "tap-ctl create -a aio:/mnt/disk",
    },
    Device {
        name: "tapdev, vhd: the same data",
        path: "/dev/xen/blktap-2/tapdev2",
        make: "vhd-util create -n /mnt/disk.vhd -s 64; tap-ctl create -a vhd:/mnt/disk.vhd
            dd if=/mnt/disk of=/dev/xen/blktap-2/tapdev2 bs=1M oflag=direct 2>/dev/null",
    },
];

/// The row of tapdisk without a file: what the way to it and back costs.
pub const NULL: &str = "tapdev, null:";

struct Pattern {
    name: &'static str,
    words: &'static str,
    kibibytes: u32,
    requests: u32,
    is_in_short: bool,
}

const PATTERNS: [Pattern; 4] = [
    Pattern {
        name: "4k random read, depth 1",
        words: "randread --iodepth=1",
        kibibytes: 4,
        requests: 12_000,
        is_in_short: false,
    },
    Pattern {
        name: "4k random read, depth 32",
        words: "randread --iodepth=32",
        kibibytes: 4,
        requests: 20_000,
        is_in_short: true,
    },
    Pattern {
        name: "4k random write, depth 32",
        words: "randwrite --iodepth=32",
        kibibytes: 4,
        requests: 20_000,
        is_in_short: false,
    },
    Pattern {
        name: "128k read, depth 8",
        words: "read --iodepth=8",
        kibibytes: 128,
        requests: 2_000,
        is_in_short: true,
    },
];

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All patterns; rates of so many rounds.
    Whole(u32),
    /// For each test run: the deep random reads and the sequential ones, without a VHD, a quarter
    /// of the requests, one round.
    Short,
}

/// What was measured with one pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The pattern's name.
    pub pattern: &'static str,
    /// Each device's name and its results, sorted; there is one at least. The first device is the
    /// kernel's null_blk.
    pub rows: Vec<(&'static str, Vec<f64>)>,
}

impl Group {
    fn new(pattern: &Pattern, scope: Scope) -> Self {
        let rows = scope.devices().iter().map(|device| (device.name, Vec::new())).collect();
        Self { pattern: pattern.name, rows }
    }

    /// How many times that of null_blk a device's median is; nothing when it was not measured.
    #[must_use]
    pub fn ratio(&self, device: &str) -> Option<f64> {
        let base = median(&self.rows.first()?.1);
        self.rows.iter().find(|row| row.0 == device).map(|row| median(&row.1) / base)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["median", "min to max", "to null_blk"];
        writeln!(
            formatter,
            "{:<34} {:>9} {:>21} {:>12}",
            self.pattern, titles[0], titles[1], titles[2]
        )?;
        for (name, results) in &self.rows {
            let span = match results.as_slice() {
                [first, .., last] => format!("{first:.0} to {last:.0}"),
                _ => String::new(),
            };
            let (median, ratio) = (median(results), self.ratio(name).unwrap_or(f64::NAN));
            writeln!(formatter, "  {name:<32} {median:>9.0} {span:>21} {ratio:>12.2}")?;
        }
        Ok(())
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

impl Scope {
    fn patterns(self) -> Vec<Pattern> {
        let is_in = |pattern: &Pattern| self != Self::Short || pattern.is_in_short;
        PATTERNS.into_iter().filter(is_in).collect()
    }

    fn devices(self) -> &'static [Device] {
        match self {
            Self::Whole(_) => &DEVICES,
            Self::Short => &DEVICES[..4],
        }
    }

    /// How many of a pattern's requests.
    fn requests(self, pattern: &Pattern) -> u32 {
        match self {
            Self::Whole(_) => pattern.requests,
            Self::Short => pattern.requests / 4,
        }
    }

    fn rounds(self) -> u32 {
        match self {
            Self::Whole(rounds) => rounds.max(1),
            Self::Short => 1,
        }
    }
}

/// The instructions that a machine executes for a request, of kernel, fio and tapdisk. Each
/// pattern's are shown when they are known; all are returned.
///
/// # Errors
/// [`VmError::Unavailable`] when there can be no machine here; what failed in it otherwise.
pub fn instructions(scope: Scope, show: &mut dyn FnMut(&str)) -> Result<Vec<Group>> {
    let machine = boot(scope, true)?;
    show("\ninstructions for a request, of kernel, fio and tapdisk\n");
    let mut groups = Vec::new();
    for pattern in scope.patterns() {
        let many = scope.requests(&pattern);
        let few = many / 4;
        let mut group = Group::new(&pattern, scope);
        let times = nanoseconds(&machine, scope, &pattern, &[few, many])?;
        for (row, times) in group.rows.iter_mut().zip(times.chunks_exact(2)) {
            // The slope: what starting takes is in both.
            let each = (times[1] - times[0]) / f64::from(many - few);
            row.1.push(each / f64::from(INSTRUCTION_NS));
        }
        show(&group.to_string());
        groups.push(group);
    }
    machine.power_off()?;
    Ok(groups)
}

/// Requests in a second, in rounds in which the devices take turns; shown and returned likewise.
///
/// # Errors
/// As [`instructions`].
pub fn rates(scope: Scope, show: &mut dyn FnMut(&str)) -> Result<Vec<Group>> {
    let machine = boot(scope, false)?;
    let how = if machine.is_accelerated() { "executed by the processor" } else { "emulated" };
    let rounds = scope.rounds();
    show(&format!("\nrequests in a second, {how}; rounds: {rounds}, the devices taking turns\n"));
    let mut groups = Vec::new();
    for pattern in scope.patterns() {
        let requests = scope.requests(&pattern);
        let mut group = Group::new(&pattern, scope);
        for _ in 0..rounds {
            let times = nanoseconds(&machine, scope, &pattern, &[requests])?;
            for (row, time) in group.rows.iter_mut().zip(times) {
                row.1.push(f64::from(requests) * 1e9 / time);
            }
        }
        for row in &mut group.rows {
            row.1.sort_by(f64::total_cmp);
        }
        show(&group.to_string());
        groups.push(group);
    }
    machine.power_off()?;
    Ok(groups)
}

fn boot(scope: Scope, is_counted: bool) -> Result<Machine> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plan = Machine::plain()
        .label(if is_counted { "bench-counted" } else { "bench" })
        .processors(1)
        .with_modules(&["null_blk", "brd"])
        .with_foreign_module(build_module(&top.join("../kernel"), "blktap")?)
        .with_packages(&["fio", "libaio1"])
        .with_programs(&["fio", "losetup"]);
    let plan = if is_counted { plan.with_counted_instructions() } else { plan };
    let machine = plan.boot()?;
    let made = scope.devices().iter().map(|device| device.make);
    let lines: Vec<&str> = [PREPARE].into_iter().chain(made).chain([SETTLE]).collect();
    let prepared = machine.sh(&lines.join("\n"))?;
    if prepared.status == 0 {
        return Ok(machine);
    }
    Err(VmError::Failed(format!("The disks were not made: {}", prepared.stderr)))
}

/// How long so many requests of each device take, by the machine's clock: for the first device each
/// of `counts`, then for the next one. One after the other, by one fio: starting it takes longer
/// than most of them.
fn nanoseconds(
    machine: &Machine,
    scope: Scope,
    pattern: &Pattern,
    counts: &[u32],
) -> Result<Vec<f64>> {
    let Pattern { words, kibibytes, .. } = pattern;
    let mut line = format!(
        "fio --rw={words} --bs={kibibytes}k --direct=1 --size=64m --ioengine=libaio \
         --norandommap --randseed=1 --iodepth_batch_submit=32 --iodepth_batch_complete_max=32 \
         --gtod_reduce=1 --output-format=terse --terse-version=3"
    );
    for device in scope.devices() {
        for count in counts {
            line.push_str(&format!(
                " --name=b --stonewall --filename={} --io_size={}k",
                device.path,
                count * kibibytes
            ));
        }
    }
    let ran = machine.sh(&line)?;
    let times = milliseconds(&ran.stdout);
    if times.len() != scope.devices().len() * counts.len() {
        return Err(VmError::Failed(format!("fio said {ran:?}")));
    }
    Ok(times.into_iter().map(|time| time * 1e6).collect())
}

/// From fio's terse lines: how long each read or wrote, whichever it did.
fn milliseconds(text: &str) -> Vec<f64> {
    // Fields of version 3, counted from 0.
    const READING: usize = 8;
    const WRITING: usize = 49;
    let time = |line: &str| {
        let fields: Vec<&str> = line.split(';').collect();
        let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
        Some(number(READING)? + number(WRITING)?).filter(|time| *time > 0.0)
    };
    text.lines().filter(|line| line.starts_with("3;")).filter_map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_medians_and_ratios_to_the_first_device() {
        let rows = vec![("null_blk", vec![2.0]), (NULL, vec![4.0, 6.0, 9.0])];
        let group = Group { pattern: "reads", rows };
        assert_eq!((group.ratio(NULL), group.ratio("loop")), (Some(3.0), None));
        let text = group.to_string();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["null_blk", "2", "1.00"]);
        assert_eq!(lines[2], ["tapdev,", "null:", "6", "4", "to", "9", "3.00"]);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_short_form_has_random_and_sequential_reads() {
        let names = |scope: Scope| scope.patterns().iter().map(|it| it.name).collect::<Vec<_>>();
        assert_eq!(names(Scope::Short), ["4k random read, depth 32", "128k read, depth 8"]);
        assert_eq!(names(Scope::Whole(3)).len(), PATTERNS.len());
    }

    #[test]
    fn the_time_is_found_in_what_fio_prints() {
        let mut fields = vec!["0"; 60];
        fields[0] = "3";
        fields[8] = "250";
        let first = fields.join(";");
        fields[8] = "0";
        fields[49] = "3";
        let second = fields.join(";");
        assert_eq!(milliseconds(&format!("note\n{first}\n{second}\n")), [250.0, 3.0]);
        fields[49] = "0";
        assert_eq!(milliseconds(&fields.join(";")), [] as [f64; 0], "it took no time");
        assert_eq!(milliseconds("fio: error\n"), [] as [f64; 0]);
    }
}
