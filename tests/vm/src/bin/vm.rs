//! Machines by hand: `vm shell [--xen]` is a prompt in one, with our tools in `PATH`.

use std::process::ExitCode;

use tapdisk_vm::{Machine, Plan, Result};

const STORAGE_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["shell"] => shell(&Machine::plain()),
        ["shell", "--xen"] => shell(&Machine::xen()),
        _ => {
            eprintln!("usage: vm shell [--xen]");
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
    let plan = plan.clone().label("shell").with_storage(STORAGE_BYTES).with_terminal();
    let machine = plan.boot()?;
    println!("/sr is a file system with direct I/O, /share is {}", machine.share().display());
    println!("The machine ends with this shell.\r");
    machine.terminal()?;
    machine.power_off()
}
