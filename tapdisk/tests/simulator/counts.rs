//! What a simulation went through.

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) ios: u64,
    pub(crate) faults: u64,
    pub(crate) cuts: u64,
    pub(crate) kills: u64,
    pub(crate) closes: u64,
    pub(crate) pauses: u64,
    pub(crate) snapshots: u64,
    pub(crate) clients_lost: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.ios += other.ios;
        self.faults += other.faults;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.closes += other.closes;
        self.pauses += other.pauses;
        self.snapshots += other.snapshots;
        self.clients_lost += other.clients_lost;
    }
}
