//! Whole disks on simulated storage, in virtual time: the loop of the daemon, its doors, slots,
//! retries, queue and images, and the commands that pause, snapshot and close them.
//!
//! A seed decides everything: requests of several clients and of a guest behind the ring, the order
//! and the fate of each I/O, when a command comes, and when the power fails. The model of what may
//! be read afterwards is the oracle of the engine's simulator; the promises are those of
//! docs/durability.md.

mod client;
mod counts;
mod disk;
mod faults;
mod guest;
mod images;
mod world;
