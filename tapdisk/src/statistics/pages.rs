//! The pages of one disk: its own, and one of each of its doors.

use std::io;

use super::counters::{DOORS_MAX, DiskCounters};
use super::page::{PageKind, PageValues, StatsDirectory, StatsPage};

/// A door that the disk may have.
#[derive(Debug)]
struct DoorPage {
    number: u8,
    /// None when it could not be made.
    page: Option<StatsPage>,
}

/// What a disk shows to other programs.
#[derive(Debug, Default)]
pub struct DiskPages {
    disk: Option<StatsPage>,
    doors: [Option<DoorPage>; DOORS_MAX],
}

impl DiskPages {
    /// Makes those that can be made; `failed` is told of the others. `doors`: by their numbers,
    /// what is there.
    pub fn create(
        directory: &StatsDirectory,
        minor: u16,
        doors: [Option<PageKind>; DOORS_MAX],
        mut failed: impl FnMut(io::Error),
    ) -> Self {
        let mut make = |kind| directory.page(kind, minor).map_err(&mut failed).ok();
        let disk = make(PageKind::Vdi);
        let mut number = 0;
        let doors = doors.map(|kind| {
            let door = kind.map(|kind| DoorPage { number, page: make(kind) });
            number += 1;
            door
        });
        Self { disk, doors }
    }

    /// Shows what was counted: of each door what came through it, of the disk the sum.
    pub fn publish(&mut self, counters: &DiskCounters) {
        let mut sum: Option<PageValues> = None;
        for door in self.doors.iter_mut().flatten() {
            let values = counters.page_values(door.number);
            if let Some(page) = &mut door.page {
                page.publish(&values);
            }
            sum = Some(sum.map_or(values, |sum| sum.plus(&values)));
        }
        if let (Some(page), Some(sum)) = (&mut self.disk, sum) {
            page.publish(&sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Op;
    use tapdisk_control::statistics::{Counter, Statistics};

    #[test]
    fn each_door_has_a_page_and_the_disk_the_sum() {
        let folder = std::env::temp_dir().join(format!("tapdisk-pages-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let directory = StatsDirectory::create(&folder, 3).unwrap();
        let kinds = [Some(PageKind::Blktap), Some(PageKind::Nbd)];
        let mut pages = DiskPages::create(&directory, 7, kinds, |error| panic!("{error}"));
        let mut counters = DiskCounters::new();
        counters.submitted(0, Op::Read, 4096);
        counters.submitted(1, Op::Read, 512);
        pages.publish(&counters);
        let sectors = |name: &str| {
            let page = Statistics::read(&folder.join("td3-3").join(name)).unwrap();
            page.get(Counter::ReadSectors)
        };
        assert_eq!([sectors("blktap-7"), sectors("nbd-7"), sectors("vdi-7")], [8, 1, 9]);
        drop((pages, directory));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::remove_dir(&folder).unwrap();
    }
}
