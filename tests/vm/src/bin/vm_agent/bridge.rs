//! Standard input and output, connected with a terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::Command;

/// Copies both ways until the terminal is gone. Ends with the process, whoever still reads.
pub(crate) fn run(path: &str) -> io::Result<()> {
    make_raw(path)?;
    let from_terminal = File::options().read(true).write(true).open(path)?;
    let to_terminal = from_terminal.try_clone()?;
    std::thread::spawn(move || copy(io::stdin(), to_terminal));
    copy(from_terminal, io::stdout())
}

/// Bytes pass as they are: no echo, no changed line ends.
pub(crate) fn make_raw(path: &str) -> io::Result<()> {
    let status = Command::new("stty").args(["-F", path, "raw", "-echo"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("stty: {status}"))) }
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => {
                to.write_all(&buffer[..bytes])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
