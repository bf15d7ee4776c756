//! Kernel modules: finding them in a package, with those that they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host;
use crate::{Result, VmError};

/// The modules of a kernel, each by its name with underscores.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

/// A module, ready to be loaded.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// All that it needs, also through others, in the order of `modules.dep`: the last one is
    /// loaded first.
    pub(crate) needs: Vec<String>,
}

impl Modules {
    /// Those below a folder.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).map_err(|error| host::failed("Cannot read", &folder, &error));
            for path in entries?.flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files })
    }

    /// These and all that they need, each after what it needs. What the kernel has built in is no
    /// module and so is left out.
    pub(crate) fn with_needed(&self, names: &[String]) -> Result<Vec<Module>> {
        let mut found = Vec::new();
        for name in names {
            self.add(&canonical(name), &mut found)?;
        }
        Ok(found)
    }

    fn add(&self, name: &str, found: &mut Vec<Module>) -> Result<()> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if found.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let bytes = without_signature(contents(path)?);
        let direct = needed(&bytes);
        for name in &direct {
            self.add(name, found)?;
        }
        let is_needed = |name: &String| {
            let through =
                |other: &Module| direct.contains(&other.name) && other.needs.contains(name);
            direct.contains(name) || found.iter().any(through)
        };
        let names = found.iter().rev().map(|module| module.name.clone());
        let needs = names.filter(is_needed).collect();
        found.push(Module { name: name.to_owned(), bytes, needs });
        Ok(())
    }
}

/// The name under which the kernel knows it.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(path: &Path) -> Option<String> {
    let (name, ending) = path.file_name()?.to_str()?.split_once('.')?;
    matches!(ending, "ko" | "ko.xz").then(|| canonical(name))
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let bytes = host::read(path)?;
    if path.extension().is_some_and(|extension| extension == "xz") {
        return unpack_xz(path);
    }
    Ok(bytes)
}

/// A module without the signature behind it, which takes an emulated processor longer to check than
/// the rest of the loading. At its end: the signature, 12 bytes of which the last four are its
/// length (big-endian), and a mark.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    let signature = module.strip_suffix(MARK).and_then(|signed| {
        let (rest, length) = signed.split_last_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.len().checked_sub(8 + length)
    });
    if let Some(end) = signature {
        module.truncate(end);
    }
    module
}

/// What is packed in a file.
pub(crate) fn unpack_xz(path: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("xz");
    let output = command.args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.map_err(|error| VmError::Unavailable(format!("Cannot run xz: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(VmError::Failed(format!("xz failed on {}: {}", path.display(), said.trim())))
}

/// What a module says that it needs: `depends=a,b` among the strings of its section `.modinfo`.
pub(crate) fn needed(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY);
    let rest = start.map_or(&[][..], |start| &module[start + KEY.len()..]);
    let value = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = value.split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.map(|name| canonical(&String::from_utf8_lossy(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        assert_eq!(needed(b"ELF\0license=GPL\0depends=jbd2,crc-x\0name=y\0"), ["jbd2", "crc_x"]);
        assert!(needed(b"ELF\0depends=\0name=y\0").is_empty());
        assert!(needed(b"no module").is_empty());
    }

    #[test]
    fn a_module_loses_its_signature_and_nothing_else() {
        let signed = |length: [u8; 4]| {
            let parts: [&[u8]; 5] = [
                b"ELF..",
                b"sign",
                &[0, 0, 2, 0, 0, 0, 0, 0],
                &length,
                b"~Module signature appended~\n",
            ];
            parts.concat()
        };
        assert_eq!(without_signature(signed([0, 0, 0, 4])), b"ELF..");
        let longer_than_all = signed([0, 0, 0, 10]);
        assert_eq!(without_signature(longer_than_all.clone()), longer_than_all);
        assert_eq!(without_signature(b"ELF..".to_vec()), b"ELF..");
    }

    #[test]
    fn a_module_is_known_by_its_file() {
        let name = |file: &str| module_name(Path::new(file));
        assert_eq!(name("/lib/dm-mod.ko"), Some("dm_mod".into()));
        assert_eq!(name("/lib/dm-mod.ko.xz"), Some("dm_mod".into()));
        assert_eq!(name("/lib/modules.order"), None);
    }
}
