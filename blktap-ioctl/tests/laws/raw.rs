//! What a server with a fault does: the kernel stands it, and the requests end.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use blktap_ioctl::RawRing;
use blktap_ioctl::abi::{DeviceInfoBoth, MAP_SIZE, NAME_SIZE, PAGE_SIZE, Params, ResponseEntry};
use nix::errno::Errno;

use crate::kernel::{Generation, errno, info, only_driver, publish, raw_served, raw_tap, response};

/// One response under the next index, and the ioctl.
fn respond(ring: &RawRing, index: u32, response: ResponseEntry) {
    ring.write_response(index, response);
    ring.set_rsp_prod(index.wrapping_add(1));
    ring.respond().unwrap();
}

#[test]
fn a_fresh_ring_is_empty() {
    let (_tap, mut ring, _user) = raw_tap(Generation::Xcp);
    ring.map().unwrap();
    assert_eq!((ring.header(), ring.message()), ([0, 1, 0, 1], 0));
}

#[test]
fn nothing_works_before_the_ring_is_mapped() {
    let (_tap, ring, _user) = raw_tap(Generation::Xcp);
    let params = Params { name: [0; NAME_SIZE], capacity: 8, sector_size: 512 };
    let denied = Err(Errno::EACCES);
    assert_eq!(ring.create_device(&mut info()), denied);
    assert_eq!(ring.create_device_compat(&params), denied);
    assert_eq!(ring.remove_device(), denied);
    assert_eq!(errno(&ring.respond().unwrap_err()), Errno::EACCES);
}

#[test]
fn the_calls_of_2009_are_gone() {
    let (_tap, mut ring, _user) = raw_tap(Generation::Xcp);
    ring.map().unwrap();
    for call in ring.legacy_calls() {
        assert_eq!(errno(&call.unwrap_err()), Errno::ENOTTY);
    }
}

#[test]
fn respond_with_nothing_new_is_fine() {
    let (_tap, mut ring, _user) = raw_tap(Generation::Xcp);
    ring.map().unwrap();
    for _ in 0..3 {
        ring.respond().unwrap();
    }
}

#[test]
fn a_response_with_another_operation_fails_the_request() {
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    publish(&ring, 1);
    respond(&ring, 0, ResponseEntry { operation: 1, ..response(0) });
    assert_eq!(user.outcomes(1), [(1, Err(Errno::EIO))]);
}

#[test]
fn a_response_without_the_ioctl_does_nothing() {
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    publish(&ring, 1);
    ring.write_response(0, response(0));
    ring.set_rsp_prod(1);
    assert!(!ring.poll().unwrap());
    assert!(user.is_quiet());
    ring.respond().unwrap();
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

#[test]
fn responses_to_no_request_are_passed_over() {
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    let wrong = [0, 1, 31, 32, 64, 1 << 32, u64::MAX];
    for (index, id) in (0..).zip(wrong) {
        respond(&ring, index, response(id));
    }
    user.read(1, 0, 0, 512);
    publish(&ring, 1);
    for (index, id) in (7..).zip(&wrong[1..]) {
        respond(&ring, index, response(*id));
    }
    assert!(user.is_quiet());
    respond(&ring, 13, response(0));
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

#[test]
fn a_second_response_is_passed_over() {
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    user.queued(1);
    publish(&ring, 1);
    ring.write_response(0, response(0));
    ring.write_response(1, response(0));
    ring.set_rsp_prod(2);
    ring.respond().unwrap();
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
    // The slot's next request is not answered by what was said before.
    user.read(2, 0, 0, 512);
    publish(&ring, 2);
    assert!(user.is_quiet());
    respond(&ring, 2, response(0));
    assert_eq!(user.outcomes(1), [(2, Ok(()))]);
}

#[test]
fn more_responses_than_entries_are_not_looked_at() {
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    publish(&ring, 1);
    for rsp_prod in [33, 1 << 31, u32::MAX] {
        ring.set_rsp_prod(rsp_prod);
        ring.respond().unwrap();
        assert!(user.is_quiet());
    }
    respond(&ring, 0, response(0));
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

#[test]
fn a_ring_is_mapped_once_at_a_time_and_fresh_each_time() {
    let (_tap, mut ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    publish(&ring, 1);
    respond(&ring, 0, response(0));
    user.done(1);
    assert_eq!(errno(&ring.map().unwrap_err()), Errno::EBUSY);
    assert_eq!(ring.header()[0], 1, "the first mapping is still good");
    ring.unmap();
    ring.map().unwrap();
    assert_eq!(ring.header(), [0, 1, 0, 1]);
}

#[test]
fn parameters_that_no_disk_has_are_refused() {
    for generation in [Generation::Xcp, Generation::Dkms] {
        let (_tap, mut ring, _user) = raw_tap(generation);
        ring.map().unwrap();
        let good = info();
        let mut bad = vec![
            DeviceInfoBoth { capacity: 0, ..good },
            DeviceInfoBoth { sector_size: 0, ..good },
            DeviceInfoBoth { sector_size: 256, ..good },
            DeviceInfoBoth { sector_size: 520, ..good },
            DeviceInfoBoth { sector_size: 8192, ..good },
        ];
        if generation == Generation::Xcp {
            let sizes = [0, 256, 513, 768];
            bad.extend(sizes.map(|size| DeviceInfoBoth { physical_sector_size: size, ..good }));
        }
        for mut info in bad {
            assert_eq!(ring.create_device(&mut info), Err(Errno::EINVAL), "{info:?}");
        }
        assert_eq!(ring.create_device(&mut { good }), Ok(()));
        assert_eq!(ring.create_device(&mut { good }), Err(Errno::EEXIST));
        assert_eq!(ring.remove_device(), Ok(()));
        assert_eq!(ring.remove_device(), Ok(()), "there is none, and that is fine");
    }
}

#[test]
fn a_ring_that_is_not_mapped_has_no_news() {
    if !only_driver("it stops the test: drivers of Linux 4.19 crash here") {
        return;
    }
    let (_tap, mut ring, _user) = raw_tap(Generation::Xcp);
    assert!(!ring.poll().unwrap());
    ring.map().unwrap();
    ring.create_device(&mut info()).unwrap();
    ring.unmap();
    assert!(!ring.poll().unwrap());
}

#[test]
fn a_mapping_is_whole_or_not_at_all() {
    if !only_driver("its memory is an ordinary file") {
        return;
    }
    let (_tap, mut ring, _user) = raw_tap(Generation::Xcp);
    for bytes in [PAGE_SIZE, MAP_SIZE - PAGE_SIZE, MAP_SIZE + PAGE_SIZE] {
        assert_eq!(errno(&ring.try_map(bytes).unwrap_err()), Errno::EINVAL, "{bytes}");
    }
    // What servers of the reference ask for; rounded up to pages it is the same.
    ring.try_map(1 + 32 * 11 * PAGE_SIZE).unwrap();
    ring.map().unwrap();
    for page in [0, 1, 177, 352] {
        assert_eq!(ring.try_unmap_page(page), Err(Errno::EINVAL), "{page}");
    }
    ring.create_device(&mut info()).unwrap();
}

/// The process that has the ring's file, and not its mapping.
const CHILD: &str = "BLKTAP_LAWS_CHILD";

#[test]
fn only_the_process_that_mapped_a_ring_serves_it() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    if !only_driver("all of it is one process") {
        return;
    }
    let (_tap, ring, user) = raw_served(Generation::Xcp);
    user.read(1, 0, 0, 512);
    user.queued(1);
    let file = File::from(ring.as_fd().try_clone_to_owned().unwrap());
    let name = "raw::only_the_process_that_mapped_a_ring_serves_it";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::from(file))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(ring.header()[0], 0, "the child's poll moved nothing");
    publish(&ring, 1);
    respond(&ring, 0, response(0));
    assert_eq!(user.outcomes(1), [(1, Ok(()))]);
}

/// With the ring as standard input.
fn child() {
    let ring = RawRing::from(File::from(io::stdin().as_fd().try_clone_to_owned().unwrap()));
    assert_eq!(errno(&ring.respond().unwrap_err()), Errno::EACCES);
    assert_eq!(ring.create_device(&mut info()), Err(Errno::EACCES));
    assert_eq!(ring.remove_device(), Err(Errno::EACCES));
    assert!(!ring.poll().unwrap());
}
