//! Measurements of ours beside its peers, on this machine, in one run.
//!
//! Rates move by a third from minute to minute where others share the machine: servers take turns
//! within a run, medians stand with their minimum and maximum, and a ratio of 0.8 to 1.25 is called
//! no difference. Instructions and system calls hardly move; they are counted in runs of their own,
//! as the slope between two numbers of requests, so that starting and connecting do not count.

mod callgrind;
mod client;
mod fresh;
mod numbers;
mod profile;
mod rates;
mod ring;
mod servers;
mod syscalls;
mod tools;
mod vhd;
mod written;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::janitor::Janitor;
use crate::{command, packages, vm};

/// A measurement that can be asked for by name.
pub(crate) struct Measurement {
    /// What a person types.
    pub(crate) name: &'static str,
    /// One line about it.
    pub(crate) what: &'static str,
    run: fn(&mut Ground) -> Result<()>,
}

/// All of them, in the order in which they run.
pub(crate) const MEASUREMENTS: [Measurement; 8] = [
    Measurement {
        name: "ring",
        what: "the ring's door in front of null:, on a simulated driver",
        run: ring::measure,
    },
    Measurement {
        name: "instructions",
        what: "user instructions per request, by callgrind",
        run: callgrind::measure,
    },
    Measurement { name: "syscalls", what: "system calls per request", run: syscalls::measure },
    Measurement { name: "rates", what: "requests and bytes per second, CPU", run: rates::measure },
    Measurement {
        name: "vhd",
        what: "VHDs: beside a raw image and QEMU; chains, first writes, snapshots",
        run: vhd::measure,
    },
    Measurement {
        name: "memory",
        what: "what a process with large VHDs has in memory",
        run: vhd::memory,
    },
    Measurement {
        name: "tools",
        what: "the offline tools: counts of whole commands, and rates beside dd and qemu-img",
        run: tools::measure,
    },
    Measurement {
        name: "vm",
        what: "a disk of the kernel's driver beside null_blk and loop, in a machine",
        run: in_machine,
    },
];

/// Of the image that is served: reads of all of it, once, take a second.
const IMAGE_BYTES: u64 = 1 << 30;

/// Rounds unless told otherwise: the fewest with a median.
const ROUNDS: u32 = 3;

/// An image and how it is read.
#[derive(Clone, Debug)]
struct Image {
    path: PathBuf,
    is_vhd: bool,
}

/// Where measurements take place: a folder, an image, two processors.
pub(crate) struct Ground {
    janitor: Janitor,
    /// What the servers serve.
    image: Image,
    rounds: u32,
    /// The start of the name of the servers that are wanted.
    only: String,
    /// Whether server and client can be kept on different processors.
    is_pinned: bool,
    started: u32,
}

impl Ground {
    fn new(options: &Options) -> Result<Self> {
        let janitor = Janitor::new("tapdisk-bench")?;
        let image = janitor.files().join("image");
        fill(&image).map_err(|error| format!("Cannot write {}: {error}", image.display()))?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let is_pinned = processors > 1 && command::find("taskset").is_some();
        let Options { rounds, only, .. } = options.clone();
        let image = Image { path: image, is_vhd: false };
        Ok(Self { janitor, image, rounds, only, is_pinned, started: 0 })
    }

    fn folder(&self) -> &Path {
        self.janitor.files()
    }

    /// Makes the kernel forget what it cached of the image: the last server may have used the
    /// cache.
    fn drop_cache(&self) -> Result<()> {
        let mut dd = command::tool("dd");
        dd.arg(format!("of={}", self.image.path.display()));
        command::run(dd.args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]))
    }

    /// Reads the image once past the cache: what lies below, a host's cache perhaps, is warm then.
    fn warm(&self) -> Result<()> {
        let mut dd = command::tool("dd");
        dd.arg(format!("if={}", self.image.path.display()));
        command::run(dd.args(["of=/dev/null", "bs=1M", "iflag=direct", "status=none"]))
    }

    /// A path that no other socket or file here has.
    fn fresh(&mut self, name: &str) -> PathBuf {
        self.started += 1;
        self.janitor.run().join(format!("{name}{}", self.started))
    }

    /// A command for `program`, kept on one processor.
    fn on_processor(&self, processor: u32, program: &Path) -> Command {
        if !self.is_pinned {
            return Command::new(program);
        }
        let mut command = command::tool("taskset");
        command.arg("-c").arg(processor.to_string()).arg(program);
        command
    }
}

/// Data everywhere, no two blocks alike: neither holes nor anything to compress or share.
fn fill(image: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create(image)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..IMAGE_BYTES >> 20 {
        scramble(&mut state, &mut block);
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Fills a block with the next numbers of a sequence.
fn scramble(state: &mut u64, block: &mut [u8]) {
    for word in block.chunks_exact_mut(8) {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn in_machine(ground: &mut Ground) -> Result<()> {
    vm::start_released(&["bench", &ground.rounds.to_string()])
}

/// What a person asked for.
#[derive(Clone)]
struct Options {
    chosen: Vec<&'static Measurement>,
    rounds: u32,
    only: String,
}

/// `cargo xtask bench [NAME]... [rounds=N] [only=SERVER]`; of the tools `only=ROWS`, of VHDs
/// `only=TABLE`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    if let Some(reason) = packages::provide("bench") {
        println!("what needs them is left out: {reason}");
    }
    println!("{} building", command::time_of_day());
    // Apart: what the benches want (the simulated driver) is not built into the daemon.
    for packages in [&["-p", "tapdisk-benches"][..], &["-p", "tapdisk", "-p", "tap-tools"]] {
        let mut build = command::cargo(["build", "--release", "--quiet"]);
        command::run(build.args(packages))?;
    }
    let mut ground = Ground::new(&options)?;
    if ground.warm().is_err() {
        println!("this file system has no direct I/O: rates of different servers say little here");
    }
    for measurement in &options.chosen {
        println!("\n{} {}: {}", command::time_of_day(), measurement.name, measurement.what);
        (measurement.run)(&mut ground)?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { chosen: Vec::new(), rounds: ROUNDS, only: String::new() };
    for argument in arguments {
        if let Some(number) = argument.strip_prefix("rounds=") {
            options.rounds = number
                .parse()
                .ok()
                .filter(|rounds| (1..=100).contains(rounds))
                .ok_or_else(|| format!("{number:?} is not a number of rounds, 1 to 100"))?;
        } else if let Some(name) = argument.strip_prefix("only=") {
            options.only = name.to_owned();
        } else {
            let found = MEASUREMENTS.iter().find(|measurement| measurement.name == argument);
            options.chosen.push(found.ok_or_else(|| {
                let names = MEASUREMENTS.map(|measurement| measurement.name).join(", ");
                format!("There is no measurement {argument:?}, only {names}")
            })?);
        }
    }
    if options.chosen.is_empty() {
        options.chosen.extend(&MEASUREMENTS);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_and_options_in_any_order() {
        let options = parse(&["rounds=5".into(), "syscalls".into(), "only=qemu".into()]).unwrap();
        assert_eq!((options.chosen.len(), options.rounds), (1, 5));
        assert_eq!(options.only, "qemu");
        assert_eq!(parse(&[]).unwrap().chosen.len(), MEASUREMENTS.len());
        assert!(parse(&["rounds=0".into()]).is_err());
        assert!(parse(&["speed".into()]).is_err());
    }
}
