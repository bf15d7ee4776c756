//! One disk of the simulation: the production loop, held by the hand, its clients, and the model of
//! what its sectors may hold.

mod answers;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use tapdisk::disk::rig::Rig;
use tapdisk::disk::thread::{Command, OpenRequest};
use tapdisk::image::{ImageSpec, OpenFlags};
use tapdisk::queue::sim::{Sim, UnderWay};
use tapdisk::queue::{Queue, QueueConfig};
use tapdisk::time::Now;
use tapdisk::vbd::QUEUE_CAPACITY;
use tapdisk::vbd::retry::RetryPolicy;
use vhd::testing::{Oracle, Random, Store, bytes_of, value};

use crate::client::{Ask, Client};
use crate::counts::Counts;
use crate::faults::{Faults, Mistake};
use crate::guest::Guest;
use crate::images::{self, Place};

/// Requests of a disk that are not answered, at most.
const ASKED_MAX: usize = 48;
/// Clients of a disk, at most.
const CLIENTS_MAX: usize = 4;
/// The number of no client: who asks through the ring.
const GUEST: u64 = 0;
/// Images of a chain, at most.
const DEPTH_MAX: usize = 6;
/// The bit of a paused disk in `list`.
const LISTED_PAUSED: u32 = 0x20;
/// What nobody may need more of to come to rest.
const TURNS_MAX: usize = 20_000;

/// How the last life of a disk ended: what its image may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Cut,
    Kill,
    Close,
}

struct Asked {
    ask: Ask,
    began: u64,
    /// The number of its client.
    client: u64,
}

/// What has been commanded and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commanded {
    Pause,
    /// Its client does not wait at all.
    HastyClose,
    Resume,
    Close,
}

/// The disk.
pub(crate) struct Disk {
    folder: PathBuf,
    rig: Option<Rig>,
    clients: Vec<Client>,
    /// Who asks through the ring, where the disk has one in this life.
    guest: Option<Guest>,
    oracle: Oracle,
    place: Place,
    /// The image that the next resume names.
    next_place: Option<Place>,
    depth: usize,
    /// Images of its chain, at most: some disks stay raw.
    depth_max: usize,
    sectors: u64,
    version: u32,
    number: u64,
    asked: BTreeMap<u64, Asked>,
    /// I/Os that do not end for the time being.
    stuck: BTreeSet<u64>,
    commanded: Option<Commanded>,
    is_paused: bool,
    /// By the model's clock, in this life: when its image was opened again last.
    resumed: u64,
    /// A flush failed in this life, and then one was done.
    after_loss: (bool, bool),
    /// What a kill left of a raw image: nothing of it is durable yet.
    left: Option<Store>,
    faults: Faults,
    pub(crate) counts: Counts,
}

impl Disk {
    pub(crate) fn new(random: &mut Random, folder: PathBuf, mistake: Option<Mistake>) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder in memory");
        let sectors = 1 + random.below(96);
        let (place, values) = images::first(random, &folder, sectors);
        let depth_max = if place.kind == "aio" && random.one_in(2) { 1 } else { DEPTH_MAX };
        Self {
            folder,
            rig: None,
            clients: Vec::new(),
            guest: None,
            oracle: Oracle::new(values),
            place,
            next_place: None,
            depth: 1,
            depth_max,
            sectors,
            version: 10,
            number: 0,
            asked: BTreeMap::new(),
            stuck: BTreeSet::new(),
            commanded: None,
            is_paused: false,
            resumed: 0,
            after_loss: (false, false),
            left: None,
            faults: Faults { mistake, ..Faults::default() },
            counts: Counts::default(),
        }
    }

    fn rig(&mut self) -> &mut Rig {
        self.rig.as_mut().expect("a process that lives")
    }

    fn sim(&mut self) -> &mut Sim {
        self.rig().queue().sim().expect("a simulated queue")
    }

    /// A new process opens the image and reads all of it: nothing else than `left` may be there.
    pub(crate) fn open(&mut self, random: &mut Random, now: Now, left: Left) -> Result<(), String> {
        let config = QueueConfig {
            // A small one is full now and then, as a large one is under a load of many blocks.
            capacity: if random.one_in(4) { 24 } else { QUEUE_CAPACITY },
            engine_depth: if random.one_in(4) { 4 } else { 256 },
            ..QueueConfig::default()
        };
        let queue = Queue::simulated(random.next(), config);
        let (ring, guest) = random.one_in(2).then(Guest::new).unzip();
        self.guest = guest;
        self.rig = Some(Rig::on(queue, &self.folder, ring).expect("a process has what it needs"));
        if let Some(store) = self.left.take() {
            let inode = std::fs::metadata(&self.place.path).expect("an image").ino();
            self.sim().leave(inode, store);
        }
        self.faults.is_cached = self.place.kind == "aio" && random.one_in(4);
        self.faults.is_raw = self.place.kind == "aio";
        self.faults.are_there = random.one_in(2);
        let retry = RetryPolicy {
            tries: [0, 3, 60][index(random.below(3))],
            no_space: if random.one_in(3) { "fail" } else { "wait" }.parse().expect("a word"),
            ..RetryPolicy::default()
        };
        let request = OpenRequest {
            spec: spec_of(&self.place),
            name: self.place.text().into(),
            flags: OpenFlags { buffered: self.faults.is_cached, ..OpenFlags::default() },
            retry,
        };
        self.rig().send(Command::Open(request));
        self.rig().turn_at(now);
        match self.rig().answer() {
            Some(Ok(())) => {}
            other => return Err(format!("open of {}: {other:?}", self.place.text())),
        }
        self.connect();
        self.number += 1;
        let (number, ask) = (self.number, Ask::Read { sector: 0, count: self.sectors });
        self.clients[0].send(number, ask, &[]);
        let mut found = None;
        for _ in 0..100 {
            self.clients[0].send_more();
            self.rig().turn_at(now);
            self.sim().run_all();
            let length = index(self.sectors * 512);
            self.clients[0].receive(|_| length, |reply| found = Some(reply));
        }
        let found = found.ok_or("the first read is not answered")?;
        if found.error != 0 {
            return Err(format!("the first read fails: {}", found.error));
        }
        self.check_all(&found.data, left)?;
        self.connect();
        self.guest.iter_mut().for_each(Guest::open);
        Ok(())
    }

    fn connect(&mut self) {
        let path = self.rig().nbd_path().to_owned();
        self.number += 1;
        self.clients.push(Client::connect(&path, self.number));
    }

    /// Sends some requests.
    pub(crate) fn ask_some(&mut self, random: &mut Random) {
        for _ in 0..=random.below(8) {
            if self.asked.len() >= ASKED_MAX {
                return;
            }
            let ask = self.ask_of(random);
            self.ask(random, ask);
        }
        self.clients.iter_mut().for_each(Client::send_more);
    }

    fn ask_of(&self, random: &mut Random) -> Ask {
        let sector = random.below(self.sectors);
        let longest = if random.one_in(2) { 3 } else { self.sectors };
        let count = (1 + random.below(longest)).min(self.sectors - sector);
        let (sector, count) = if random.one_in(8) { (0, self.sectors) } else { (sector, count) };
        let (fua, zeros, may_punch) = (random.one_in(4), random.one_in(6), random.one_in(2));
        match random.below(20) {
            // Who was told of a failure asks again.
            _ if self.after_loss.0 && random.one_in(2) => Ask::Flush,
            0..5 => Ask::Read { sector, count },
            5..14 => Ask::Write { sector, count, fua, zeros },
            14..16 => Ask::Zero { sector, count, fua, may_punch },
            16..18 => Ask::Trim { sector, count },
            _ => Ask::Flush,
        }
    }

    fn ask(&mut self, random: &mut Random, ask: Ask) {
        self.number += 1;
        self.version += 1;
        let began = self.oracle.tick();
        let (first, count) = ask.range();
        let (is_data, is_change, weak) = match ask {
            Ask::Write { zeros, .. } => (!zeros, true, false),
            Ask::Zero { .. } => (false, true, false),
            Ask::Trim { .. } => (false, true, true),
            Ask::Read { .. } | Ask::Flush => (false, false, false),
        };
        let version = if is_data { self.version } else { 0 };
        let mut payload = Vec::new();
        for sector in first..first + count {
            let value = value(sector, version);
            if is_change {
                self.oracle.issue(self.number, sector, value, weak);
            }
            if matches!(ask, Ask::Write { .. }) {
                payload.extend(bytes_of(value));
            }
        }
        let mut asked = Asked { ask, began, client: GUEST };
        if let Some(guest) = self.guest.as_ref().filter(|it| it.takes(ask) && random.one_in(2)) {
            guest.send(self.number, ask, &payload);
        } else {
            let client = index(random.below(self.clients.len() as u64));
            let client = &mut self.clients[client];
            client.send(self.number, ask, &payload);
            asked.client = client.number;
        }
        self.asked.insert(self.number, asked);
    }

    /// A client is gone, and comes back at once or later. What it had asked for may be done or not;
    /// but whatever is asked after this comes after it: of the clients, not of a guest, whom they
    /// cannot be.
    pub(crate) fn lose_client(&mut self, random: &mut Random) -> Result<(), String> {
        if self.clients.len() < CLIENTS_MAX && random.one_in(2) {
            self.connect();
            return Ok(());
        }
        if self.guest.is_some() {
            return Ok(());
        }
        // What it was told before counts.
        self.receive()?;
        let lost = self.clients.swap_remove(index(random.below(self.clients.len() as u64))).number;
        self.counts.clients_lost += 1;
        let is_its = |_: &u64, asked: &mut Asked| asked.client == lost;
        let left: Vec<(u64, Asked)> = self.asked.extract_if(.., is_its).collect();
        self.never_answered(left);
        if self.clients.is_empty() || random.one_in(2) {
            self.connect();
        }
        Ok(())
    }

    /// Nobody will hear what became of these.
    fn never_answered(&mut self, asked: impl IntoIterator<Item = (u64, Asked)>) {
        for (number, Asked { ask, .. }) in asked {
            let (first, count) = ask.range();
            if !matches!(ask, Ask::Read { .. } | Ask::Flush) {
                for sector in first..first + count {
                    self.oracle.answer(number, sector, false, false);
                }
            }
        }
    }

    /// A turn of the loop; then the clients take their replies.
    pub(crate) fn turn(&mut self, now: Now, random: &mut Random) -> Result<(), String> {
        self.clients.iter_mut().for_each(Client::send_more);
        self.rig().turn_at(now);
        self.receive()?;
        if let Some(result) = self.rig().answer() {
            self.answered_command(result.map_err(|error| error.errno()), random)?;
        }
        Ok(())
    }

    /// Lets some of the I/O that runs end, as chance wants.
    pub(crate) fn end_some(&mut self, random: &mut Random) {
        for _ in 0..=random.below(6) {
            let stuck = std::mem::take(&mut self.stuck);
            let able: Vec<UnderWay> =
                self.sim().under_way().filter(|io| !stuck.contains(&io.number)).collect();
            self.stuck = stuck;
            if able.is_empty() {
                return;
            }
            let io = able[index(random.below(able.len() as u64))];
            if self.faults.are_there && random.one_in(60) {
                self.stuck.insert(io.number);
                continue;
            }
            if let Some(fault) = self.faults.of(random, io) {
                self.counts.faults += 1;
                self.sim().inject(io.number, fault);
            }
            self.end(io.number);
        }
    }

    fn end(&mut self, number: u64) {
        self.counts.ios += 1;
        self.sim().end(number);
    }

    /// What was stuck goes on.
    pub(crate) fn release(&mut self) {
        self.stuck.clear();
    }

    /// When it wants a turn.
    pub(crate) fn deadline(&mut self) -> Option<Now> {
        self.rig().deadline()
    }

    /// A command of the control thread, if it is one's turn.
    pub(crate) fn command(&mut self, random: &mut Random) {
        match self.commanded {
            None if random.one_in(8) => {
                self.commanded = Some(Commanded::HastyClose);
                self.rig().send(Command::Close);
                self.rig().cancel();
            }
            None if self.is_paused => self.resume(),
            None => {
                if self.depth < self.depth_max && random.one_in(2) {
                    let path = self.folder.join(format!("{}.vhd", self.depth));
                    // Made when it is paused: until then the parent changes.
                    let (kind, uuid) = ("vhd", self.place.uuid);
                    self.next_place = Some(Place { kind, path, uuid });
                }
                self.commanded = Some(Commanded::Pause);
                self.rig().send(Command::Pause);
            }
            // Its client does not wait any longer.
            Some(Commanded::Pause) if random.one_in(4) => self.rig().cancel(),
            Some(_) => {}
        }
    }

    fn resume(&mut self) {
        let place = self.next_place.clone();
        let spec = place.as_ref().map(spec_of);
        let name = place.map(|place| place.text()).unwrap_or_default();
        self.commanded = Some(Commanded::Resume);
        self.rig().send(Command::Resume(spec, name.into()));
    }

    fn answered_command(
        &mut self,
        result: Result<(), Errno>,
        random: &mut Random,
    ) -> Result<(), String> {
        let commanded = self.commanded.take().ok_or("an answer to no command")?;
        match (commanded, result) {
            (Commanded::Pause, Ok(())) => {
                self.counts.pauses += 1;
                self.is_paused = true;
                if let Some(next) = self.next_place.take() {
                    let child = images::child(random, &self.place, next.path, self.sectors);
                    self.next_place = Some(child);
                }
            }
            (Commanded::Pause, Err(Errno::ECANCELED)) => self.next_place = None,
            (Commanded::HastyClose, Err(Errno::ECANCELED)) => {}
            (Commanded::Resume, Ok(())) => {
                self.is_paused = false;
                self.resumed = self.oracle.tick();
                if let Some(place) = self.next_place.take() {
                    self.counts.snapshots += 1;
                    self.place = place;
                    self.depth += 1;
                    (self.faults.is_cached, self.faults.is_raw) = (false, false);
                }
            }
            (Commanded::Close, Ok(())) => self.counts.closes += 1,
            (commanded, result) => return Err(format!("{commanded:?}: {result:?}")),
        }
        // What `list` shows as soon as the command is answered.
        let (is_open, is_paused) = (commanded != Commanded::Close, self.is_paused);
        let found = self.rig().disk_shown();
        if (found & LISTED_PAUSED != 0) != is_paused && is_open || !is_open && found & 2 == 0 {
            return Err(format!("{commanded:?} is done, and list shows {found:#x}"));
        }
        Ok(())
    }

    /// Nothing fails any more: until `is_through`, which must not take long.
    fn run_until(
        &mut self,
        now: &mut Now,
        random: &mut Random,
        what: &str,
        is_through: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        self.release();
        for _ in 0..TURNS_MAX {
            if is_through(self) {
                return Ok(());
            }
            let running: Vec<u64> = self.sim().under_way().map(|io| io.number).collect();
            if running.is_empty()
                && let Some(next) = self.deadline()
            {
                *now = (*now).max(next);
            }
            running.into_iter().for_each(|number| self.end(number));
            self.turn(*now, random)?;
        }
        let mut text = String::new();
        let _ = self.rig().disk().vbd.describe(&mut text);
        Err(format!("{what} does not end, {} requests: {text}", self.asked.len()))
    }

    /// All requests are answered, then the image is closed.
    pub(crate) fn close(&mut self, now: &mut Now, random: &mut Random) -> Result<(), String> {
        if self.commanded.is_some() {
            self.run_until(now, random, "a command", |disk| disk.commanded.is_none())?;
        }
        if self.is_paused && random.one_in(2) {
            self.resume();
        }
        if random.one_in(2) && !self.is_paused {
            self.run_until(now, random, "a request", |disk| {
                disk.asked.is_empty() && disk.commanded.is_none()
            })?;
        }
        self.run_until(now, random, "a command", |disk| disk.commanded.is_none())?;
        self.commanded = Some(Commanded::Close);
        // A guest whose requests wait cannot let go of its device.
        let guest_waits = self.asked.values().any(|asked| asked.client == GUEST);
        let is_forced = guest_waits || random.one_in(4);
        if !guest_waits {
            self.guest.iter_mut().for_each(Guest::close);
        }
        self.rig().send(if is_forced { Command::ForceClose } else { Command::Close });
        self.run_until(now, random, "a close", |disk| disk.commanded.is_none())?;
        self.forget()
    }

    /// The power fails, or the process is killed.
    pub(crate) fn stop(&mut self, is_cut: bool) -> Result<(), String> {
        // What was sent is answered.
        self.receive()?;
        let vbd = &self.rig().disk().vbd;
        if let Some(file) = vbd.chain().and_then(|chain| chain.leaf_file()) {
            let bytes = if is_cut {
                self.sim().power_cut(file)
            } else {
                let store = self.sim().kill(file);
                let bytes = store.bytes().to_vec();
                self.left = (self.place.kind == "aio").then_some(store);
                bytes
            };
            std::fs::write(&self.place.path, bytes).expect("a folder in memory");
        }
        self.forget()
    }

    /// The process is gone, and who asked it something has no answer.
    fn forget(&mut self) -> Result<(), String> {
        self.receive()?;
        let asked = std::mem::take(&mut self.asked);
        self.never_answered(asked);
        (self.rig, self.guest) = (None, None);
        self.clients.clear();
        self.stuck.clear();
        (self.commanded, self.next_place, self.is_paused) = (None, None, false);
        (self.resumed, self.after_loss) = (0, (false, false));
        Ok(())
    }

    /// Whether a flush has been done after one that failed: a cut soon after it shows most.
    pub(crate) fn promised_after_loss(&mut self) -> bool {
        std::mem::take(&mut self.after_loss.1)
    }

    /// For a message.
    pub(crate) fn describe(&self) -> String {
        let (sectors, faults) = (self.sectors, self.faults.are_there);
        format!("{}, {sectors} sectors, depth {}, faults {faults}", self.place.text(), self.depth)
    }
}

fn spec_of(place: &Place) -> ImageSpec {
    ImageSpec::parse(place.text().as_ref()).expect("type and path")
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}
