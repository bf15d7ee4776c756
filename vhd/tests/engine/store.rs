//! A file on a disk with a volatile cache: what has ended is seen by readers and survives a kill;
//! what an fdatasync covers survives a power cut; of everything else each sector may or may not.

/// Bytes that nothing tears.
pub(crate) const SECTOR: usize = 512;

/// What a write does.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// Bytes at an offset.
    Bytes(usize, Vec<u8>),
    /// A new length.
    Length(usize),
}

#[derive(Clone, Debug)]
struct Pending {
    id: u64,
    effect: Effect,
    ended: bool,
    /// An fdatasync that covered it failed: no later one makes it durable.
    lost: bool,
}

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    durable: Vec<u8>,
    seen: Vec<u8>,
    pending: Vec<Pending>,
    next: u64,
}

fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Bytes(offset, data) => put(bytes, *offset, data),
        Effect::Length(length) => bytes.resize(*length, 0),
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

impl Store {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { seen: bytes.clone(), durable: bytes, pending: Vec::new(), next: 0 }
    }

    /// What a reader finds.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// A write begins.
    pub(crate) fn begin(&mut self, effect: Effect) -> u64 {
        self.next += 1;
        self.pending.push(Pending { id: self.next, effect, ended: false, lost: false });
        self.next
    }

    /// It has ended. One that failed may have done any part of it.
    pub(crate) fn end(&mut self, id: u64, keep: impl FnMut(usize) -> bool, is_done: bool) {
        let at = self.pending.iter().position(|write| write.id == id).expect("a write under way");
        // The order in which writes end is that in which they count.
        let mut write = self.pending.remove(at);
        write.ended = true;
        if is_done {
            apply(&mut self.seen, &write.effect);
            self.pending.push(write);
        } else {
            for effect in pieces(&write.effect, keep) {
                apply(&mut self.seen, &effect);
                self.next += 1;
                self.pending.push(Pending { id: self.next, effect, ended: true, lost: false });
            }
        }
    }

    /// An fdatasync begins: what it covers.
    pub(crate) fn flush_begin(&self) -> Vec<u64> {
        self.pending
            .iter()
            .filter(|write| write.ended && !write.lost)
            .map(|write| write.id)
            .collect()
    }

    /// A durable write has ended. What had ended before it at the same place is overwritten for
    /// good.
    pub(crate) fn durable_end(&mut self, id: u64) {
        while let Some(at) = self.pending.iter().position(|write| write.id == id) {
            self.make_durable(at);
        }
    }

    fn make_durable(&mut self, at: usize) {
        let write = self.pending.remove(at);
        apply(&mut self.durable, &write.effect);
        let Effect::Bytes(offset, data) = &write.effect else { return };
        let mine = *offset..offset + data.len();
        let mut rest = Vec::new();
        for (index, older) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if index >= at || !older.ended {
                rest.push(older);
                continue;
            }
            for effect in pieces(&older.effect, |_| true) {
                if !matches!(&effect, Effect::Bytes(at, _) if mine.contains(at)) {
                    rest.push(Pending { id: older.id, effect, ended: true, lost: older.lost });
                }
            }
        }
        self.pending = rest;
    }

    /// It ended.
    pub(crate) fn flush_end(&mut self, covered: &[u64]) {
        if self.pending.iter().any(|write| write.lost) {
            covered.iter().for_each(|id| self.durable_end(*id));
            return;
        }
        let durable = &mut self.durable;
        self.pending.retain(|write| {
            let is_covered = covered.contains(&write.id);
            if is_covered {
                apply(durable, &write.effect);
            }
            !is_covered
        });
    }

    /// It failed.
    pub(crate) fn flush_failed(&mut self, covered: &[u64]) {
        for write in &mut self.pending {
            write.lost |= covered.contains(&write.id);
        }
    }

    /// How many sectors a power cut may or may not lose now.
    pub(crate) fn atoms(&self) -> usize {
        self.pending.iter().map(|write| count(&write.effect)).sum()
    }

    /// What a power cut leaves when `keep` says which atoms reached the disk.
    pub(crate) fn cut(&self, mut keep: impl FnMut(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut first = 0;
        for write in &self.pending {
            let atoms = count(&write.effect);
            match &write.effect {
                Effect::Length(_) if keep(first) => apply(&mut bytes, &write.effect),
                Effect::Length(_) => {}
                Effect::Bytes(offset, data) => {
                    for (at, sector) in data.chunks(SECTOR).enumerate() {
                        if keep(first + at) {
                            put(&mut bytes, offset + at * SECTOR, sector);
                        }
                    }
                }
            }
            first += atoms;
        }
        bytes
    }

    /// What a kill leaves: all that has ended, and of the rest what `keep` says.
    pub(crate) fn kill(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut store = self.clone();
        let running: Vec<u64> =
            self.pending.iter().filter(|write| !write.ended).map(|write| write.id).collect();
        for id in running {
            store.end(id, &mut keep, false);
        }
        // What follows is another process and another descriptor.
        store.pending.iter_mut().for_each(|write| write.lost = false);
        store
    }
}

fn count(effect: &Effect) -> usize {
    match effect {
        Effect::Bytes(_, data) => data.len().div_ceil(SECTOR),
        Effect::Length(_) => 1,
    }
}

fn pieces(effect: &Effect, mut keep: impl FnMut(usize) -> bool) -> Vec<Effect> {
    match effect {
        Effect::Length(_) => keep(0).then(|| effect.clone()).into_iter().collect(),
        Effect::Bytes(offset, data) => data
            .chunks(SECTOR)
            .enumerate()
            .filter(|(at, _)| keep(*at))
            .map(|(at, sector)| Effect::Bytes(offset + at * SECTOR, sector.to_vec()))
            .collect(),
    }
}
