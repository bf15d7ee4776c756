//! Recorded images of many programs, read and checked: the contents are those that other readers
//! found, the findings those that the first program of this family printed.
//!
//! `TAPDISK_GOLDEN` names the folder; without it the tests skip.

mod check;
mod read;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The folder, if there is one.
fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("TAPDISK_GOLDEN").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: TAPDISK_GOLDEN names no folder of recorded images");
    }
    folder
}

fn parsed(path: &Path) -> Value {
    let text = std::fs::read(path).expect("the folder holds what its manifest names");
    serde_json::from_slice(&text).expect("it is JSON")
}

/// The text of a member; empty if there is none.
fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value.get(member).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A case's files, in a folder of their own that goes away.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new(folder: &Path, case: &Value, test: &str) -> Self {
        let name = format!("vhd-golden-{}-{test}-{}", std::process::id(), text(case, "id"));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a folder of its own");
        let archive = folder.join(text(case, "archive"));
        let unpacked = Command::new("tar").arg("-C").arg(&path).arg("-xJf").arg(archive).status();
        assert!(
            unpacked.expect("tar is there").success(),
            "{name} cannot be unpacked",
            name = text(case, "id")
        );
        Self(path)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What is left over is in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
