//! What a differencing image says of its parent, and what that leads to.

use std::path::{Path, PathBuf};

use super::CheckOptions;
use super::finding::{Finding, FindingKind as Kind};
use crate::error::{ErrorKind, errno};
use crate::gate::Gate;
use crate::header::Header;
use crate::host::Host;
use crate::image::{Image, LoadOptions};
use crate::locator::Platform;
use crate::read_at::ReadAt;

/// Checks the locators of a differencing image at the canonical path `child`. Returns the path of
/// the parent, if it was found, and adds what is worth knowing.
pub(super) fn check<H: Host, R: ReadAt>(
    host: &H,
    gate: &Gate,
    child: &Path,
    image: &Image<R>,
    options: CheckOptions,
    notes: &mut Vec<Finding>,
) -> Result<PathBuf, Finding> {
    let header = image.header().expect("a differencing image has a header");
    let name = header.parent_name.decode().map_err(|error| {
        Finding::caused(Kind::ParentFields("invalid parent name"), error).with_errno(errno::EINVAL)
    })?;
    let mut seen: Vec<Platform> = Vec::new();
    let mut found = None;
    let mut unresolved = None;
    for (number, locator) in (0_u8..).zip(&header.locators) {
        if let Some(fault) = locator.check() {
            return Err(Finding::new(Kind::Locator(number, fault)));
        }
        if locator.platform == Platform::None {
            continue;
        }
        if seen.contains(&locator.platform) {
            return Err(Finding::new(Kind::DuplicateLocator(number, locator.platform.code())));
        }
        seen.push(locator.platform);
        let path = image.locator_path(number);
        let path = path.map_err(|error| Finding::caused(Kind::ReadLocator(number), error))?;
        let Some(path) = path else { continue };
        let last = path.rsplit('/').next().unwrap_or_default();
        if last != name {
            let (name, header) = (last.to_owned(), name);
            return Err(Finding::new(Kind::LocatorName { number, name, header }));
        }
        match gate.resolve(host, child, &path, image.has_raw_parent()) {
            Ok(path) => found = found.or(Some(path)),
            Err(error) => {
                let finding = Finding::caused(Kind::Unresolved(path), error);
                unresolved = unresolved.or(Some(finding));
            }
        }
    }
    match (found, unresolved) {
        (Some(path), unresolved) => {
            // One way to the parent is enough: Microsoft's programs store an absolute path besides.
            notes.extend(unresolved.map(Finding::into_note));
            parent(host, &path, header, options)?;
            Ok(path)
        }
        (None, Some(unresolved)) => Err(unresolved),
        (None, None) => Err(Finding::new(Kind::NoParent(name))),
    }
}

/// Is it the one that the child was made of?
fn parent<H: Host>(
    host: &H,
    path: &Path,
    header: &Header,
    options: CheckOptions,
) -> Result<(), Finding> {
    if header.parent_uuid.is_nil() || options.ignore_parent_uuid {
        return Ok(());
    }
    let fault = |what| Kind::Parent(path.display().to_string(), what);
    let load = LoadOptions { for_inspection: true, ..LoadOptions::default() };
    let loaded = host.open(path).and_then(|file| Image::load(file, load));
    let parent = loaded.map_err(|error| Finding::caused(fault("error opening parent"), error))?;
    let (found, wanted) = (parent.footer().uuid, header.parent_uuid);
    if found != wanted {
        let error = ErrorKind::ParentUuid { found, wanted }.into();
        return Err(Finding::caused(fault("invalid parent uuid"), error));
    }
    Ok(())
}
