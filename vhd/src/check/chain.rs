//! An image and, where that is asked for, its ancestors.

use std::path::{Path, PathBuf};

use super::finding::{Finding, FindingKind as Kind};
use super::image::check;
use super::locators;
use super::{CheckOptions, Report};
use crate::error::{ErrorKind, Result};
use crate::footer::DiskType;
use crate::gate::Gate;
use crate::host::Host;
use crate::image::{Image, LoadOptions};
use crate::paths;
use crate::units::Timestamp;

/// An image that was checked.
#[derive(Debug)]
pub struct Checked<F> {
    /// Its canonical path.
    pub path: PathBuf,
    /// What was found.
    pub report: Report,
    /// The image, if it could be loaded: for [`stats`](super::stats), or to show its metadata.
    pub image: Option<Image<F>>,
}

/// Checks an image and what its locators lead to; with `with_parents` its ancestors as well, up to
/// the first that is invalid, raw or fixed. The leaf comes first.
///
/// # Errors
/// The leaf cannot be opened. What is wrong with its ancestors is a finding.
pub fn check_chain<H: Host>(
    host: &H,
    path: &Path,
    gate: &Gate,
    options: CheckOptions,
    with_parents: bool,
    now: Timestamp,
) -> Result<Vec<Checked<H::File>>> {
    let mut path = paths::canonical(host, path)?;
    let mut file = host.open(&path)?;
    let mut known = vec![host.identity(&file)?];
    let mut all: Vec<Checked<H::File>> = Vec::new();
    loop {
        let mut report = check(&file, options, now);
        let load = LoadOptions {
            for_inspection: true,
            footer_copy_only: !report.has_end_footer && report.footer.is_some(),
            any_bit_order: false,
        };
        let image = Image::load(file, load).ok();
        let mut parent = None;
        if report.is_valid()
            && let Some(image) = image.as_ref().filter(|image| image.is_differencing())
        {
            let notes = &mut report.findings;
            match locators::check(host, gate, &path, image, options, notes) {
                Ok(found) if !image.has_raw_parent() => parent = Some(found),
                Ok(_) => {}
                Err(finding) => report.findings.push(finding),
            }
        }
        let is_valid = report.is_valid();
        let is_fixed = report.footer.is_some_and(|footer| footer.disk_type == DiskType::Fixed);
        all.push(Checked { path, report, image });
        let Some(next) = parent.filter(|_| with_parents && is_valid && !is_fixed) else { break };
        match open_next(host, &next, gate, &mut known) {
            Ok(opened) => (path, file) = (next, opened),
            Err(error) => {
                let name = next.display().to_string();
                let kind = Kind::Parent(name, "error opening parent");
                if let Some(last) = all.last_mut() {
                    last.report.findings.push(Finding::caused(kind, error));
                }
                break;
            }
        }
    }
    Ok(all)
}

/// Opens an ancestor that was not seen yet.
fn open_next<H: Host>(
    host: &H,
    path: &Path,
    gate: &Gate,
    known: &mut Vec<(u64, u64)>,
) -> Result<H::File> {
    if known.len() >= usize::try_from(gate.depth_max()).unwrap_or(usize::MAX) {
        return Err(ErrorKind::ChainTooDeep { limit: gate.depth_max() }.into());
    }
    let file = host.open(path)?;
    let identity = host.identity(&file)?;
    if known.contains(&identity) {
        return Err(ErrorKind::ChainLoop.into());
    }
    known.push(identity);
    Ok(file)
}

#[cfg(test)]
mod tests;
