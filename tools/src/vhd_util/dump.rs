//! The texts of `read -p`: what the parts of an image say, damaged or not.
//!
//! They are made of the bytes as they are, not of what was parsed: a person who asks wants to see
//! what is wrong. Storage managers match lines of them.

use vhd::footer::FOOTER_SIZE;
use vhd::header::HEADER_SIZE;
use vhd::locator::{Locator, Platform};
use vhd::units::{Timestamp, Uuid};

/// A footer, valid or not.
pub(crate) type FooterBytes = [u8; FOOTER_SIZE];
/// A header, valid or not.
pub(crate) type HeaderBytes = [u8; HEADER_SIZE];

/// How numbers are printed: `-x`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    /// With `0x`.
    pub(crate) hex: bool,
}

impl Numbers {
    /// A number; zero has no prefix, as C has it.
    pub(crate) fn show(self, number: u64) -> String {
        if self.hex && number != 0 { format!("{number:#x}") } else { number.to_string() }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("a field inside its part"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().expect("a field inside its part"))
}

/// A line of a dump: the label, up to the 20th column, and the value.
fn line(text: &mut Vec<u8>, label: &str, value: impl AsRef<[u8]>) {
    text.extend_from_slice(format!("{label:<20}: ").as_bytes());
    text.extend_from_slice(value.as_ref());
    text.push(b'\n');
}

/// Up to the first zero, as C prints it.
fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn checksum(stored: u32, computed: u32) -> String {
    let verdict = if stored == computed { "Good!" } else { "Bad!" };
    format!("{stored:#x}|{computed:#x} ({verdict})")
}

fn version(value: u32) -> String {
    format!("Major: {}, Minor: {}", value >> 16, value & 0xffff)
}

fn megabytes(numbers: Numbers, bytes: u64) -> String {
    format!("{} MB ({} Bytes)", numbers.show(bytes >> 20), numbers.show(bytes))
}

fn uuid(bytes: &[u8], at: usize) -> String {
    Uuid(*bytes[at..].first_chunk().expect("a field inside its part")).to_string()
}

/// The names of types, by number.
const DISK_TYPES: [&str; 7] = [
    "None",
    "Reserved (deprecated)",
    "Fixed hard disk",
    "Dynamic hard disk",
    "Differencing hard disk",
    "Reserved (deprecated)",
    "Reserved (deprecated)",
];

/// "VHD Footer Summary".
pub(crate) fn footer(bytes: &FooterBytes, numbers: Numbers) -> Vec<u8> {
    let mut text = b"VHD Footer Summary:\n-------------------\n".to_vec();
    line(&mut text, "Cookie", until_zero(&bytes[..8]));
    let features = be32(bytes, 8);
    let temporary = if features & 1 == 0 { "" } else { "<TEMP>" };
    let reserved = if features & 2 == 0 { "" } else { "<RESV>" };
    line(&mut text, "Features", format!("({features:#010x}) {temporary}{reserved}"));
    line(&mut text, "File format version", version(be32(bytes, 12)));
    line(&mut text, "Data offset", numbers.show(be64(bytes, 16)));
    line(&mut text, "Timestamp", Timestamp(be32(bytes, 24)).to_string());
    let creator = [b"'", until_zero(&bytes[28..32]), b"'"].concat();
    line(&mut text, "Creator Application", creator);
    line(&mut text, "Creator version", version(be32(bytes, 32)));
    line(
        &mut text,
        "Creator OS",
        match &bytes[36..40] {
            b"Wi2k" => "Windows",
            b"Mac " => "Macintosh",
            _ => "Unknown!",
        },
    );
    line(&mut text, "Original disk size", megabytes(numbers, be64(bytes, 40)));
    line(&mut text, "Current disk size", megabytes(numbers, be64(bytes, 48)));
    let cylinders = u64::from(be32(bytes, 56) >> 16);
    let (heads, sectors) = (u64::from(bytes[58]), u64::from(bytes[59]));
    let shown = [cylinders, heads, sectors].map(|number| numbers.show(number));
    let [shown_cylinders, shown_heads, shown_sectors] = shown;
    let geometry = format!("Cyl: {shown_cylinders}, Hds: {shown_heads}, Sctrs: {shown_sectors}");
    line(&mut text, "Geometry", geometry);
    let total = megabytes(numbers, (cylinders * heads * sectors) << 9);
    line(&mut text, "", format!("= {total}"));
    let disk_type = usize::try_from(be32(bytes, 60)).ok();
    let disk_type = disk_type.and_then(|disk_type| DISK_TYPES.get(disk_type));
    line(&mut text, "Disk type", disk_type.unwrap_or(&"Unknown type!\n"));
    line(&mut text, "Checksum", checksum(be32(bytes, 64), vhd::footer::checksum(bytes)));
    line(&mut text, "UUID", uuid(bytes, 68));
    line(&mut text, "Saved state", if bytes[84] == 0 { "No" } else { "Yes" });
    line(&mut text, "Hidden", bytes[85].cast_signed().to_string());
    text.push(b'\n');
    text
}

/// "VHD Header Summary".
pub(crate) fn header(bytes: &HeaderBytes, numbers: Numbers) -> Vec<u8> {
    let mut text = b"VHD Header Summary:\n-------------------\n".to_vec();
    line(&mut text, "Cookie", until_zero(&bytes[..8]));
    line(&mut text, "Data offset (unusd)", numbers.show(be64(bytes, 8)));
    line(&mut text, "Table offset", numbers.show(be64(bytes, 16)));
    line(&mut text, "Header version", format!("{:#010x}", be32(bytes, 24)));
    line(&mut text, "Max BAT size", numbers.show(be32(bytes, 28).into()));
    let block_size = u64::from(be32(bytes, 32));
    let in_mb = if block_size >> 20 == 0 { "0".to_owned() } else { numbers.show(block_size >> 20) };
    let shown = if block_size == 0 { "0".to_owned() } else { numbers.show(block_size) };
    line(&mut text, "Block size", format!("{shown} ({in_mb} MB)"));
    line(&mut text, "Parent name", parent_name(&bytes[64..576]));
    line(&mut text, "Parent UUID", uuid(bytes, 40));
    line(&mut text, "Parent timestamp", Timestamp(be32(bytes, 56)).to_string());
    line(&mut text, "Checksum", checksum(be32(bytes, 36), vhd::header::checksum(bytes)));
    text.push(b'\n');
    text
}

/// The name in UTF-16, up to the first zero; what is none of that as question marks.
fn parent_name(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit));
    let letters = char::decode_utf16(units.take_while(|unit| *unit != 0));
    letters.map(|letter| letter.unwrap_or('?')).collect()
}

/// A locator that is in use.
#[derive(Clone, Debug)]
pub(crate) struct NamedLocator {
    /// Which of the header's.
    pub(crate) number: u8,
    /// What the header says.
    pub(crate) locator: Locator,
    /// Its text, if that can be read.
    pub(crate) name: Option<String>,
}

/// "VHD Parent Locators": those that are in use.
pub(crate) fn locators(locators: &[NamedLocator], numbers: Numbers) -> Vec<u8> {
    let mut text = b"VHD Parent Locators:\n--------------------\n".to_vec();
    for NamedLocator { number, locator, name } in locators {
        line(&mut text, "locator:", number.to_string());
        let code = match locator.platform {
            Platform::MacX => "PLAT_CODE_MACX",
            Platform::W2ku => "PLAT_CODE_W2KU",
            Platform::W2ru => "PLAT_CODE_W2RU",
            Platform::Mac => "PLAT_CODE_MAC",
            Platform::Wi2r => "PLAT_CODE_WI2R",
            Platform::Wi2k => "PLAT_CODE_WI2K",
            Platform::None => "PLAT_CODE_NONE",
            // As ever: programs know this spelling.
            Platform::Unknown(_) => "UNKOWN",
        };
        line(&mut text, "       code", code);
        line(&mut text, "       data_space", numbers.show(locator.space.into()));
        line(&mut text, "       data_length", numbers.show(locator.length.into()));
        line(&mut text, "       data_offset", numbers.show(locator.offset));
        match name {
            Some(name) => line(&mut text, "       decoded name", name),
            None => text.extend_from_slice(b"failed to read parent name\n"),
        }
        text.push(b'\n');
    }
    text
}

/// "VHD Batmap Summary", of the bytes of a batmap's header and the checksum of its map.
pub(crate) fn batmap(bytes: &[u8; 512], computed: u32, numbers: Numbers) -> Vec<u8> {
    let mut text = b"VHD Batmap Summary:\n-------------------\n".to_vec();
    line(&mut text, "Batmap offset", numbers.show(be64(bytes, 8)));
    line(&mut text, "Batmap size (secs)", numbers.show(be32(bytes, 16).into()));
    line(&mut text, "Batmap version", format!("{:#010x}", be32(bytes, 20)));
    if bytes[29] == 1 {
        line(&mut text, "Batmap keyhash nonce", hex(&bytes[30..62]));
        line(&mut text, "Batmap keyhash hash", hex(&bytes[62..94]));
    }
    line(&mut text, "Checksum", checksum(be32(bytes, 24), computed));
    text.push(b'\n');
    text
}

/// Two small digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_of_rubbish_is_shown_and_not_trusted() {
        let text = footer(&[0x7a; 512], Numbers::default());
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("Cookie              : zzzzzzzz\n"), "{text}");
        assert!(text.contains("Disk type           : Unknown type!\n\nChecksum"), "{text}");
        assert!(text.contains("(Bad!)"), "{text}");
    }

    #[test]
    fn a_parent_name_that_is_no_utf16_is_shown_with_question_marks() {
        let mut bytes = [0; 512];
        bytes[..6].copy_from_slice(&[0, b'a', 0xd8, 0, 0, b'b']);
        assert_eq!(parent_name(&bytes), "a?b");
    }
}
