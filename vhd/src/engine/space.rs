//! Places for blocks: where the next one goes, which are free, which are not free yet.
//!
//! A place is the sector of a bitmap; the data behind it begins on 4096 bytes.

use super::changes::CHANGES_MAX;
use super::lowest::LowestFirst;
use super::ready::READY_MAX;
use super::setup::{Growth, Rule};
use super::step::ZEROS_MAX;

/// Sectors of 4096 bytes.
const ALIGNMENT: u64 = 8;

/// The last place that an entry can name: one below the entry that names none.
const PLACE_MAX: u64 = u32::MAX as u64 - 1;

/// So many places the file is made longer than it has to be: holes, which the close cuts off.
const AHEAD: u64 = 64;

/// Freed places that are not free yet: more frees than this wait.
pub(super) const QUARANTINE_MAX: usize = 1024;

/// A place whose block is gone from memory and from the written table.
struct Gone {
    place: u32,
    /// Requests up to this number may still touch it; set when the owner tells of requests.
    until: Option<u64>,
    /// An fdatasync began after the table was written.
    is_covered: bool,
    /// And ended (R3).
    is_durable: bool,
}

/// Where blocks can be.
pub(super) struct Space {
    block_sectors: u64,
    /// Where the first can be.
    start: u64,
    /// All blocks begin and end on 4096 bytes: before each bitmap there is a gap that is nobody's,
    /// but for an old end footer.
    is_aligned: bool,
    growth: Growth,
    /// The first sector behind all places that were ever handed out.
    end: u64,
    /// Where the end footer is on the disk.
    footer: u64,
    /// Places that read as zeros.
    clean: LowestFirst,
    /// Places that hold anything.
    dirty: LowestFirst,
    /// Places of durable zeros with a durable bitmap of ones.
    ready: LowestFirst,
    /// Of the disk.
    blocks: u64,
    quarantine: Vec<Gone>,
    without: Option<Rule>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { end, clean, dirty, ready, quarantine, .. } = self;
        let [clean, dirty, ready] = [clean, dirty, ready].map(LowestFirst::len);
        let going = quarantine.len();
        write!(out, "up to sector {end}, {ready} ready, {clean} clean, {dirty} free, {going} going")
    }
}

impl Space {
    /// `places`, sorted and apart from each other, are taken; what is between them is free. The
    /// disk has at most so many `blocks`.
    pub(super) fn new(
        places: &[u32],
        blocks: usize,
        data_sector: u64,
        block_sectors: u32,
        growth: Growth,
        without: Option<Rule>,
    ) -> Self {
        let is_aligned = u64::from(block_sectors).is_multiple_of(ALIGNMENT)
            && places.iter().all(|place| (u64::from(*place) + 1).is_multiple_of(ALIGNMENT));
        let mut space = Self {
            block_sectors: u64::from(block_sectors),
            start: data_sector,
            is_aligned,
            growth,
            end: data_sector,
            footer: 0,
            clean: LowestFirst::default(),
            dirty: LowestFirst::default(),
            ready: LowestFirst::with_capacity(READY_MAX),
            blocks: blocks as u64,
            quarantine: Vec::with_capacity(QUARANTINE_MAX),
            without,
        };
        for place in places.iter().copied().map(u64::from) {
            // More than the disk has blocks are of no use: a hostile table makes no long list.
            while let gap = space.next()
                && space.behind(gap) <= place
                && space.dirty.len() < blocks
            {
                space.dirty.push(small(gap));
                space.end = space.behind(gap);
            }
            space.end = space.behind(place);
        }
        space.footer = space.end;
        // Each block may be freed, and each place given back: no allocation then. Memory that is
        // not touched costs nothing.
        let most = blocks + usize::from(CHANGES_MAX) + READY_MAX + space.dirty.len();
        space.dirty.reserve(most);
        space.clean.reserve(most);
        space
    }

    /// The first sector of a place.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether the seven sectors before the bitmap of a place are nobody's.
    pub(super) fn has_gap_before(&self, place: u32) -> bool {
        self.is_aligned && u64::from(place) >= self.start + u64::from(ZEROS_MAX)
    }

    fn behind(&self, place: u64) -> u64 {
        place + 1 + self.block_sectors
    }

    /// The place behind all others.
    fn next(&self) -> u64 {
        self.end + (ALIGNMENT - (self.end + 1) % ALIGNMENT) % ALIGNMENT
    }

    /// A place, and whether it reads as zeros; `None` when there is none left.
    pub(super) fn take(&mut self) -> Option<(u32, bool)> {
        let is_file = matches!(self.growth, Growth::File { .. });
        if let Some(place) = self.dirty.pop() {
            return Some((place, false));
        }
        if let Some(place) = self.clean.pop() {
            return Some((place, true));
        }
        self.grow().map(|place| (place, is_file))
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// A place that is ready.
    pub(super) fn take_ready(&mut self) -> Option<u32> {
        self.ready.pop()
    }

    /// It is ready.
    pub(super) fn add_ready(&mut self, place: u32) {
        self.ready.push(place);
    }

    /// Whether there is a place that could be made ready.
    pub(super) fn can_make_ready(&self) -> bool {
        !self.clean.is_empty() || self.next() <= PLACE_MAX
    }

    /// A place that reads as zeros, to be made ready. Ahead of need the file grows to as many
    /// places as the disk has blocks, and not further.
    pub(super) fn take_to_make_ready(&mut self, is_needed: bool) -> Option<u32> {
        if let Some(place) = self.clean.pop() {
            return Some(place);
        }
        (is_needed || self.left() > 0).then(|| self.grow()).flatten()
    }

    /// From one place to the next.
    fn stride(&self) -> u64 {
        (self.block_sectors + 1).next_multiple_of(ALIGNMENT)
    }

    /// How many places more there are to be, until there are as many as the disk has blocks.
    fn left(&self) -> u64 {
        self.blocks.saturating_sub((self.end - self.start).div_ceil(self.stride()))
    }

    fn grow(&mut self) -> Option<u32> {
        let place = self.next();
        let is_inside = match self.growth {
            Growth::File { .. } => true,
            Growth::Device { end_sector } => self.behind(place) <= end_sector,
        };
        if place > PLACE_MAX || !is_inside {
            return None;
        }
        self.end = self.behind(place);
        Some(small(place))
    }

    /// Whether no place could follow, whatever the storage had: no entry can name one.
    pub(super) fn is_at_limit(&self) -> bool {
        self.next() > PLACE_MAX
    }

    /// Takes a place back that no table ever named.
    pub(super) fn give_back(&mut self, place: u32) {
        self.dirty.push(place);
    }

    /// A place that may be cleaned: given back, or left by an earlier session. Only of a file.
    pub(super) fn take_dirty(&mut self) -> Option<u32> {
        matches!(self.growth, Growth::File { .. }).then(|| self.dirty.pop()).flatten()
    }

    /// It was cleaned, or not.
    pub(super) fn cleaned(&mut self, place: u32, is_clean: bool) {
        if is_clean {
            self.clean.push(place);
        } else {
            self.dirty.push(place);
        }
    }

    /// Whether one more place can be freed.
    pub(super) fn has_room(&self) -> bool {
        self.quarantine.len() < QUARANTINE_MAX
    }

    /// Whether places wait to be free.
    pub(super) fn is_waiting(&self) -> bool {
        !self.quarantine.is_empty()
    }

    /// Whether places wait for an fdatasync.
    pub(super) fn needs_order(&self) -> bool {
        self.quarantine.iter().any(|gone| !gone.is_durable)
    }

    /// The written table does not name this place any more.
    pub(super) fn free(&mut self, place: u32) {
        let is_durable = self.without == Some(Rule::GoneBeforeReuse);
        let gone = Gone { place, until: None, is_covered: false, is_durable };
        self.quarantine.push(gone);
    }

    /// An fdatasync begins.
    pub(super) fn order_began(&mut self) {
        self.quarantine.iter_mut().for_each(|gone| gone.is_covered = true);
    }

    /// It ended.
    pub(super) fn order_ended(&mut self) {
        for gone in &mut self.quarantine {
            gone.is_durable |= gone.is_covered;
            gone.is_covered = false;
        }
    }

    /// One failed, of the engine or of a request: what had ended may be lost, also for the next
    /// one. Places that a lost table may name are out of use until the next open; those whose
    /// punching may be lost hold anything.
    pub(super) fn order_failed(&mut self) {
        self.quarantine.retain(|gone| gone.is_durable);
        self.dirty.append(&mut self.clean);
    }

    /// Requests up to `newest` have started, and all before `oldest` have ended.
    pub(super) fn requests(&mut self, newest: u64, oldest: u64) {
        for gone in &mut self.quarantine {
            match gone.until {
                None => gone.until = Some(newest),
                Some(until) if oldest > until => gone.until = Some(0),
                Some(_) => {}
            }
        }
    }

    /// A place that nothing can touch any more.
    pub(super) fn take_free(&mut self) -> Option<u32> {
        let careless = self.without == Some(Rule::EndedBeforeReuse);
        let at = self
            .quarantine
            .iter()
            .position(|gone| gone.is_durable && (careless || gone.until == Some(0)))?;
        Some(self.quarantine.swap_remove(at).place)
    }

    /// Where the footer has to be written now, when the file has grown, and its bytes: behind some
    /// places more. A file system takes writes behind the end of a file one by one, and has the
    /// caller wait for each; inside, where there is a hole, it does not.
    pub(super) fn footer_to_write(&self) -> Option<(u64, [u8; 512])> {
        match &self.growth {
            Growth::File { footer } if self.end > self.footer => {
                Some((self.end + self.left().min(AHEAD) * self.stride(), **footer))
            }
            _ => None,
        }
    }

    /// The footer was written there.
    pub(super) fn footer_written(&mut self, sector: u64) {
        self.footer = sector;
    }
}

fn small(place: u64) -> u32 {
    u32::try_from(place).expect("places are below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(places: &[u32]) -> Space {
        Space::new(places, 100, 10, 8, Growth::File { footer: Box::new([0; 512]) }, None)
    }

    #[test]
    fn data_begins_on_4096_bytes_and_the_old_footer_ends_up_in_a_gap() {
        let mut space = file(&[]);
        assert_eq!(space.take(), Some((15, true)));
        assert_eq!(space.take(), Some((31, true)));
        let (footer, _) = space.footer_to_write().unwrap();
        assert_eq!(footer, 40 + 64 * 16);
        space.footer_written(footer);
        for place in (47..footer).step_by(16) {
            assert!(space.footer_to_write().is_none());
            assert_eq!(space.take(), Some((u32::try_from(place).unwrap(), true)));
        }
        assert!(space.footer_to_write().is_none(), "the last place ends at the footer");
        assert_eq!(space.take(), Some((u32::try_from(footer).unwrap() + 7, true)));
        let (next, _) = space.footer_to_write().unwrap();
        assert_eq!(next, footer + 16 + 33 * 16, "no more places than the disk has blocks");
    }

    #[test]
    fn gaps_of_an_earlier_session_are_places_of_unknown_contents() {
        let mut space = file(&[47, 79]);
        let found: Vec<_> = (0..3).filter_map(|_| space.take()).collect();
        assert_eq!(found, [(15, false), (31, false), (63, false)]);
        assert_eq!(space.take(), Some((95, true)));
    }

    #[test]
    fn the_lowest_place_goes_first() {
        let mut space = file(&[]);
        let made: Vec<_> = (0..4).filter_map(|_| space.take_to_make_ready(true)).collect();
        assert_eq!(made, [15, 31, 47, 63]);
        [31, 63, 15, 47].into_iter().for_each(|place| space.add_ready(place));
        let ready: Vec<_> = std::iter::from_fn(|| space.take_ready()).collect();
        assert_eq!(ready, made);
        [31, 15].into_iter().for_each(|place| space.cleaned(place, true));
        [63, 47].into_iter().for_each(|place| space.give_back(place));
        assert_eq!([space.take_dirty(), space.take_dirty()], [Some(47), Some(63)]);
        assert_eq!([space.take(), space.take()], [Some((15, true)), Some((31, true))]);
    }

    #[test]
    fn before_a_bitmap_nothing_lies_where_all_blocks_are_on_4096_bytes() {
        let mut space = file(&[47]);
        assert_eq!(space.take(), Some((15, false)));
        assert!(space.has_gap_before(31) && space.has_gap_before(47) && space.has_gap_before(17));
        assert!(!space.has_gap_before(15), "there are headers up to sector 10");
        assert!(!file(&[47, 60]).has_gap_before(31), "a block may end there");
        let growth = || Growth::File { footer: Box::new([0; 512]) };
        let small = Space::new(&[], 100, 10, 4, growth(), None);
        assert!(!small.has_gap_before(31), "blocks are smaller");
    }

    #[test]
    fn a_device_ends_before_its_footer() {
        let growth = Growth::Device { end_sector: 40 };
        let mut space = Space::new(&[], 100, 10, 8, growth, None);
        assert_eq!(space.take(), Some((15, false)));
        assert_eq!(space.take(), Some((31, false)));
        assert_eq!(space.take(), None);
        assert!(!space.is_at_limit(), "a volume can be made larger");
        space.give_back(31);
        assert_eq!(space.take(), Some((31, false)));
        assert!(space.footer_to_write().is_none());
    }

    #[test]
    fn no_place_is_beyond_what_an_entry_can_name() {
        let last = u32::MAX - 8;
        let mut space = file(&[last]);
        assert_eq!(space.dirty.len(), 100, "no more gaps than blocks");
        assert_eq!(space.take().map(|(_, zeros)| zeros), Some(false), "a gap");
        while space.dirty.pop().is_some() {}
        assert_eq!(space.take(), None);
        assert!(space.is_at_limit());
    }

    #[test]
    fn an_fdatasync_that_fails_takes_places_out_of_use() {
        let mut space = file(&[15]);
        space.cleaned(31, true);
        space.free(15);
        space.order_failed();
        assert!(!space.is_waiting());
        assert_eq!(space.take(), Some((31, false)), "it may hold anything");
    }

    #[test]
    fn a_freed_place_waits_for_the_disk_and_for_requests() {
        let mut space = file(&[15]);
        space.free(15);
        space.requests(7, 3);
        assert_eq!(space.take_free(), None);
        space.requests(9, 8);
        assert!(space.needs_order());
        assert_eq!(space.take_free(), None);
        space.order_began();
        space.order_ended();
        assert_eq!(space.take_free(), Some(15));
        space.free(15);
        space.requests(9, 1);
        space.order_began();
        space.order_ended();
        space.requests(20, 9);
        assert_eq!(space.take_free(), None, "request 9 may be under way");
        space.requests(20, 10);
        assert_eq!(space.take_free(), Some(15));
    }
}
