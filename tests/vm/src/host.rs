//! What the machine that runs the tests is asked to do: programs, folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use crate::remote::lock;
use crate::{Result, VmError};

/// The folder of the programs, built for the profile that this was built for.
static PROGRAMS: LazyLock<PathBuf> =
    LazyLock::new(|| tapdisk_tests::build_programs(&["tapdisk", "tap-tools", "tapdisk-vm"]));

/// What took long to find out, for the machines that start later. Of two threads that want the
/// same at once one waits.
pub(crate) struct Found<T>(Mutex<BTreeMap<String, T>>);

impl<T: Clone> Found<T> {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// What was found under this key before; else what `find` finds, unless it fails.
    pub(crate) fn get(&self, key: &str, find: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut known = lock(&self.0);
        if let Some(value) = known.get(key) {
            return Ok(value.clone());
        }
        let value = find()?;
        known.insert(key.to_owned(), value.clone());
        Ok(value)
    }
}

/// One of ours.
pub(crate) fn ours(program: &str) -> PathBuf {
    PROGRAMS.join(program)
}

/// All that the tools offer.
pub(crate) fn our_programs() -> Vec<PathBuf> {
    const NAMES: [&str; 6] =
        ["tapdisk", "tap-ctl", "vhd-util", "td-util", "cbt-util", "tapdisk-diff"];
    NAMES.map(ours).into_iter().filter(|path| path.is_file()).collect()
}

/// Where machines have their files: consoles, disks, shares. It is kept until the next run.
pub(crate) fn work_folder() -> PathBuf {
    PROGRAMS.parent().expect("target/PROFILE has a parent").join("vm")
}

/// Where a program is: in `PATH` or where Debian keeps the administrator's programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    let folders = folders.chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs it and takes its output; an error, with what it said, unless it ends well.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let name = Path::new(command.get_program()).file_name().map(OsStr::to_os_string);
    let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let shown = format!("{} {}", name.unwrap_or_default().display(), arguments.join(" "));
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.map_err(|error| VmError::Failed(format!("Cannot run `{shown}`: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(VmError::Failed(format!("`{shown}` failed: {}: {}", output.status, said.trim())))
}

/// A new folder, with a name that nobody else takes.
pub(crate) fn new_folder(parent: &Path, name: &str) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = parent.join(format!("{name}.{}.{count}.part", std::process::id()));
    // Of a process that had our number.
    let _ = fs::remove_dir_all(&folder);
    make_folder(&folder)?;
    Ok(folder)
}

/// A folder, and those above it.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| failed("Cannot make", folder, &error))
}

/// The error about a file.
pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> VmError {
    VmError::Failed(format!("{what} {}: {error}", path.display()))
}

/// The contents of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| failed("Cannot read", path, &error))
}

/// A file with these contents, that nobody sees before it is complete.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension(format!("{}.part", std::process::id()));
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    written.map_err(|error| failed("Cannot write", path, &error))
}
