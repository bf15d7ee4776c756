//! The flat model: for each sector of the disk the values that it may have, by the promises of
//! docs/durability.md.

/// A value of a sector: its own number and a version, so that bytes of another place are known for
/// what they are. Version 0 of every sector is zeros.
pub type Value = u64;

/// The value of a version of a sector.
#[must_use]
pub fn value(sector: u64, version: u32) -> Value {
    if version == 0 { 0 } else { (sector + 1) << 32 | u64::from(version) }
}

/// The bytes of a value.
#[must_use]
pub fn bytes_of(value: Value) -> Vec<u8> {
    value.to_be_bytes().repeat(64)
}

/// The value of bytes; `None` when they are of no single one.
#[must_use]
pub fn value_of(bytes: &[u8]) -> Option<Value> {
    let first = Value::from_be_bytes(*bytes.first_chunk()?);
    let (eights, _) = bytes.as_chunks::<8>();
    eights.iter().all(|eight| Value::from_be_bytes(*eight) == first).then_some(first)
}

#[derive(Clone, Copy, Debug)]
struct Version {
    value: Value,
    request: u64,
    issued: u64,
    /// When it was answered, and whether it was done.
    ended: Option<(u64, bool)>,
    /// A trim: it may have happened, and takes nothing away.
    weak: bool,
    /// A flush that covered it failed.
    lost: bool,
    /// Something newer is durable: only a reader that began before may see it.
    gone: bool,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Oracle {
    sectors: Vec<Vec<Version>>,
    now: u64,
}

impl Oracle {
    /// A disk with these values, all durable.
    #[must_use]
    pub fn new(values: Vec<Value>) -> Self {
        let first = |value| {
            vec![Version {
                value,
                request: 0,
                issued: 0,
                ended: Some((0, true)),
                weak: false,
                lost: false,
                gone: false,
            }]
        };
        Self { sectors: values.into_iter().map(first).collect(), now: 1 }
    }

    /// Time passes with everything that happens.
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A request that gives a sector a value begins.
    pub fn issue(&mut self, request: u64, sector: u64, value: Value, weak: bool) {
        let issued = self.tick();
        let version =
            Version { value, request, issued, ended: None, weak, lost: false, gone: false };
        self.sectors[sector as usize].push(version);
    }

    /// It was answered. With `durable` what was there before it is gone for good.
    pub fn answer(&mut self, request: u64, sector: u64, is_done: bool, durable: bool) {
        let now = self.tick();
        let versions = &mut self.sectors[sector as usize];
        for version in versions.iter_mut().filter(|version| version.request == request) {
            version.ended = Some((now, is_done));
        }
        if is_done && durable {
            prune(versions, now, Some(request));
        }
    }

    /// A flush that was issued at `issued` is done. The oldest reader began at `reader`.
    pub fn flushed(&mut self, issued: u64, reader: u64) {
        for versions in &mut self.sectors {
            prune(versions, issued, None);
            let all = versions.clone();
            let seen = |old: &Version| !all.iter().any(|other| replaces(other, old, reader));
            versions.retain(|version| !version.gone || seen(version));
        }
    }

    /// A flush has failed: what was done before may be lost, and nobody can rely on it.
    pub fn lost(&mut self) {
        self.lost_before(u64::MAX);
    }

    /// The same of what had ended by then.
    pub fn lost_before(&mut self, time: u64) {
        for version in self.sectors.iter_mut().flatten() {
            version.lost |= version.ended.is_some_and(|(ended, _)| ended <= time);
        }
    }

    /// Whether a sector may have this value after a power cut.
    #[must_use]
    pub fn survives_cut(&self, sector: u64, value: Value) -> bool {
        self.sectors[sector as usize].iter().any(|version| version.value == value && !version.gone)
    }

    /// Whether a reader that began at `began` may see it, or somebody after a kill.
    #[must_use]
    pub fn is_current(&self, sector: u64, value: Value, began: u64) -> bool {
        let versions = &self.sectors[sector as usize];
        versions.iter().any(|version| {
            version.value == value && !versions.iter().any(|other| replaces(other, version, began))
        })
    }

    /// What a power cut left is durable now.
    pub fn restart(&mut self, values: &[Value]) {
        let now = self.tick();
        for (versions, value) in self.sectors.iter_mut().zip(values) {
            let ended = Some((now, true));
            *versions = vec![Version {
                value: *value,
                request: 0,
                issued: now,
                ended,
                weak: false,
                lost: false,
                gone: false,
            }];
        }
    }

    /// For a message.
    #[must_use]
    pub fn describe(&self, sector: u64) -> String {
        format!("{:x?}", self.sectors[sector as usize])
    }
}

/// Whether `newer` came after `older` had ended, and was done by `until`.
fn replaces(newer: &Version, older: &Version, until: u64) -> bool {
    let done = newer.ended.is_some_and(|(at, is_done)| is_done && at <= until);
    done && !newer.weak && older.ended.is_some_and(|(at, _)| at < newer.issued)
}

fn prune(versions: &mut [Version], until: u64, by: Option<u64>) {
    for at in 0..versions.len() {
        let old = versions[at];
        let counts = |other: &Version| by.is_none_or(|request| other.request == request);
        versions[at].gone |= versions
            .iter()
            .any(|other| counts(other) && !other.lost && replaces(other, &old, until));
    }
}
