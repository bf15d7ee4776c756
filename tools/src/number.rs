//! Numbers on the command line, as C's atoi reads them: the digits at the start, 0 when there are
//! none. Callers rely on that (`-t abc`). What atoi leaves undefined, a number that does not fit,
//! is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// `None` when the number does not fit.
pub fn atoi(text: &OsStr) -> Option<i32> {
    let bytes = text.as_bytes();
    // The white space of the C locale; 0x0b is the vertical tab.
    let start = bytes.iter().position(|byte| !matches!(byte, b' ' | 0x09..=0x0d));
    let bytes = bytes.get(start.unwrap_or(bytes.len())..).unwrap_or_default();
    let (negative, digits) = match bytes.split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, bytes),
    };
    let mut value = 0_i32;
    for digit in digits.iter().take_while(|byte| byte.is_ascii_digit()) {
        let digit = i32::from(digit - b'0');
        let digit = if negative { -digit } else { digit };
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    Some(value)
}

/// A whole number, nothing else: sizes and positions, where a mistake costs data.
///
/// # Errors
/// What was found and wanted, to follow "Option -s has".
pub fn unsigned(text: &OsStr) -> Result<u64, String> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("{:?}, want a number from 0 to {}", text, u64::MAX))
}

/// Bytes, with K, M, G or T behind for powers of 1024.
///
/// # Errors
/// What was found and wanted.
pub fn size(text: &OsStr) -> Result<u64, String> {
    let wrong = || format!("{text:?}, want bytes, such as 4096, 50M or 1G");
    let text = text.to_str().ok_or_else(wrong)?;
    let letters = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let known =
        letters.iter().find_map(|(letter, shift)| Some((text.strip_suffix(*letter)?, *shift)));
    let (digits, shift) = known.unwrap_or((text, 0));
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_at_the_start_count_and_nothing_else() {
        for (text, value) in [
            ("0", 0),
            ("42", 42),
            ("-7", -7),
            ("+7", 7),
            (" \t9z", 9),
            ("abc", 0),
            ("", 0),
            ("--5", 0),
            ("0x10", 0),
            ("2147483647", i32::MAX),
            ("-2147483648", i32::MIN),
        ] {
            assert_eq!(atoi(OsStr::new(text)), Some(value), "{text:?}");
        }
    }

    #[test]
    fn a_size_may_have_a_letter() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("50M", 50 << 20), ("1T", 1 << 40)] {
            assert_eq!(size(OsStr::new(text)), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1.5G", "1GB", "-1", "16777216T"] {
            assert!(size(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_digits_and_nothing_else() {
        assert_eq!(unsigned(OsStr::new("18446744073709551615")), Ok(u64::MAX));
        for text in ["", "-1", " 1", "1 ", "0x10", "abc", "1.5", "18446744073709551616"] {
            let why = unsigned(OsStr::new(text)).unwrap_err();
            assert!(why.contains("want"), "{why}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_refused() {
        for text in ["2147483648", "-2147483649", "99999999999999999999"] {
            assert_eq!(atoi(OsStr::new(text)), None, "{text:?}");
        }
    }
}
