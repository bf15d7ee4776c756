//! The ring door in front of `null:`: reads of 4 KiB through the loop of the daemon, from the
//! ring's page to the response, on one thread, turn by turn.
//!
//! ```text
//! ring_null [REQUESTS [DEPTH [TURNS]]]
//! ```
//!
//! The simulated driver stands on the other side of the ring: no data is copied there. DEPTH
//! requests are submitted at once; after each TURNS turns of the loop what has ended is replaced.
//! With one turn the guest is quick and the loop never sleeps; with two the loop finds the ring
//! empty once for each batch, which is the dearer way.
//!
//! Prints how many requests were taken, and how many system calls the door made: in this process
//! they are calls of the simulated driver.

use std::env;
use std::error::Error;
use std::fs;

use blktap_ioctl::sim::{self, Segments, SimDevice, SimOptions};
use tapdisk::disk::rig::Rig;
use tapdisk::queue::EngineKind;

/// Sectors of 512 bytes: the disk of `null:1G`.
const SECTORS: u64 = 1 << 21;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1).map(|text| text.parse::<u64>());
    let requests = arguments.next().transpose()?.unwrap_or(100_000);
    let depth = arguments.next().transpose()?.unwrap_or(32).max(1);
    let turns = arguments.next().transpose()?.unwrap_or(1).max(1);

    let folder = env::temp_dir().join(format!("ring-null-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let options = SimOptions { poison: false, copy_data: false, ..SimOptions::default() };
    let (ring, device) = sim::create(options)?;
    let mut rig = Rig::new(&folder, EngineKind::Aio, Some(ring))?;
    rig.open("null:1G")?;
    let mut submitted = 0;
    let mut ended = 0;
    while ended < requests {
        let want = depth.min(requests - ended);
        submitted = submit(&device, submitted, ended + want)?;
        for _ in 0..turns {
            rig.turn();
        }
        device.completions(|completion| {
            assert!(completion.outcome.is_ok(), "{completion:?}");
            ended += 1;
        });
    }
    let ring = rig.disk().ring.as_ref().ok_or("the disk has no ring")?.statistics();
    println!("requests {} polls {} responds {}", ring.taken, ring.polls, ring.kicks_out);
    rig.close()?;
    drop(rig);
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Submits reads up to number `until`, all over the disk.
fn submit(device: &SimDevice, from: u64, until: u64) -> Result<u64, Box<dyn Error>> {
    for number in from..until {
        let sector = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SECTORS / 8) * 8;
        device.submit_read(number, sector, Segments::plain(4096))?;
    }
    Ok(until)
}
