//! Where a tool writes to: what programs parse, what they compare, and what only people read.
//!
//! Standard output and the lines of [`Console::complain`] are a contract: storage managers parse
//! them to the byte. [`Console::explain`] is for people - a terminal, `--debug`, or
//! `VHD_UTIL_ERRORS=long` - and tells what was found, wanted, and where.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use nix::errno::Errno;

/// The two streams, and who reads them.
pub struct Console {
    out: Box<dyn Write>,
    error: Box<dyn Write>,
    /// Whether a person reads the output; nobody has looked yet.
    is_terminal: Option<bool>,
    /// Whether errors are explained; that depends on who reads them, and nobody has looked yet.
    explains: Option<bool>,
    /// Put before explanations: program and command.
    pub name: String,
}

impl fmt::Debug for Console {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Console")
            .field("is_terminal", &self.is_terminal)
            .field("explains", &self.explains)
            .finish_non_exhaustive()
    }
}

/// Bytes of output that are gathered before they are written.
const BUFFER_SIZE_BYTES: usize = 1 << 14;

impl Console {
    /// Those of the process. `debug` asks for explanations.
    #[must_use]
    pub fn standard(name: &str, debug: bool) -> Self {
        let wish = std::env::var_os("VHD_UTIL_ERRORS");
        let explains = match wish.as_deref().and_then(|wish| wish.to_str()) {
            Some("long") => Some(true),
            Some("short") => Some(debug),
            _ => debug.then_some(true),
        };
        Self {
            out: Box::new(io::BufWriter::with_capacity(BUFFER_SIZE_BYTES, io::stdout())),
            error: Box::new(io::stderr()),
            is_terminal: None,
            explains,
            name: name.to_owned(),
        }
    }

    /// The same, but for standard output.
    #[must_use]
    pub fn without_output(self) -> Self {
        Self { out: Box::new(io::sink()), is_terminal: Some(false), ..self }
    }

    /// Others: a test's.
    #[must_use]
    pub fn new(out: Box<dyn Write>, error: Box<dyn Write>) -> Self {
        let no = Some(false);
        Self { out, error, is_terminal: no, explains: no, name: String::new() }
    }

    /// Whether a person reads the output.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal.unwrap_or_else(|| io::stdout().is_terminal())
    }

    /// Writes to standard output.
    ///
    /// # Errors
    /// The stream's.
    pub fn print(&mut self, text: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.out.write_all(text.as_ref()).map_err(Failure::Output)
    }

    /// Writes out what was gathered.
    ///
    /// # Errors
    /// The stream's.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::Output)
    }

    /// Writes to standard error, after what was printed. Nobody is left to tell when that fails.
    pub fn complain(&mut self, text: impl AsRef<[u8]>) {
        drop(self.out.flush());
        drop(self.error.write_all(text.as_ref()).and_then(|()| self.error.flush()));
    }

    /// One line on standard error for a person.
    pub fn explain(&mut self, text: &str) {
        if self.explains.unwrap_or_else(|| io::stderr().is_terminal()) {
            let line = format!("{}: {text}\n", self.name);
            self.complain(line);
        }
    }

    /// Ends the output and turns a result into an exit status.
    pub fn finish(&mut self, result: Result<(), Failure>) -> u8 {
        match result.and_then(|()| self.flush()) {
            Ok(()) => 0,
            Err(Failure::Status(status)) => {
                drop(self.flush());
                status
            }
            Err(Failure::Errno { errno, explanation }) => {
                drop(self.flush());
                if !explanation.is_empty() {
                    self.explain(&explanation);
                }
                exit_status(errno)
            }
            // The reader of a pipe went away: it knows.
            Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                exit_status(Errno::EPIPE as i32)
            }
            Err(Failure::Output(error)) => {
                self.explain(&format!("Cannot write the output: {error}"));
                exit_status(error.raw_os_error().unwrap_or(Errno::EIO as i32))
            }
        }
    }
}

/// Why a command did not do what was asked. What programs are to read was printed before.
#[derive(Debug)]
pub enum Failure {
    /// The errno is the exit status; the explanation is for people.
    Errno {
        /// Positive.
        errno: i32,
        /// A sentence: what was found, what was wanted, where.
        explanation: String,
    },
    /// An exit status, and nothing to add.
    Status(u8),
    /// The output could not be written.
    Output(io::Error),
}

impl Failure {
    /// With an explanation.
    pub fn new(errno: Errno, explanation: impl Into<String>) -> Self {
        Self::Errno { errno: errno as i32, explanation: explanation.into() }
    }

    /// Of an attempt that the system refused.
    pub fn io(attempt: &str, error: &io::Error) -> Self {
        Self::Errno { errno: errno_of(error), explanation: format!("{attempt}: {error}") }
    }
}

/// The errno of an error; EIO where there is none, EPIPE for the end of a file.
#[must_use]
pub fn errno_of(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(errno) => errno,
        None if error.kind() == io::ErrorKind::UnexpectedEof => Errno::EPIPE as i32,
        None => Errno::EIO as i32,
    }
}

/// The errno as an exit status: 8 bits, and never success.
#[must_use]
pub fn exit_status(errno: i32) -> u8 {
    match u8::try_from(errno & 0xff) {
        Ok(status) if status != 0 => status,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_never_exits_with_0() {
        for (errno, status) in [(22, 22), (256, 1), (0, 1), (i32::MAX, 255), (257, 1)] {
            assert_eq!(exit_status(errno), status);
        }
    }

    #[derive(Debug)]
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(Errno::ENOSPC as i32))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_cannot_be_written_is_a_failure() {
        let mut console = Console::new(Box::new(Full), Box::new(Vec::new()));
        let result = console.print("x");
        assert_eq!(console.finish(result), Errno::ENOSPC as u8);
    }
}
