//! When a ring is worth polling.

use std::os::fd::AsFd;

use blktap_ioctl::Removal;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::kernel::{answer, served, take};

fn watch(fd: impl AsFd, flags: EpollFlags) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN | flags, 1)).unwrap();
    epoll
}

/// Ten seconds are as good as for ever: a wake-up that is lost fails the law.
fn is_woken(epoll: &Epoll, timeout_ms: u16) -> bool {
    let mut events = [EpollEvent::empty()];
    epoll.wait(&mut events, PollTimeout::from(timeout_ms)).unwrap() == 1
}

#[test]
fn each_request_wakes_a_waiter_once() {
    for flags in [EpollFlags::EPOLLET, EpollFlags::empty()] {
        let (_tap, mut ring, user) = served();
        let epoll = watch(&ring, flags);
        ring.poll_now().unwrap();
        for cookie in 0..5 {
            assert!(!is_woken(&epoll, 0), "before request {cookie}");
            user.read(cookie, 0, 0, 512);
            assert!(is_woken(&epoll, 10_000), "request {cookie}");
            let request = take(&mut ring, 1);
            answer(&mut ring, &request);
            assert_eq!(user.outcomes(1), [(cookie, Ok(()))]);
        }
        epoll.delete(&ring).unwrap();
    }
}

#[test]
fn freed_slots_wake_when_requests_wait_for_them() {
    let (_tap, mut ring, user) = served();
    for cookie in 0..40 {
        user.read(cookie, cookie * 8, 0, 512);
    }
    user.queued(40);
    let epoll = watch(&ring, EpollFlags::EPOLLET);
    let requests = take(&mut ring, 32);
    while is_woken(&epoll, 0) {}
    answer(&mut ring, &requests);
    assert!(is_woken(&epoll, 10_000));
    let requests = take(&mut ring, 8);
    answer(&mut ring, &requests);
    assert_eq!(user.outcomes(40).len(), 40);
    epoll.delete(&ring).unwrap();
}

#[test]
fn an_open_device_is_busy_until_its_last_close_which_is_an_event_once() {
    let (_tap, mut ring, mut user) = served();
    let epoll = watch(&ring, EpollFlags::EPOLLET);
    while is_woken(&epoll, 0) {}
    assert_eq!(ring.remove_device().unwrap(), Removal::Busy);
    user.read(1, 0, 0, 512);
    let request = take(&mut ring, 1);
    answer(&mut ring, &request);
    assert_eq!(user.outcomes(1), [(1, Ok(()))], "served as before");
    while is_woken(&epoll, 0) {}
    user.close();
    assert!(is_woken(&epoll, 10_000));
    // Either that wait has polled, or this does: whoever was told is told once.
    ring.poll_now().unwrap();
    assert!(!ring.poll_now().unwrap());
    assert_eq!(ring.take(), None);
    epoll.delete(&ring).unwrap();
    while ring.remove_device().unwrap() == Removal::Busy {}
    user.open().unwrap_err();
}
