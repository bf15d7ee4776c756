//! The data of requests: through the pages of their slots, and nowhere else.

use blktap_ioctl::abi::STATUS_ERROR;
use nix::errno::Errno;

use crate::kernel::{answer, served, take};

/// Bytes of which no two sectors are alike.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..).map(|index: u32| (index.wrapping_mul(seed | 1) >> 3).to_le_bytes()[0]).take(len).collect()
}

#[test]
fn data_goes_through_the_pages_of_its_request() {
    let (_tap, mut ring, user) = served();
    // Shifts and lengths: within a page, over pages, all that a request takes.
    let cases = [(0, 512), (0, 4096), (1024, 4096), (3584, 1024), (512, 44_544), (0, 45_056)];
    for (index, (shift, len)) in (0_u32..).zip(cases) {
        let data = pattern(index + 3, len);
        user.write(1, 0, shift, &data);
        let write = take(&mut ring, 1)[0];
        let mut got = Vec::new();
        for segment in write.segments() {
            let mut bytes = vec![0; segment.len as usize];
            ring.copy_out(segment.offset, &mut bytes);
            got.extend(bytes);
        }
        assert_eq!(got, data, "a write of {len} bytes, {shift} into a page");
        answer(&mut ring, &[write]);
        assert_eq!(user.outcomes(1), [(1, Ok(()))]);

        user.read(2, 0, shift, len);
        let read = take(&mut ring, 1)[0];
        let mut rest = &data[..];
        for segment in read.segments() {
            let (here, after) = rest.split_at(segment.len as usize);
            ring.copy_in(segment.offset, here);
            rest = after;
        }
        answer(&mut ring, &[read]);
        let done = user.done(1);
        assert_eq!(done[0].outcome, Ok(()));
        assert!(done[0].data == data, "a read of {len} bytes, {shift} into a page");
    }
}

#[test]
fn requests_do_not_share_pages() {
    let (_tap, mut ring, user) = served();
    for cookie in 0..32 {
        user.write(cookie, cookie * 8, 0, &pattern(u32::try_from(cookie).unwrap() * 2 + 5, 4096));
    }
    user.queued(32);
    let requests = take(&mut ring, 32);
    for request in &requests {
        let segment = request.segments().next().unwrap();
        assert_eq!(segment.offset, request.id.index() * 11 * 4096);
        let mut bytes = vec![0; 4096];
        ring.copy_out(segment.offset, &mut bytes);
        let seed = u32::try_from(request.sector / 8).unwrap() * 2 + 5;
        assert!(bytes == pattern(seed, 4096), "the data of sector {}", request.sector);
    }
    answer(&mut ring, &requests);
    assert_eq!(user.outcomes(32).len(), 32);
}

#[test]
fn a_failed_read_brings_no_data() {
    let (_tap, mut ring, user) = served();
    user.read(1, 0, 0, 4096);
    let request = take(&mut ring, 1)[0];
    ring.copy_in(request.segments().next().unwrap().offset, &[9; 4096]);
    ring.respond(request.id, STATUS_ERROR);
    ring.push_responses().unwrap();
    let done = user.done(1);
    assert_eq!((done[0].outcome, done[0].data.len()), (Err(Errno::EIO), 0));
}
