//! A datagram socket to a daemon that may be slow, restart, or be gone.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one datagram may wait for room at the other side. Some daemons take no more than ten at
/// a time; without any patience a burst would lose the rest.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Datagram {
    socket: UnixDatagram,
    /// Sent to by name each time: a daemon that restarts has a new socket there.
    path: PathBuf,
    /// The last one waited in vain; until one gets through, none waits again. A daemon that hangs
    /// costs the writer one wait, not one for each line.
    stuck: bool,
}

impl Datagram {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, path: path.to_path_buf(), stuck: false })
    }

    /// Sends one; says whether it was taken.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        let result = loop {
            match self.socket.send_to(bytes, &self.path) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let stuck = match &result {
            Ok(_) => false,
            Err(error) => self.stuck || error.kind() == io::ErrorKind::WouldBlock,
        };
        if stuck != self.stuck && self.socket.set_nonblocking(stuck).is_ok() {
            self.stuck = stuck;
        }
        result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Scratch;
    use super::*;

    #[test]
    fn a_daemon_that_hangs_loses_lines_and_later_gets_them_again() {
        let scratch = Scratch::new();
        let path = scratch.path("socket");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut datagram = Datagram::open(&path).unwrap();
        let mut taken = 0;
        while datagram.send(b"line") {
            taken += 1;
            assert!(taken < 100_000, "it never fills");
        }
        assert!(!datagram.send(b"line"));
        let mut buffer = [0; 16];
        for _ in 0..taken {
            assert_eq!(daemon.recv(&mut buffer).unwrap(), 4);
        }
        assert!(datagram.send(b"again"));
        assert!(datagram.send(b"again"));
    }

    #[test]
    fn a_daemon_that_restarts_is_found_again() {
        let scratch = Scratch::new();
        let path = scratch.path("socket");
        let mut datagram = Datagram::open(&path).unwrap();
        assert!(!datagram.send(b"before"));
        for _ in 0..2 {
            let daemon = UnixDatagram::bind(&path).unwrap();
            assert!(datagram.send(b"line"));
            let mut buffer = [0; 16];
            assert_eq!(daemon.recv(&mut buffer).unwrap(), 4);
            drop(daemon);
            assert!(!datagram.send(b"between"));
            std::fs::remove_file(&path).unwrap();
        }
    }
}
