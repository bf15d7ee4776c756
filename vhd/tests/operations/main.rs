//! The laws of the offline operations: power cuts and errors everywhere, on images of a few KiB.
//!
//! `cargo test -p vhd --test operations -- --nocapture` prints how many states were tried.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod batmap;
mod coalesce;
mod compact;
mod create;
mod fill;
mod fixed;
mod golden;
mod hostile;
mod image;
mod law;
mod modify;
mod repair;
mod resize;
mod set;
mod view;

/// Recordings whose power is cut: a test that is taken away shows here.
const RECORDINGS: usize = 86;

#[test]
fn together_they_are_more_than_a_hundred_thousand_states() {
    // Alone it would wait for the others in vain. In order it is the last one.
    if std::env::args().skip(1).any(|argument| !argument.starts_with('-')) {
        println!("skipped: not all tests are run");
        return;
    }
    let states = law::states_of(RECORDINGS).expect("the other tests have cut the power");
    println!("{states} states");
    assert!(states >= 100_000, "only {states} states");
}
