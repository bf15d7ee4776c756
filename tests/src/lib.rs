//! What the tests of the real programs share: a host of their own, and an NBD client.
//!
//! A [`Host`] is a directory with a run directory, a place for shared memory and images; programs
//! are started with the environment that points there, so that tests need no root and do not meet.
//! What a host started it stops, by its pid, when it is dropped.

#![forbid(unsafe_code)]

mod host;
pub mod load;
pub mod nbd;
pub mod storage;
pub mod vhd;

use std::time::{Duration, Instant};

pub use host::{Daemon, Host, Ran, build_programs};
pub use storage::{Frozen, LoopDevice, Mount};

/// Says why a test does nothing here. The line is for a person who reads the log.
pub fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Whether a program that is not ours is there; says so when it is not.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
    });
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// How long a test waits for anything: only ever reached when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds, that no descriptor tells of.
///
/// # Panics
/// When it does not after [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        // Looks again in a moment; nobody else is kept from the processor.
        let _ = nix::poll::poll(&mut [], 2_u8);
    }
}

/// Whether a process has ended, whoever has to reap it.
#[must_use]
pub fn has_ended(pid: i32) -> bool {
    // After the name in parentheses, which may hold anything: the state.
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Numbers that a seed reproduces (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence; equal seeds give equal ones.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}
