//! The block device of a ring: created, removed, paused.

use std::io;

use blktap_ioctl::sim::{Disk, Driver, PauseState, Segments, SimOptions, create, serve};
use blktap_ioctl::{CreatedDevice, DeviceParams, MappedRing, Message, Removal, TrimParams};
use nix::errno::Errno;

use crate::{attach, take_all};

const ALL_DRIVERS: [Driver; 3] = [Driver::Xcp, Driver::Dkms, Driver::Legacy];

fn options(driver: Driver) -> SimOptions {
    SimOptions { driver, ..SimOptions::default() }
}

fn everything() -> DeviceParams {
    DeviceParams {
        sector_size: 512,
        physical_sector_size: 4096,
        read_only: true,
        flush: true,
        trim: Some(TrimParams { granularity: 4096, alignment: 512, reads_zero: true }),
        name: b"vhd:/disk".to_vec(),
        ..DeviceParams::new(2048)
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}

#[test]
fn each_driver_takes_what_it_knows() {
    let plain = CreatedDevice { flush: false, trim: false, read_only: true };
    let disk = Disk {
        capacity: 2048,
        sector_size: 512,
        physical_sector_size: 4096,
        read_only: true,
        flush: false,
        trim: false,
    };
    let expected = [
        (Driver::Xcp, plain, disk),
        (
            Driver::Dkms,
            CreatedDevice { flush: true, trim: true, ..plain },
            Disk { flush: true, trim: true, ..disk },
        ),
        (
            Driver::Legacy,
            CreatedDevice { read_only: false, ..plain },
            Disk { read_only: false, physical_sector_size: 512, ..disk },
        ),
    ];
    for (driver, created, disk) in expected {
        let (ring, device) = create(options(driver)).unwrap();
        let mut ring = ring.map().unwrap();
        assert_eq!(device.disk(), None);
        assert_eq!(ring.create_device(&everything()).unwrap(), created, "{driver:?}");
        assert_eq!(device.disk(), Some(disk), "{driver:?}");
    }
}

#[test]
fn without_features_a_driver_sees_only_what_all_know() {
    for driver in ALL_DRIVERS {
        let params =
            DeviceParams { sector_size: 4096, physical_sector_size: 4096, ..DeviceParams::new(64) };
        let (_ring, device) = serve(options(driver), &params).unwrap();
        let disk = device.disk().unwrap();
        assert_eq!((disk.capacity, disk.sector_size), (64, 4096));
        assert!(!disk.flush && !disk.trim && !disk.read_only);
    }
}

#[test]
fn there_is_one_device_at_a_time() {
    for driver in ALL_DRIVERS {
        let params = DeviceParams::new(64);
        let (mut ring, device) = serve(options(driver), &params).unwrap();
        assert_eq!(errno(&ring.create_device(&params).unwrap_err()), Errno::EEXIST);
        assert_eq!(ring.remove_device().unwrap(), Removal::Removed);
        assert_eq!(ring.remove_device().unwrap(), Removal::Removed);
        ring.create_device(&DeviceParams::new(128)).unwrap();
        assert_eq!(device.disk().unwrap().capacity, 128);
    }
}

#[test]
fn refuses_parameters_before_the_driver_sees_them() {
    let (ring, device) = create(SimOptions::default()).unwrap();
    let mut ring = ring.map().unwrap();
    let params = DeviceParams { sector_size: 520, ..DeviceParams::new(64) };
    let error = ring.create_device(&params).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(device.disk(), None);
}

#[test]
fn the_block_layer_refuses_what_the_device_does_not_have() {
    let (_ring, device) = serve(options(Driver::Xcp), &everything()).unwrap();
    let page = Segments::plain(4096);
    assert_eq!(device.submit_write(0, 0, page, &[0; 4096]), Err(Errno::EPERM));
    assert_eq!(device.submit_flush(0), Err(Errno::EOPNOTSUPP));
    assert_eq!(device.submit_read(0, 2041, page), Err(Errno::EIO));
    assert_eq!(device.submit_read(0, u64::MAX, page), Err(Errno::EIO));
    assert_eq!(device.submit_read(0, 2040, page), Ok(()));
    let (ring, device) = create(SimOptions::default()).unwrap();
    assert_eq!(device.submit_read(0, 0, page), Err(Errno::ENXIO));
    drop(ring);
}

#[test]
fn a_full_block_layer_refuses_more() {
    let few = SimOptions { queue_depth: 2, ..SimOptions::default() };
    let (mut ring, device) = serve(few, &DeviceParams::new(64)).unwrap();
    let page = Segments::plain(4096);
    for expected in [Ok(()), Ok(()), Err(Errno::EAGAIN)] {
        assert_eq!(device.submit_read(0, 0, page), expected);
    }
    for request in take_all(&mut ring) {
        ring.respond(request.id, 0);
    }
    ring.push_responses().unwrap();
    let mut again = Vec::new();
    device.completions(|_| again.push(device.submit_read(1, 0, page)));
    assert_eq!(again, [Ok(()), Ok(())]);
}

#[test]
fn messages_are_told_apart() {
    let (ring, device) = attach();
    let expected = [
        (0, Message::None),
        (1, Message::Pause),
        (2, Message::Resume),
        (3, Message::Close),
        (4, Message::Unknown(4)),
        (255, Message::Unknown(255)),
    ];
    for (raw, message) in expected {
        device.hostile().set_message(raw);
        assert_eq!(ring.message(), message);
    }
}

#[test]
fn a_message_that_stands_is_news_once() {
    let (mut ring, device) = attach();
    device.hostile().set_message(3);
    assert!(ring.poll_now().unwrap());
    assert!(!ring.poll_now().unwrap());
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    assert!(ring.poll_now().unwrap());
    assert_eq!(take_all(&mut ring).len(), 1);
    assert!(!ring.poll_now().unwrap());
}

fn legacy() -> (MappedRing, blktap_ioctl::sim::SimDevice) {
    serve(options(Driver::Legacy), &DeviceParams::new(64)).unwrap()
}

#[test]
fn a_pause_waits_for_the_requests_and_keeps_later_ones_back() {
    let (mut ring, device) = legacy();
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    let request = take_all(&mut ring)[0];
    device.request_pause();
    device.submit_read(2, 0, Segments::plain(512)).unwrap();
    assert!(take_all(&mut ring).is_empty());
    assert_eq!(ring.message(), Message::None);
    ring.respond(request.id, 0);
    ring.push_responses().unwrap();
    assert!(ring.poll_now().unwrap());
    assert_eq!(ring.message(), Message::Pause);
    ring.pause().unwrap();
    assert_eq!(device.pause_state(), (PauseState::Paused, None));
    assert_eq!(ring.message(), Message::None);

    device.request_resume(b"vhd:/new").unwrap();
    assert!(ring.poll_now().unwrap());
    assert_eq!(ring.message(), Message::Resume);
    assert_eq!(ring.reopen().unwrap(), "vhd:/new");
    assert_eq!(ring.message(), Message::None);
    ring.resume(Err(Errno::ENOENT)).unwrap();
    assert_eq!(device.pause_state(), (PauseState::Paused, Some(-2)));
    ring.set_params(&DeviceParams::new(128)).unwrap();
    ring.resume(Ok(())).unwrap();
    assert_eq!(device.pause_state(), (PauseState::Running, Some(0)));
    assert_eq!(device.disk().unwrap().capacity, 128);
    assert_eq!(take_all(&mut ring).len(), 1);
}

#[test]
fn a_pause_that_nobody_asked_for_is_refused() {
    let (mut ring, device) = legacy();
    let refused = [
        ring.pause().unwrap_err(),
        ring.reopen().unwrap_err(),
        ring.resume(Ok(())).unwrap_err(),
        ring.set_params(&DeviceParams::new(8)).unwrap_err(),
    ];
    assert!(refused.iter().all(|error| errno(error) == Errno::EINVAL), "{refused:?}");
    assert_eq!(device.request_resume(b"x"), Err(Errno::EPERM));
}

#[test]
fn a_name_may_fill_its_buffer() {
    let (mut ring, device) = legacy();
    device.request_pause();
    ring.pause().unwrap();
    let long = [b'n'; 256];
    device.request_resume(&long).unwrap();
    assert_eq!(ring.reopen().unwrap().len(), 256);
}

#[test]
fn later_drivers_have_no_pause() {
    for driver in [Driver::Xcp, Driver::Dkms] {
        let (mut ring, _device) = serve(options(driver), &DeviceParams::new(64)).unwrap();
        assert_eq!(errno(&ring.pause().unwrap_err()), Errno::ENOTTY);
        assert_eq!(errno(&ring.reopen().unwrap_err()), Errno::ENOTTY);
        assert_eq!(errno(&ring.resume(Ok(())).unwrap_err()), Errno::ENOTTY);
    }
}
