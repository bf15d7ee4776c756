//! Tiny images: the layout of a dynamic VHD with stand-ins for footer and header, read back as an
//! opener does.

use vhd::engine::{
    BatmapSetup, Engine, FileStep, Found, Growth, LayerFormat, LayerSetup, Rule, Setup, WriteSetup,
    opening,
};
use vhd::testing::{Effect, SECTOR, Value, bytes_of, value, value_of};

const TABLE_SECTOR: usize = 3;
const BATMAP_HEADER: usize = 4;
const BATMAP: usize = 5;
const DATA_SECTOR: usize = 6;
const UNUSED: u32 = u32::MAX;

/// The kind of image that is tested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) block_sectors: u32,
    pub(crate) blocks: u64,
    /// It has a parent: a raw image that is smaller.
    pub(crate) parent: bool,
    /// Between leaf and parent there is an image with blocks.
    pub(crate) middle: bool,
    /// On a device with room for so many blocks, whose free sectors hold anything.
    pub(crate) device: Option<u64>,
    pub(crate) without: Option<Rule>,
    pub(crate) drop_zeros: bool,
    /// Somebody has damaged the copy of the footer at 0.
    pub(crate) bad_copy: bool,
}

/// The stand-in for a footer: recognised by its bytes.
pub(crate) fn footer() -> [u8; 512] {
    let mut bytes = [0xf0; 512];
    bytes[..8].copy_from_slice(b"conectix");
    bytes
}

fn sum(map: &[u8]) -> u32 {
    !map.iter().map(|byte| u32::from(*byte)).sum::<u32>()
}

fn batmap_header(map: &[u8]) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(b"tdbatmap");
    bytes[8..12].copy_from_slice(&sum(map).to_be_bytes());
    bytes
}

impl Shape {
    pub(crate) const TINY: Self = Self {
        block_sectors: 2,
        blocks: 3,
        parent: false,
        middle: false,
        device: None,
        without: None,
        drop_zeros: true,
        bad_copy: false,
    };

    pub(crate) fn sectors(&self) -> u64 {
        self.blocks * u64::from(self.block_sectors)
    }

    /// An empty leaf.
    pub(crate) fn leaf(&self) -> Vec<u8> {
        let mut bytes = if self.bad_copy { vec![0xbc; SECTOR] } else { footer().to_vec() };
        bytes.resize(TABLE_SECTOR * SECTOR, 0x11);
        bytes.resize((TABLE_SECTOR + 1) * SECTOR, 0xff);
        bytes.extend(batmap_header(&[0; SECTOR]));
        bytes.resize(DATA_SECTOR * SECTOR, 0);
        if let Some(room) = self.device {
            // What an earlier owner of the volume left: bytes of no disk's sector.
            let stride = (u64::from(self.block_sectors) + 1).next_multiple_of(8);
            let length = DATA_SECTOR as u64 + 8 + room * stride;
            bytes.resize(length as usize * SECTOR, 0xdd);
        }
        bytes.extend(footer());
        bytes
    }

    /// The disk before it is written: what raw parent and middle image hold.
    pub(crate) fn initial(&self) -> Vec<Value> {
        (0..self.sectors())
            .map(|sector| match () {
                () if self.middle && self.is_in_middle(sector) => value(sector, 2),
                () if self.parent && sector < self.parent_sectors() => value(sector, 1),
                () => 0,
            })
            .collect()
    }

    fn parent_sectors(&self) -> u64 {
        self.sectors() - 1
    }

    /// The middle image has every second block, and of it the first sector.
    fn is_in_middle(&self, sector: u64) -> bool {
        let block = sector / u64::from(self.block_sectors);
        block.is_multiple_of(2) && sector.is_multiple_of(u64::from(self.block_sectors))
    }

    /// Files of the layers below the leaf.
    pub(crate) fn below(&self) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        if self.middle {
            let blocks = self.sectors().div_ceil(u64::from(self.block_sectors));
            let mut file = vec![0; SECTOR];
            for block in (0..blocks).step_by(2) {
                let mut bitmap = vec![0; SECTOR];
                bitmap[0] = 0x80;
                file.extend(bitmap);
                for within in 0..u64::from(self.block_sectors) {
                    let sector = block * u64::from(self.block_sectors) + within;
                    let version = if within == 0 { 2 } else { 9 };
                    file.extend(bytes_of(value(sector, version)));
                }
            }
            files.push(file);
        }
        if self.parent {
            files.push((0..self.parent_sectors()).flat_map(|at| bytes_of(value(at, 1))).collect());
        }
        files
    }

    fn below_setups(&self) -> Vec<LayerSetup> {
        let files = self.below();
        let mut layers = Vec::new();
        if self.middle {
            let stride = self.block_sectors + 1;
            let bat = (0..self.blocks as u32)
                .map(|block| if block % 2 == 0 { 1 + block / 2 * stride } else { UNUSED })
                .collect();
            let format = LayerFormat::Blocks {
                block_sectors: self.block_sectors,
                bat,
                data_sector: 1,
                whole: Vec::new(),
            };
            let file_sectors = (files[0].len() / SECTOR) as u64;
            layers.push(LayerSetup { size_sectors: self.sectors(), file_sectors, format });
        }
        if self.parent {
            let size_sectors = self.parent_sectors();
            let format = LayerFormat::Flat;
            layers.push(LayerSetup { size_sectors, file_sectors: size_sectors, format });
        }
        layers
    }

    fn table(file: &[u8]) -> Vec<u32> {
        let table = &file[TABLE_SECTOR * SECTOR..][..SECTOR];
        table.as_chunks().0.iter().map(|entry| u32::from_be_bytes(*entry)).collect()
    }

    /// The sector behind the last block.
    fn end_sector(&self, file: &[u8]) -> u64 {
        let places = Self::table(file).into_iter().take(self.blocks as usize);
        let behind = |place: u32| u64::from(place) + 1 + u64::from(self.block_sectors);
        let ends = places.filter(|place| *place != UNUSED).map(behind);
        ends.max().unwrap_or(DATA_SECTOR as u64)
    }

    /// What an open for writing does first; an error when there is no footer.
    pub(crate) fn opening(&self, file: &[u8]) -> Result<Vec<FileStep>, String> {
        let last = file.last_chunk::<512>().ok_or("no footer: the file is empty")?;
        let copy = file.first_chunk::<512>().ok_or("no footer copy")?;
        if copy != &footer() && last != &footer() {
            return Err("neither the footer nor its copy is there".to_owned());
        }
        let mut steps = opening(&Found {
            footer: &footer(),
            copy,
            last,
            length: file.len() as u64,
            is_device: self.device.is_some(),
            end_sector: self.end_sector(file),
        });
        if self.without == Some(Rule::CopyBeforeGrowth) {
            steps.retain(|step| !matches!(step, FileStep::Write { offset: 0, .. }));
        }
        Ok(steps)
    }

    /// The engine of an image whose opening was done, or that is only read.
    pub(crate) fn engine(&self, file: &[u8], is_written: bool) -> Result<Engine, String> {
        let mut bat = Self::table(file);
        bat.truncate(self.blocks as usize);
        let map = &file[BATMAP * SECTOR..][..SECTOR];
        let is_right = file[BATMAP_HEADER * SECTOR..][..SECTOR] == batmap_header(map);
        let whole = if is_right { map.to_vec() } else { Vec::new() };
        let has_bits = !is_right || whole.iter().any(|byte| *byte != 0);
        let growth = match self.device {
            None => Growth::File { footer: Box::new(footer()) },
            Some(_) => Growth::Device { end_sector: (file.len() / SECTOR) as u64 - 1 },
        };
        let write = WriteSetup {
            table_sector: TABLE_SECTOR as u64,
            table_entries: bat.len() as u32,
            growth,
            batmap: has_bits.then(|| BatmapSetup {
                header_sector: BATMAP_HEADER as u64,
                empty_header: batmap_header(&[0; SECTOR]),
                map_sector: BATMAP as u64,
                map_sectors: 1,
            }),
        };
        let (block_sectors, data_sector) = (self.block_sectors, DATA_SECTOR as u64);
        let format = LayerFormat::Blocks { block_sectors, bat, data_sector, whole };
        let file_sectors = (file.len() / SECTOR) as u64;
        let leaf = LayerSetup { size_sectors: self.sectors(), file_sectors, format };
        let mut layers = vec![leaf];
        layers.extend(self.below_setups());
        let setup = Setup {
            layers,
            write: is_written.then_some(write),
            bitmap_memory_bytes: 0,
            drop_zeros: self.drop_zeros,
            without: self.without,
        };
        Engine::new(setup).map_err(|error| error.to_string())
    }

    /// What a close does.
    pub(crate) fn closing(&self, engine: &Engine) -> Vec<FileStep> {
        let mut map = vec![0; SECTOR];
        for block in 0..self.blocks as u32 {
            if engine.is_whole(block) {
                map[block as usize / 8] |= 0x80 >> (block % 8);
            }
        }
        let header = batmap_header(&map).to_vec();
        let batmap =
            vec![((BATMAP * SECTOR) as u64, map), ((BATMAP_HEADER * SECTOR) as u64, header)];
        engine.closing(&footer(), self.device.is_some(), batmap)
    }

    /// The disk as an independent, simple reader finds it in the leaf's file.
    pub(crate) fn read_all(&self, file: &[u8]) -> Result<Vec<Value>, String> {
        let mut disk = self.initial();
        let table = Self::table(file);
        let mut used: Vec<(u64, u64)> = Vec::new();
        for (block, place) in table.iter().take(self.blocks as usize).enumerate() {
            if *place == UNUSED {
                continue;
            }
            let first = u64::from(*place);
            let behind = first + 1 + u64::from(self.block_sectors);
            if first < DATA_SECTOR as u64 || used.iter().any(|(a, b)| first < *b && *a < behind) {
                return Err(format!("block {block} at sector {place} overlaps"));
            }
            used.push((first, behind));
            let sector_at = |at: u64| file.get(at as usize * SECTOR..(at as usize + 1) * SECTOR);
            let Some(bitmap) = sector_at(first) else {
                return Err(format!("block {block} at sector {place} is past the end"));
            };
            for within in 0..self.block_sectors {
                let sector = block as u64 * u64::from(self.block_sectors) + u64::from(within);
                if bitmap[within as usize / 8] & (0x80 >> (within % 8)) == 0 {
                    continue;
                }
                let found = sector_at(first + 1 + u64::from(within));
                let found = found.map_or(Some(0), value_of);
                disk[sector as usize] =
                    found.ok_or_else(|| format!("sector {sector} is torn inside"))?;
            }
        }
        Ok(disk)
    }
}

/// The writes of a step of open or close; `None` for an fdatasync.
pub(crate) fn effect_of(step: &FileStep) -> Option<Effect> {
    match step {
        FileStep::Flush => None,
        FileStep::Write { offset, bytes } => Some(Effect::Bytes(*offset as usize, bytes.clone())),
        FileStep::SetLength { length } => Some(Effect::Length(*length as usize)),
    }
}
