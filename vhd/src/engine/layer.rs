//! One image of a chain, as the engine knows it.

use std::sync::Arc;

use super::setup::{LayerFormat, LayerSetup, SetupError};
use super::table::{Block, Known, Table};

/// One image.
pub(super) struct Layer {
    /// Sectors of the disk that it is.
    pub(super) size: u64,
    /// Sectors of its file; what is past them reads as zeros.
    pub(super) file_sectors: u64,
    /// Its blocks; none when its sectors lie in the file as on the disk.
    pub(super) table: Arc<Table>,
}

impl Layer {
    /// `grows`: its file is as long as it has to be.
    pub(super) fn new(setup: &LayerSetup, grows: bool) -> Result<Self, SetupError> {
        setup.check()?;
        let size = setup.size_sectors;
        let file_sectors = if grows { u64::MAX } else { setup.file_sectors };
        let LayerFormat::Blocks { block_sectors, bat, whole, .. } = &setup.format else {
            let table = Arc::new(Table::new(0, 1, file_sectors));
            return Ok(Self { size, file_sectors, table });
        };
        let table = Table::new(bat.len(), *block_sectors, file_sectors);
        for (index, entry) in setup.used() {
            let is_whole =
                whole.get(index / 8).is_some_and(|byte| byte & (0x80 >> (index % 8)) != 0);
            let known = if is_whole { Known::Whole } else { Known::Nothing };
            table.set(index, Block::new(entry, known));
        }
        Ok(Self { size, file_sectors, table: Arc::new(table) })
    }

    pub(super) fn is_flat(&self) -> bool {
        self.table.is_empty()
    }

    /// The sector of the file where sector `within` of a block at `place` is.
    #[inline]
    pub(super) fn data(place: u32, within: u32) -> u64 {
        u64::from(place) + 1 + u64::from(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bat::UNUSED;

    fn setup(bat: Vec<u32>) -> LayerSetup {
        let whole = vec![0b0100_0000];
        let format = LayerFormat::Blocks { block_sectors: 8, bat, data_sector: 3, whole };
        LayerSetup { size_sectors: 20, file_sectors: 100, format }
    }

    #[test]
    fn rejects_what_no_opened_image_has() {
        assert!(Layer::new(&setup(vec![UNUSED; 3]), false).is_ok());
        for (bat, wanted) in [
            (vec![UNUSED; 2], SetupError::TableTooSmall { blocks: 3, entries: 2 }),
            (vec![5, 100, UNUSED], SetupError::Place { block: 1, sector: 100 }),
            (vec![0, UNUSED, UNUSED], SetupError::Overlap { sector: 0 }),
            (vec![5, 13, UNUSED], SetupError::Overlap { sector: 13 }),
        ] {
            assert_eq!(Layer::new(&setup(bat), false).err(), Some(wanted));
        }
    }

    #[test]
    fn entries_behind_the_end_of_the_disk_are_no_blocks_unless_they_can_be() {
        let layer = Layer::new(&setup(vec![5, 15, UNUSED, 0, 100, 30]), false).unwrap();
        let places: Vec<u32> = layer.table.blocks().map(Block::place).collect();
        assert_eq!(places, [5, 15, 0, 0, 0, 30]);
    }

    #[test]
    fn the_batmap_says_which_blocks_are_whole() {
        let layer = Layer::new(&setup(vec![5, 15, UNUSED]), false).unwrap();
        assert_eq!(layer.table.get(0).known(), Known::Nothing);
        assert_eq!(layer.table.get(1).known(), Known::Whole);
        assert_eq!(layer.table.get(2), Block::default());
    }
}
