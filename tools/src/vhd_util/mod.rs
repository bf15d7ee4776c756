//! vhd-util: makes, inspects, checks, changes and joins VHD images.

mod dump;
