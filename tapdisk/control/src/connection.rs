//! One connection to a control socket, with a deadline.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{ControlError, ErrorKind};
use crate::message::{MESSAGE_SIZE, Response};
use crate::paths::check_socket_path;
use crate::process::is_ending;

/// The longest wait without a look at the other side, in milliseconds.
const TURN_MS: u16 = 1000;

/// When to give up; `None` is never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// So long from now. A time too far to be expressed is never.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// What is left; `Err` when nothing is.
    fn left(self) -> Result<Option<Duration>, Errno> {
        let Some(end) = self.0 else { return Ok(None) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Errno::ETIMEDOUT) } else { Ok(Some(left)) }
    }

    /// `Err` when it has passed.
    pub(crate) fn check(self) -> Result<(), Errno> {
        self.left().map(drop)
    }

    /// Waits until the descriptor is ready for `events`, or hung up. While it waits, `check` is
    /// asked each second whether that makes sense.
    pub(crate) fn wait(
        self,
        fd: &impl AsFd,
        events: PollFlags,
        check: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        loop {
            let timeout = match self.left()? {
                None => PollTimeout::from(TURN_MS),
                // Rounded up, so that the last turn does not spin; longer waits take more turns.
                Some(left) => u16::try_from(left.as_millis().saturating_add(1))
                    .map_or(PollTimeout::from(TURN_MS), |left| left.min(TURN_MS).into()),
            };
            match poll(&mut [PollFd::new(fd.as_fd(), events)], timeout) {
                Ok(0) => check()?,
                Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    socket: PathBuf,
    /// Who is at the other side.
    pid: i32,
    deadline: Deadline,
}

impl Connection {
    /// Connects with the socket of a process. One that was killed does not listen any more, though
    /// the kernel may still take connections for it.
    pub(crate) fn open(path: &Path, pid: i32, deadline: Deadline) -> Result<Self, ControlError> {
        check_socket_path(path)?;
        let opened = open_stream(path, deadline).and_then(|stream| match is_ending(pid) {
            true => Err(Errno::ECONNREFUSED),
            false => Ok(stream),
        });
        let stream = opened.map_err(|errno| {
            let kind = match errno {
                Errno::ETIMEDOUT => ErrorKind::Timeout,
                _ => ErrorKind::Connect,
            };
            ControlError::new(kind, errno, format!("Connecting to {}", path.display()))
        })?;
        Ok(Self { stream, socket: path.to_owned(), pid, deadline })
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) -> Result<(), ControlError> {
        let size = bytes.len();
        while !bytes.is_empty() {
            let result = match self.stream.write(bytes) {
                Ok(0) => Err(Errno::EPIPE),
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    Ok(())
                }
                Err(error) => self.wait_or_fail(&error, PollFlags::POLLOUT),
            };
            let done = size.saturating_sub(bytes.len());
            result.map_err(|errno| self.failed("Sending the request to", errno, done, size))?;
        }
        Ok(())
    }

    pub(crate) fn receive_exact(&mut self, buffer: &mut [u8]) -> Result<(), ControlError> {
        let size = buffer.len();
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let result = match self.stream.read(rest) {
                // End of file: the other side is gone.
                Ok(0) => Err(Errno::EPIPE),
                Ok(count) => {
                    done = done.saturating_add(count);
                    Ok(())
                }
                Err(error) => self.wait_or_fail(&error, PollFlags::POLLIN),
            };
            result.map_err(|errno| self.failed("Receiving the reply from", errno, done, size))?;
        }
        Ok(())
    }

    pub(crate) fn receive(&mut self) -> Result<Response, ControlError> {
        let mut bytes = [0; MESSAGE_SIZE];
        self.receive_exact(&mut bytes)?;
        Response::decode(&bytes).map_err(|error| {
            let attempt = format!("Decoding the reply from {}: {error}", self.socket.display());
            ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt)
        })
    }

    fn wait_or_fail(&self, error: &io::Error, events: PollFlags) -> Result<(), Errno> {
        match error.raw_os_error().map_or(Errno::EIO, Errno::from_raw) {
            Errno::EINTR => Ok(()),
            // As if it had closed the socket, which a process does that ends.
            Errno::EAGAIN => self.deadline.wait(&self.stream, events, || {
                if is_ending(self.pid) { Err(Errno::EPIPE) } else { Ok(()) }
            }),
            errno => Err(errno),
        }
    }

    fn failed(&self, what: &str, errno: Errno, done: usize, size: usize) -> ControlError {
        let attempt = format!("{what} {}, {done} of {size} bytes", self.socket.display());
        match errno {
            Errno::ETIMEDOUT => ControlError::new(ErrorKind::Timeout, errno, attempt),
            // A tapdisk that ends in the middle; callers list again when they see EPROTO.
            Errno::EPIPE | Errno::ECONNRESET => {
                let attempt = format!("{attempt} before it was closed");
                ControlError::new(ErrorKind::Vanished, Errno::EPROTO, attempt)
            }
            _ => ControlError::new(ErrorKind::System, errno, attempt),
        }
    }
}

/// A connected socket that does not block.
///
/// Connecting itself has to block: a listener whose queue is full gives a non-blocking one EAGAIN
/// and no event. The kernel applies the send timeout to it.
fn open_stream(path: &Path, deadline: Deadline) -> Result<UnixStream, Errno> {
    let address = UnixAddr::new(path)?;
    loop {
        let fd: OwnedFd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(left) = deadline.left()? {
            let microseconds = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::microseconds(microseconds))?;
        }
        match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream
                    .set_nonblocking(true)
                    .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
                return Ok(stream);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
            Err(errno) => return Err(errno),
        }
    }
}
