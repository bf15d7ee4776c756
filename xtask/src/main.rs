//! What a person and CI run: `cargo xtask demo | test | check | bench | fuzz | vm`.
//!
//! Each command installs what it needs where it can (Debian, as root) and says what is missing
//! where it cannot. Standard library and `serde_json` only: it is built before everything else.

mod background;
mod bench;
mod command;
mod demo;

mod fuzz;
mod janitor;
mod packages;
mod stages;
mod vm;
mod wait;

use std::process::ExitCode;

/// What went wrong, as one line for a person.
type Result<T> = std::result::Result<T, String>;

struct Command {
    name: &'static str,
    arguments: &'static str,
    what: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const COMMANDS: [Command; 7] = [
    Command {
        name: "demo",
        arguments: "[--xen]",
        what: "serve a disk image and use it, step by step, with programs that are not ours; or with Xen",
        run: demo::run,
    },
    Command {
        name: "test",
        arguments: "[STAGE]...",
        what: "run all tests, or some stages of them",
        run: stages::test,
    },
    Command {
        name: "check",
        arguments: "",
        what: "formatting, lints, documentation, then all tests: what CI runs",
        run: stages::check,
    },
    Command {
        name: "bench",
        arguments: "[NAME]... [rounds=N] [only=SERVER]",
        what: "measure ours beside its peers: instructions, system calls, rates",
        run: bench::run,
    },
    Command {
        name: "fuzz",
        arguments: "[TARGET] [SECONDS]",
        what: "feed hostile bytes to the parsers; a minute each",
        run: fuzz::run,
    },
    Command {
        name: "vm",
        arguments: "shell [--xen]",
        what: "a prompt in a virtual machine, with our tools in PATH",
        run: vm::run,
    },
    Command { name: "help", arguments: "", what: "print this", run: help },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (name.trim_start_matches('-'), rest),
        None => ("help", &[][..]),
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("xtask: There is no command {name:?}; `cargo xtask help` lists them");
        return ExitCode::from(2);
    };
    match (command.run)(rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn help(_: &[String]) -> Result<()> {
    println!("usage: cargo xtask COMMAND\n");
    for command in &COMMANDS {
        let left = format!("{} {}", command.name, command.arguments);
        println!("  {left:<44} {}", command.what);
    }
    println!("\nstages of `test` (without one, all of them but debug-kernel):");
    for stage in stages::all()? {
        println!("  {:<28} {}", stage.name, stage.what);
    }
    println!("\ntargets of `fuzz`:");
    for target in fuzz::targets()? {
        println!("  {target}");
    }
    println!("\nmeasurements of `bench`:");
    for measurement in &bench::MEASUREMENTS {
        println!("  {:<28} {}", measurement.name, measurement.what);
    }
    println!("\nenvironment:");
    println!("  FUZZ_SECONDS                 how long `test` fuzzes each target (60)");
    println!("  TAPDISK_GOLDEN               a folder with reference images and transcripts");
    Ok(())
}
