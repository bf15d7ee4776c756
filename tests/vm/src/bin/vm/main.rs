//! Machines by hand: `vm shell [--xen]` is a prompt in one, with our tools; `vm demo` shows
//! a guest of Xen with its disk; `vm bench` measures disks in a machine.

mod bench;
mod demo;

use std::path::Path;
use std::process::ExitCode;

use tapdisk_vm::{Machine, Plan, Result, build_module};

const STORAGE_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["shell"] => shell(&Machine::plain()),
        ["shell", "--xen"] => shell(&Machine::xen()),
        ["demo"] => demo::run(),
        ["bench", rounds] if rounds.parse::<u32>().is_ok_and(|rounds| rounds > 0) => {
            bench::run(rounds.parse().unwrap_or(1))
        }
        _ => {
            eprintln!("usage: vm shell [--xen] | vm demo | vm bench ROUNDS");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = done {
        eprintln!("vm: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn shell(plan: &Plan) -> Result<()> {
    println!("Starting ...");
    let plan = plan.clone().label("shell").with_storage(STORAGE_BYTES).with_share().with_terminal();
    let machine = with_driver(plan).boot()?;
    print!("/sr is a file system with direct I/O, /share is {}\r\n", machine.share().display());
    print!("`insmod /lib/modules/blktap.ko` loads the blktap2 driver.\r\n");
    print!("The machine ends with this shell.\r\n");
    machine.terminal()?;
    machine.power_off()
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
