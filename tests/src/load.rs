//! A load that knows what it was promised: NBD clients, each with up to 32 requests in flight, in
//! sectors of its own.
//!
//! Every write of a sector carries the next version of it, and a client has at most one change of a
//! sector in flight: so each read has exactly one right answer, and so has the image at the end.
//! After a kill a sector whose change was not answered has one of two.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Random;
use crate::nbd::{NbdClient, command};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Requests in flight of a client.
pub const DEPTH: usize = 32;

/// Clients of [`run_all`].
pub const CLIENTS: u64 = 4;

/// What a sector holds: its number and version, all over it. Version 0 is zeros.
#[must_use]
pub fn content(sector: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; SECTOR];
    }
    [sector.to_le_bytes(), version.to_le_bytes()].concat().repeat(SECTOR / 16)
}

/// What is known of a sector.
#[derive(Clone, Copy, Debug, Default)]
struct Sector {
    /// The version that the last change gave it.
    now: u64,
    /// The version before a change that was not answered.
    before: u64,
    newest: u64,
    busy: bool,
}

/// A request in flight: some sectors, changed or read.
struct InFlight {
    start: usize,
    count: usize,
    is_read: bool,
}

/// The sectors of one client, and how it goes on.
pub struct Load {
    first: u64,
    sectors: Vec<Sector>,
    random: Random,
    zeroes: bool,
    in_flight: HashMap<u64, InFlight>,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Load").field("first", &self.first).finish_non_exhaustive()
    }
}

impl Load {
    /// So many sectors from `first` on, all zeros so far. `zeroes`: also asks for zeros.
    #[must_use]
    pub fn new(seed: u64, first: u64, count: u64, zeroes: bool) -> Self {
        let count = usize::try_from(count).expect("few sectors");
        let sectors = vec![Sector::default(); count];
        Self { first, sectors, random: Random::new(seed), zeroes, in_flight: HashMap::new() }
    }

    /// Sends one request, to sectors for which none is under way.
    fn send(&mut self, client: &mut NbdClient) -> io::Result<()> {
        if self.random.below(50) == 0 {
            let cookie = client.send(command::FLUSH, 0, 0, &[])?;
            self.in_flight.insert(cookie, InFlight { start: 0, count: 0, is_read: false });
            return Ok(());
        }
        let below = |random: &mut Random, bound: usize| {
            usize::try_from(random.below(bound as u64)).expect("below a usize")
        };
        let count = (1 + below(&mut self.random, 16)).min(self.sectors.len());
        let start = below(&mut self.random, self.sectors.len() - count + 1);
        let range = start..start + count;
        if self.sectors[range.clone()].iter().any(|sector| sector.busy) {
            return Ok(());
        }
        let kind = self.random.below(if self.zeroes { 7 } else { 6 });
        let (is_read, is_zero) = (kind < 2, kind == 6);
        for sector in &mut self.sectors[range.clone()] {
            sector.busy = true;
            if !is_read {
                sector.before = sector.now;
                sector.newest += 1;
                sector.now = if is_zero { 0 } else { sector.newest };
            }
        }
        let first = self.first + start as u64;
        let len = u32::try_from(count * SECTOR).expect("a few sectors");
        let (command, data) = if is_read {
            (command::READ, Vec::new())
        } else if is_zero {
            (command::WRITE_ZEROES, Vec::new())
        } else {
            let numbered = (first..).zip(&self.sectors[range]);
            (command::WRITE, numbered.flat_map(|(at, it)| content(at, it.now)).collect())
        };
        // Before it is sent: whatever becomes of the connection, the change may have happened.
        let cookie = client.next_cookie();
        self.in_flight.insert(cookie, InFlight { start, count, is_read });
        client.send(command, first * SECTOR as u64, len, &data).map(drop)
    }

    /// Receives one reply and checks it.
    fn receive(&mut self, client: &mut NbdClient) -> io::Result<()> {
        let (error, cookie) = client.reply()?;
        assert_eq!(error, 0, "request {cookie}");
        let request = self.in_flight.get(&cookie).expect("one request, one reply");
        let range = request.start..request.start + request.count;
        if request.is_read {
            let mut found = vec![0; request.count * SECTOR];
            client.stream.read_exact(&mut found)?;
            self.check(request.start, &found);
        }
        self.in_flight.remove(&cookie);
        self.sectors[range].iter_mut().for_each(|sector| sector.busy = false);
        Ok(())
    }

    /// Compares what was found from a sector on.
    fn check(&self, start: usize, found: &[u8]) {
        for (at, found) in (start..).zip(found.chunks(SECTOR)) {
            let (number, version) = (self.first + at as u64, self.sectors[at].now);
            let head = &found[..16];
            assert!(found == content(number, version), "sector {number} not {version}: {head:?}");
        }
    }

    /// Runs until it is told to stop, then waits for what is in flight.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn run(&mut self, socket: &Path, stop: &AtomicBool, done: &AtomicU64) -> io::Result<()> {
        let mut client = NbdClient::connect(socket)?;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..4 * DEPTH {
                if self.in_flight.len() < DEPTH {
                    self.send(&mut client)?;
                }
            }
            self.receive(&mut client)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        while !self.in_flight.is_empty() {
            self.receive(&mut client)?;
        }
        Ok(())
    }

    /// Takes note of what was in flight when the server died.
    fn forget(&mut self) {
        for request in std::mem::take(&mut self.in_flight).into_values() {
            for sector in &mut self.sectors[request.start..request.start + request.count] {
                sector.busy = !request.is_read;
            }
        }
    }

    /// Compares all sectors with what is stored: `read` gets the offset and length in bytes. What
    /// was in flight when the server died may have happened or not; now it is known.
    ///
    /// # Panics
    /// When something answered is missing.
    pub fn verify(&mut self, read: impl FnOnce(u64, usize) -> Vec<u8>) {
        self.forget();
        let found = read(self.first * SECTOR as u64, self.sectors.len() * SECTOR);
        for (at, found) in found.chunks(SECTOR).enumerate() {
            let number = self.first + at as u64;
            let sector = &mut self.sectors[at];
            if std::mem::take(&mut sector.busy) && found == content(number, sector.before) {
                sector.now = sector.before;
            }
        }
        self.check(0, &found);
    }
}

/// Loads for [`run_all`], with so many sectors each.
#[must_use]
pub fn loads(sectors_each: u64, zeroes: bool) -> Vec<Load> {
    (0..CLIENTS)
        .map(|number| Load::new(100 + number, number * sectors_each, sectors_each, zeroes))
        .collect()
}

/// Runs loads against a socket while `meanwhile` runs, which gets the number of requests answered
/// so far; then stops them. Returns how many requests were answered, and whether the server was
/// there to the end.
///
/// # Panics
/// When a load finds something that it should not.
pub fn run_all(
    loads: &mut [Load],
    socket: &Path,
    meanwhile: impl FnOnce(&AtomicU64),
) -> (u64, io::Result<()>) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        let (stop, done) = (&stop, &done);
        let running: Vec<_> = loads
            .iter_mut()
            .map(|load| scope.spawn(move || load.run(socket, stop, done)))
            .collect();
        meanwhile(done);
        stop.store(true, Ordering::Relaxed);
        let ends = running.into_iter().map(|load| load.join().expect("a load does not panic"));
        ends.collect::<Vec<_>>().into_iter().collect()
    });
    (done.load(Ordering::Relaxed), result)
}
