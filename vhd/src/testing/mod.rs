//! A public test utility, behind the feature `testing`: images and hosts in memory, damage, and all
//! plans at once; a disk that loses what is not durable, and the model of what it may lose.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "what is made here is small, and a test may panic"
)]

mod damage;
mod host;
mod image;
mod oracle;
mod plans;
mod random;
mod store;

pub use damage::mend;
pub use host::{MemoryFile, MemoryHost};
pub use image::{Creator, End, Spec, put};
pub use oracle::{Oracle, Value, bytes_of, value, value_of};
pub use plans::go_through_all;
pub use random::Random;
pub use store::{Effect, SECTOR, Store};

#[cfg(test)]
pub(crate) use image::specs;
