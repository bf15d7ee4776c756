//! The queue: placeholder
