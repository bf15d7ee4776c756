//! The program that runs inside a machine: its first process, and the one that runs commands.
//!
//! * as process 1: makes the machine usable, starts `serve` on the channel that the kernel's
//!   command line names (`VM_CHANNEL=PATH`), collects orphans, and ends the machine with it;
//! * `serve PATH`: runs commands, see `tapdisk_vm::wire`;
//! * `bridge PATH`: standard input and output, connected with a terminal: the console of a guest.

mod bridge;
mod init;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", path] => serve::run(path),
        ["bridge", path] => bridge::run(path),
        _ => Err(std::io::Error::other("usage: vm-agent serve PATH | vm-agent bridge PATH")),
    };
    if let Err(error) = done {
        eprintln!("vm-agent: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
