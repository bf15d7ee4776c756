//! Units: a sector of a file, the index of a block, a moment, an identity.

use std::fmt;
use std::str::FromStr;

/// Bytes in a sector, whatever the storage below has.
pub const SECTOR_SIZE: u64 = 512;

/// A place in a file, in sectors from its start, as the block allocation table holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u32);

impl Sector {
    /// In bytes from the start of the file.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.0) << 9
    }
}

/// Which block of a disk, from 0. Not how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

/// A moment, in seconds since 2000-01-01 00:00 UTC. Prints as `Sat Jan  1 00:00:00 2000`, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u32);

impl Timestamp {
    /// The start of VHD time in seconds of Unix time.
    pub const EPOCH: u64 = 946_684_800;

    /// From seconds of Unix time; before or after VHD time it is the first or last second of that.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        Self(u32::try_from(seconds.saturating_sub(Self::EPOCH)).unwrap_or(u32::MAX))
    }

    /// In seconds of Unix time.
    #[must_use]
    pub fn to_unix(self) -> u64 {
        u64::from(self.0).saturating_add(Self::EPOCH)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WEEKDAYS: [&str; 7] = ["Sat", "Sun", "Mon", "Tue", "Wed", "Thu", "Fri"];
        const MONTHS: [(&str, u32); 12] = [
            ("Jan", 31),
            ("Feb", 28),
            ("Mar", 31),
            ("Apr", 30),
            ("May", 31),
            ("Jun", 30),
            ("Jul", 31),
            ("Aug", 31),
            ("Sep", 30),
            ("Oct", 31),
            ("Nov", 30),
            ("Dec", 31),
        ];
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // 2100 is the one year divisible by four in VHD time, 2000 to 2136, without a leap day.
        let is_leap = |year: u32| year.is_multiple_of(4) && year != 2100;
        let (mut year, mut day) = (2000_u32, days);
        while let Some(rest) = day.checked_sub(if is_leap(year) { 366 } else { 365 }) {
            (year, day) = (year.saturating_add(1), rest);
        }
        let mut name = "Jan";
        for (month, length) in MONTHS {
            name = month;
            let length = if month == "Feb" && is_leap(year) { 29 } else { length };
            match day.checked_sub(length) {
                Some(rest) => day = rest,
                None => break,
            }
        }
        let weekday = WEEKDAYS.iter().cycle().nth(usize::try_from(days % 7).unwrap_or(0));
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let (weekday, day) = (weekday.unwrap_or(&""), day.saturating_add(1));
        write!(out, "{weekday} {name} {day:2} {hour:02}:{minute:02}:{:02} {year}", second % 60)
    }
}

/// The identity of an image, by which a child knows its parent.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// None: what some programs write into a footer, and a child of a raw parent into its header.
    pub const NIL: Self = Self([0; 16]);

    /// From random bytes: a version 4 UUID of RFC 9562.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
        *version = (*version & 0x0f) | 0x40;
        *variant = (*variant & 0x3f) | 0x80;
        Self(bytes)
    }

    /// Is there none?
    #[must_use]
    pub fn is_nil(&self) -> bool {
        *self == Self::NIL
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(out, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Text that is not 32 hexadecimal digits in the groups of a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUuid;

impl fmt::Display for NotUuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Not a UUID: wanted 8-4-4-4-12 hexadecimal digits")
    }
}

impl std::error::Error for NotUuid {}

impl FromStr for Uuid {
    type Err = NotUuid;

    fn from_str(text: &str) -> Result<Self, NotUuid> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let digits: String = text.chars().filter(|letter| *letter != '-').collect();
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if groups != [8, 4, 4, 4, 12] || !is_hex {
            return Err(NotUuid);
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| NotUuid)?;
        Ok(Self(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timestamps_print_like_ctime() {
        for (seconds, text) in [
            (0, "Sat Jan  1 00:00:00 2000"),
            (5_097_600, "Tue Feb 29 00:00:00 2000"),
            (5_184_000, "Wed Mar  1 00:00:00 2000"),
            (31_622_399, "Sun Dec 31 23:59:59 2000"),
            (818_040_000, "Wed Dec  3 01:20:00 2025"),
            (3_160_857_599, "Sun Feb 28 23:59:59 2100"),
            (3_160_857_600, "Mon Mar  1 00:00:00 2100"),
            (u32::MAX, "Tue Feb  7 06:28:15 2136"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
        }
    }

    #[test]
    fn a_time_before_the_year_2000_is_its_start() {
        assert_eq!(Timestamp::from_unix(0), Timestamp(0));
        assert_eq!(Timestamp::from_unix(Timestamp::EPOCH + 7), Timestamp(7));
        assert_eq!(Timestamp::from_unix(u64::MAX), Timestamp(u32::MAX));
    }

    #[test]
    fn vhd_time_is_unix_time_from_2000_on() {
        assert_eq!(Timestamp::from_unix(946_684_801), Timestamp(1));
        assert_eq!(Timestamp(1).to_unix(), 946_684_801);
        assert_eq!(Timestamp::from_unix(0), Timestamp(0));
    }

    #[test]
    fn a_random_uuid_says_version_4_and_variant_1() {
        let text = Uuid::from_random([0xff; 16]).to_string();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(Uuid::from_random([0; 16]).to_string(), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn rejects_what_is_no_uuid() {
        for text in [
            "",
            "-",
            "ffffffff-ffff-4fff-bfff-fffffffffff",
            "ffffffff-ffff-4fff-bfff-ffffffffff+f",
            "ffffffffffff4fffbfffffffffffffff",
            "fffffff-fffff-4fff-bfff-ffffffffffff",
        ] {
            assert_eq!(text.parse::<Uuid>(), Err(NotUuid), "{text}");
        }
    }

    #[test]
    fn a_uuid_is_printed_as_its_text_also_for_programmers_and_what_is_none_is_told() {
        let text = format!("{:?}", Uuid([0x1f; 16]));
        assert_eq!(text, "1f1f1f1f-1f1f-1f1f-1f1f-1f1f1f1f1f1f");
        assert!(NotUuid.to_string().contains("8-4-4-4-12"));
    }

    proptest! {
        #[test]
        fn a_printed_uuid_parses_as_the_same(bytes: [u8; 16]) {
            prop_assert_eq!(Uuid(bytes).to_string().parse(), Ok(Uuid(bytes)));
        }
    }
}
