//! Runs of pages of the arena, by the buddy method: no allocation, no search, little waste.
//!
//! A block of order `n` is `2^n` pages and starts on a multiple of its size; its buddy is the block
//! it was split from the same parent with. Free blocks of one order hang in a list whose links
//! stand in a table beside the pages, never in the pages.

const NONE: u32 = u32::MAX;
const ORDERS: usize = 20;

#[derive(Clone, Copy)]
struct Page {
    /// Order of the block that starts here; meaningless inside a block.
    order: u8,
    state: State,
    next: u32,
    previous: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not the first page of a block.
    Inside,
    Free,
    Used,
}

/// Which pages are free.
pub(super) struct Buddy {
    pages: Box<[Page]>,
    heads: [u32; ORDERS],
    free: u32,
}

impl Buddy {
    /// All of `count` pages free; `count` is a power of two below 2^20.
    pub(super) fn new(count: usize) -> Self {
        assert!(count.is_power_of_two() && count < 1 << ORDERS, "{count} pages");
        let inside = Page { order: 0, state: State::Inside, next: NONE, previous: NONE };
        let mut buddy = Self {
            pages: vec![inside; count].into(),
            heads: [NONE; ORDERS],
            free: u32::try_from(count).expect("below 2^20"),
        };
        buddy.link(0, count.trailing_zeros());
        buddy
    }

    /// All of them.
    pub(super) fn pages(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("below 2^20")
    }

    pub(super) fn free_pages(&self) -> u32 {
        self.free
    }

    /// The first page of a run of at least `count` pages.
    pub(super) fn allocate(&mut self, count: u32) -> Option<u32> {
        let wanted = count.checked_next_power_of_two()?.trailing_zeros();
        let mut order = (wanted..u32::try_from(ORDERS).ok()?)
            .find(|order| self.heads[*order as usize] != NONE)?;
        let page = self.heads[order as usize];
        self.unlink(page);
        while order > wanted {
            order -= 1;
            self.link(page + (1 << order), order);
        }
        let first = &mut self.pages[page as usize];
        first.state = State::Used;
        first.order = u8::try_from(wanted).expect("below 20");
        self.free -= 1 << wanted;
        Some(page)
    }

    /// Gives back the run that starts at `page`.
    pub(super) fn free(&mut self, mut page: u32) {
        let first = self.pages[page as usize];
        assert!(first.state == State::Used, "page {page} is not the start of a buffer in use");
        let mut order = u32::from(first.order);
        self.free += 1 << order;
        self.pages[page as usize].state = State::Inside;
        loop {
            let buddy = page ^ (1 << order);
            let joins = self
                .pages
                .get(buddy as usize)
                .is_some_and(|other| other.state == State::Free && u32::from(other.order) == order);
            if !joins {
                break;
            }
            self.unlink(buddy);
            page = page.min(buddy);
            order += 1;
        }
        self.link(page, order);
    }

    fn link(&mut self, page: u32, order: u32) {
        let head = std::mem::replace(&mut self.heads[order as usize], page);
        if head != NONE {
            self.pages[head as usize].previous = page;
        }
        self.pages[page as usize] = Page {
            order: u8::try_from(order).expect("below 20"),
            state: State::Free,
            next: head,
            previous: NONE,
        };
    }

    fn unlink(&mut self, page: u32) {
        let Page { order, next, previous, .. } = self.pages[page as usize];
        if previous == NONE {
            self.heads[usize::from(order)] = next;
        } else {
            self.pages[previous as usize].next = next;
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        self.pages[page as usize].state = State::Inside;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_pages_come_back_as_one_run() {
        let mut buddy = Buddy::new(64);
        let runs: Vec<u32> = (0..64).map(|_| buddy.allocate(1).unwrap()).collect();
        assert_eq!(buddy.allocate(1), None);
        for run in runs {
            buddy.free(run);
        }
        assert_eq!(buddy.allocate(64), Some(0));
    }

    #[test]
    fn refuses_more_than_there_is() {
        let mut buddy = Buddy::new(64);
        assert_eq!(buddy.allocate(65), None);
        assert_eq!(buddy.allocate(u32::MAX), None);
    }

    #[test]
    #[should_panic(expected = "not the start of a buffer in use")]
    fn asserts_on_a_second_free() {
        let mut buddy = Buddy::new(4);
        let page = buddy.allocate(1).unwrap();
        buddy.free(page);
        buddy.free(page);
    }

    proptest! {
        /// Against an oracle that marks each page: runs never overlap, and when all are free again,
        /// the largest run can be had.
        #[test]
        fn runs_never_overlap(steps in prop::collection::vec((any::<bool>(), 1u32..20, any::<prop::sample::Index>()), 1..200)) {
            let mut buddy = Buddy::new(64);
            let mut used = [false; 64];
            let mut live: Vec<(u32, u32)> = Vec::new();
            for (take, count, which) in steps {
                if take || live.is_empty() {
                    let Some(page) = buddy.allocate(count) else { continue };
                    let run = count.next_power_of_two();
                    for index in page..page + run {
                        prop_assert!(!used[index as usize]);
                        used[index as usize] = true;
                    }
                    live.push((page, run));
                } else {
                    let (page, run) = live.swap_remove(which.index(live.len()));
                    buddy.free(page);
                    used[page as usize..(page + run) as usize].fill(false);
                }
                let marked = used.iter().filter(|used| !**used).count();
                prop_assert_eq!(buddy.free_pages() as usize, marked);
            }
            for (page, _) in live {
                buddy.free(page);
            }
            prop_assert_eq!(buddy.allocate(64), Some(0));
        }
    }
}
