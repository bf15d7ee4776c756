//! `cargo xtask vm`: a prompt in a virtual machine.

use crate::Result;
use crate::{command, packages};

/// `cargo xtask vm shell [--xen]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if !matches!(words.as_slice(), ["shell"] | ["shell", "--xen"]) {
        return Err("usage: cargo xtask vm shell [--xen]".into());
    }
    start(&words)
}

/// Runs the program that starts machines, with our terminal.
pub(crate) fn start(words: &[&str]) -> Result<()> {
    start_with(&[], words)
}

/// The same, and our programs as they are released.
pub(crate) fn start_released(words: &[&str]) -> Result<()> {
    start_with(&["--release"], words)
}

fn start_with(options: &[&str], words: &[&str]) -> Result<()> {
    if let Some(reason) = packages::provide("vm") {
        return Err(reason);
    }
    let mut run = command::cargo(["run", "--quiet", "-p", "tapdisk-vm", "--bin", "vm"]);
    let shown = command::shown(run.args(options).arg("--").args(words));
    let status = run.status().map_err(|error| format!("Cannot run `{shown}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` failed: {status}")) }
}
