//! Reads and writes on the calling thread: preadv, pwritev2.
//!
//! A room with `unsafe`: see [`super`] for the contract.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::super::engine::{Request, Verb, encode_error};

/// Does it and returns its result; a call that a signal interrupted is made again.
pub(in crate::queue) fn run(request: &Request<'_>) -> i64 {
    loop {
        let result = call(request);
        if result >= 0 {
            return result;
        }
        let errno = Errno::last();
        if errno != Errno::EINTR {
            return encode_error(errno);
        }
    }
}

fn call(request: &Request<'_>) -> i64 {
    let fd = request.fd.as_raw_fd();
    let Ok(offset) = libc::off_t::try_from(request.offset) else {
        Errno::set_raw(libc::EFBIG);
        return -1;
    };
    let pieces = request.pieces;
    let count = libc::c_int::try_from(pieces.len()).expect("far below IOV_MAX");
    // `Piece` is laid out as an iovec.
    let iovecs: *const libc::iovec = pieces.as_ptr().cast();
    let bytes = match (request.verb, pieces) {
        (Verb::Read, [one]) => {
            // SAFETY: the piece is valid for its length, and the I/O's alone (contract).
            unsafe { libc::pread(fd, one.address().cast(), one.len(), offset) }
        }
        (Verb::Read, _) => {
            // SAFETY: `count` iovecs of a live slice, each valid for its length (contract).
            unsafe { libc::preadv(fd, iovecs, count, offset) }
        }
        (Verb::Write, [one]) => {
            // SAFETY: as for pread; only read.
            unsafe { libc::pwrite(fd, one.address().cast(), one.len(), offset) }
        }
        (Verb::Write, _) => {
            // SAFETY: as for preadv; only read.
            unsafe { libc::pwritev(fd, iovecs, count, offset) }
        }
        (Verb::WriteDurable, _) => {
            // SAFETY: as for preadv; only read.
            unsafe { libc::pwritev2(fd, iovecs, count, offset, libc::RWF_DSYNC) }
        }
        (verb, _) => unreachable!("{verb:?} carries no data"),
    };
    // ssize_t is 64 bits on every target with the blktap2 ABI; i64 has no narrower From.
    bytes as i64
}
