//! What each request on the control socket does.

use std::ffi::OsString;
use std::time::Duration;

use nix::errno::Errno;
use tapdisk_control::message::{Flags, ImageInfo, ListEntry, Params, Request, Response};
use vhd_files::lock::Policy;

use super::{Bounded, DETACH_PATIENCE, FORCE_PATIENCE, Server};
use crate::disk::thread::{Command, OpenRequest};
use crate::error::DiskError;
use crate::image::{ImageSpec, OpenFlags};
use crate::request::DiskInfo;
use crate::vbd::retry::RetryPolicy;

/// How often an orderly end tries to close a disk that is in use.
const LEAVE_INTERVAL: Duration = Duration::from_millis(200);

/// What a connection is told when its command has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Attach,
    Detach,
    Open,
    Close,
    Pause,
    Resume,
    /// Nobody waits: part of an orderly end.
    Leave,
}

/// Flags of open and resume for what is not built: refused, because a disk without the mirror, the
/// cache or the log that was asked for is not the disk that was asked for.
const REFUSED: &[(Flags, &str)] = &[
    (Flags::ADD_CACHE, "a block cache"),
    (Flags::VHD_INDEX, "a VHD index"),
    (Flags::ADD_LOCAL_CACHE, "a local cache (-r)"),
    (Flags::REUSE_PARENT, "the parent of another tapdisk (-e)"),
    (Flags::SECONDARY, "a secondary image (-2)"),
    (Flags::STANDBY, "a standby image (-s)"),
];

impl Server {
    /// Obeys a request of connection `index`.
    pub(super) fn obey(&mut self, index: usize, request: Request) {
        let result = match request {
            Request::Pid => {
                return self.answer(index, &[Response::Pid(super::own_pid())], &[]);
            }
            Request::List => return self.list(index),
            Request::ListMinors => return self.list_minors(index),
            Request::Stats { minor } => self.stats(index, minor),
            Request::DiskInfo { minor } => self.disk_info(index, minor),
            Request::Attach { minor } => self.attach(index, minor),
            Request::Detach { minor } => self.detach(index, minor),
            Request::Open { minor, params } => {
                open_request(params, self.config.lock, self.config.retry)
                    .and_then(|open| self.command(index, minor, Kind::Open, Command::Open(open)))
            }
            Request::Resume { minor, params } => resume_command(params)
                .and_then(|command| self.command(index, minor, Kind::Resume, command)),
            Request::Close { minor } => self.close(index, minor),
            Request::Pause { minor } => self.command(index, minor, Kind::Pause, Command::Pause),
            Request::ForceShutdown { minor } => self.force(index, minor),
            Request::XenblkifConnect { .. } | Request::XenblkifDisconnect { .. } => Err(
                DiskError::new(Errno::ENOSYS, "This tapdisk does not serve guests' rings itself"),
            ),
            Request::Exit => Err(DiskError::new(
                Errno::EINVAL,
                "A tapdisk leaves when its last disk is detached",
            )),
        };
        if let Err(error) = result {
            self.refuse(index, &error);
        }
    }

    fn refuse(&mut self, index: usize, error: &DiskError) {
        slog::warn!(self.log, "Refused"; "error" => %error);
        let mut text = error.what();
        text.truncate(text.floor_char_boundary(255));
        let response = Response::Error { errno: error.errno() as i32, message: text.into() };
        self.answer(index, &[response], &[]);
    }

    /// Takes a ticket for a connection.
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn wait(&mut self, index: usize, ticket: u64, kind: Kind) {
        self.kinds.push((ticket, kind));
        if let Some(connection) = self.connections[index].as_mut() {
            connection.wait_for(ticket);
        }
    }

    fn command(
        &mut self,
        index: usize,
        minor: u16,
        kind: Kind,
        command: Command,
    ) -> Result<(), DiskError> {
        let ticket = self.ticket();
        self.disks.send(minor, ticket, command)?;
        self.wait(index, ticket, kind);
        Ok(())
    }

    fn close(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        if self.disks.find(minor)?.is_abandoned() {
            self.answer(index, &[Response::Close], &[]);
            return Ok(());
        }
        self.command(index, minor, Kind::Close, Command::Close)
    }

    fn force(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        if self.disks.find(minor)?.is_abandoned() {
            return self.close(index, minor);
        }
        self.command(index, minor, Kind::Close, Command::ForceClose)?;
        self.bound(self.next_ticket, minor, Kind::Close, FORCE_PATIENCE);
        Ok(())
    }

    /// A command is to be answered after so long at the latest.
    fn bound(&mut self, ticket: u64, minor: u16, kind: Kind, patience: Duration) {
        let until = self.clock.now().after(patience);
        self.bounded.push(Bounded { ticket, minor, kind, until });
    }

    /// The time of a bounded command is up: it is answered now.
    pub(super) fn give_up_on(&mut self, command: Bounded) {
        let Bounded { ticket, minor, kind, .. } = command;
        if kind == Kind::Detach {
            slog::error!(self.log, "The disk is left behind"; "minor" => minor);
            return self.finish(ticket, Ok(()));
        }
        slog::error!(self.log, "The disk hangs in its storage; given up"; "minor" => minor);
        self.disks.abandon(minor, ticket);
        self.finish(ticket, Ok(()));
        // Who waits for something else on it would wait for the same storage. It counts as closed:
        // it may be closed by force again, and detached.
        for waiting in self.disks.pending_of(minor) {
            let is_close = |known: &Bounded| known.ticket == waiting && known.kind == Kind::Close;
            if self.bounded.iter().any(is_close) {
                self.finish(waiting, Ok(()));
            } else if self.kinds.contains(&(waiting, Kind::Detach)) {
                self.bound(waiting, minor, Kind::Detach, DETACH_PATIENCE);
            } else {
                self.finish(waiting, Err(super::disks::hangs()));
            }
        }
    }

    fn attach(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        if self.leaving {
            return Err(DiskError::new(Errno::ESHUTDOWN, "This tapdisk is leaving"));
        }
        let ticket = self.ticket();
        let statistics = self.statistics.as_ref();
        self.disks.attach(minor, ticket, &self.config, statistics, &self.log)?;
        self.wait(index, ticket, Kind::Attach);
        Ok(())
    }

    fn detach(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        let disk = self.disks.find(minor)?;
        if disk.is_abandoned() {
            let ticket = self.ticket();
            self.disks.send_to_abandoned(minor, ticket, Command::Detach)?;
            self.wait(index, ticket, Kind::Detach);
            self.bound(ticket, minor, Kind::Detach, DETACH_PATIENCE);
            return Ok(());
        }
        if disk.shared.life().is_open() {
            return Err(DiskError::new(
                Errno::EBUSY,
                format!("The image of minor {minor} is open; close it first"),
            ));
        }
        self.command(index, minor, Kind::Detach, Command::Detach)
    }

    /// Takes a disk off the table. Commands that came while it was on its way out reach nobody, so
    /// they are answered here.
    fn forget(&mut self, minor: u16) {
        let _ = std::fs::remove_file(self.config.paths.nbd_socket(super::own_pid(), minor));
        self.disks.remove(minor);
        for ticket in self.disks.pending_of(minor) {
            let gone =
                DiskError::new(Errno::ENODEV, format!("Minor {minor} was detached meanwhile"));
            self.finish(ticket, Err(gone));
        }
    }

    /// A disk is gone.
    fn detached(&mut self) {
        if self.disks.is_empty() {
            self.leaving = true;
        }
    }

    /// With disks that were busy when the end was asked for.
    fn leave_later(&mut self) {
        if self.leaving && !self.disks.is_empty() && self.leave_again.is_none() {
            self.leave_again = Some(self.clock.now().after(LEAVE_INTERVAL));
        }
    }

    /// A command has ended: tells the connection that waits for it, if it still does.
    pub(super) fn finish(&mut self, ticket: u64, result: Result<(), DiskError>) {
        // A forced close whose disk went another way must not be held against the next one that has
        // its minor.
        self.bounded.retain(|command| command.ticket != ticket);
        let Some(pending) = self.disks.answered(ticket) else { return };
        let Some(position) = self.kinds.iter().position(|(known, _)| *known == ticket) else {
            return;
        };
        let (_, kind) = self.kinds.swap_remove(position);
        match (kind, &result) {
            (Kind::Detach, Ok(())) => {
                self.forget(pending.minor);
                self.detached();
            }
            // The thread has ended by itself.
            (Kind::Attach, Err(_)) => self.forget(pending.minor),
            (Kind::Leave, Ok(())) => self.leave_one(pending.minor),
            // In use, or another command is under way: again, for as long as it takes.
            (Kind::Leave, Err(_)) => {
                self.leave_again = Some(self.clock.now().after(LEAVE_INTERVAL));
            }
            _ => self.leave_later(),
        }
        let index = self.connections.iter().position(|connection| {
            connection.as_ref().is_some_and(|waiting| waiting.ticket() == Some(ticket))
        });
        let Some(index) = index else { return };
        match result {
            Ok(()) => {
                let response = self.success(kind, pending.minor);
                self.answer(index, &[response], &[]);
            }
            Err(error) => self.refuse(index, &error),
        }
    }

    fn success(&self, kind: Kind, minor: u16) -> Response {
        match kind {
            Kind::Attach => Response::Attach,
            Kind::Detach | Kind::Leave => Response::Detach,
            Kind::Close => Response::Close,
            Kind::Pause => Response::Pause,
            Kind::Resume => Response::Resume,
            Kind::Open => {
                let info = self.disks.find(minor).ok().and_then(|disk| disk.shared.public().info);
                Response::Open(image_info(info))
            }
        }
    }

    fn list(&mut self, index: usize) {
        let count = self.disks.len();
        let entries = self.disks.shown().enumerate().map(|(position, disk)| {
            let public = disk.public();
            Response::List(ListEntry {
                remaining: u32::try_from(count - position).unwrap_or(u32::MAX),
                minor: disk.minor,
                state: public.life.bits() | disk.gauges().state_bits(),
                path: public.name.unwrap_or_default(),
            })
        });
        let mut responses: Vec<_> = entries.collect();
        responses.push(Response::ListEnd);
        self.answer(index, &responses, &[]);
    }

    fn list_minors(&mut self, index: usize) {
        let minors = self.disks.shown().map(|disk| i32::from(disk.minor));
        let minors = minors.take(tapdisk_control::message::MINORS_MAX).collect();
        self.answer(index, &[Response::ListMinors(minors)], &[]);
    }

    fn disk_info(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        let public = self.disks.find(minor)?.shared.public();
        if !public.life.is_open() {
            return Err(DiskError::new(Errno::EINVAL, "The disk is not open"));
        }
        self.answer(index, &[Response::DiskInfo(image_info(public.info))], &[]);
        Ok(())
    }

    fn stats(&mut self, index: usize, minor: u16) -> Result<(), DiskError> {
        let dropped = self.logs.dropped();
        let json = if minor == tapdisk_control::message::COOKIE_ALL {
            super::stats::all(self.disks.shown().map(AsRef::as_ref), dropped)
        } else {
            super::stats::one(&self.disks.find(minor)?.shared, dropped)
        };
        let length = u64::try_from(json.len()).expect("shorter than memory");
        self.answer(index, &[Response::Stats { length }], json.as_bytes());
        Ok(())
    }

    /// The orderly end: every disk is closed and detached, as soon as nothing else is done with it.
    pub(super) fn leave(&mut self) {
        let minors: Vec<u16> = self
            .disks
            .shown()
            .map(|disk| disk.minor)
            .filter(|minor| self.disks.pending_of(*minor).is_empty())
            .collect();
        for minor in minors {
            self.leave_one(minor);
        }
    }

    /// The next step of a disk's end.
    fn leave_one(&mut self, minor: u16) {
        let Ok(disk) = self.disks.find(minor) else { return };
        let open = disk.shared.life().is_open();
        if disk.is_abandoned() {
            return self.forget(minor);
        }
        let ticket = self.ticket();
        let (kind, command) =
            if open { (Kind::Leave, Command::Close) } else { (Kind::Detach, Command::Detach) };
        if self.disks.send(minor, ticket, command).is_ok() {
            self.kinds.push((ticket, kind));
        }
    }
}

fn image_info(info: Option<DiskInfo>) -> ImageInfo {
    info.map_or_else(ImageInfo::default, |info| ImageInfo {
        sectors: info.size / 512,
        sector_size: info.sector_size,
        // Bit 2 of VDISK info: read-only.
        info: if info.read_only { 4 } else { 0 },
    })
}

fn check_flags(params: &Params) -> Result<(), DiskError> {
    let asked = REFUSED.iter().find(|(flag, _)| params.flags.contains(*flag));
    let asked = asked.map(|(_, what)| *what);
    let log = params.log.as_ref().map(|_| "a log of changed blocks (-C)");
    let key = params.key.as_ref().map(|_| "encryption (-E)");
    asked.or(log).or(key).map_or(Ok(()), |what| {
        Err(DiskError::new(Errno::EOPNOTSUPP, format!("This tapdisk does not have {what} yet")))
    })
}

fn open_request(
    params: Params,
    lock: Policy,
    retry: RetryPolicy,
) -> Result<OpenRequest, DiskError> {
    let spec = ImageSpec::parse(&params.path)?;
    check_flags(&params)?;
    let timeout = match params.request_timeout_s {
        0 => retry.timeout,
        seconds => Duration::from_secs(u64::from(seconds)),
    };
    let retry = RetryPolicy { timeout, ..retry };
    let flags = OpenFlags {
        read_only: params.flags.contains(Flags::READ_ONLY),
        buffered: params.flags.contains(Flags::NO_O_DIRECT),
        lock: if params.flags.contains(Flags::SHARED) { Policy::Never } else { lock },
    };
    Ok(OpenRequest { spec, name: params.path, flags, retry })
}

fn resume_command(params: Params) -> Result<Command, DiskError> {
    check_flags(&params)?;
    if params.path.is_empty() {
        return Ok(Command::Resume(None, OsString::new()));
    }
    let spec = ImageSpec::parse(&params.path)?;
    Ok(Command::Resume(Some(spec), params.path))
}
