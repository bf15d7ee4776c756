//! A file on a disk with a volatile cache: what has ended is seen by readers and survives a kill;
//! what an fdatasync covers survives a power cut; of everything else each sector may or may not.

use super::put;

/// Bytes that nothing tears.
pub const SECTOR: usize = 512;

/// What a write does.
#[derive(Clone, Debug)]
pub enum Effect {
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
pub struct Store {
    durable: Vec<u8>,
    seen: Vec<u8>,
    pending: Vec<Pending>,
    next: u64,
}

fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Bytes(offset, data) => put(bytes, *offset as u64, data),
        Effect::Length(length) => bytes.resize(*length, 0),
    }
}

impl Store {
    /// A file with these contents, durable.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { seen: bytes.clone(), durable: bytes, pending: Vec::new(), next: 0 }
    }

    /// What a reader finds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// A write begins.
    pub fn begin(&mut self, effect: Effect) -> u64 {
        self.next += 1;
        self.pending.push(Pending { id: self.next, effect, ended: false, lost: false });
        self.next
    }

    /// Of a write under way only the first `length` bytes are going to be done.
    ///
    /// # Panics
    /// When there is no such write.
    pub fn shorten(&mut self, id: u64, length: usize) {
        if let Effect::Bytes(_, data) = &mut self.write(id).effect {
            data.truncate(length);
        }
    }

    fn write(&mut self, id: u64) -> &mut Pending {
        self.pending.iter_mut().find(|write| write.id == id).expect("a write under way")
    }

    /// It has ended. One that failed may have done any part of it.
    ///
    /// # Panics
    /// When there is no such write.
    pub fn end(&mut self, id: u64, keep: impl FnMut(usize) -> bool, is_done: bool) {
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
    #[must_use]
    pub fn flush_begin(&self) -> Vec<u64> {
        self.pending
            .iter()
            .filter(|write| write.ended && !write.lost)
            .map(|write| write.id)
            .collect()
    }

    /// A durable write has ended. What had ended before it at the same place is overwritten for
    /// good.
    pub fn durable_end(&mut self, id: u64) {
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
            if !overlaps(&older.effect, &mine) {
                rest.push(older);
                continue;
            }
            for effect in pieces(&older.effect, |_| true) {
                if !overlaps(&effect, &mine) {
                    rest.push(Pending { id: older.id, effect, ended: true, lost: older.lost });
                }
            }
        }
        self.pending = rest;
    }

    /// It ended.
    pub fn flush_end(&mut self, covered: &[u64]) {
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
    pub fn flush_failed(&mut self, covered: &[u64]) {
        for write in &mut self.pending {
            write.lost |= covered.contains(&write.id);
        }
    }

    /// How many sectors a power cut may or may not lose now.
    #[must_use]
    pub fn atoms(&self) -> usize {
        self.pending.iter().map(|write| count(&write.effect)).sum()
    }

    /// What a power cut leaves when `keep` says which atoms reached the disk.
    pub fn cut(&self, mut keep: impl FnMut(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut first = 0;
        for write in &self.pending {
            let atoms = count(&write.effect);
            match &write.effect {
                Effect::Length(_) if keep(first) => apply(&mut bytes, &write.effect),
                Effect::Length(_) => {}
                Effect::Bytes(offset, data) => {
                    for (at, (place, sector)) in sectors(*offset, data).enumerate() {
                        if keep(first + at) {
                            put(&mut bytes, place as u64, sector);
                        }
                    }
                }
            }
            first += atoms;
        }
        bytes
    }

    /// What a kill leaves: all that has ended, and of the rest what `keep` says.
    #[must_use]
    pub fn kill(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
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

/// The parts of a write that are in different sectors, and where each is.
fn sectors(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let (head, rest) = data.split_at(data.len().min((SECTOR - offset % SECTOR) % SECTOR));
    let behind = offset + head.len();
    let rest = rest.chunks(SECTOR).enumerate().map(move |(at, it)| (behind + at * SECTOR, it));
    (!head.is_empty()).then_some((offset, head)).into_iter().chain(rest)
}

fn overlaps(effect: &Effect, range: &std::ops::Range<usize>) -> bool {
    matches!(effect, Effect::Bytes(offset, data)
        if *offset < range.end && range.start < offset + data.len())
}

fn count(effect: &Effect) -> usize {
    match effect {
        Effect::Bytes(offset, data) => sectors(*offset, data).count(),
        Effect::Length(_) => 1,
    }
}

fn pieces(effect: &Effect, mut keep: impl FnMut(usize) -> bool) -> Vec<Effect> {
    match effect {
        Effect::Length(_) => keep(0).then(|| effect.clone()).into_iter().collect(),
        Effect::Bytes(offset, data) => sectors(*offset, data)
            .enumerate()
            .filter(|(at, _)| keep(*at))
            .map(|(_, (place, sector))| Effect::Bytes(place, sector.to_vec()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fdatasync_covers_what_had_ended_when_it_began() {
        let mut store = Store::new(vec![0; 1024]);
        let first = store.begin(Effect::Bytes(0, vec![1; 512]));
        let second = store.begin(Effect::Bytes(512, vec![2; 512]));
        store.end(first, |_| true, true);
        let covered = store.flush_begin();
        store.end(second, |_| true, true);
        store.flush_end(&covered);
        assert_eq!(store.cut(|_| false), [[1; 512], [0; 512]].concat());
        assert_eq!(store.bytes(), [[1; 512], [2; 512]].concat());
    }

    #[test]
    fn nothing_is_torn_inside_a_sector_wherever_it_begins() {
        let mut store = Store::new(vec![0; 1024]);
        store.begin(Effect::Bytes(500, vec![1; 24]));
        assert_eq!(store.atoms(), 2);
        let left = store.cut(|atom| atom == 1);
        assert_eq!(left[500..524], [[0; 12], [1; 12]].concat());
    }

    #[test]
    fn a_short_write_does_its_first_bytes() {
        let mut store = Store::new(vec![0; 1024]);
        let write = store.begin(Effect::Bytes(0, vec![1; 1024]));
        store.shorten(write, 512);
        store.end(write, |_| true, true);
        assert_eq!(store.bytes(), [[1; 512], [0; 512]].concat());
    }
}
