//! A public test utility, behind the feature `testing`: images and hosts in memory, damage, and all
//! plans at once.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "what is made here is small, and a test may panic"
)]

mod damage;
mod host;
mod image;
mod plans;

pub use damage::mend;
pub use host::{MemoryFile, MemoryHost};
pub use image::{Creator, End, Spec, put};
pub use plans::go_through_all;

#[cfg(test)]
pub(crate) use image::specs;
