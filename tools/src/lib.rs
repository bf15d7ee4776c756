//! What the command line tools share, and the ones that work on images: `vhd-util`, `td-util`,
//! `cbt-util`. Each of those is a function from arguments to an exit status, so that tests can
//! run it inside their own process; the programs in `bin/` only call it.
//!
//! Options, output and exit status are those of blktap 4, which a storage manager parses; what is
//! new takes a long option or a new name. An exit status is an errno.

#![forbid(unsafe_code)]

pub mod cbt_util;
pub mod console;
pub mod getopt;
pub mod glob;
pub mod lvm;
pub mod number;
pub mod options;
pub mod program;
pub mod progress;
pub mod td_util;
pub mod vhd_util;
