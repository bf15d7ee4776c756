//! Names of images: the one that a name stands for, and the one that a child stores of its parent.
//!
//! Volumes have several names, of which some come and go. Children store that in `/dev/mapper`, so
//! the canonical path keeps the names of volume managers and replicated devices, and follows links
//! everywhere else.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::error::{ErrorKind, Part, Result};
use crate::host::Host;

const MAPPER: &str = "/dev/mapper";

/// The path by which an image is known, without `.`, `..` and most links:
///
/// * `/dev/mapper/NAME`, if it exists, is kept;
/// * `/dev/GROUP/VOLUME` becomes `/dev/mapper/GROUP-VOLUME`, with each `-` inside doubled, if that
///   exists;
/// * `/dev/drbd/by-res/RESOURCE/VOLUME` is kept if it leads to `/dev/drbd` and a number;
/// * of all others it is the real path.
///
/// # Errors
/// There is no such file.
pub fn canonical(host: &impl Host, path: &Path) -> Result<PathBuf> {
    let path = absolute(host, path)?;
    let plain = normalised(&path);
    let parts: Vec<&[u8]> =
        plain.components().skip(1).map(|part| part.as_os_str().as_bytes()).collect();
    match parts.as_slice() {
        [b"dev", b"mapper", _] if host.exists(&plain) => return Ok(plain),
        [b"dev", group, volume] => {
            let mapped = Path::new(MAPPER).join(mapper_name(group, volume));
            if host.exists(&mapped) {
                return Ok(mapped);
            }
        }
        [b"dev", b"drbd", b"by-res", _, _] => {
            let real = host.real_path(&path)?;
            let number = real.as_os_str().as_bytes().strip_prefix(b"/dev/drbd".as_slice());
            let is_device =
                |number: &[u8]| !number.is_empty() && number.iter().all(u8::is_ascii_digit);
            return Ok(if number.is_some_and(is_device) { plain } else { real });
        }
        _ => {}
    }
    host.real_path(&path)
}

/// `GROUP-VOLUME`, each `-` inside doubled.
fn mapper_name(group: &[u8], volume: &[u8]) -> OsString {
    let mut name = Vec::new();
    for (at, part) in [group, volume].into_iter().enumerate() {
        if at > 0 {
            name.push(b'-');
        }
        for byte in part {
            name.push(*byte);
            if *byte == b'-' {
                name.push(b'-');
            }
        }
    }
    OsString::from_vec(name)
}

fn absolute(host: &impl Host, path: &Path) -> Result<PathBuf> {
    Ok(if path.is_absolute() { path.to_owned() } else { host.current_directory()?.join(path) })
}

/// Without `.`, `..` and empty parts, links or not.
#[must_use]
pub fn normalised(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// The path of `to` as a child at `from` stores it: `./name`, or `../` and so on. Both canonical.
///
/// # Errors
/// [`ErrorKind::Encoding`], when the path is not UTF-8.
pub fn relative(from: &Path, to: &Path) -> Result<String> {
    let directory: Vec<Component<'_>> = from.parent().unwrap_or(from).components().collect();
    let parts: Vec<Component<'_>> = to.components().collect();
    let common = directory.iter().zip(&parts).take_while(|(one, other)| one == other).count();
    let up = directory.iter().skip(common).count();
    let mut path = if up == 0 { String::from("./") } else { "../".repeat(up) };
    let mut rest = PathBuf::new();
    rest.extend(parts.iter().skip(common));
    let wanted = "UTF-8: a parent's path must be";
    let kind = ErrorKind::Encoding { part: Part::Header, wanted };
    path.push_str(rest.to_str().ok_or(kind)?);
    Ok(path)
}

#[cfg(test)]
mod tests;
