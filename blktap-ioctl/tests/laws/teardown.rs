//! The end of a ring: in order, or not.

use blktap_ioctl::DeviceParams;
use nix::errno::Errno;

use crate::kernel::user::User;
use crate::kernel::{
    Generation, answer, info, is_driver, mapped, only_driver, publish, raw_served, raw_tap,
    response, served, take,
};

#[test]
fn unmapping_ends_what_is_in_the_ring_and_what_waits_comes_later() {
    let (_tap, mut ring, user) = raw_served(Generation::Dkms);
    for cookie in 0..40 {
        user.read(cookie, cookie * 8, 0, 512);
    }
    user.queued(40);
    publish(&ring, 32);
    ring.unmap();
    let failed = user.outcomes(32);
    assert!(failed.iter().all(|(_, outcome)| *outcome == Err(Errno::EIO)), "{failed:?}");
    assert!(user.is_quiet());
    ring.map().unwrap();
    assert_eq!(ring.header(), [0, 1, 0, 1]);
    publish(&ring, 8);
    for id in 0..8 {
        ring.write_response(u32::try_from(id).unwrap(), response(id));
    }
    ring.set_rsp_prod(8);
    ring.respond().unwrap();
    let later = user.outcomes(8);
    assert!(later.iter().all(|(_, outcome)| outcome.is_ok()), "{later:?}");
}

#[test]
fn what_comes_while_nothing_is_mapped_waits() {
    let (_tap, mut ring, user) = raw_served(Generation::Dkms);
    ring.unmap();
    user.read(1, 0, 0, 512);
    user.queued(1);
    ring.map().unwrap();
    publish(&ring, 1);
    ring.write_response(0, response(0));
    ring.set_rsp_prod(1);
    ring.respond().unwrap();
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

#[test]
fn a_closed_ring_takes_its_device_along() {
    let (_tap, mut ring, mut user) = served();
    user.read(1, 0, 0, 512);
    let request = take(&mut ring, 1);
    answer(&mut ring, &request);
    user.done(1);
    user.close();
    drop(ring);
    match &mut user {
        User::Sim(device) => assert_eq!(device.disk(), None),
        User::Driver(driver) => {
            let error = driver.open_device().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32));
            assert!(!driver.sysfs().exists());
        }
    }
}

#[test]
fn closing_fails_all_that_is_there_and_waits_for_the_last_close() {
    let (_tap, ring, mut user) = raw_served(Generation::Dkms);
    for cookie in 0..34 {
        user.read(cookie, cookie * 8, 0, 512);
    }
    user.queued(34);
    publish(&ring, 32);
    let closer = std::thread::spawn(move || {
        let mut ring = ring;
        ring.unmap();
        drop(ring);
    });
    if !is_driver() {
        closer.join().unwrap();
        assert_eq!(user.outcomes(34).len(), 34);
        println!("skipped on the simulated kernel: its close waits for nobody");
        return;
    }
    let outcomes = user.outcomes(34);
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Err(Errno::EIO)), "{outcomes:?}");
    for cookie in 0..3 {
        user.read(cookie, 0, 0, 512);
        assert_eq!(user.outcomes(1), [(cookie, Err(Errno::EIO))]);
    }
    assert!(!closer.is_finished());
    let User::Driver(driver) = &user else { unreachable!("it is the driver's") };
    let error = driver.open_device().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32), "no new opener");
    user.close();
    closer.join().unwrap();
}

/// Opening, asking and closing while the server removes the device again and again.
#[test]
fn removal_races_with_users_without_harm() {
    if !only_driver("its users are this thread") {
        return;
    }
    let (_tap, mut ring, user) = raw_tap(Generation::Dkms);
    let User::Driver(driver) = &user else { unreachable!("it is the driver's") };
    ring.map().unwrap();
    let path = driver.tap.device_path.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_stopped = std::sync::Arc::clone(&stop);
    let opener = std::thread::spawn(move || {
        let mut opened = 0_u32;
        while !is_stopped.load(std::sync::atomic::Ordering::Relaxed) {
            opened += u32::from(std::fs::File::open(&path).is_ok());
        }
        opened
    });
    let (mut removed, mut busy) = (0, 0);
    while removed < 300 {
        ring.create_device(&mut info()).unwrap();
        loop {
            // Whoever opened it reads nothing, so nothing is asked of the server.
            ring.poll().unwrap();
            match ring.remove_device() {
                Ok(()) => break,
                Err(error) => assert_eq!(error, Errno::EBUSY),
            }
            busy += 1;
        }
        removed += 1;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    println!("{} opens, {busy} times busy", opener.join().unwrap());
    drop(ring);
}

#[test]
fn many_lives_leave_nothing_behind() {
    for _ in 0..50 {
        let (_tap, mut ring, _user) = mapped(Generation::Dkms);
        ring.create_device(&DeviceParams::new(64)).unwrap();
        ring.remove_device().unwrap();
        drop(ring.unmap().unwrap());
    }
    if only_driver("it has no list of devices") {
        assert_eq!(std::fs::read_to_string("/sys/class/blktap2/devices").unwrap(), "");
    }
}
