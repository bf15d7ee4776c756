//! The block device: what it becomes of what was asked for.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;

use blktap_ioctl::abi::{
    DEVICE_FLAG_FLUSH, DEVICE_FLAG_PHYSICAL_SIZE, DEVICE_FLAG_READ_ONLY, DEVICE_FLAG_TRIM,
    DeviceInfoBoth, NAME_SIZE, Params,
};
use blktap_ioctl::{CreatedDevice, DeviceParams, Op, Removal, TrimParams};
use nix::errno::Errno;

use crate::kernel::user::User;
use crate::kernel::{BOTH, Generation, answer, errno, info, mapped, params, raw_tap, served, take};

#[test]
fn each_generation_takes_what_it_knows() {
    let plain = CreatedDevice { flush: false, trim: false, read_only: false };
    let expected = [plain, CreatedDevice { flush: true, trim: true, ..plain }];
    for (generation, expected) in BOTH.into_iter().zip(expected) {
        let (_tap, mut ring, _user) = mapped(generation);
        assert_eq!(ring.create_device(&params()).unwrap(), expected, "{generation:?}");
    }
}

#[test]
fn the_40_byte_generation_writes_back_the_flags_it_knows() {
    let asked = DEVICE_FLAG_READ_ONLY
        | DEVICE_FLAG_PHYSICAL_SIZE
        | DEVICE_FLAG_FLUSH
        | DEVICE_FLAG_TRIM
        | 1 << 5
        | 1 << 30;
    let known = asked & 0x1f;
    for (generation, expected) in BOTH.into_iter().zip([asked, known]) {
        let (_tap, mut ring, _user) = raw_tap(generation);
        ring.map().unwrap();
        let mut buffer = DeviceInfoBoth {
            flags: asked,
            physical_block_size: 4096,
            trim_block_size: 4096,
            ..info()
        };
        ring.create_device(&mut buffer).unwrap();
        assert_eq!(buffer.flags, expected, "{generation:?}");
    }
}

#[test]
fn a_device_can_be_made_again_with_another_size() {
    for generation in BOTH {
        let (_tap, mut ring, mut user) = mapped(generation);
        for capacity in [64, 128, 8] {
            ring.create_device(&DeviceParams::new(capacity)).unwrap();
            let error = ring.create_device(&DeviceParams::new(8)).unwrap_err();
            assert_eq!(errno(&error), Errno::EEXIST);
            assert_eq!(capacity_of(&user), capacity);
            assert_eq!(ring.remove_device().unwrap(), Removal::Removed);
            assert_eq!(ring.remove_device().unwrap(), Removal::Removed);
            assert_eq!(errno(&user.open().unwrap_err()), Errno::ENXIO);
        }
    }
}

/// In sectors of 512 bytes.
fn capacity_of(user: &User) -> u64 {
    match user {
        User::Sim(device) => device.disk().unwrap().capacity,
        User::Driver(driver) => attribute(driver, "size").parse().unwrap(),
    }
}

fn attribute(driver: &crate::kernel::user::Driver, name: &str) -> String {
    let path = driver.sysfs().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}")).trim().into()
}

#[test]
fn the_capacity_is_in_512_bytes_whatever_the_sector_size_is() {
    for generation in BOTH {
        let (_tap, mut ring, mut user) = mapped(generation);
        let params =
            DeviceParams { sector_size: 4096, physical_sector_size: 4096, ..DeviceParams::new(64) };
        ring.create_device(&params).unwrap();
        assert_eq!(capacity_of(&user), 64);
        user.open().unwrap();
        user.read(1, 56, 0, 4096);
        let request = take(&mut ring, 1);
        assert_eq!((request[0].sector, request[0].bytes), (56, 4096));
        answer(&mut ring, &request);
        assert_eq!(user.outcomes(1), [(1, Ok(()))]);
    }
}

#[test]
fn the_call_of_2009_makes_a_device_and_names_it() {
    let (_tap, mut ring, mut user) = raw_tap(Generation::Dkms);
    ring.map().unwrap();
    let mut name = [0; NAME_SIZE];
    name[..9].copy_from_slice(b"aio:/disk");
    ring.create_device_compat(&Params { name, capacity: 80, sector_size: 512 }).unwrap();
    assert_eq!(capacity_of(&user), 80);
    if let User::Driver(driver) = &user {
        let path = format!("/sys/class/blktap2/blktap!blktap{}/name", driver.tap.minor);
        assert_eq!(fs::read_to_string(path).unwrap(), "aio:/disk\n");
    }
    for (capacity, sector_size) in [(0, 512), (8, 0), (8, 520), (8, 1 << 32)] {
        assert_eq!(ring.remove_device(), Ok(()));
        let refused = ring.create_device_compat(&Params { name, capacity, sector_size });
        assert_eq!(refused, Err(Errno::EINVAL), "{capacity} {sector_size}");
    }
    user.open().unwrap_err();
}

#[test]
fn a_read_only_device_takes_no_write() {
    for generation in BOTH {
        let (_tap, mut ring, mut user) = mapped(generation);
        ring.create_device(&DeviceParams { read_only: true, ..params() }).unwrap();
        match &mut user {
            User::Sim(device) => {
                let page = blktap_ioctl::sim::Segments::plain(512);
                assert_eq!(device.submit_write(1, 0, page, &[0; 512]), Err(Errno::EPERM));
            }
            User::Driver(driver) => {
                assert_eq!(attribute(driver, "ro"), "1");
                let opened = fs::OpenOptions::new().write(true).open(&driver.tap.device_path);
                let refused = opened.and_then(|mut file| io::Write::write(&mut file, &[0; 512]));
                let refused = errno(&refused.unwrap_err());
                assert!(matches!(refused, Errno::EPERM | Errno::EROFS | Errno::EACCES));
            }
        }
        user.open().unwrap();
        user.ask(1, Op::Read);
        let request = take(&mut ring, 1);
        answer(&mut ring, &request);
        assert_eq!(user.outcomes(1), [(1, Ok(()))]);
    }
}

#[test]
fn without_flush_an_fsync_is_no_request() {
    let (_tap, mut ring, mut user) = mapped(Generation::Xcp);
    ring.create_device(&params()).unwrap();
    let User::Driver(driver) = &user else {
        println!("skipped on the simulated kernel: its block layer has no fsync");
        return;
    };
    assert_eq!(attribute(driver, "queue/write_cache"), "write through");
    assert_eq!(attribute(driver, "queue/discard_max_bytes"), "0");
    user.open().unwrap();
    user.write(1, 0, 0, &[1; 512]);
    let write = take(&mut ring, 1);
    answer(&mut ring, &write);
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
    user.flush(2);
    assert_eq!(user.outcomes(1), [(2, Ok(()))], "nobody asked the server");
    user.trim(3, 0, 8);
    assert_eq!(user.outcomes(1), [(3, Err(Errno::EOPNOTSUPP))]);
    assert!(take(&mut ring, 0).is_empty());
}

#[test]
fn the_queue_has_the_limits_of_the_ring() {
    let (_tap, mut ring, user) = mapped(Generation::Dkms);
    let User::Driver(driver) = &user else {
        println!("skipped on the simulated kernel: it has no sysfs");
        return;
    };
    let trim = TrimParams { granularity: 4096, alignment: 0, reads_zero: false };
    let params =
        DeviceParams { physical_sector_size: 4096, trim: Some(trim), ..crate::kernel::params() };
    ring.create_device(&params).unwrap();
    let expected = [
        ("ext_range", "1"),
        ("removable", "0"),
        ("ro", "0"),
        ("queue/max_segments", "11"),
        ("queue/max_segment_size", "4096"),
        ("queue/max_hw_sectors_kb", "256"),
        ("queue/max_sectors_kb", "256"),
        ("queue/dma_alignment", "511"),
        ("queue/nr_requests", "128"),
        ("queue/logical_block_size", "512"),
        ("queue/physical_block_size", "4096"),
        ("queue/discard_granularity", "4096"),
        ("queue/write_cache", "write back"),
        ("queue/fua", "0"),
    ];
    for (name, value) in expected {
        assert_eq!(attribute(driver, name), value, "{name}");
    }
    assert!(fs::metadata(&driver.tap.device_path).unwrap().file_type().is_block_device());
}

/// An I/O that is larger than a request becomes several.
#[test]
fn a_larger_read_is_split() {
    let (_tap, mut ring, user) = served();
    let User::Driver(_) = &user else {
        println!("skipped on the simulated kernel: its block layer does not split");
        return;
    };
    for (shift, bytes, expected) in [(0, 49_152, [45_056, 4096]), (1024, 45_056, [44_032, 1024])] {
        user.read(1, 0, shift, bytes);
        let mut requests = take(&mut ring, 2);
        requests.sort_by_key(|request| request.sector);
        assert_eq!(requests[0].bytes, expected[0]);
        assert_eq!((requests[1].bytes, requests[1].sector), (expected[1], expected[0] / 512));
        assert_eq!(requests[0].segments().len(), 11);
        answer(&mut ring, &requests);
        assert_eq!(user.outcomes(1), [(1, Ok(()))]);
    }
}
