//! The ring against the kernel's half: what one may rely on, and what nobody can do to it.
// All of this crate is tests, its helpers too.
#![allow(clippy::unwrap_used)]

mod device;
mod events;
mod hostile;
mod property;
mod requests;
mod teardown;

use blktap_ioctl::abi::{ENTRY_SIZE, OP_READ};
use blktap_ioctl::sim::{Driver, Outcome, SimDevice, SimOptions, serve};
use blktap_ioctl::{DeviceParams, MappedRing, RingRequest, TrimParams};

/// Sectors of 512 bytes of the disk that the tests serve.
const SECTORS: u64 = 4096;

/// A ring that is served, with flush and trim.
fn attach() -> (MappedRing, SimDevice) {
    attach_with(SimOptions { driver: Driver::Dkms, ..SimOptions::default() })
}

fn attach_with(options: SimOptions) -> (MappedRing, SimDevice) {
    let trim = TrimParams { granularity: 512, alignment: 0, reads_zero: false };
    let params = DeviceParams { flush: true, trim: Some(trim), ..DeviceParams::new(SECTORS) };
    serve(options, &params).unwrap()
}

/// Polls, and takes all that is there; all of it well-formed.
fn take_all(ring: &mut MappedRing) -> Vec<RingRequest> {
    ring.poll_now().unwrap();
    std::iter::from_fn(|| ring.take()).map(|taken| taken.unwrap()).collect()
}

/// What came back: cookies and outcomes.
fn completed(device: &SimDevice) -> Vec<(u64, Outcome)> {
    let mut all = Vec::new();
    device.completions(|completion| all.push((completion.cookie, completion.outcome)));
    all
}

/// A read of one page, as the driver would publish it.
fn read_entry(id: u64) -> [u8; ENTRY_SIZE] {
    let mut entry = [0; ENTRY_SIZE];
    entry[0] = OP_READ;
    entry[1] = 1;
    entry[8..16].copy_from_slice(&id.to_ne_bytes());
    entry[29] = 7;
    entry
}
