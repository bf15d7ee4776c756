//! The first file system of a machine: programs with their libraries, modules, small files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cpio::Archive;
use crate::host;
use crate::modules::Module;
use crate::{Result, VmError};

/// Its entries, by path; what is put there twice is there once, the last one.
#[derive(Debug, Default)]
pub(crate) struct Files {
    entries: BTreeMap<String, Entry>,
    /// Where libraries are looked for before the places where this machine has them.
    libraries: Vec<PathBuf>,
}

#[derive(Debug)]
enum Entry {
    File { from: PathBuf, permissions: u32 },
    Bytes { bytes: Vec<u8>, permissions: u32 },
    Link(String),
    Folder,
}

impl Files {
    /// Nothing yet.
    pub(crate) fn new(libraries: Vec<PathBuf>) -> Self {
        Self { entries: BTreeMap::new(), libraries }
    }

    /// An empty folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entries.insert(path.into(), Entry::Folder);
    }

    /// A small file.
    pub(crate) fn text(&mut self, path: &str, text: &str, permissions: u32) {
        let bytes = text.as_bytes().to_vec();
        self.entries.insert(path.into(), Entry::Bytes { bytes, permissions });
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.entries.insert(path.into(), Entry::Link(target.into()));
    }

    /// A copy of a file of this machine, executable, with the libraries that it needs.
    pub(crate) fn program(&mut self, from: &Path, path: &str) -> Result<()> {
        for library in self.libraries_of(from)? {
            let name = library.file_name().map(|name| name.to_string_lossy().into_owned());
            let name = name.unwrap_or_default();
            let folder = if name.starts_with("ld-linux") { "/lib64" } else { "/lib" };
            self.copy(&library, &format!("{folder}/{name}"), 0o755);
        }
        self.copy(from, path, 0o755);
        Ok(())
    }

    /// A copy of a file of this machine.
    pub(crate) fn copy(&mut self, from: &Path, path: &str, permissions: u32) {
        self.entries.insert(path.into(), Entry::File { from: from.into(), permissions });
    }

    /// Copies of all files of a folder, not of the folders in it.
    pub(crate) fn copies(&mut self, from: &Path, path: &str) -> Result<()> {
        let entries =
            std::fs::read_dir(from).map_err(|error| host::failed("Cannot read", from, &error))?;
        for from in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let name = from.file_name().map(|name| name.to_string_lossy().into_owned());
            self.copy(&from, &format!("{path}/{}", name.unwrap_or_default()), 0o755);
        }
        Ok(())
    }

    /// Modules, where `modprobe` finds them; those of before stay.
    pub(crate) fn modules(&mut self, version: &str, modules: Vec<Module>) {
        let folder = format!("/lib/modules/{version}");
        let mut table = match self.entries.remove(&format!("{folder}/modules.dep")) {
            Some(Entry::Bytes { bytes, .. }) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        };
        for module in modules {
            let needs: Vec<_> = module.needs.iter().map(|name| format!("{name}.ko")).collect();
            let path = format!("{folder}/{}.ko", module.name);
            let entry = Entry::Bytes { bytes: module.bytes, permissions: 0o644 };
            if self.entries.insert(path, entry).is_none() {
                table.push_str(&format!("{}.ko: {}\n", module.name, needs.join(" ")));
            }
        }
        self.text(&format!("{folder}/modules.dep"), &table, 0o644);
    }

    /// Writes it as the archive that a kernel unpacks.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let file = File::create(path).map_err(|error| host::failed("Cannot make", path, &error))?;
        let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
        let write = |error| host::failed("Cannot write", path, &error);
        // Where a kernel's first program reads and writes.
        for folder in self.folders() {
            archive.folder(&folder).map_err(write)?;
        }
        archive.device("/dev/console", 5, 1).map_err(write)?;
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder => Ok(()),
                Entry::Link(target) => archive.link(path, target),
                Entry::Bytes { bytes, permissions } => archive.file(path, *permissions, bytes),
                Entry::File { from, permissions } => archive.file(path, *permissions, &lean(from)?),
            }
            .map_err(write)?;
        }
        archive.finish().map(drop).map_err(write)
    }

    /// All folders, each after the one that it is in.
    fn folders(&self) -> BTreeSet<String> {
        let mut folders = BTreeSet::from(["/dev".to_owned()]);
        for (path, entry) in &self.entries {
            if matches!(entry, Entry::Folder) {
                folders.insert(path.clone());
            }
            let above = path.match_indices('/').filter(|(at, _)| *at > 0);
            folders.extend(above.map(|(at, _)| path[..at].to_owned()));
        }
        folders
    }

    /// The libraries that a program needs, and its loader.
    fn libraries_of(&self, program: &Path) -> Result<Vec<PathBuf>> {
        if !is_dynamic(program)? {
            return Ok(Vec::new());
        }
        let folders = std::env::join_paths(&self.libraries);
        let folders = folders.map_err(|error| VmError::Failed(format!("{error} in a path")))?;
        let mut list = Command::new("ldd");
        let text = host::capture(list.arg(program).env("LD_LIBRARY_PATH", folders))?;
        libraries(&text).map_err(|line| {
            VmError::Failed(format!("{} needs what is not there: {line}", program.display()))
        })
    }
}

/// The contents of a file, without what only a debugger reads: of a program of ours that is four
/// fifths, and an emulated processor copies all of it twice.
fn lean(path: &Path) -> Result<Vec<u8>> {
    const MARK: &[u8] = b"\0.debug_info\0";
    let bytes = host::read(path)?;
    let has_mark = || bytes.windows(MARK.len()).any(|window| window == MARK);
    if !bytes.starts_with(b"\x7fELF") || !has_mark() {
        return Ok(bytes);
    }
    let folder = host::new_folder(&host::work_folder(), "lean")?;
    let to = folder.join("file");
    let mut strip = Command::new("strip");
    // Whoever has no strip waits longer.
    let lean = host::capture(strip.args(["--strip-debug", "-o"]).arg(&to).arg(path))
        .and_then(|_| host::read(&to));
    let _ = std::fs::remove_dir_all(folder);
    Ok(lean.unwrap_or(bytes))
}

/// Whether it is a program that names a loader: an interpreter in its headers.
fn is_dynamic(program: &Path) -> Result<bool> {
    let mut start = vec![0; 4096];
    let mut file =
        File::open(program).map_err(|error| host::failed("Cannot open", program, &error))?;
    let bytes =
        file.read(&mut start).map_err(|error| host::failed("Cannot read", program, &error))?;
    let start = &start[..bytes];
    Ok(start.starts_with(b"\x7fELF") && start.windows(10).any(|window| window == b"/ld-linux-"))
}

/// From what `ldd` prints; the line about one that is missing.
fn libraries(text: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("not found") {
            return Err(line.into());
        }
        let place = line.split_once("=> ").map_or(line, |(_, place)| place);
        let place = place.split_once(" (").map_or(place, |(place, _)| place);
        if place.starts_with('/') {
            found.push(place.into());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found = libraries(text).unwrap();
        assert_eq!(found, ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from));
        assert_eq!(libraries("\tlibx.so => not found\n"), Err("libx.so => not found".into()));
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut files = Files::new(Vec::new());
        files.text("/etc/vm/start", "", 0o755);
        files.folder("/tmp");
        let folders: Vec<_> = files.folders().into_iter().collect();
        assert_eq!(folders, ["/dev", "/etc", "/etc/vm", "/tmp"]);
    }
}
