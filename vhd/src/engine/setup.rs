//! What the engine is told of an image that was opened and checked: plain numbers.

use crate::bat::UNUSED;

/// A chain of images, leaf first.
#[derive(Clone, Debug)]
pub struct Setup {
    /// At least the leaf.
    pub layers: Vec<LayerSetup>,
    /// How the leaf is changed; `None` when it is only read, or is flat.
    pub write: Option<WriteSetup>,
    /// Memory for sector bitmaps of all layers, in bytes, 512 for each; at least 256 KiB are taken.
    pub bitmap_memory_bytes: usize,
    /// Zeros that are written where there is no block and the disk reads zeros are dropped.
    pub drop_zeros: bool,
    /// A rule that is not kept, for tests that show that a simulator notices.
    pub without: Option<Rule>,
}

/// One image.
#[derive(Clone, Debug)]
pub struct LayerSetup {
    /// Sectors of the disk.
    pub size_sectors: u64,
    /// Sectors of its file or device; reads past them are zeros.
    pub file_sectors: u64,
    /// Where its sectors are.
    pub format: LayerFormat,
}

/// Where the sectors of an image are.
#[derive(Clone, Debug)]
pub enum LayerFormat {
    /// In the file as on the disk: raw and fixed images.
    Flat,
    /// In blocks.
    Blocks {
        /// Sectors of a block: a power of two up to 4096.
        block_sectors: u32,
        /// The entries of the block allocation table, as on the disk: at least one for each block.
        bat: Vec<u32>,
        /// The first sector behind all headers and tables: the earliest place of a block.
        data_sector: u64,
        /// The batmap, checked, or empty: a bit for each block that is whole, first block in the
        /// highest bit of the first byte.
        whole: Vec<u8>,
    },
}

impl LayerSetup {
    /// Whether its numbers can be served: before anything is written to its file.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn check(&self) -> Result<(), SetupError> {
        let LayerFormat::Blocks { block_sectors, bat, data_sector, .. } = &self.format else {
            return Ok(());
        };
        if !block_sectors.is_power_of_two() || *block_sectors > 4096 {
            return Err(SetupError::BlockSize { sectors: *block_sectors });
        }
        let blocks = self.size_sectors.div_ceil(u64::from(*block_sectors));
        let is_enough = usize::try_from(blocks).is_ok_and(|blocks| blocks <= bat.len());
        if !is_enough {
            return Err(SetupError::TableTooSmall { blocks, entries: bat.len() });
        }
        let mut places = Vec::new();
        for (block, sector) in self.used() {
            if u64::from(sector) >= self.file_sectors {
                return Err(SetupError::Place { block, sector });
            }
            places.push(sector);
        }
        places.sort_unstable();
        let mut end = *data_sector;
        for sector in places {
            if u64::from(sector) < end {
                return Err(SetupError::Overlap { sector });
            }
            end = u64::from(sector) + 1 + u64::from(*block_sectors);
        }
        Ok(())
    }

    /// The blocks that have places, in order.
    pub(super) fn used(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let (bat, block_sectors) = match &self.format {
            LayerFormat::Blocks { bat, block_sectors, .. } => (bat.as_slice(), *block_sectors),
            LayerFormat::Flat => (&[][..], 1),
        };
        let blocks = self.size_sectors.div_ceil(u64::from(block_sectors.max(1)));
        // Behind the disk's end nobody asks: what cannot be a block there is none.
        let is_block = move |block: usize, sector: u32| {
            let is_asked = (block as u64) < blocks;
            sector != UNUSED && (is_asked || u64::from(sector) < self.file_sectors && sector != 0)
        };
        bat.iter().copied().enumerate().filter(move |(block, sector)| is_block(*block, *sector))
    }
}

/// How a leaf with blocks is changed.
#[derive(Clone, Debug)]
pub struct WriteSetup {
    /// The first sector of the block allocation table.
    pub table_sector: u64,
    /// Entries that the table has on the disk. Those behind the layer's are unused.
    pub table_entries: u32,
    /// Where places come from.
    pub growth: Growth,
    /// The batmap that the first free empties; `None` when there is none, or it is empty.
    pub batmap: Option<BatmapSetup>,
}

/// Where new places come from.
#[derive(Clone, Debug)]
pub enum Growth {
    /// The file grows; the end footer moves along.
    File {
        /// The footer's bytes.
        footer: Box<[u8; 512]>,
    },
    /// A device of a fixed size: places end before this sector.
    Device {
        /// The sector of the footer.
        end_sector: u64,
    },
}

/// Where the batmap is, and what its header is when it is empty.
#[derive(Clone, Debug)]
pub struct BatmapSetup {
    /// Sector of the header.
    pub header_sector: u64,
    /// The header of an empty batmap.
    pub empty_header: [u8; 512],
    /// First sector of the map.
    pub map_sector: u64,
    /// Its sectors.
    pub map_sectors: u64,
}

/// The rules of docs/durability.md: the engine keeps them, with whoever opens and flushes for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// R1: data is durable before bits.
    DataBeforeBits,
    /// R2: a block is durable before its entry.
    BlockBeforeEntry,
    /// R3: a place is used again only when no durable entry names it.
    GoneBeforeReuse,
    /// R4: a place is used again only when no I/O of the old block is under way.
    EndedBeforeReuse,
    /// R5: the batmap is empty before a block is freed.
    BatmapBeforeFree,
    /// R6: a good copy of the footer is durable before the file grows (kept at open).
    CopyBeforeGrowth,
    /// R7: a write is answered when what points at it was written.
    EntryBeforeAnswer,
    /// R8: what FUA covers is durable before the answer.
    DurableBeforeFua,
    /// R8: an fdatasync comes before the answer to a FLUSH (kept by who has the requests).
    DurableBeforeFlush,
    /// R8: a FLUSH fails when an earlier fdatasync did.
    LossBeforeFlush,
}

/// Why a setup is refused: something that the checks at open should have found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// Not a power of two up to 4096.
    BlockSize {
        /// Sectors of a block.
        sectors: u32,
    },
    /// Fewer entries than blocks.
    TableTooSmall {
        /// Blocks of the disk.
        blocks: u64,
        /// Entries of the table.
        entries: usize,
    },
    /// A block past the end of the file.
    Place {
        /// The block.
        block: usize,
        /// Its entry.
        sector: u32,
    },
    /// Two blocks share sectors, or one lies over a header.
    Overlap {
        /// The sector where the second begins.
        sector: u32,
    },
}

impl std::fmt::Display for SetupError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BlockSize { sectors } => {
                write!(out, "Blocks of {sectors} sectors, wanted a power of two up to 4096")
            }
            Self::TableTooSmall { blocks, entries } => {
                write!(out, "The disk has {blocks} blocks, its table {entries} entries")
            }
            Self::Place { block, sector } => {
                write!(out, "Block {block} is at sector {sector:#x}, past the end of the file")
            }
            Self::Overlap { sector } => {
                write!(out, "The block at sector {sector:#x} lies over another one or a header")
            }
        }
    }
}

impl std::error::Error for SetupError {}
