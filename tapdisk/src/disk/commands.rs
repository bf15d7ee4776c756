//! The commands of the control thread: each sets a state of the disk, or says why not.

use std::io;
use std::os::unix::net::UnixListener;

use nix::errno::Errno;

use super::NBD;
use super::again::{Again, Opening};
use super::life::Life;
use super::thread::{
    Command, DiskThread, OpenRequest, REMOVE_INTERVAL, REMOVE_PATIENCE, door_base,
};
use crate::chain::Chain;
use crate::error::DiskError;
use crate::frontend::Frontend;
use crate::frontend::blktap::{BlktapDoor, Removal};
use crate::frontend::nbd::{NbdConfig, NbdDoor};
use crate::image::ImageSpec;
use crate::layer::Layer;
use crate::request::DiskInfo;
use crate::server::shared::ImageLabel;
use crate::vbd::retry::RetryPolicy;

impl DiskThread {
    #[inline(never)]
    pub(super) fn command(&mut self, ticket: u64, command: Command) {
        let result = match command {
            Command::Open(request) => self.open(ticket, request),
            Command::Resume(spec, name) => self.resume(ticket, spec, name),
            Command::Pause => self.pause(ticket),
            Command::Close => self.close(ticket),
            Command::ForceClose => self.force_close(ticket),
            Command::Cancel(ticket) => {
                self.cancel(ticket);
                None
            }
            Command::Dump => {
                self.dump();
                None
            }
            Command::Detach => self.detach(ticket),
        };
        if let Some(result) = result {
            (self.wiring.respond)(ticket, result);
        }
    }

    fn open(&mut self, ticket: u64, request: OpenRequest) -> Option<Result<(), DiskError>> {
        if self.exit {
            return Some(Err(leaving()));
        }
        if self.life.is_open() {
            return Some(Err(DiskError::new(Errno::EALREADY, "The disk is open already")));
        }
        if self.again.is_some() {
            return Some(Err(changing()));
        }
        self.attempt(Again::new(ticket, Opening::Open, request))
    }

    /// Tries to open the image: the answer, or none yet when it is to be tried again.
    fn attempt(&mut self, mut again: Again) -> Option<Result<(), DiskError>> {
        let request = again.request.clone();
        let result = match again.opening {
            Opening::Open => self.open_image(request),
            Opening::Resume => self.resume_image(request),
        };
        let Err(error) = result else { return Some(Ok(())) };
        if again.failed(error.errno(), self.clock.now()) {
            slog::warn!(self.wiring.log, "Cannot open, trying again"; "error" => %error);
            self.again = Some(again);
            return None;
        }
        if again.opening == Opening::Resume {
            self.resume_failed();
        }
        Some(Err(error))
    }

    /// The next attempt, when it is due.
    fn try_again(&mut self) {
        // Mostly there is none, and the clock is not read.
        let clock = self.clock;
        if let Some(again) = self.again.take_if(|again| again.next() <= clock.now()) {
            let ticket = again.ticket;
            if let Some(result) = self.attempt(again) {
                (self.wiring.respond)(ticket, result);
            }
        }
    }

    /// Ends the attempts and tells who waited for them why.
    fn give_up(&mut self, error: DiskError) {
        let Some(again) = self.again.take() else { return };
        if again.opening == Opening::Resume {
            self.resume_failed();
        }
        (self.wiring.respond)(again.ticket, Err(error));
    }

    fn open_image(&mut self, request: OpenRequest) -> Result<(), DiskError> {
        self.insert_chain(&request, None)?;
        self.disk.vbd.forget_loss();
        let info = self.disk.vbd.info();
        if let Err(error) = self.open_doors(info) {
            self.close_doors();
            let _ = self.disk.vbd.close_chain();
            self.wiring.shared.set_images(Vec::new(), None);
            return Err(error);
        }
        slog::info!(self.wiring.log, "Opened"; "image" => ?request.name, "bytes" => info.size,
            "sector_size" => info.sector_size, "read_only" => info.read_only);
        self.wiring.shared.set_name(Some(request.name.clone()));
        self.opened = Some(request);
        self.enter(Life::Running);
        Ok(())
    }

    /// Opens the image and puts its chain in. `same_as`: what it must be like.
    fn insert_chain(
        &mut self,
        request: &OpenRequest,
        same_as: Option<DiskInfo>,
    ) -> Result<(), DiskError> {
        let flags = request.flags;
        let image = request.spec.open(flags, self.disk.vbd.queue())?;
        if let Some(warning) = image.warning() {
            slog::warn!(self.wiring.log, "{warning}");
        }
        let found = image.info();
        let info = DiskInfo {
            size: found.size,
            sector_size: found.sector_size,
            read_only: flags.read_only,
        };
        let layers = self.layers(info);
        let chain = Chain::new(Vec::new(), vec![image]);
        let checked = match (same_as, layers) {
            (_, Err(error)) => Err(error),
            (Some(wanted), Ok(_)) if wanted != info => Err(DiskError::new(
                Errno::EMEDIUMTYPE,
                format!("Found {info:?} where the paused disk is {wanted:?}"),
            )
            .at(&request.spec.path)),
            (_, Ok(layers)) => Ok(layers),
        };
        match checked {
            Ok(layers) => {
                let chain = chain.with_layers(layers);
                let labels = labels(&chain, request);
                self.disk.vbd.insert_chain(chain, flags.read_only, retry_of(request));
                self.wiring.shared.set_images(labels, Some(info));
                Ok(())
            }
            Err(error) => {
                let _ = chain.close(self.disk.vbd.queue());
                Err(error)
            }
        }
    }

    fn layers(&self, info: DiskInfo) -> Result<Vec<Box<dyn Layer>>, DiskError> {
        let slots = usize::from(crate::vbd::SLOTS);
        self.config.layers.iter().map(|spec| spec.build(info, slots)).collect()
    }

    /// The block device comes last: once it is there somebody may open it, and then it stays.
    fn open_doors(&mut self, info: DiskInfo) -> Result<(), DiskError> {
        self.open_nbd()?;
        self.disk.ring.as_mut().map_or(Ok(()), |ring| ring.create_device(info))
    }

    fn open_nbd(&mut self) -> Result<(), DiskError> {
        let path = &self.config.nbd_path;
        let error = |error: io::Error, what| DiskError::io(&error, what).at(path);
        // A socket of this name is left over from a process that had our pid: nobody else makes
        // them.
        match std::fs::remove_file(path) {
            Err(gone) if gone.kind() != io::ErrorKind::NotFound => {
                return Err(error(gone, "Cannot remove the socket of an earlier process"));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path)
            .map_err(|refused| error(refused, "Cannot make the NBD socket"))?;
        let nbd = NbdConfig::default();
        self.disk
            .vbd
            .memory()
            .reserve_connections(nbd.connections_bytes())
            .map_err(|refused| error(refused, "No memory for NBD connections"))?;
        let mut door =
            NbdDoor::new(listener, nbd).map_err(|refused| error(refused, "Cannot serve NBD"))?;
        door.register(self.poll.registry(), door_base(NBD))
            .map_err(|refused| error(refused, "Cannot wait for the NBD socket"))?;
        self.disk.nbd = Some(door);
        Ok(())
    }

    /// Takes the NBD door down and the block device away. The chain goes next.
    pub(super) fn close_doors(&mut self) {
        if let Some(ring) = &mut self.disk.ring {
            // A device that somebody holds open stays until it can be detached. Its requests come
            // in and fail, for want of a chain: who waited for them could not let go of it.
            let _ = ring.remove_device();
            ring.resume();
        }
        if let Some(mut door) = self.disk.nbd.take() {
            door.close(self.poll.registry(), self.disk.vbd.memory());
            let _ = std::fs::remove_file(&self.config.nbd_path);
        }
    }

    fn pause(&mut self, ticket: u64) -> Option<Result<(), DiskError>> {
        match self.life {
            Life::Running => {
                self.disk.doors().for_each(|(_, door)| door.suspend());
                self.waiting = Some(ticket);
                self.enter(Life::Pausing);
                None
            }
            _ if self.again.is_some() => Some(Err(changing())),
            Life::Paused { .. } => Some(Ok(())),
            Life::Pausing | Life::Closing | Life::Dead => Some(Err(changing())),
            Life::Attached | Life::Closed => Some(Err(DiskError::new(
                Errno::EINVAL,
                "The disk is not open: there is nothing to pause",
            ))),
        }
    }

    fn resume(
        &mut self,
        ticket: u64,
        spec: Option<ImageSpec>,
        name: std::ffi::OsString,
    ) -> Option<Result<(), DiskError>> {
        if self.life == Life::Running && self.disk.vbd.awaiting_space() > 0 && spec.is_none() {
            // Somebody made space, and does not want to wait until that is found.
            self.disk.vbd.space_came();
            return Some(Ok(()));
        }
        if !matches!(self.life, Life::Paused { .. }) {
            return Some(Err(DiskError::new(Errno::EINVAL, "The disk is not paused")));
        }
        if self.again.is_some() {
            return Some(Err(changing()));
        }
        let mut request = self.opened.clone().expect("a paused disk was opened");
        if let Some(spec) = spec {
            request.spec = spec;
            request.name = name;
        }
        self.attempt(Again::new(ticket, Opening::Resume, request))
    }

    /// What was taken before the pause waits on, like what the doors have not taken, until a resume
    /// works or the disk is closed: an image that was named wrong must not cost a guest its writes.
    fn resume_failed(&mut self) {
        self.enter(Life::Paused { failed: true });
    }

    fn resume_image(&mut self, request: OpenRequest) -> Result<(), DiskError> {
        let wanted = self.disk.vbd.info();
        self.insert_chain(&request, Some(wanted))?;
        slog::info!(self.wiring.log, "Resumed"; "image" => ?request.name);
        self.wiring.shared.set_name(Some(request.name.clone()));
        self.opened = Some(request);
        self.disk.doors().for_each(|(_, door)| door.resume());
        self.enter(Life::Running);
        Ok(())
    }

    fn close(&mut self, ticket: u64) -> Option<Result<(), DiskError>> {
        self.give_up(DiskError::new(Errno::ECANCELED, "The disk was closed meanwhile"));
        match self.life {
            Life::Attached | Life::Closed => {
                self.enter(Life::Closed);
                Some(Ok(()))
            }
            Life::Running | Life::Paused { .. } => {
                let now = self.clock.now();
                self.removal = Some((now.after(REMOVE_PATIENCE), now));
                self.waiting = Some(ticket);
                self.enter(Life::Closing);
                None
            }
            Life::Pausing | Life::Closing | Life::Dead => Some(Err(changing())),
        }
    }

    /// Answered when the disk is closed: a detach may follow at once. Where I/O does not end the
    /// control thread answers, and leaves this one behind.
    fn force_close(&mut self, ticket: u64) -> Option<Result<(), DiskError>> {
        let error = DiskError::new(Errno::ESHUTDOWN, "The disk was closed by force meanwhile");
        self.answer_waiting(Err(error.clone()));
        self.give_up(error);
        if !self.life.is_open() {
            self.enter(Life::Closed);
            return Some(Ok(()));
        }
        self.removal = None;
        self.disk.doors().for_each(|(_, door)| door.suspend());
        self.waiting = Some(ticket);
        self.disk.vbd.shut_down();
        let clock = self.clock;
        self.disk.turn(clock.now(), || clock.now());
        // What could be told was told. Who waits for more would wait for the storage.
        if let Some(door) = &mut self.disk.nbd {
            door.hang_up(self.disk.vbd.memory());
            let _ = std::fs::remove_file(&self.config.nbd_path);
        }
        self.enter(Life::Dead);
        None
    }

    /// Ends the thread, unless there is something that it serves: the control thread looked before
    /// it sent this, but another client's open may have been on its way.
    ///
    /// A disk that was closed by force is detached when its last I/O has ended.
    fn detach(&mut self, ticket: u64) -> Option<Result<(), DiskError>> {
        if self.exit {
            return Some(Err(leaving()));
        }
        if self.life == Life::Dead {
            self.exit = true;
            self.detached = Some(ticket);
            return None;
        }
        if self.life.is_open() {
            return Some(Err(DiskError::new(Errno::EBUSY, "The image is open; close it first")));
        }
        if self.again.is_some() {
            return Some(Err(changing()));
        }
        // Left over from a forced close. The driver would hold this thread until its last user is
        // gone; an error that is not this one changes nothing for better.
        let ring = self.disk.ring.as_mut();
        if ring.is_some_and(|ring| matches!(ring.remove_device(), Ok(Removal::Busy))) {
            return Some(Err(DiskError::new(Errno::EBUSY, "The block device is in use")));
        }
        self.exit = true;
        self.detached = Some(ticket);
        None
    }

    /// The control thread has let go of this disk: nothing more is asked of it, and it ends as soon
    /// as its I/O has.
    pub(super) fn left_behind(&mut self) {
        self.exit = true;
        self.again = None;
        if self.life.is_open() && self.life != Life::Dead {
            // Nobody listens for the answer.
            let _ = self.force_close(0);
        }
    }

    /// The client of a command that waits is gone: undo what can be undone. The command is answered
    /// all the same: until then the control thread takes it for one that is under way.
    fn cancel(&mut self, ticket: u64) {
        let gone = DiskError::new(Errno::ECANCELED, "The client did not wait");
        if self.again.as_ref().is_some_and(|again| again.ticket == ticket) {
            return self.give_up(gone);
        }
        if self.waiting != Some(ticket) {
            return;
        }
        self.answer_waiting(Err(gone));
        match self.life {
            Life::Pausing => {
                self.disk.doors().for_each(|(_, door)| door.resume());
                self.enter(Life::Running);
                slog::warn!(self.wiring.log, "Pause given up: the client did not wait");
            }
            // With the block device gone there is no way back; without one there always is.
            Life::Closing if self.removal.is_some() || self.disk.ring.is_none() => {
                self.removal = None;
                self.reopen_after_close();
                slog::warn!(self.wiring.log, "Close given up: the client did not wait");
            }
            _ => {}
        }
    }

    /// Reaches the states that were asked for.
    pub(super) fn settle(&mut self) {
        self.try_again();
        match self.life {
            Life::Pausing if self.disk.vbd.is_drained() => self.paused(),
            Life::Closing if self.removal.is_some() => self.remove_device(),
            Life::Closing | Life::Dead if self.disk.vbd.is_drained() => self.closed(),
            _ => {}
        }
    }

    fn paused(&mut self) {
        self.close_chain("Closing for a pause");
        self.wiring.shared.set_images(Vec::new(), None);
        self.enter(Life::Paused { failed: false });
        self.answer_waiting(Ok(()));
    }

    /// Asks the driver to remove the block device; goes on serving while somebody has it open.
    fn remove_device(&mut self) {
        let (until, next) = self.removal.expect("asked only while removing");
        let now = self.clock.now();
        if now < next {
            return;
        }
        let removal =
            self.disk.ring.as_mut().map_or(Ok(Removal::Removed), BlktapDoor::remove_device);
        match removal {
            Ok(Removal::Removed) => {
                self.removal = None;
                // Nothing can come from the device any more; NBD clients are let go by `closed`.
                self.disk.doors().for_each(|(_, door)| door.suspend());
                if self.disk.vbd.is_drained() {
                    self.closed();
                }
            }
            Ok(Removal::Busy) if now < until => {
                self.removal = Some((until, now.after(REMOVE_INTERVAL)));
            }
            Ok(Removal::Busy) => {
                self.removal = None;
                self.reopen_after_close();
                self.answer_waiting(Err(DiskError::new(
                    Errno::EBUSY,
                    "The block device is in use",
                )));
            }
            Err(error) => {
                self.removal = None;
                self.reopen_after_close();
                self.answer_waiting(Err(error));
            }
        }
    }

    /// A close that failed leaves the disk as it was.
    fn reopen_after_close(&mut self) {
        let paused = self.disk.vbd.chain().is_none();
        if !paused {
            self.disk.doors().for_each(|(_, door)| door.resume());
        }
        self.enter(if paused { Life::Paused { failed: false } } else { Life::Running });
    }

    fn closed(&mut self) {
        // Requests that were to be tried again, and flushes behind them, have nobody to wait for.
        self.disk.vbd.shut_down();
        let clock = self.clock;
        self.disk.turn(clock.now(), || clock.now());
        if !self.disk.vbd.is_drained() {
            return;
        }
        self.close_doors();
        self.close_chain("Closing");
        slog::info!(self.wiring.log, "Closed");
        self.opened = None;
        self.wiring.shared.set_name(None);
        self.wiring.shared.set_images(Vec::new(), None);
        self.enter(Life::Closed);
        self.answer_waiting(Ok(()));
    }

    /// Closes the image. It is closed, whatever became of what was written: the log, `list` and the
    /// next FLUSH tell of that.
    fn close_chain(&mut self, what: &'static str) {
        if let Err(mut error) = self.disk.vbd.close_chain() {
            if let Some(opened) = &self.opened {
                error = error.at(&opened.spec.path);
            }
            slog::error!(self.wiring.log, "{what}"; "error" => %error);
        }
        // Before the answer: who gets that may ask for the state next.
        self.wiring.shared.set_lost(self.disk.vbd.has_lost());
    }

    fn answer_waiting(&mut self, result: Result<(), DiskError>) {
        if let Some(ticket) = self.waiting.take() {
            (self.wiring.respond)(ticket, result);
        }
    }
}

/// For a command that comes after a detach.
fn leaving() -> DiskError {
    DiskError::new(Errno::ENODEV, "The disk is being detached")
}

/// For a command that another one is in the way of.
fn changing() -> DiskError {
    DiskError::new(Errno::EBUSY, "Another command changes the disk's state")
}

/// A VHD's leaf is written by direct I/O, whatever was asked for.
fn retry_of(request: &OpenRequest) -> RetryPolicy {
    let is_cached = request.flags.buffered && request.spec.kind().name != "vhd";
    if is_cached { request.retry.through_page_cache() } else { request.retry }
}

/// What `stats` calls the images of a chain.
fn labels(chain: &Chain, request: &OpenRequest) -> Vec<ImageLabel> {
    let buffered = request.flags.buffered;
    let label = |(path, kind)| ImageLabel { path, kind, buffered };
    let members = chain.members();
    if members.is_empty() {
        return vec![label((request.spec.path.clone(), request.spec.kind()))];
    }
    members.into_iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::OpenFlags;
    use crate::vbd::retry::NoSpace;

    /// NFS tells the loss of an earlier write to the next one, once.
    #[test]
    fn only_a_raw_image_in_the_page_cache_is_not_tried_again() {
        let retry = RetryPolicy::default();
        assert!(retry.tries > 0 && retry.no_space == NoSpace::Wait);
        for (image, buffered, is_tried) in [
            ("aio:/x", false, true),
            ("aio:/x", true, false),
            ("vhd:/x", false, true),
            ("vhd:/x", true, true),
        ] {
            let request = OpenRequest {
                spec: ImageSpec::parse(image.as_ref()).unwrap(),
                name: image.into(),
                flags: OpenFlags { buffered, ..OpenFlags::default() },
                retry,
            };
            let policy = retry_of(&request);
            assert_eq!(policy.timeout, retry.timeout, "{image}, {buffered}");
            assert_eq!(policy.tries > 0, is_tried, "{image}, {buffered}");
            assert_eq!(policy.no_space == NoSpace::Wait, is_tried, "{image}, {buffered}");
        }
    }
}
