//! A small kernel that watches itself - lockdep, KASAN and others - for the driver's
//! tests: Debian's kernels have none of these. Built from Debian's source with `debug.config`, in
//! the cache of packages, by tools from packages that are not installed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernel::{self, Kernel};
use crate::packages::{self, Packages};
use crate::{Result, VmError, host};

/// Which kernel plain machines start: `debug` is this one.
const VARIABLE: &str = "TAPDISK_VM_KERNEL";

/// How many times longer things may take on it: it looks at each access to memory.
pub(crate) const SLOWER: u32 = 4;

/// What is not left out of the smallest configuration that there is.
const CONFIGURATION: &str = include_str!("../debug.config");

/// What the build calls besides a compiler, and objtool's library.
const TOOLS: [&str; 5] = ["flex", "bison", "m4", "libelf-dev", "libelf1"];

/// Whether this process's machines are to start the debug kernel.
#[must_use]
pub fn is_debug_kernel() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|kernel| kernel == "debug")
}

/// Builds the debug kernel, unless it is there; returns the folder of the build.
///
/// # Errors
/// When its source, a tool or a compiler cannot be had, or the build fails: with what it said.
pub fn build_debug_kernel() -> Result<PathBuf> {
    for program in ["gcc", "make", "bc", "tar", "xz"] {
        if host::find(program).is_none() {
            return Err(VmError::Unavailable(format!("a kernel's build needs {program}")));
        }
    }
    let source = source_package(&packages::kernel_package("image")?)?;
    let packages = Packages::fetch(&[&source])?;
    let mut hasher = DefaultHasher::new();
    CONFIGURATION.hash(&mut hasher);
    let top = packages.folder(&source)?;
    let top = top.with_added_extension(format!("debug-{:016x}", hasher.finish()));
    let _lock = kernel::lock(&top)?;
    let build = top.join("build");
    // The last that is made: its files name the folder, so that it cannot be renamed when done.
    let release = release_file(&build);
    let is_complete = top.join("complete");
    if is_complete.is_file() && release.is_file() {
        return Ok(build);
    }
    let _ = fs::remove_dir_all(&top);
    host::make_folder(&top)?;
    let archive = packages.folder(&source)?.join(format!("usr/src/{source}.tar.xz"));
    make(&archive, &top)?;
    host::write_whole(&is_complete, b"")?;
    Ok(build)
}

/// The kernel, for machines.
pub(crate) fn fetch() -> Result<Kernel> {
    let build = build_debug_kernel()?;
    let version = host::read(&release_file(&build))?;
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    // All that it has is built in.
    let modules = build.with_file_name("modules");
    host::make_folder(&modules)?;
    // Not the ELF file: KASAN has no shadow yet where QEMU would enter that.
    Ok(Kernel { version, image: build.join("arch/x86/boot/bzImage"), modules })
}

/// Where the build says what `uname -r` will.
fn release_file(build: &Path) -> PathBuf {
    build.join("include/config/kernel.release")
}

/// The package with the source of a kernel package: `linux-source-6.1` of
/// `linux-image-6.1.0-56-amd64`.
fn source_package(image: &str) -> Result<String> {
    let version = image.trim_start_matches("linux-image-");
    let mut numbers = version.split('.');
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => Ok(format!("linux-source-{major}.{minor}")),
        _ => Err(VmError::Unavailable(format!("The kernel {image} has no version with a dot"))),
    }
}

fn make(archive: &Path, top: &Path) -> Result<()> {
    let tools = top.join("tools");
    host::make_folder(&tools)?;
    Packages::fetch(&TOOLS)?.copy_to(&tools)?;
    let source = top.join("source");
    host::make_folder(&source)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--strip-components=1", "-xJf"]).arg(archive).arg("-C").arg(&source);
    host::capture(&mut unpack)?;
    let (wanted, build) = (top.join("debug.config"), top.join("build"));
    host::write_whole(&wanted, CONFIGURATION.as_bytes())?;
    let make = |words: &[&str]| {
        let mut command = make_in(&source, &tools);
        command.arg(format!("O={}", build.display())).arg("-s").args(words);
        host::capture(&mut command)
    };
    make(&[&format!("KCONFIG_ALLCONFIG={}", wanted.display()), "allnoconfig"])?;
    let found = host::read(&build.join(".config"))?;
    if let Some(line) = missing(&String::from_utf8_lossy(&found)) {
        return Err(VmError::Failed(format!("The kernel cannot be configured with {line}")));
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make(&[&format!("-j{jobs}"), "bzImage", "modules"])?;
    // Half of the folder, and no module's build reads them.
    let mut tidy = Command::new("find");
    tidy.arg(&build).args(["(", "-name", "*.[oa]", "-o", "-name", ".*.cmd", ")", "-delete"]);
    host::capture(&mut tidy).map(drop)
}

/// The first line of ours that a configuration does not have: what another one needs was not said.
fn missing(found: &str) -> Option<&'static str> {
    let mut wanted = CONFIGURATION.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted.find(|line| !found.lines().any(|found| found == *line))
}

/// The kernel's `make`, with tools that are not installed.
fn make_in(source: &Path, tools: &Path) -> Command {
    let libraries = tools.join("usr/lib/x86_64-linux-gnu");
    let mut path = tools.join("usr/bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut make = kernel::make();
    make.arg("-C").arg(source).env("LC_ALL", "C").env("PATH", path);
    make.env("M4", tools.join("usr/bin/m4"));
    make.env("BISON_PKGDATADIR", tools.join("usr/share/bison"));
    make.env("C_INCLUDE_PATH", tools.join("usr/include"));
    make.env("LIBRARY_PATH", &libraries).env("LD_LIBRARY_PATH", &libraries);
    make
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_that_of_the_kernel() {
        let package = source_package("linux-image-6.1.0-56-amd64");
        assert_eq!(package.as_deref(), Ok("linux-source-6.1"));
        assert_eq!(source_package("linux-image-6.12.9+x").as_deref(), Ok("linux-source-6.12"));
        assert!(source_package("linux-image-rt").is_err());
    }

    #[test]
    fn what_the_configuration_lost_is_named() {
        assert_eq!(missing(CONFIGURATION), None);
        let without = CONFIGURATION.replace("CONFIG_KASAN=y\n", "# CONFIG_KASAN is not set\n");
        assert_eq!(missing(&without), Some("CONFIG_KASAN=y"));
    }
}
