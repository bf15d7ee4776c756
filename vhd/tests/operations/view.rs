//! An independent reader: the bytes of a disk, from the layout alone, and what a checker says.
//!
//! It shares no code with the crate, so that both do not make the same mistake.

/// A disk.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct View {
    pub(crate) size: u64,
    pub(crate) data: Vec<u8>,
}

impl View {
    /// The same, longer by zeros or cut.
    pub(crate) fn resized(&self, size: u64) -> Self {
        let mut data = self.data.clone();
        data.resize(usize::try_from(size).expect("small"), 0);
        Self { size, data }
    }
}

struct Raw<'a> {
    file: &'a [u8],
    footer: usize,
    is_primary: bool,
}

fn be32(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..at + 4).expect("inside");
    usize::try_from(u32::from_be_bytes(word.try_into().expect("four"))).expect("64 bits")
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

fn is_summed(part: &[u8], at: usize) -> bool {
    let sum = part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let own = part[at..at + 4].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    !(sum - own) == u32::from_be_bytes(part[at..at + 4].try_into().expect("four"))
}

fn is_footer(file: &[u8], at: usize) -> bool {
    file.get(at..at + 512).is_some_and(|footer| {
        (footer.starts_with(b"conectix") || footer.starts_with(b"v_poison"))
            && is_summed(footer, 64)
    })
}

impl<'a> Raw<'a> {
    fn open(file: &'a [u8]) -> Result<Self, String> {
        let end = file.len().checked_sub(512).ok_or("shorter than a footer")?;
        let is_primary = is_footer(file, end);
        let footer = if is_primary { end } else { 0 };
        if !is_footer(file, footer) {
            return Err("no footer".into());
        }
        if file[footer..].starts_with(b"v_poison") {
            return Err("poisoned".into());
        }
        Ok(Self { file, footer, is_primary })
    }

    fn field(&self, at: usize) -> usize {
        be32(self.file, self.footer + at)
    }

    fn size(&self) -> u64 {
        be64(self.file, self.footer + 48)
    }

    fn header(&self) -> Result<usize, String> {
        let at = usize::try_from(be64(self.file, self.footer + 16)).map_err(|_| "no header")?;
        let header = self.file.get(at..at + 1024).ok_or("header past the end")?;
        if !header.starts_with(b"cxsparse") || !is_summed(header, 36) {
            return Err(format!("header at {at} is damaged"));
        }
        Ok(at)
    }
}

/// The cipher of disks in memory, written down once more: what byte `at` of a sector is moved by.
fn moved_by(sector: u64, at: usize) -> u8 {
    let start = (sector % 256) * 7 + sector / 256 % 256 + 0x5a;
    let step = (0..at).fold(start % 256, |step, _| (step * 5 % 256) | 1);
    u8::try_from(step).expect("less than 256")
}

/// A sector in the key.
pub(crate) fn encrypt(sector: u64, data: &mut [u8]) {
    for (at, byte) in data.iter_mut().enumerate() {
        *byte = byte.wrapping_add(moved_by(sector, at));
    }
}

fn decrypt(sector: u64, data: &mut [u8]) {
    for (at, byte) in data.iter_mut().enumerate() {
        *byte = byte.wrapping_sub(moved_by(sector, at));
    }
}

/// What a guest would read; `parent` is what the disk below holds. Data of an image with the hash
/// of a key are in that key.
pub(crate) fn view(file: &[u8], parent: Option<&View>) -> Result<View, String> {
    let raw = Raw::open(file)?;
    let size = usize::try_from(raw.size()).expect("small");
    if raw.field(60) == 2 {
        let data = file.get(..size).ok_or("fixed disk is cut off")?.to_vec();
        return Ok(View { size: raw.size(), data });
    }
    let below = if raw.field(60) == 4 { parent } else { None };
    let header = raw.header()?;
    let table = usize::try_from(be64(file, header + 16)).expect("small");
    let (entries, block_size) = (be32(file, header + 28), be32(file, header + 32));
    if size.div_ceil(block_size) > entries {
        return Err("table is too small".into());
    }
    if file.len() < table + entries * 4 {
        return Err("table past the end".into());
    }
    let map = table + (entries * 4).next_multiple_of(512);
    let is_encrypted = file.get(map..).is_some_and(|rest| rest.starts_with(b"tdbatmap"))
        && file.get(map + 29) == Some(&1);
    let mut data = vec![0; size];
    for sector in 0..size / 512 {
        let (block, bit) = (sector * 512 / block_size, sector % (block_size / 512));
        let place = be32(file, table + block * 4);
        let to = &mut data[sector * 512..][..512];
        let start = place * 512;
        let is_here = place != 0xffff_ffff
            && file.get(start + bit / 8).ok_or("bitmap past the end")? & (0x80 >> (bit % 8)) != 0;
        if is_here {
            let from = file.get(start + 512 + bit * 512..).and_then(|rest| rest.get(..512));
            to.copy_from_slice(from.ok_or("data past the end")?);
            if is_encrypted {
                decrypt(sector as u64, to);
            }
        } else if let Some(from) = below.and_then(|below| below.data.get(sector * 512..)) {
            let count = from.len().min(512);
            to[..count].copy_from_slice(&from[..count]);
        }
    }
    Ok(View { size: raw.size(), data })
}

/// The first complaint of a checker.
pub(crate) fn check(file: &[u8]) -> Result<(), String> {
    let raw = Raw::open(file)?;
    if !raw.is_primary {
        return Err("no footer at the end".into());
    }
    if raw.field(60) == 2 {
        return Ok(());
    }
    if !is_footer(file, 0) || file[..512] != file[file.len() - 512..] {
        return Err("footers differ".into());
    }
    let header = raw.header()?;
    let table = usize::try_from(be64(file, header + 16)).expect("small");
    let (entries, block_size) = (be32(file, header + 28), be32(file, header + 32));
    let blocks = usize::try_from(raw.size()).expect("small").div_ceil(block_size);
    let map = table + (entries * 4).next_multiple_of(512);
    let has_map = file.get(map..).is_some_and(|rest| rest.starts_with(b"tdbatmap"));
    let mut parts = vec![(0, 512), (header, 1024), (table, map - table)];
    let mut locators = (0..8).map(|number| header + 576 + number * 24);
    if let Some(at) = locators.find(|at| be32(file, at + 4) != 0 && be32(file, at + 4) != 512) {
        return Err(format!("locator at {at} has a strange space"));
    }
    let locators = (0..8).map(|number| header + 576 + number * 24);
    for at in locators.filter(|at| be32(file, at + 4) != 0) {
        parts.push((usize::try_from(be64(file, at + 16)).expect("small"), 512));
    }
    if has_map {
        let (at, sectors) =
            (usize::try_from(be64(file, map + 8)).expect("small"), be32(file, map + 16));
        parts.extend([(map, 512), (at, sectors * 512)]);
        let sum = file[at..at + 512].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        if !sum != u32::try_from(be32(file, map + 24)).expect("32 bits") {
            return Err("batmap's checksum is wrong".into());
        }
    }
    hints(file)?;
    let total = block_size + 512;
    let places = (0..blocks).map(|block| be32(file, table + block * 4));
    parts.extend(places.filter(|place| *place != 0xffff_ffff).map(|place| (place * 512, total)));
    parts.push((file.len() - 512, 512));
    parts.sort_unstable();
    match parts.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("{:?} and {:?} overlap", pair[0], pair[1])),
        None => Ok(()),
    }
}

/// No bit of a batmap whose checksum is right speaks of a block that is not full.
pub(crate) fn hints(file: &[u8]) -> Result<(), String> {
    let raw = Raw::open(file)?;
    if raw.field(60) == 2 {
        return Ok(());
    }
    let header = raw.header()?;
    let table = usize::try_from(be64(file, header + 16)).expect("small");
    let (entries, block_size) = (be32(file, header + 28), be32(file, header + 32));
    let blocks = usize::try_from(raw.size()).expect("small").div_ceil(block_size);
    let map = table + (entries * 4).next_multiple_of(512);
    if !file.get(map..).is_some_and(|rest| rest.starts_with(b"tdbatmap")) {
        return Ok(());
    }
    let at = usize::try_from(be64(file, map + 8)).expect("small");
    let sum = file[at..at + 512].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    if !sum != u32::try_from(be32(file, map + 24)).expect("32 bits") {
        return Ok(());
    }
    for block in (0..4096).filter(|block| file[at + block / 8] & (0x80 >> (block % 8)) != 0) {
        let place = if block < blocks { be32(file, table + block * 4) } else { 0xffff_ffff };
        if place == 0xffff_ffff || file[place * 512] != 0xff {
            return Err(format!("batmap says block {block} is full"));
        }
    }
    Ok(())
}
