//! The rooms of the queue with `unsafe`: iovecs, and the system calls that take them.
//!
//! Contract, inside: an address that the kernel may use exists only as a [`iovecs::Piece`], which
//! is made of a segment by `Memory`, with its bounds checked. The tables of pieces and control
//! blocks are allocated once, never move and never shrink; the kernel reads them during the system
//! call that hands over a request and not afterwards (Linux AIO always; io_uring since 5.5,
//! checked).
//!
//! Contract, outside: the queue's caller keeps the memory mapped and gives it to nobody else until
//! the I/O has ended (see `queue`), so that what the kernel writes lands in memory that waits for
//! it.

pub(super) mod aio;
pub(super) mod inline;
pub(super) mod iovecs;
pub(super) mod uring;
