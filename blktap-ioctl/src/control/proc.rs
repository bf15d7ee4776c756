//! What `/proc/misc` and `/proc/devices` say about the driver. Pure.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::abi::{BLOCK_MAJOR_NAME, CONTROL_NAMES, RING_MAJOR_NAME};

/// The control device, as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MiscDevice {
    /// One of [`CONTROL_NAMES`]; below `/dev` also the node's path, where something makes nodes.
    pub name: &'static str,
    /// Of major 10.
    pub minor: u32,
}

/// The driver's majors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Majors {
    /// Of the rings, a character device.
    pub ring: Option<u32>,
    /// Of the block devices.
    pub block: Option<u32>,
}

/// Finds the control device in the text of `/proc/misc`: lines of a minor and a name.
///
/// Lines that are something else are passed over; the newer name wins.
#[must_use]
pub fn parse_proc_misc(text: &str) -> Option<MiscDevice> {
    CONTROL_NAMES.iter().find_map(|name| {
        let minor = text.lines().filter_map(number_and_name).find(|(_, found)| found == name);
        minor.map(|(minor, _)| MiscDevice { name, minor })
    })
}

/// Finds the driver's majors in the text of `/proc/devices`: two sections of majors and names.
#[must_use]
pub fn parse_proc_devices(text: &str) -> Majors {
    let mut majors = Majors::default();
    let mut is_block = false;
    for line in text.lines() {
        match line.trim() {
            "Character devices:" => is_block = false,
            "Block devices:" => is_block = true,
            _ => match number_and_name(line) {
                Some((major, BLOCK_MAJOR_NAME)) if is_block => majors.block = Some(major),
                Some((major, RING_MAJOR_NAME)) if !is_block => majors.ring = Some(major),
                _ => {}
            },
        }
    }
    majors
}

fn number_and_name(line: &str) -> Option<(u32, &str)> {
    let (number, name) = line.trim().split_once(char::is_whitespace)?;
    Some((number.parse().ok()?, name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "\
Character devices:
  1 mem
 10 misc
246 blktap2
253 tapdev

Block devices:
  8 sd
246 blktap2
254 tapdev
";

    #[test]
    fn finds_the_control_device_under_either_name() {
        let found = parse_proc_misc(" 58 blktap/control\n175 agpgart\n");
        assert_eq!(found, Some(MiscDevice { name: "blktap/control", minor: 58 }));
        let found = parse_proc_misc("175 agpgart\n  5 blktap-control\n");
        assert_eq!(found, Some(MiscDevice { name: "blktap-control", minor: 5 }));
    }

    #[test]
    fn the_newer_name_wins() {
        let found = parse_proc_misc("5 blktap-control\n58 blktap/control\n");
        assert_eq!(found.map(|device| device.minor), Some(58));
    }

    #[test]
    fn a_name_counts_as_a_whole() {
        for text in [
            "",
            "58 blktap/control2",
            "blktap/control",
            "x blktap/control",
            "58",
            "-1 blktap-control",
        ] {
            assert_eq!(parse_proc_misc(text), None, "{text:?}");
        }
        assert_eq!(parse_proc_misc("99999999999 blktap-control"), None);
    }

    #[test]
    fn a_major_counts_in_its_own_section() {
        let expected = Majors { ring: Some(246), block: Some(254) };
        assert_eq!(parse_proc_devices(DEVICES), expected);
    }

    #[test]
    fn there_are_no_majors_without_the_driver() {
        let none = "Character devices:\n  1 mem\n\nBlock devices:\n  8 sd\n";
        assert_eq!(parse_proc_devices(none), Majors::default());
    }
}
