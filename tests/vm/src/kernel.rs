//! The kernel: its image as QEMU and Xen start it, and building a module for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::Found;
use crate::modules::unpack_xz;
use crate::packages::{self, Packages};
use crate::{Result, VmError, debug_kernel, host};

/// A kernel from a package.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` in the machine.
    pub(crate) version: String,
    /// The ELF file: it starts without unpacking itself.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The current one of Debian, or the debug kernel where that is wanted.
    pub(crate) fn fetch() -> Result<Self> {
        if debug_kernel::is_debug_kernel() {
            return debug_kernel::fetch();
        }
        let package = packages::kernel_package("image")?;
        let packages = Packages::fetch(&[&package])?;
        let top = packages.folder(&package)?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let packed = top.join(format!("boot/vmlinuz-{version}"));
        // Beside the package: its name has the package's version.
        let image = top.with_added_extension("vmlinux");
        if !image.is_file() {
            unpack(&packed, &image)?;
        }
        Ok(Self { image, modules: top.join("lib/modules").join(&version), version })
    }
}

/// Takes the ELF file out of an image that unpacks itself.
fn unpack(packed: &Path, image: &Path) -> Result<()> {
    let bytes = host::read(packed)?;
    let payload = payload(&bytes)
        .ok_or_else(|| VmError::Failed(format!("{} is no bzImage", packed.display())))?;
    let part = image.with_added_extension(format!("{}.xz", std::process::id()));
    fs::write(&part, payload).map_err(|error| host::failed("Cannot write", &part, &error))?;
    let unpacked = unpack_xz(&part);
    let _ = fs::remove_file(&part);
    host::write_whole(image, &unpacked?)
}

/// The packed part of a bzImage, by its boot protocol (2.08): setup sectors at 0x1f1, "HdrS" at
/// 0x202, offset and length of the payload at 0x248. Its last 4 bytes are the unpacked size.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248)?;
    let end = start.checked_add(word(0x24c)?)?.checked_sub(4)?;
    image.get(start..end)
}

/// Builds a kernel module, whose folder has a `Kbuild` or `Makefile` for the kernel's build system,
/// for the kernel of the machines; returns the `.ko` file. The sources are copied: their folder
/// stays as it is.
///
/// # Errors
/// When the kernel's headers or a compiler cannot be had, or the build fails: with what it said.
pub fn build_module(source: &Path, name: &str) -> Result<PathBuf> {
    static BUILT: Found<PathBuf> = Found::new();
    BUILT.get(&source.to_string_lossy(), || build_module_anew(source, name))
}

fn build_module_anew(source: &Path, name: &str) -> Result<PathBuf> {
    if host::find("gcc").is_none() || host::find("make").is_none() {
        return Err(VmError::Unavailable("a module needs gcc and make".into()));
    }
    let (headers, folder) = if debug_kernel::is_debug_kernel() {
        (debug_kernel::build_debug_kernel()?, format!("module-{name}-debug"))
    } else {
        (headers()?, format!("module-{name}"))
    };
    let folder = host::work_folder().join(folder);
    host::make_folder(&folder)?;
    // Another process may want the same one: it finds it built.
    let _lock = lock(&folder)?;
    // What is there already stays, with its time: it need not be built again.
    let copy = |path: &Path| {
        let to = folder.join(path.file_name().unwrap_or_default());
        if fs::read(&to).is_ok_and(|old| fs::read(path).is_ok_and(|new| new == old)) {
            return Ok(());
        }
        fs::copy(path, to).map(drop).map_err(|error| host::failed("Cannot copy", path, &error))
    };
    let entries =
        fs::read_dir(source).map_err(|error| host::failed("Cannot read", source, &error))?;
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        copy(&path)?;
    }
    let mut make = make();
    make.arg("-C").arg(&headers).arg(format!("M={}", folder.display())).arg("modules");
    host::capture(&mut make)?;
    let module = folder.join(format!("{name}.ko"));
    if module.is_file() {
        return Ok(module);
    }
    Err(VmError::Failed(format!("The build made no {}", module.display())))
}

/// `make`; the one that runs us, if one does, is not its parent.
pub(crate) fn make() -> Command {
    let mut make = Command::new("make");
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    make
}

/// Nobody else makes this folder until the file is dropped.
pub(crate) fn lock(folder: &Path) -> Result<fs::File> {
    let path = folder.with_added_extension("lock");
    let lock = fs::File::create(&path).and_then(|file| file.lock().map(|()| file));
    lock.map_err(|error| host::failed("Cannot lock", &path, &error))
}

/// Builds a test of one of our packages and returns the program, for [`crate::Plan::with_file`].
///
/// # Errors
/// When the build fails: with what it said.
pub fn build_test(package: &str, test: &str) -> Result<PathBuf> {
    let target = host::work_folder();
    let target = target.parent().expect("it lies in the folder of the builds");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--quiet", "--no-run", "--message-format", "json", "--package", package]);
    cargo.args(["--test", test]).arg("--target-dir").arg(target);
    let messages = host::capture(&mut cargo)?;
    let path = messages.lines().filter_map(|line| named(line, test)).next_back();
    path.ok_or_else(|| VmError::Failed(format!("The build of {package} made no test {test}")))
}

/// The program that cargo's message says was made of a test.
fn named(message: &str, test: &str) -> Option<PathBuf> {
    let (_, rest) = message.split_once("\"executable\":\"")?;
    let path = PathBuf::from(rest.split_once('"')?.0);
    let file = path.file_name()?.to_str()?.rsplit_once('-')?.0 == test;
    file.then_some(path)
}

/// A folder that the kernel's build system runs in: Debian's packages of it, put together.
fn headers() -> Result<PathBuf> {
    let package = packages::kernel_package("headers")?;
    let version = package.trim_start_matches("linux-headers-");
    let depends = host::capture(Command::new("apt-cache").args(["depends", &package]))?;
    let needed = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let needed: Vec<&str> = needed.filter(|name| name.starts_with("linux-")).collect();
    let needed = [&[package.as_str()], needed.as_slice()].concat();
    let packages = Packages::fetch(&needed)?;
    let top = packages.folder(&package)?;
    // Their files name each other by absolute paths below /usr: they go into one tree, with these
    // paths changed.
    let together = top.with_added_extension("tree");
    let headers = together.join("usr/src").join(format!("linux-headers-{version}"));
    if headers.is_dir() {
        return Ok(headers);
    }
    let work = host::new_folder(&packages::cache(), "headers")?;
    packages.copy_to(&work)?;
    let makefile = work.join("usr/src").join(format!("linux-headers-{version}/Makefile"));
    let text = String::from_utf8_lossy(&host::read(&makefile)?).into_owned();
    let below = |path: &str| format!("{}{path}", together.display());
    let text = text.replace("/usr/src/", &below("/usr/src/"));
    host::write_whole(&makefile, text.as_bytes())?;
    match fs::rename(&work, &together) {
        Err(_) if headers.is_dir() => {
            let _ = fs::remove_dir_all(&work);
        }
        renamed => renamed.map_err(|error| host::failed("Cannot make", &together, &error))?,
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_found_by_its_name_in_what_cargo_says() {
        let message =
            r#"{"reason":"compiler-artifact","executable":"/t/debug/deps/laws-1f","fresh":true}"#;
        assert_eq!(named(message, "laws"), Some("/t/debug/deps/laws-1f".into()));
        assert_eq!(named(message, "law"), None);
        assert_eq!(named(r#"{"executable":null}"#, "laws"), None);
    }

    #[test]
    fn the_packed_part_is_where_the_header_says() {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 12;
        image[0x410..0x418].copy_from_slice(b"packed!!");
        assert_eq!(payload(&image), Some(b"packed!!".as_slice()));
        image[0x24f] = 0xff;
        assert_eq!(payload(&image), None, "it would end behind the file");
        assert_eq!(payload(b"MZ"), None);
    }
}
