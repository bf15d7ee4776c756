//! A small NBD client, blocking, for tests: it says exactly what it is told, right or wrong.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};

use crate::PATIENCE;

/// Commands of the protocol.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISCONNECT: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Trim.
    pub const TRIM: u16 = 4;
    /// Make it zeros.
    pub const WRITE_ZEROES: u16 = 6;
}

/// The command flag: durable before it is answered.
const FUA: u16 = 1;

/// A connection.
#[derive(Debug)]
pub struct NbdClient {
    /// The socket, for tests that misbehave.
    pub stream: UnixStream,
    /// Size of the export, in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    cookie: u64,
}

impl NbdClient {
    /// Connects and negotiates with EXPORT_NAME, the oldest way: simple replies only.
    ///
    /// # Errors
    /// When the server is not there, or says something else than the protocol wants.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::other("no fixed newstyle greeting"));
        }
        let mut hello = Vec::from(3_u32.to_be_bytes());
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1_u32.to_be_bytes());
        hello.extend_from_slice(&4_u32.to_be_bytes());
        hello.extend_from_slice(b"test");
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let (size, flags) = export.split_at(8);
        Ok(Self {
            stream,
            size: u64::from_be_bytes(size.try_into().expect("8 of 10")),
            flags: u16::from_be_bytes(flags.try_into().expect("2 of 10")),
            cookie: 0,
        })
    }

    /// The cookie that the next request will have.
    #[must_use]
    pub fn next_cookie(&self) -> u64 {
        self.cookie + 1
    }

    /// Sends a request, and does not wait. Returns its cookie.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<u64> {
        self.send_with(0, command, offset, len, data)
    }

    /// The same, with command flags.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send_with(
        &mut self,
        flags: u16,
        command: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)?;
        Ok(self.cookie)
    }

    /// Whether a reply begins within this time.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn is_answered_within(&self, time: Duration) -> io::Result<bool> {
        let milliseconds = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
        let mut sockets = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut sockets, milliseconds)? > 0)
    }

    /// Receives the header of a simple reply: error and cookie. A read's data follows.
    ///
    /// # Errors
    /// Those of the socket, and when it is no simple reply.
    pub fn reply(&mut self) -> io::Result<(u32, u64)> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if word(0) != 0x6744_6698 {
            return Err(io::Error::other("no simple reply"));
        }
        Ok((word(4), u64::from(word(8)) << 32 | u64::from(word(12))))
    }

    fn call(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<u32> {
        let cookie = self.send(command, offset, len, data)?;
        let (error, found) = self.reply()?;
        assert_eq!(found, cookie, "one request, one reply");
        Ok(error)
    }

    /// Reads; the error of the protocol, or the bytes.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn read(&mut self, offset: u64, len: u32) -> io::Result<Result<Vec<u8>, u32>> {
        match self.call(command::READ, offset, len, &[])? {
            0 => {
                let mut bytes = vec![0; len as usize];
                self.stream.read_exact(&mut bytes)?;
                Ok(Ok(bytes))
            }
            error => Ok(Err(error)),
        }
    }

    /// Writes; the error of the protocol, 0 for none.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        let len = u32::try_from(data.len()).expect("tests write little");
        self.call(command::WRITE, offset, len, data)
    }

    /// Writes through to the storage; the error of the protocol, 0 for none.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        let len = u32::try_from(data.len()).expect("tests write little");
        let cookie = self.send_with(FUA, command::WRITE, offset, len, data)?;
        let (error, found) = self.reply()?;
        assert_eq!(found, cookie, "one request, one reply");
        Ok(error)
    }

    /// Flushes; the error of the protocol, 0 for none.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn flush(&mut self) -> io::Result<u32> {
        self.call(command::FLUSH, 0, 0, &[])
    }

    /// Flushes while the request with this cookie is not answered: the reply is the flush's, so all
    /// that was sent before has arrived.
    ///
    /// # Errors
    /// Those of the socket, and when the reply is that of the request.
    pub fn flush_after(&mut self, cookie: u64) -> io::Result<()> {
        let flush = self.send(command::FLUSH, 0, 0, &[])?;
        match self.reply()? {
            (0, found) if found == flush => Ok(()),
            found => Err(io::Error::other(format!("{found:?}, with {cookie} before"))),
        }
    }
}
