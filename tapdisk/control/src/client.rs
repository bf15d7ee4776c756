//! The client of a tapdisk's control socket: a connection and one request for each call.
//!
//! Every call has one deadline for all of it: connecting, sending, receiving. Signals and partial
//! I/O are gone on with. What the daemon says is checked like anything from outside. A daemon that
//! was killed is not waited for, even while the kernel keeps it and its socket.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::connection::{Connection, Deadline};
use crate::error::{ControlError, ErrorKind};
use crate::message::{Blkif, ImageInfo, ListEntry, MessageId, Params, Request, Response};
use crate::paths::Paths;

/// How long a daemon may take for what it answers at once: pid, list, statistics.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest statistics that are accepted, in bytes: a thousand disks with chains of thirty
/// images come to about 8 MiB.
pub const STATS_SIZE_MAX: u64 = 16 << 20;

/// The most disks that a list may have: minors are 16 bits.
const LIST_LEN_MAX: usize = 1 << 16;

/// The control socket of one tapdisk. Nothing is open between calls.
#[derive(Clone, Debug)]
pub struct Client {
    pid: i32,
    socket: PathBuf,
    query_timeout: Duration,
}

impl Client {
    /// The client of the tapdisk with this pid.
    #[must_use]
    pub fn new(paths: &Paths, pid: i32) -> Self {
        Self { pid, socket: paths.control_socket(pid), query_timeout: QUERY_TIMEOUT }
    }

    /// The same with another limit than [`QUERY_TIMEOUT`].
    #[must_use]
    pub fn with_query_timeout(self, query_timeout: Duration) -> Self {
        Self { query_timeout, ..self }
    }

    /// The process that is talked to.
    #[must_use]
    pub fn process(&self) -> i32 {
        self.pid
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the daemon for its pid: whether somebody is there.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub fn pid(&self) -> Result<i32, ControlError> {
        match self.query(&Request::Pid)? {
            (_, Response::Pid(pid)) if pid > 0 => Ok(pid),
            (_, response) => Err(self.unexpected(&Request::Pid, &response)),
        }
    }

    /// The disks, in the order in which they were attached.
    ///
    /// # Errors
    /// EPROTO when the daemon goes away in the middle.
    pub fn list(&self) -> Result<Vec<ListEntry>, ControlError> {
        let (mut connection, mut response) = self.query(&Request::List)?;
        let mut entries = Vec::new();
        loop {
            match response {
                Response::ListEnd => return Ok(entries),
                Response::List(entry) if entries.len() < LIST_LEN_MAX => entries.push(entry),
                other => return Err(self.unexpected(&Request::List, &other)),
            }
            response = connection.receive()?;
        }
    }

    /// Makes a disk without an image.
    ///
    /// # Errors
    /// EEXIST when it is there; EAGAIN, ENOENT when its marker is locked or absent.
    pub fn attach(&self, minor: u16) -> Result<(), ControlError> {
        let request = Request::Attach { minor };
        match self.command(&request, None)? {
            Response::Attach => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Removes a disk. The daemon ends after it has answered for the last one.
    ///
    /// # Errors
    /// ENODEV when it is not there, EBUSY while its image is open.
    pub fn detach(&self, minor: u16) -> Result<(), ControlError> {
        let request = Request::Detach { minor };
        match self.command(&request, None)? {
            Response::Detach => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Opens an image.
    ///
    /// # Errors
    /// EINVAL when the disk is not there, EALREADY when it has an image; else what opening says.
    pub fn open(&self, minor: u16, params: Params) -> Result<ImageInfo, ControlError> {
        let request = Request::Open { minor, params };
        match self.command(&request, None)? {
            Response::Open(info) => Ok(info),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Closes the image of a disk; `force`: without waiting for guests.
    ///
    /// # Errors
    /// ENODEV when the disk is not there, EBUSY while its kernel device is in use, ETIMEDOUT.
    pub fn close(
        &self,
        minor: u16,
        force: bool,
        timeout: Option<Duration>,
    ) -> Result<(), ControlError> {
        let request =
            if force { Request::ForceShutdown { minor } } else { Request::Close { minor } };
        match self.command(&request, timeout)? {
            Response::Close => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Stops the I/O of a disk and closes its image. When the timeout passes the daemon sees the
    /// connection close and gives up too.
    ///
    /// # Errors
    /// ENODEV when the disk is not there, ETIMEDOUT.
    pub fn pause(&self, minor: u16, timeout: Option<Duration>) -> Result<(), ControlError> {
        let request = Request::Pause { minor };
        match self.command(&request, timeout)? {
            Response::Pause => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Opens the image of a paused disk again, or another one.
    ///
    /// # Errors
    /// ENODEV when the disk is not there, EINVAL when it is not paused, EMEDIUMTYPE when the image
    /// has another size; else what opening says.
    pub fn resume(&self, minor: u16, params: Params) -> Result<(), ControlError> {
        let request = Request::Resume { minor, params };
        match self.command(&request, None)? {
            Response::Resume => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// The statistics of a disk, as the JSON that the daemon sent, without white space around it.
    ///
    /// # Errors
    /// ENODEV when the disk is not there, also from daemons that answer with nothing; EMSGSIZE
    /// above [`STATS_SIZE_MAX`]; EPROTO when less comes than was announced.
    pub fn stats(&self, minor: u16) -> Result<Vec<u8>, ControlError> {
        let request = Request::Stats { minor };
        let (mut connection, response) = self.query(&request)?;
        let Response::Stats { length } = response else {
            return Err(self.unexpected(&request, &response));
        };
        let size = usize::try_from(length).ok().filter(|_| length <= STATS_SIZE_MAX);
        let Some(size) = size else {
            let attempt = format!(
                "Reading statistics of minor {minor} from {}: {length} bytes were announced, want at \
                 most {STATS_SIZE_MAX}",
                self.socket.display()
            );
            return Err(ControlError::new(ErrorKind::Protocol, Errno::EMSGSIZE, attempt));
        };
        let mut bytes = vec![0; size];
        connection.receive_exact(&mut bytes)?;
        // C strings and their line ends arrive too.
        let json = bytes.trim_ascii_end();
        let json = json.strip_suffix(b"\0").unwrap_or(json).trim_ascii();
        if json.is_empty() {
            let attempt = format!("Reading statistics of minor {minor} of tapdisk {}", self.pid);
            return Err(ControlError::new(ErrorKind::Refused, Errno::ENODEV, attempt));
        }
        Ok(json.to_vec())
    }

    /// The geometry of the open image.
    ///
    /// # Errors
    /// ENODEV when the disk is not there.
    pub fn info(&self, minor: u16) -> Result<ImageInfo, ControlError> {
        let request = Request::DiskInfo { minor };
        match self.query(&request)?.1 {
            Response::DiskInfo(info) => Ok(info),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Lets the daemon serve a guest's ring.
    ///
    /// # Errors
    /// ENODEV when the disk is not there, EALREADY when the ring is served.
    pub fn connect_xenblkif(&self, minor: u16, blkif: Blkif) -> Result<(), ControlError> {
        let request = Request::XenblkifConnect { minor, blkif };
        match self.command(&request, None)? {
            Response::XenblkifConnect => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    /// Takes a guest's ring from the daemon.
    ///
    /// # Errors
    /// ENODEV when it serves no such ring.
    pub fn disconnect_xenblkif(
        &self,
        domain: u32,
        device: u32,
        timeout: Option<Duration>,
    ) -> Result<(), ControlError> {
        let request = Request::XenblkifDisconnect { minor: 0, domain, device };
        match self.command(&request, timeout)? {
            Response::XenblkifDisconnect => Ok(()),
            response => Err(self.unexpected(&request, &response)),
        }
    }

    fn query(&self, request: &Request) -> Result<(Connection, Response), ControlError> {
        self.exchange(request, Some(self.query_timeout))
    }

    fn command(
        &self,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<Response, ControlError> {
        self.exchange(request, timeout).map(|(_, response)| response)
    }

    /// Connects, sends, and receives the first reply. An error reply becomes an error here.
    fn exchange(
        &self,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<(Connection, Response), ControlError> {
        let bytes = request.encode().map_err(|error| {
            let attempt = format!("Asking tapdisk {} for {:?}: {error}", self.pid, request.id());
            ControlError::new(ErrorKind::Invalid, error.errno(), attempt)
        })?;
        let mut connection = Connection::open(&self.socket, self.pid, Deadline::after(timeout))?;
        connection.send(&bytes)?;
        let response = connection.receive()?;
        if let Response::Error { errno, message } = response {
            return Err(self.refused(request, errno, &message));
        }
        Ok((connection, response))
    }

    fn refused(&self, request: &Request, errno: i32, message: &OsStr) -> ControlError {
        let mut attempt = format!("{:?}", request.id());
        if !matches!(request.id(), MessageId::Pid | MessageId::List) {
            attempt.push_str(&format!(" of minor {}", request.cookie()));
        }
        attempt.push_str(&format!(" was refused by tapdisk {}", self.pid));
        if !message.is_empty() {
            attempt.push_str(&format!(" ({})", message.to_string_lossy().escape_debug()));
        }
        // An error that says "no error" is still one.
        let errno = if errno == 0 { Errno::EIO as i32 } else { errno };
        ControlError::with_status(ErrorKind::Refused, errno, attempt)
    }

    fn unexpected(&self, request: &Request, response: &Response) -> ControlError {
        let attempt = format!(
            "Asking tapdisk {} for {:?}: it answered {:?}",
            self.pid,
            request.id(),
            response.id()
        );
        ControlError::new(ErrorKind::Protocol, Errno::EPROTO, attempt)
    }
}
