//! Machines by hand: `vm shell [--xen]` is a prompt in one, with our tools; `vm demo` shows
//! a guest of Xen with its disk; `vm bench` measures disks in a machine; `vm debug-kernel` builds
//! the kernel that watches itself.

mod demo;

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use tapdisk_vm::{Machine, Plan, Result, VmError, bench, build_module};

const STORAGE_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["shell"] => shell(&Machine::plain()),
        ["shell", "--xen"] => shell(&Machine::xen()),
        ["demo"] => demo::run(),
        ["debug-kernel"] => tapdisk_vm::build_debug_kernel()
            .map(|folder| println!("The debug kernel is in {}", folder.display())),
        ["bench", rounds] if rounds.parse::<u32>().is_ok_and(|rounds| rounds > 0) => {
            measure(rounds.parse().unwrap_or(1))
        }
        _ => {
            eprintln!("usage: vm shell [--xen] | vm demo | vm bench ROUNDS | vm debug-kernel");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = done {
        eprintln!("vm: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// All tables of what a request costs, each part when it is known.
fn measure(rounds: u32) -> Result<()> {
    let mut show = |text: &str| print!("{text}");
    bench::instructions(bench::Scope::Whole(rounds), &mut show)?;
    bench::rates(bench::Scope::Whole(rounds), &mut show).map(drop)
}

/// A prompt; without a terminal, as in `echo tap-ctl list | vm shell`, the lines that are read.
fn shell(plan: &Plan) -> Result<()> {
    println!("Starting ...");
    let plan = with_driver(plan.clone().label("shell").with_storage(STORAGE_BYTES).with_share());
    if !std::io::stdin().is_terminal() {
        let failed = |error: std::io::Error| VmError::Failed(format!("Cannot read: {error}"));
        let mut lines = Vec::new();
        std::io::stdin().read_to_end(&mut lines).map_err(failed)?;
        let machine = plan.boot()?;
        let status = machine.script(&lines)?;
        return machine.power_off().and_then(|()| judge(status));
    }
    let machine = plan.with_terminal().boot()?;
    print!("/sr is a file system with direct I/O, /share is {}\r\n", machine.share().display());
    print!("`insmod /lib/modules/blktap.ko` loads the blktap2 driver.\r\n");
    print!("The machine ends with this shell.\r\n");
    machine.terminal()?;
    machine.power_off()
}

fn judge(status: i32) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(VmError::Failed(format!("The last line ended with status {status}"))),
    }
}

/// With the blktap2 driver, where it can be built, and our hotplug script.
fn with_driver(plan: Plan) -> Plan {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scripts = top.join("../../tools/xen");
    let plan = plan.with_file(scripts.join("block-tap"), "/etc/xen/scripts/block-tap");
    let plan = plan.with_file(scripts.join("xmsnap"), "/usr/bin/xmsnap");
    match build_module(&top.join("../kernel"), "blktap") {
        Ok(driver) => plan.with_foreign_module(driver),
        Err(error) => {
            println!("Without the blktap2 driver: {error}");
            plan
        }
    }
}
