//! Is an image sound? What a checking tool says, as data.
//!
//! [`check`] goes through an image in the order in which readers rely on its parts: footers,
//! header, table, batmap, locators. What it finds are [`Finding`]s. The first one that makes the
//! image invalid is what scripts know; where more can be told without guessing, more are.
//!
//! The time is linear in the blocks that are there, but for a sort of them by place, by which those
//! that lie over each other are found. Memory is 8 bytes for each block that is there, at most 64
//! MiB.
//!
//! ```
//! use vhd::check::{CheckOptions, check};
//! # use vhd::footer::{DiskType, Footer};
//! # use vhd::units::{Timestamp, Uuid};
//! # let mut file = vec![0; 4096];
//! # file.extend(Footer::new(DiskType::Fixed, 4096, Uuid([7; 16]), Timestamp(0)).emit());
//! let report = check(&file, CheckOptions::default(), Timestamp(1000));
//! assert!(report.is_valid() && report.findings.is_empty());
//! // One byte of the footer's UUID.
//! file[4096 + 70] ^= 1;
//! let report = check(&file, CheckOptions::default(), Timestamp(1000));
//! assert_eq!(report.findings[0].to_string(), "primary footer invalid: invalid checksum");
//! ```

mod blocks;
mod chain;
mod finding;
mod image;
mod locators;
mod stats;

pub use chain::{Checked, check_chain};
pub use finding::{Finding, FindingKind};
pub use image::check;
pub use stats::{Stats, stats};

use crate::footer::Footer;
use crate::header::Header;

/// What to look at. The default is all that can be told from the metadata of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// A missing footer at the end is no fault: it is what a crash leaves.
    pub ignore_end_footer: bool,
    /// Nor is a parent with another UUID, or one that cannot be loaded.
    pub ignore_parent_uuid: bool,
    /// Nor are times in the future.
    pub ignore_times: bool,
    /// Do not look for blocks that lie over each other.
    pub ignore_overlap: bool,
    /// Read all data, and look for some where the bitmap says that there is none.
    pub read_data: bool,
}

/// What was found of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were found.
    pub findings: Vec<Finding>,
    /// The footer that counts, if there is one.
    pub footer: Option<Footer>,
    /// The header, if it was looked at and understood.
    pub header: Option<Header>,
    /// What was looked at of the footer at the end.
    pub has_end_footer: bool,
}

impl Report {
    /// Is there nothing that makes the image invalid?
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.invalid().is_none()
    }

    /// The first finding that makes the image invalid.
    #[must_use]
    pub fn invalid(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| !finding.is_note())
    }

    /// What a tool exits with: 0, or the error number of the first finding that makes the image
    /// invalid.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.invalid().map_or(0, Finding::errno)
    }
}

#[cfg(test)]
mod tests;
