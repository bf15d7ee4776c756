//! The end of a ring: in order, or without harm.

use std::fs;

use blktap_ioctl::sim::{Segments, SimOptions, create};
use blktap_ioctl::{Busy, DeviceParams, MappedRing};
use nix::errno::Errno;

use crate::{attach, completed, take_all};

/// The lines of this process's map that hold the ring's data pages, with the inode of its memory,
/// so that another ring at the same address is told apart.
fn mapping_of(address: usize) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&address)
    });
    line.and_then(|line| line.split_whitespace().nth(4)).map(str::to_owned)
}

fn address(ring: &MappedRing) -> usize {
    ring.data_area().0 as usize
}

#[test]
fn an_idle_ring_is_unmapped_and_can_be_mapped_again() {
    let (mut ring, device) = attach();
    let inode = mapping_of(address(&ring)).unwrap();
    let before = address(&ring);
    ring.remove_device().unwrap();
    let opened = ring.unmap().unwrap();
    assert_ne!(mapping_of(before).as_deref(), Some(inode.as_str()));
    let mut ring = opened.map().unwrap();
    ring.create_device(&DeviceParams::new(64)).unwrap();
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    assert_eq!(take_all(&mut ring)[0].id.index(), 0);
}

#[test]
fn is_not_unmapped_with_requests_outstanding_or_responses_not_pushed() {
    let (mut ring, device) = attach();
    for cookie in 0..3 {
        device.submit_read(cookie, 0, Segments::plain(512)).unwrap();
    }
    let requests = take_all(&mut ring);
    ring.respond(requests[0].id, 0);
    let (mut ring, busy) = ring.unmap().unwrap_err();
    assert_eq!(busy, Busy { outstanding: 2, unpushed: 1 });
    for request in &requests[1..] {
        ring.respond(request.id, 0);
    }
    let (mut ring, busy) = ring.unmap().unwrap_err();
    assert_eq!(busy, Busy { outstanding: 0, unpushed: 3 });
    ring.push_responses().unwrap();
    ring.unmap().unwrap();
    assert_eq!(completed(&device).len(), 3);
}

#[test]
fn what_was_not_taken_fails_when_the_ring_is_unmapped_and_what_waits_comes_later() {
    let (mut ring, device) = attach();
    for cookie in 0..40 {
        device.submit_read(cookie, cookie, Segments::plain(512)).unwrap();
    }
    ring.poll_now().unwrap();
    let opened = ring.unmap().unwrap();
    let failed: Vec<_> = (0..32).map(|cookie| (cookie, Err(Errno::EIO))).collect();
    assert_eq!(completed(&device), failed);
    let mut ring = opened.map().unwrap();
    let later: Vec<u64> = take_all(&mut ring).iter().map(|request| request.sector).collect();
    assert_eq!(later, (32..40).collect::<Vec<_>>());
}

#[test]
fn pages_under_io_stay_mapped_when_the_ring_is_dropped() {
    let (mut ring, device) = attach();
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    take_all(&mut ring);
    let address = address(&ring);
    let inode = mapping_of(address).unwrap();
    drop(ring);
    assert_eq!(mapping_of(address), Some(inode));
}

#[test]
fn pages_are_unmapped_when_an_idle_ring_is_dropped() {
    let (mut ring, device) = attach();
    device.submit_read(1, 0, Segments::plain(512)).unwrap();
    let request = take_all(&mut ring)[0];
    ring.respond(request.id, 0);
    ring.push_responses().unwrap();
    let address = address(&ring);
    let inode = mapping_of(address).unwrap();
    drop(ring);
    assert_ne!(mapping_of(address), Some(inode));
    drop(device);
}

#[test]
fn a_ring_that_was_never_mapped_closes_quietly() {
    let (ring, device) = create(SimOptions::default()).unwrap();
    drop(ring);
    assert_eq!((device.disk(), device.in_use()), (None, 0));
}

#[test]
fn many_lives_leave_no_descriptor_behind() {
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests open and close at the same time: a leak here would be a hundred times theirs.
    let before = count();
    for _ in 0..2000 {
        let (ring, _device) =
            create(SimOptions { queue_depth: 1, ..SimOptions::default() }).unwrap();
        let mut ring = ring.map().unwrap();
        ring.create_device(&DeviceParams::new(64)).unwrap();
        ring.remove_device().unwrap();
        drop(ring.unmap().unwrap());
    }
    assert!(count() < before + 1000);
}
