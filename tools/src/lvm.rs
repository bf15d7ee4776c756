//! Logical volumes of a group, as `vgs` and `lvs` list them, and where on a physical volume each
//! starts: what is at the start of a volume can be read without activating it.
//!
//! The programs are started with their arguments, without a shell in between: a group's name is a
//! name and nothing else.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Between the columns: it is in no name of LVM's, and in no path that it uses.
const SEPARATOR: &str = "|";
/// Columns of the two listings.
const GROUP_COLUMNS: &str = "vg_extent_size,pv_name,pe_start";
const VOLUME_COLUMNS: &str = "lv_name,lv_size,segtype,seg_start,seg_size,devices";

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the group.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Where its first segment is; none if that is not linear.
    pub first: Option<Segment>,
}

/// A piece of a physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The physical volume's device.
    pub device: PathBuf,
    /// In bytes from its start.
    pub start: u64,
    /// In bytes.
    pub length: u64,
}

/// Why there is no listing.
#[derive(Debug)]
pub enum LvmError {
    /// A program could not be started.
    Start(&'static str, std::io::Error),
    /// A program failed; what it said.
    Failed(&'static str, String),
    /// A line that is not as it should be.
    Line(String),
}

impl fmt::Display for LvmError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(program, error) => write!(out, "Cannot start {program}: {error}"),
            Self::Failed(program, said) => write!(out, "{program} failed: {said}"),
            Self::Line(line) => write!(out, "Found a line of LVM that is none: {line:?}"),
        }
    }
}

impl std::error::Error for LvmError {}

/// The volumes of a group.
///
/// # Errors
/// The programs are not there or fail - there is no such group - or say something else.
pub fn volumes(group: &OsStr) -> Result<Vec<Volume>, LvmError> {
    let physical = physical_volumes(&list("vgs", GROUP_COLUMNS, group)?)?;
    logical_volumes(&list("lvs", VOLUME_COLUMNS, group)?, &physical)
}

fn list(program: &'static str, columns: &str, group: &OsStr) -> Result<String, LvmError> {
    let options = ["--noheadings", "--nosuffix", "--units=b", "--unbuffered", "--separator"];
    let output = Command::new(program)
        .args(options)
        .arg(SEPARATOR)
        .arg("--options")
        .arg(columns)
        .arg("--")
        .arg(group)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| LvmError::Start(program, error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LvmError::Failed(program, said));
    }
    String::from_utf8(output.stdout).map_err(|error| LvmError::Line(error.to_string()))
}

/// A physical volume: its device, where its extents start, and how large one is, in bytes.
type Physical = (PathBuf, u64, u64);

fn columns<const N: usize>(line: &str) -> Result<[&str; N], LvmError> {
    let parts: Vec<&str> = line.trim().split(SEPARATOR).collect();
    parts.try_into().map_err(|_| LvmError::Line(line.to_owned()))
}

fn number(text: &str, line: &str) -> Result<u64, LvmError> {
    text.parse().map_err(|_| LvmError::Line(line.to_owned()))
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim().is_empty())
}

fn physical_volumes(text: &str) -> Result<Vec<Physical>, LvmError> {
    let volume = |line| {
        let [extent, device, start] = columns(line)?;
        Ok((PathBuf::from(device), number(start, line)?, number(extent, line)?))
    };
    lines(text).map(volume).collect()
}

/// One line for each segment; those of a volume may come in any order.
fn logical_volumes(text: &str, physical: &[Physical]) -> Result<Vec<Volume>, LvmError> {
    let mut volumes: Vec<Volume> = Vec::new();
    for line in lines(text) {
        let [name, size, kind, start, length, devices] = columns(line)?;
        let size = number(size, line)?;
        let index = volumes.iter().position(|volume| volume.name == name).unwrap_or_else(|| {
            volumes.push(Volume { name: name.to_owned(), size, first: None });
            volumes.len() - 1
        });
        if number(start, line)? == 0 && kind == "linear" {
            let length = number(length, line)?;
            volumes[index].first = Some(segment(line, devices, length, physical)?);
        }
    }
    Ok(volumes)
}

/// A segment from `/dev/sdb(12)`: a device, and the number of an extent.
fn segment(
    line: &str,
    devices: &str,
    length: u64,
    physical: &[Physical],
) -> Result<Segment, LvmError> {
    let wrong = || LvmError::Line(line.to_owned());
    let (device, extent) =
        devices.strip_suffix(')').and_then(|it| it.rsplit_once('(')).ok_or_else(wrong)?;
    let found = physical.iter().find(|(known, _, _)| known.as_os_str() == device);
    let (device, first, extent_size) = found.ok_or_else(wrong)?;
    let start = number(extent, line)?.checked_mul(*extent_size);
    let start = start.and_then(|start| start.checked_add(*first)).ok_or_else(wrong)?;
    Ok(Segment { device: device.clone(), start, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "  4194304|/dev/sda|1048576\n  4194304|/dev/sd b|10485760\n";

    #[test]
    fn a_volume_starts_where_its_first_segment_does() {
        let physical = physical_volumes(GROUP).unwrap();
        let text = "  VHD-1|8388608|linear|4194304|4194304|/dev/sda(9)
  VHD-1|8388608|linear|0|4194304|/dev/sd b(2)
  LV-2|4194304|striped|0|4194304|/dev/sda(0),/dev/sd b(0)
";
        let volumes = logical_volumes(text, &physical).unwrap();
        let device = PathBuf::from("/dev/sd b");
        let first = Some(Segment { device, start: 10_485_760 + 2 * 4_194_304, length: 4_194_304 });
        assert_eq!(volumes[0], Volume { name: "VHD-1".into(), size: 8_388_608, first });
        assert_eq!(volumes[1].first, None);
        assert_eq!(volumes.len(), 2);
    }

    #[test]
    fn refuses_lines_that_are_none() {
        let physical = physical_volumes(GROUP).unwrap();
        for line in [
            "VHD-1|8388608|linear|0|4194304",
            "VHD-1|x|linear|0|4194304|/dev/sda(0)",
            "VHD-1|1|linear|0|4194304|/dev/sdz(0)",
            "VHD-1|1|linear|0|4194304|/dev/sda",
            "VHD-1|1|linear|0|4194304|/dev/sda(18446744073709551615)",
        ] {
            assert!(logical_volumes(line, &physical).is_err(), "{line}");
        }
        assert!(physical_volumes("1|2").is_err());
    }
}
