//! `tap-ctl list`: all tapdisks, their disks, and minors without one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Map, Value, json};
use tapdisk_control::Paths;
use tapdisk_control::list::{ImageName, Row, STATE_NAMES, list, list_process};

use crate::command::{Command, Failure, Options};
use crate::session::Session;

pub(crate) const COMMAND: Command = Command {
    name: "list",
    short: "m:p:t:f:h",
    long: &["--json"],
    usage: "usage: list [-h] [-p pid] [-m minor] [-t type] [-f file]\n\nLists tapdisks in the following \
            format:\n     pid minor state       type file\n",
    help: "Without a terminal one line for each disk, of those fields that it has:
  pid=12 minor=0 state=0x2a args=vhd:/srv/a b.vhd
A line with a pid alone is a tapdisk without disks, one with a minor alone a minor that no tapdisk has.

  -p pid    only this tapdisk; nothing when it is not there
  -m minor  only this disk
  -t type   only images of exactly this type
  -f file   only images of exactly this path
  --json    an array of objects: pid, minor, state, state_names, type, path (null when absent), and
            device, door where there are: the block device, the NBD socket

State bits: 0x1 dead, 0x2 closed, 0x4 quiesce requested, 0x8 quiesced, 0x10 pause requested,
0x20 paused, 0x40 shutdown requested, 0x80 locking, 0x100 log dropped, 0x200 resume failed,
0x1000 waiting for space, 0x2000 writes lost.
",
    run,
};

fn run(session: &Session, options: &Options) -> Result<(), Failure> {
    let pid = options.number(b'p')?;
    let minor = options.number(b'm')?;
    let (kind, path) = (options.argument(b't'), options.argument(b'f'));
    let mut rows = match pid {
        Some(pid) => list_process(&session.paths, pid)?,
        None => list(&session.paths)?,
    };
    rows.retain(|row| {
        minor.is_none_or(|minor| row.minor.map(i32::from) == Some(minor))
            && matches(kind, row, |image| &image.kind)
            && matches(path, row, |image| &image.path)
    });
    if options.has_long("--json") {
        let rows: Vec<Value> = rows.iter().map(|row| object(&session.paths, row)).collect();
        return session.print(format!("{:#}\n", Value::Array(rows)));
    }
    let line = if session.is_terminal() { columns } else { fields };
    session.print(rows.iter().flat_map(line).collect::<Vec<u8>>())
}

fn matches<'a>(
    wanted: Option<&OsStr>,
    row: &'a Row,
    part: impl Fn(&'a ImageName) -> &'a OsStr,
) -> bool {
    wanted.is_none_or(|wanted| row.image.as_ref().is_some_and(|image| part(image) == wanted))
}

/// For programs: the fields that there are, in this order.
fn fields(row: &Row) -> Vec<u8> {
    let mut fields = Vec::new();
    fields.extend(row.pid.map(|pid| format!("pid={pid}").into_bytes()));
    fields.extend(row.minor.map(|minor| format!("minor={minor}").into_bytes()));
    fields.extend(row.state.map(|state| format!("state={}", hex(state)).into_bytes()));
    fields.extend(row.image.as_ref().map(|image| {
        [b"args=".as_slice(), &one_line(&image.kind), b":", &one_line(&image.path)].concat()
    }));
    let mut line = fields.join(&b' ');
    line.push(b'\n');
    line
}

/// For people: the same in columns.
fn columns(row: &Row) -> Vec<u8> {
    let absent = || "-".to_owned();
    let pid = row.pid.map_or_else(absent, |pid| pid.to_string());
    let minor = row.minor.map_or_else(absent, |minor| minor.to_string());
    let state = row.state.map_or_else(absent, hex);
    let (kind, path) = match &row.image {
        Some(image) => (image.kind.to_string_lossy().into_owned(), one_line(&image.path)),
        None => (absent(), b"-".to_vec()),
    };
    let mut line = format!("{pid:>8} {minor:>4} {state:>4} {kind:>10} ").into_bytes();
    line.extend_from_slice(&path);
    line.push(b'\n');
    line
}

/// C's `%#x`: zero has no prefix.
fn hex(state: u32) -> String {
    if state == 0 { "0".to_owned() } else { format!("{state:#x}") }
}

/// A name cannot make a line of its own, nor move the cursor.
fn one_line(name: &OsStr) -> Vec<u8> {
    name.as_bytes().iter().map(|byte| if byte.is_ascii_control() { b'?' } else { *byte }).collect()
}

fn object(paths: &Paths, row: &Row) -> Value {
    let image = row.image.as_ref();
    let names: Option<Vec<&str>> = row.state.map(|state| {
        STATE_NAMES.iter().filter(|(bit, _)| state & bit != 0).map(|(_, name)| *name).collect()
    });
    let mut object = Map::new();
    object.insert("pid".into(), json!(row.pid));
    object.insert("minor".into(), json!(row.minor));
    object.insert("state".into(), json!(row.state));
    object.insert("state_names".into(), json!(names));
    object.insert("type".into(), json!(image.map(|image| image.kind.to_string_lossy())));
    object.insert("path".into(), json!(image.map(|image| image.path.to_string_lossy())));
    if let Some(minor) = row.minor {
        let device = paths.block_device(minor.into());
        if device.exists() {
            object.insert("device".into(), json!(device.to_string_lossy()));
        }
        let door = row.pid.map(|pid| paths.nbd_socket(pid, minor));
        if let Some(door) = door.filter(|door| door.exists()) {
            object.insert("door".into(), json!(door.to_string_lossy()));
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Option<ImageName> {
        Some(ImageName { kind: "vhd".into(), path: "/srv/a b=c.vhd".into() })
    }

    #[test]
    fn a_program_gets_the_fields_that_there_are() {
        let all = Row { pid: Some(12), minor: Some(0), state: Some(0x2a), image: image() };
        for (row, line) in [
            (all.clone(), "pid=12 minor=0 state=0x2a args=vhd:/srv/a b=c.vhd\n"),
            (Row { state: Some(0), image: None, ..all }, "pid=12 minor=0 state=0\n"),
            (Row { pid: Some(12), ..Row::default() }, "pid=12\n"),
            (Row { minor: Some(3), ..Row::default() }, "minor=3\n"),
        ] {
            assert_eq!(String::from_utf8(fields(&row)).unwrap(), line);
        }
    }

    #[test]
    fn a_person_gets_columns() {
        let row = Row { pid: Some(12), minor: Some(0), state: Some(0x2a), image: image() };
        let line = "      12    0 0x2a        vhd /srv/a b=c.vhd\n";
        assert_eq!(String::from_utf8(columns(&row)).unwrap(), line);
        let row = Row { minor: Some(16383), ..Row::default() };
        let line = "       - 16383    -          - -\n";
        assert_eq!(String::from_utf8(columns(&row)).unwrap(), line);
    }

    #[test]
    fn a_file_name_with_a_line_end_does_not_make_a_row() {
        let path = OsStr::from_bytes(b"/a\npid=1\xff").to_owned();
        let image = Some(ImageName { kind: "aio".into(), path });
        let row = Row { pid: Some(12), minor: Some(0), state: Some(0), image };
        assert_eq!(fields(&row), b"pid=12 minor=0 state=0 args=aio:/a?pid=1\xff\n");
    }

    #[test]
    fn an_object_has_all_keys_and_names_the_bits() {
        let paths = Paths::new("/nonexistent", "/nonexistent", "/nonexistent");
        let row = Row { pid: Some(12), minor: Some(0), state: Some(0x22a), image: image() };
        assert_eq!(
            object(&paths, &row),
            json!({
                "pid": 12, "minor": 0, "state": 0x22a, "type": "vhd", "path": "/srv/a b=c.vhd",
                "state_names": ["closed", "quiesced", "paused", "resume-failed"],
            })
        );
        let row = Row { minor: Some(1), ..Row::default() };
        let object = object(&paths, &row);
        assert_eq!(object["pid"], Value::Null);
        assert_eq!(object.as_object().unwrap().len(), 6);
    }
}
