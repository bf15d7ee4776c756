//! The journal of a resize: what was there before, to put it back.
//!
//! The layout is that of this family of programs, so that each reverts what another left. Header,
//! 512 bytes, big-endian but for the last field:
//!
//! ```text
//!  0 cookie[8]              8 uuid of the image[16]        24 offset of its footer (u64)
//! 32 data entries (u32)    36 metadata entries (u32)       40 offset of data entries (u64)
//! 48 offset of metadata entries (u64)                      56 end (u64, little-endian)
//! ```
//!
//! Entries follow one another, metadata first; each has 32 bytes, then its data:
//!
//! ```text
//!  0 cookie (u64)   8 type   12 size   16 offset in the image (u64)   24 checksum   28 padding[4]
//! ```
//!
//! The padding is part of the checksum and not always zero. A header without entries says that
//! nothing has to be put back.

use crate::bytes::{be32, be64, byte_sum, put, take};
use crate::error::{Error, ErrorKind, Part, Result};
use crate::read_at::ReadAt;
use crate::units::Uuid;

/// Bytes in a header.
pub const JOURNAL_HEADER_SIZE: usize = 512;

/// The first eight bytes.
pub const COOKIE: [u8; 8] = *b"vjournal";

/// Bytes in front of the data of an entry.
pub const ENTRY_SIZE: usize = 32;

const ENTRY_COOKIE: u64 = 0xaaaa_1234_4321_aaaa;
const ENTRY_CHECKSUM_AT: usize = 24;

/// The most data of one entry that is read: the largest table.
const ENTRY_DATA_MAX: u32 = crate::bat::ENTRIES_MAX << 2;

/// The most entries that are read: metadata, and two for each of a million blocks.
const ENTRIES_MAX: u32 = 1 << 21;

/// What an entry puts back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryType {
    /// The footer at the end.
    Footer = 1,
    /// The footer at the start.
    FooterCopy = 2,
    /// The dynamic header.
    Header = 3,
    /// The text of a locator.
    Locator = 4,
    /// The block allocation table.
    Bat = 5,
    /// The batmap's header.
    BatmapHeader = 6,
    /// The batmap.
    Batmap = 7,
    /// Anything else.
    Data = 8,
}

impl EntryType {
    const ALL: [Self; 8] = [
        Self::Footer,
        Self::FooterCopy,
        Self::Header,
        Self::Locator,
        Self::Bat,
        Self::BatmapHeader,
        Self::Batmap,
        Self::Data,
    ];

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|entry_type| *entry_type as u32 == number)
    }

    /// Is it one of the two footers, which are put back last?
    #[must_use]
    pub fn is_footer(self) -> bool {
        matches!(self, Self::Footer | Self::FooterCopy)
    }
}

/// A journal's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// The image's.
    pub uuid: Uuid,
    /// Where the image's footer was, in bytes: its old length without that.
    pub footer_offset: u64,
    /// Entries of [`EntryType::Data`].
    pub data_entries: u32,
    /// Other entries.
    pub metadata_entries: u32,
    /// Where the first data entry is, in bytes.
    pub data_offset: u64,
    /// Where the first metadata entry is, in bytes.
    pub metadata_offset: u64,
    /// The end of the last entry, in bytes.
    pub end: u64,
}

impl JournalHeader {
    /// One without entries.
    #[must_use]
    pub fn empty(uuid: Uuid, footer_offset: u64) -> Self {
        Self {
            uuid,
            footer_offset,
            data_entries: 0,
            metadata_entries: 0,
            data_offset: 0,
            metadata_offset: 0,
            end: JOURNAL_HEADER_SIZE as u64,
        }
    }

    /// Is there nothing to put back?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data_entries == 0 && self.metadata_entries == 0
    }

    /// Reads one.
    ///
    /// # Errors
    /// Not the cookie.
    pub fn parse(bytes: &[u8; JOURNAL_HEADER_SIZE]) -> Result<Self> {
        let found = take::<8>(bytes, 0);
        if found != COOKIE {
            return Err(Error::at(0, ErrorKind::Cookie { part: Part::Journal, found }));
        }
        Ok(Self {
            uuid: Uuid(take(bytes, 8)),
            footer_offset: be64(bytes, 24),
            data_entries: be32(bytes, 32),
            metadata_entries: be32(bytes, 36),
            data_offset: be64(bytes, 40),
            metadata_offset: be64(bytes, 48),
            end: u64::from_le_bytes(take(bytes, 56)),
        })
    }

    /// The bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; JOURNAL_HEADER_SIZE] {
        let mut bytes = [0; JOURNAL_HEADER_SIZE];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.uuid.0);
        put(&mut bytes, 24, &self.footer_offset.to_be_bytes());
        put(&mut bytes, 32, &self.data_entries.to_be_bytes());
        put(&mut bytes, 36, &self.metadata_entries.to_be_bytes());
        put(&mut bytes, 40, &self.data_offset.to_be_bytes());
        put(&mut bytes, 48, &self.metadata_offset.to_be_bytes());
        put(&mut bytes, 56, &self.end.to_le_bytes());
        bytes
    }
}

/// An entry, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it puts back.
    pub entry_type: EntryType,
    /// Bytes of data.
    pub size: u32,
    /// Where they go in the image, in bytes.
    pub offset: u64,
    /// Where they are in the journal, in bytes.
    pub data_at: u64,
}

/// The bytes of an entry, with its data.
///
/// # Panics
/// More data than 4 GiB.
#[must_use]
pub fn emit_entry(entry_type: EntryType, offset: u64, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).expect("parts of an image are small");
    let mut bytes = vec![0; ENTRY_SIZE];
    put(&mut bytes, 0, &ENTRY_COOKIE.to_be_bytes());
    put(&mut bytes, 8, &(entry_type as u32).to_be_bytes());
    put(&mut bytes, 12, &size.to_be_bytes());
    put(&mut bytes, 16, &offset.to_be_bytes());
    let sum = !byte_sum(&bytes).wrapping_add(byte_sum(data));
    put(&mut bytes, ENTRY_CHECKSUM_AT, &sum.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The header of a journal.
///
/// # Errors
/// Fewer bytes than a header has, or not its cookie.
pub fn read_header(journal: &dyn ReadAt) -> Result<JournalHeader> {
    let mut bytes = [0; JOURNAL_HEADER_SIZE];
    journal.read_at(0, &mut bytes)?;
    JournalHeader::parse(&bytes)
}

/// All entries, each checked to its last byte; metadata first, then data in order.
///
/// # Errors
/// An entry that is damaged, of an unknown type, or not all there; more than are possible.
pub fn read_entries(journal: &dyn ReadAt, header: &JournalHeader) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let groups = [
        (header.metadata_offset, header.metadata_entries),
        (header.data_offset, header.data_entries),
    ];
    for (mut at, count) in groups {
        if count > ENTRIES_MAX {
            let (found, limit) = (count.into(), ENTRIES_MAX.into());
            let (what, unit) = ("Journal", "entries");
            return Err(ErrorKind::TooLarge { what, found, limit, unit }.into());
        }
        for _ in 0..count {
            let entry = read_entry(journal, at).map_err(|error| error.or_at(at))?;
            at = entry.data_at.saturating_add(entry.size.into());
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The data of an entry.
///
/// # Errors
/// What reading gives.
pub fn read_data(journal: &dyn ReadAt, entry: &Entry) -> Result<Vec<u8>> {
    let mut data = vec![0; usize::try_from(entry.size).expect("a usize has 32 bits")];
    journal.read_at(entry.data_at, &mut data)?;
    Ok(data)
}

fn read_entry(journal: &dyn ReadAt, at: u64) -> Result<Entry> {
    let part = Part::Journal;
    let mut bytes = [0; ENTRY_SIZE];
    journal.read_at(at, &mut bytes)?;
    if be64(&bytes, 0) != ENTRY_COOKIE {
        return Err(ErrorKind::Cookie { part, found: take(&bytes, 0) }.into());
    }
    let (number, size, offset) = (be32(&bytes, 8), be32(&bytes, 12), be64(&bytes, 16));
    let Some(entry_type) = EntryType::from_number(number) else {
        let (found, wanted) = (number.into(), "1 to 8");
        return Err(ErrorKind::Field { part, field: "type of entry", found, wanted }.into());
    };
    if size > ENTRY_DATA_MAX {
        let (found, limit) = (size.into(), ENTRY_DATA_MAX.into());
        let (what, unit) = ("Entry of a journal", "bytes");
        return Err(ErrorKind::TooLarge { what, found, limit, unit }.into());
    }
    let data_at = at.saturating_add(ENTRY_SIZE as u64);
    let entry = Entry { entry_type, size, offset, data_at };
    let found = be32(&bytes, ENTRY_CHECKSUM_AT);
    put(&mut bytes, ENTRY_CHECKSUM_AT, &[0; 4]);
    let end = data_at.saturating_add(size.into());
    let length = journal.length()?;
    if end > length {
        let room = length.saturating_sub(data_at);
        return Err(ErrorKind::Truncated { part, found: room, wanted: size.into() }.into());
    }
    let wanted = !byte_sum(&bytes).wrapping_add(byte_sum(&read_data(journal, &entry)?));
    if found != wanted {
        return Err(ErrorKind::Checksum { part, found, wanted }.into());
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(entries: &[(EntryType, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|(kind, at, data)| bytes.extend(emit_entry(*kind, *at, data)));
        let header = JournalHeader {
            metadata_entries: u32::try_from(entries.len()).unwrap(),
            metadata_offset: 512,
            end: 512 + bytes.len() as u64,
            ..JournalHeader::empty(Uuid([7; 16]), 4096)
        };
        [header.emit().to_vec(), bytes].concat()
    }

    fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
        read_entries(&bytes, &read_header(&bytes)?)
    }

    #[test]
    fn what_is_emitted_is_read_as_the_same() {
        let bytes = journal(&[(EntryType::Bat, 1536, &[1, 2, 3]), (EntryType::Header, 512, &[])]);
        let header = read_header(&bytes).unwrap();
        assert_eq!((header.uuid, header.footer_offset), (Uuid([7; 16]), 4096));
        assert_eq!(JournalHeader::parse(&header.emit()), Ok(header));
        let all = entries(&bytes).unwrap();
        let wanted = [
            Entry { entry_type: EntryType::Bat, size: 3, offset: 1536, data_at: 544 },
            Entry { entry_type: EntryType::Header, size: 0, offset: 512, data_at: 579 },
        ];
        assert_eq!(all, wanted);
        assert_eq!(read_data(&bytes, &all[0]), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn every_changed_byte_of_an_entry_is_found() {
        let bytes = journal(&[(EntryType::Bat, 1536, &[1, 2, 3])]);
        for at in 512..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            assert!(entries(&changed).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(entries(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn padding_that_is_not_zero_is_part_of_the_checksum() {
        let mut bytes = journal(&[(EntryType::Bat, 1536, &[1, 2, 3])]);
        bytes[512 + 31] = 9;
        assert!(entries(&bytes).is_err());
        let sum = be32(&bytes, 512 + 24).wrapping_sub(9);
        put(&mut bytes, 512 + 24, &sum.to_be_bytes());
        assert!(entries(&bytes).is_ok());
    }

    #[test]
    fn rejects_more_entries_and_data_than_are_possible() {
        let mut header = read_header(&journal(&[])).unwrap();
        header.metadata_entries = u32::MAX;
        let error = read_entries(&Vec::new(), &header).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooLarge { unit: "entries", .. }), "{error}");
        let mut bytes = journal(&[(EntryType::Data, 0, &[])]);
        put(&mut bytes, 512 + 12, &u32::MAX.to_be_bytes());
        let error = entries(&bytes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooLarge { unit: "bytes", .. }), "{error}");
        put(&mut bytes, 512 + 8, &9_u32.to_be_bytes());
        let error = entries(&bytes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Field { found: 9, .. }), "{error}");
    }

    #[test]
    fn as_many_entries_and_data_as_are_possible_are_looked_for() {
        let mut header = read_header(&journal(&[])).unwrap();
        header.data_entries = ENTRIES_MAX;
        let error = read_entries(&Vec::new(), &header).unwrap_err();
        assert!(!matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
        let mut bytes = journal(&[(EntryType::Data, 0, &[])]);
        // The largest table has 32 MiB.
        put(&mut bytes, 512 + 12, &(32_u32 << 20).to_be_bytes());
        let error = entries(&bytes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Truncated { wanted: 0x200_0000, .. }), "{error}");
    }
}
