//! One machine for many tests of a program: started by the first, used by one after another.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};

use crate::machine::Machine;
use crate::remote::lock;
use crate::{Result, VmError};

/// A place for a machine, for a `static`. The machine ends with the process.
#[derive(Debug)]
pub struct Shared {
    boot: fn() -> Result<Machine>,
    machine: Mutex<Option<Machine>>,
}

/// The machine, for one test at a time.
#[derive(Debug)]
pub struct Lent<'a>(MutexGuard<'a, Option<Machine>>);

impl Deref for Lent<'_> {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        self.0.as_ref().expect("lent only when there is one")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // A test that failed may have left anything behind: the next one gets a new machine.
        if std::thread::panicking() {
            *self.0 = None;
        }
    }
}

impl Shared {
    /// How it is started, when it is needed.
    #[must_use]
    pub const fn new(boot: fn() -> Result<Machine>) -> Self {
        Self { boot, machine: Mutex::new(None) }
    }

    /// The machine, once nobody else uses it; a new one when the last test failed or broke it.
    /// Nothing, and a line that says why, where there can be none.
    ///
    /// # Panics
    /// When it does not start.
    pub fn lend(&self) -> Option<Lent<'_>> {
        let mut machine = lock(&self.machine);
        if machine.as_ref().is_none_or(Machine::is_gone) {
            *machine = None;
            match (self.boot)() {
                Ok(booted) => *machine = Some(booted),
                Err(VmError::Unavailable(reason)) => {
                    tapdisk_tests::skip(&reason);
                    return None;
                }
                Err(error) => panic!("The machine did not start: {error}"),
            }
        }
        Some(Lent(machine))
    }
}
