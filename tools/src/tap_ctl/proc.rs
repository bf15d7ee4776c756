//! What `/proc/misc` and `/proc/devices` say about the blktap driver.

/// Whether the control device is there, under either of its names.
pub(crate) fn has_control_device(misc: &str) -> bool {
    misc.lines()
        .filter_map(number_and_name)
        .any(|(_, name)| matches!(name, "blktap/control" | "blktap-control"))
}

/// The major of the block devices.
pub(crate) fn block_major(devices: &str) -> Option<u32> {
    devices.lines().filter_map(number_and_name).find(|(_, name)| *name == "tapdev").map(first)
}

fn first((number, _): (u32, &str)) -> u32 {
    number
}

fn number_and_name(line: &str) -> Option<(u32, &str)> {
    let (number, name) = line.trim().split_once(' ')?;
    Some((number.parse().ok()?, name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "Character devices:\n  1 mem\n246 blktap2\n\nBlock devices:\n  8 sd\n\
                           254 tapdev\n";

    #[test]
    fn the_major_is_that_of_the_block_devices() {
        assert_eq!(block_major(DEVICES), Some(254));
        assert_eq!(block_major("  8 sd\nx tapdev\n9 tapdev2\n"), None);
    }

    #[test]
    fn the_control_device_has_two_names() {
        assert!(has_control_device(" 58 blktap/control\n183 hw_random\n"));
        assert!(has_control_device("58 blktap-control\n"));
        assert!(!has_control_device("183 hw_random\nblktap/control\n"));
    }
}
