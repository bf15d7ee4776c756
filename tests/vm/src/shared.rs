//! Machines for many tests of a program: started when they are needed, lent to one test after
//! another. Two at once, so that two test threads have one each.

use std::ops::Deref;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::machine::Machine;
use crate::remote::lock;
use crate::{Result, VmError};

/// How many machines there are at most: an emulated one keeps one processor busy, and a third would
/// take longer to start than what it saves.
const MACHINES: usize = 2;

/// A place for machines of one kind, for a `static`. They end with the process.
#[derive(Debug)]
pub struct Shared {
    boot: fn() -> Result<Machine>,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    idle: Vec<Machine>,
    /// Those that tests have, and those that start.
    lent: usize,
}

/// A machine, for one test.
#[derive(Debug)]
pub struct Lent<'a> {
    /// Always there until this is dropped.
    machine: Option<Machine>,
    from: &'a Shared,
}

impl Deref for Lent<'_> {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        self.machine.as_ref().expect("taken only by drop")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // A test that failed may have left anything behind: the next one gets a new machine.
        let machine = self.machine.take().filter(|_| !std::thread::panicking());
        self.from.take_back(machine);
    }
}

impl Shared {
    /// How one is started, when it is needed.
    #[must_use]
    pub const fn new(boot: fn() -> Result<Machine>) -> Self {
        let state = State { idle: Vec::new(), lent: 0 };
        Self { boot, state: Mutex::new(state), returned: Condvar::new() }
    }

    /// A machine that nobody else uses; a new one while there are not enough, or when the last test
    /// failed or broke its own. Nothing, and a line that says why, where there can be none.
    ///
    /// # Panics
    /// When it does not start.
    pub fn lend(&self) -> Option<Lent<'_>> {
        let idle = self.idle();
        let machine = match idle.map_or_else(self.boot, Ok) {
            Ok(machine) => machine,
            Err(error) => {
                self.take_back(None);
                let VmError::Unavailable(reason) = error else {
                    panic!("The machine did not start: {error}");
                };
                tapdisk_tests::skip(&reason);
                return None;
            }
        };
        Some(Lent { machine: Some(machine), from: self })
    }

    /// A machine that waits for a test; nothing when the test is to start one.
    fn idle(&self) -> Option<Machine> {
        let mut state = lock(&self.state);
        loop {
            while let Some(machine) = state.idle.pop() {
                if !machine.is_gone() {
                    state.lent += 1;
                    return Some(machine);
                }
            }
            if state.lent < MACHINES {
                state.lent += 1;
                return None;
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_back(&self, machine: Option<Machine>) {
        let mut state = lock(&self.state);
        state.lent -= 1;
        state.idle.extend(machine);
        self.returned.notify_one();
    }
}
