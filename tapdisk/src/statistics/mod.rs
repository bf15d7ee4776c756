//! What a disk counts, and how others read it.
//!
//! ```text
//!   I/O thread ──> DiskCounters ══ shared, relaxed atomics ══> CountersReader ──> stats_json
//!        └───────> StatsPage      one page in /dev/shm per disk and door, read by other programs
//! ```
//!
//! One thread writes, anybody reads, nobody waits: a counter is a load, an addition and a store. A
//! reader may see one counter of a request and not yet the other; each by itself is exact.
//!
//! Counting allocates nothing: the tables have their full size from the start.

mod counters;
mod histogram;
mod json;
mod page;
mod pages;
mod report;

pub use counters::{
    CountersReader, DOORS_MAX, DiskCounters, DiskStats, ImageStats, LAYERS_MAX, OpClass, OpStats,
};
pub use histogram::Histogram;
pub use json::Json;
pub use page::{PageKind, PageValues, StatsDirectory, StatsPage};
pub use pages::DiskPages;
pub use report::{
    DriverStatus, ImageView, NbdView, QueueView, StatsView, TapView, stats_json, stats_json_all,
};
