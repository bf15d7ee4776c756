//! The blktap2 kernel ABI: a block device of the kernel whose requests a process serves.
//!
//! ```text
//!   /dev/tdX ──> blktap driver ──> ring (1 page) + data (352 pages), mapped here
//!                      ^  RESPOND         │  poll
//!                      └──── MappedRing <─┘
//! ```
//!
//! * [`abi`] - layouts and constants, no logic.
//! * [`control`] - the control device: allocate and free taps, make their nodes.
//! * [`ring`] - the ring of one tap: [`Ring`] when opened, [`MappedRing`] when served.
//! * `sim` (feature `sim`) - the kernel's half over shared memory, for tests and benchmarks.
//!
//! The order of a tap's life, which the types keep:
//!
//! ```text
//!   Control::allocate -> Ring::open -> Ring::map -> create_device -> serve -> remove_device
//!                     -> (unregister) -> unmap -> drop -> Control::free
//! ```

pub mod abi;
pub mod control;
pub mod ring;
#[cfg(feature = "sim")]
pub mod sim;
mod sys;

pub use control::{Control, ControlError, Places, Tap};
#[cfg(feature = "sim")]
pub use ring::RawRing;
pub use ring::{
    Busy, CreatedDevice, DeviceParams, EntryFault, MappedRing, Message, Op, Reason, Removal,
    RequestId, Ring, RingFault, RingRequest, Segment, TrimParams, parse_entry,
};
#[cfg(feature = "sim")]
pub use sys::discard;
