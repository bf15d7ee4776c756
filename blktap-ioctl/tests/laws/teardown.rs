//! The end of a ring: in order, or not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use blktap_ioctl::{DeviceParams, MappedRing, Op, Removal, RingRequest};
use nix::errno::Errno;

use crate::kernel::user::User;
use crate::kernel::{
    Generation, answer, errno, is_driver, mapped, only_driver, params, publish, raw_served,
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

/// Wherever the requests are: waiting, in the ring, answered in part.
#[test]
fn removal_under_io_is_busy_and_the_io_goes_on() {
    let (_tap, mut ring, mut user) = served();
    for cookie in 0..40_u8 {
        let sector = u64::from(cookie) * 8;
        match cookie % 2 {
            0 => user.write(cookie.into(), sector, 0, &[cookie; 4096]),
            _ => user.read(cookie.into(), sector, 0, 4096),
        }
    }
    user.queued(40);
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy, "all of them wait");
    let mut requests = take(&mut ring, 32);
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy, "32 are in the ring, 8 wait");
    let rest = requests.split_off(8);
    let serve = |ring: &mut MappedRing, requests: &[RingRequest]| {
        for request in requests {
            let segment = request.segments().next().unwrap();
            let mark = u8::try_from(request.sector / 8).unwrap();
            if request.op == Op::Write {
                let mut bytes = [0; 4096];
                ring.copy_out(segment.offset, &mut bytes);
                assert_eq!(bytes, [mark; 4096], "what was written to sector {}", request.sector);
            } else {
                ring.copy_in(segment.offset, &[mark; 4096]);
            }
        }
        answer(ring, requests);
    };
    serve(&mut ring, &requests);
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy, "24 are in the ring, 8 wait");
    let last = take(&mut ring, 8);
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy, "32 are in the ring");
    serve(&mut ring, &rest);
    serve(&mut ring, &last);
    for done in user.done(40) {
        let mark = u8::try_from(done.cookie).unwrap();
        assert_eq!(done.outcome, Ok(()), "request {mark}");
        assert!(mark % 2 == 0 || done.data == [mark; 4096], "the data of request {mark}");
    }
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy, "it is open");
    user.close();
    while ring.remove_device().unwrap() == Removal::Busy {
        ring.poll_now().unwrap();
    }
    // The next device has nothing of the last one.
    ring.create_device(&params()).unwrap();
    user.open().unwrap();
    user.read(1, 0, 0, 512);
    let request = take(&mut ring, 1);
    answer(&mut ring, &request);
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

/// How many lives a device has in a race of its users with REMOVE: each round of a user ends with
/// one of them, so that it comes to an end on any machine.
const ROUNDS: u32 = 60;

/// Bytes of a device's disk there, in memory.
const DISK_BYTES: usize = 64 << 10;

/// Serves what has come from `disk`.
fn serve_from(ring: &mut MappedRing, disk: &mut [u8]) {
    ring.poll_now().unwrap();
    while let Some(request) = ring.take() {
        let request = request.unwrap();
        let mut at = usize::try_from(request.sector).unwrap() * 512;
        for segment in request.segments() {
            let place = &mut disk[at..at + segment.len as usize];
            match request.op {
                Op::Read => ring.copy_in(segment.offset, place),
                _ => ring.copy_out(segment.offset, place),
            }
            at += place.len();
        }
        ring.respond(request.id, 0);
    }
    ring.push_responses().unwrap();
}

/// What users and server of a race tell each other.
#[derive(Default)]
struct Race {
    /// How often the device was opened.
    opened: AtomicU32,
    /// How many lives of it have ended.
    ended: AtomicU32,
}

/// The server: serves, removes the device when it has been opened, and makes it again, until
/// `is_over`. Returns what is on the disk.
fn remove_and_create(ring: &mut MappedRing, race: &Race, is_over: impl Fn() -> bool) -> Vec<u8> {
    let device = DeviceParams::new(DISK_BYTES as u64 / 512);
    let mut disk = vec![0; DISK_BYTES];
    let (mut busy, mut opened) = (0, 0);
    ring.create_device(&device).unwrap();
    while !is_over() {
        serve_from(ring, &mut disk);
        if race.opened.load(Ordering::Relaxed) == opened {
            // A life that nobody sees is no race.
            std::thread::yield_now();
            continue;
        }
        match ring.remove_device().unwrap() {
            Removal::Busy => busy += 1,
            Removal::Removed => {
                opened = race.opened.load(Ordering::Relaxed);
                race.ended.fetch_add(1, Ordering::Relaxed);
                ring.create_device(&device).unwrap();
            }
        }
    }
    while ring.remove_device().unwrap() == Removal::Busy {
        serve_from(ring, &mut disk);
    }
    let Race { opened, ended } = race;
    println!("{opened:?} times opened in {ended:?} lives, {busy} times busy");
    disk
}

/// A user: in each round it opens the device one to three times, and then waits until a life of the
/// device has ended since the round began.
fn open_and_close(
    path: &Path,
    race: &Race,
    mut use_it: impl FnMut(&File) -> io::Result<()>,
) -> io::Result<()> {
    for round in 0..ROUNDS {
        let before = race.ended.load(Ordering::Relaxed);
        for _ in 0..=round % 3 {
            let file = loop {
                match File::options().read(true).write(true).open(path) {
                    Ok(file) => break file,
                    Err(error) => assert_eq!(errno(&error), Errno::ENXIO),
                }
                std::thread::yield_now();
            };
            race.opened.fetch_add(1, Ordering::Relaxed);
            use_it(&file)?;
        }
        while race.ended.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Opening and closing while the server removes the device again and again.
#[test]
fn removal_races_with_users_without_harm() {
    if !only_driver("its users are this thread") {
        return;
    }
    let (_tap, mut ring, user) = mapped(Generation::Dkms);
    let User::Driver(driver) = &user else { unreachable!("it is the driver's") };
    let (path, race) = (driver.tap.device_path.as_path(), &Race::default());
    std::thread::scope(|scope| {
        let opener = scope.spawn(move || {
            open_and_close(path, race, |_| {
                // Where there is one processor the server comes now, while it is open.
                std::thread::yield_now();
                Ok(())
            })
        });
        remove_and_create(&mut ring, race, || opener.is_finished());
        opener.join().unwrap().unwrap();
    });
    assert!(race.ended.load(Ordering::Relaxed) >= ROUNDS);
}

/// The same with users who write through the page cache: what they wrote reaches the server with
/// the last close, which waits for it. Nobody who has it open sees an error.
#[test]
fn removal_races_with_io_without_harm() {
    if !only_driver("its users are this thread") {
        return;
    }
    let (_tap, mut ring, user) = mapped(Generation::Dkms);
    let User::Driver(driver) = &user else { unreachable!("it is the driver's") };
    let (path, race) = (driver.tap.device_path.as_path(), &Race::default());
    let write = |page: u64| {
        let mut count = 0_u32;
        open_and_close(path, race, |file| {
            count += 1;
            let mark = count.to_ne_bytes().repeat(1024);
            file.write_all_at(&mark, page * 4096)?;
            if count.is_multiple_of(2) {
                file.sync_all()?;
            }
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, page * 4096)?;
            assert!(bytes == mark, "the page that was just written");
            Ok(())
        })
        .map(|()| count)
    };
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..3).map(|page| scope.spawn(move || write(page))).collect();
        let disk =
            remove_and_create(&mut ring, race, || users.iter().all(|user| user.is_finished()));
        for (page, user) in users.into_iter().enumerate() {
            let count = user.join().unwrap().unwrap();
            let last = &disk[page * 4096..][..4096];
            assert!(last == count.to_ne_bytes().repeat(1024), "page {page} as it was written last");
        }
    });
    assert!(race.ended.load(Ordering::Relaxed) >= ROUNDS);
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
