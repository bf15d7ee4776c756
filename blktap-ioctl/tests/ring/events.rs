//! Sleeping on a ring: edge-triggered, by one loop.

use std::os::fd::AsFd;

use blktap_ioctl::MappedRing;
use blktap_ioctl::sim::{Segments, SimDevice};
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::{attach, completed, take_all};

fn watch(fd: impl AsFd) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1)).unwrap();
    epoll
}

fn is_woken(epoll: &Epoll) -> bool {
    let mut events = [EpollEvent::empty()];
    epoll.wait(&mut events, PollTimeout::ZERO).unwrap() == 1
}

fn read(device: &SimDevice, cookie: u64) {
    device.submit_read(cookie, 0, Segments::plain(512)).unwrap();
}

fn answer_all(ring: &mut MappedRing) -> usize {
    let requests = take_all(ring);
    for request in &requests {
        ring.respond(request.id, 0);
    }
    ring.push_responses().unwrap();
    requests.len()
}

#[test]
fn each_request_after_a_poll_wakes() {
    let (mut ring, device) = attach();
    let epoll = watch(&ring);
    answer_all(&mut ring);
    assert!(!is_woken(&epoll));
    for cookie in 0..5 {
        read(&device, cookie);
        assert!(is_woken(&epoll), "request {cookie}");
        assert!(!is_woken(&epoll), "an edge is reported once");
        assert_eq!(answer_all(&mut ring), 1);
    }
    assert!(!is_woken(&epoll));
}

#[test]
fn completions_wake_their_callers() {
    let (mut ring, device) = attach();
    let epoll = watch(&device);
    for cookie in 0..3 {
        read(&device, cookie);
        assert!(!is_woken(&epoll));
        answer_all(&mut ring);
        assert!(is_woken(&epoll));
        assert_eq!(completed(&device).len(), 1);
    }
}

/// The server sleeps without a timeout worth waiting for: a lost wake-up is a failure.
#[test]
fn no_wake_up_is_lost_between_two_threads() {
    const COUNT: u64 = 20_000;
    let (mut ring, device) = attach();
    let epoll = watch(&ring);
    let client = std::thread::spawn(move || {
        let done = watch(&device);
        let (mut submitted, mut ended) = (0, 0);
        while ended < COUNT {
            while submitted < COUNT
                && device.submit_read(submitted, 0, Segments::plain(512)).is_ok()
            {
                submitted += 1;
            }
            let mut events = [EpollEvent::empty()];
            assert_eq!(done.wait(&mut events, PollTimeout::from(10_000_u16)).unwrap(), 1);
            ended += device.completions(|completion| assert!(completion.outcome.is_ok())) as u64;
        }
        device
    });
    let mut served = 0;
    while served < COUNT {
        if !ring.poll_now().unwrap() {
            let mut events = [EpollEvent::empty()];
            assert_eq!(epoll.wait(&mut events, PollTimeout::from(10_000_u16)).unwrap(), 1);
        }
        served += answer_all(&mut ring) as u64;
    }
    let device = client.join().unwrap();
    assert_eq!((device.in_use(), device.violations()), (0, 0));
}
