//! Debian packages, fetched with the package client and unpacked into a cache. None is installed.
//!
//! The cache is `tapdisk-vm` in `$XDG_CACHE_HOME` or `~/.cache`, else in the build folder. Each
//! package has a folder of its own there, named like its file, so that a newer version is another
//! folder. A folder takes its final name when it is complete: what was interrupted is done again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::{self, Found};
use crate::{Result, VmError};

/// Unpacked packages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packages {
    /// Where each was unpacked, by its name.
    folders: BTreeMap<String, PathBuf>,
}

impl Packages {
    /// Gets these packages.
    pub(crate) fn fetch(names: &[&str]) -> Result<Self> {
        static FETCHED: Found<Packages> = Found::new();
        FETCHED.get(&names.join(" "), || Self::fetch_anew(names))
    }

    fn fetch_anew(names: &[&str]) -> Result<Self> {
        if host::find("apt-get").is_none() {
            return Err(VmError::Unavailable("this is not Debian: there is no apt-get".into()));
        }
        let mut files = file_names(names);
        if files.is_err() {
            // The lists are missing (a fresh container); only root can get them.
            let _ = host::capture(Command::new("apt-get").args(["-q", "update"]));
            files = file_names(names);
        }
        let mut packages = Self::default();
        for (name, file) in files? {
            let folder = unpacked(&name, &file).or_else(|error| {
                // The lists name a file that is not offered any more.
                host::capture(Command::new("apt-get").args(["-q", "update"])).map_err(|_| error)?;
                let files = file_names(&[name.as_str()])?;
                let (_, file) = files.first().expect("one is asked for");
                unpacked(&name, file)
            })?;
            packages.folders.insert(name, folder);
        }
        Ok(packages)
    }

    /// Both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.folders.extend(other.folders);
        self
    }

    /// The top of what a package holds.
    pub(crate) fn folder(&self, name: &str) -> Result<&Path> {
        let folder = self.folders.get(name).map(PathBuf::as_path);
        folder.ok_or_else(|| VmError::Failed(format!("The package {name} was not asked for")))
    }

    /// The tops of all of them.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.values().map(PathBuf::as_path)
    }

    /// Puts all that they hold into one folder.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<()> {
        for top in self.folders() {
            let mut copy = Command::new("cp");
            host::capture(copy.args(["-a", "--"]).arg(top.join(".")).arg(folder))?;
        }
        Ok(())
    }

    /// A program, by its name.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        const PLACES: [&str; 4] = ["bin", "sbin", "usr/bin", "usr/sbin"];
        let files = self.folders().flat_map(|top| PLACES.map(|place| top.join(place).join(name)));
        files.into_iter().find(|file| file.is_file())
    }

    /// Where libraries lie.
    pub(crate) fn library_folders(&self) -> Vec<PathBuf> {
        const PLACES: [&str; 3] = ["lib", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let folders = self.folders().flat_map(|top| PLACES.map(|place| top.join(place)));
        folders.filter(|folder| folder.is_dir()).collect()
    }
}

/// The package of the current kernel: the one that Debian's meta-package depends on.
pub(crate) fn kernel_package(kind: &str) -> Result<String> {
    static NAMES: Found<String> = Found::new();
    NAMES.get(kind, || find_kernel_package(kind))
}

fn find_kernel_package(kind: &str) -> Result<String> {
    let meta = format!("linux-{kind}-amd64");
    let depends = || host::capture(Command::new("apt-cache").args(["depends", &meta]));
    let find = |text: &str| first_dependency(text, &format!("linux-{kind}-"));
    if let Some(name) = depends().ok().and_then(|text| find(&text)) {
        return Ok(name);
    }
    let _ = host::capture(Command::new("apt-get").args(["-q", "update"]));
    let text = depends().map_err(|error| VmError::Unavailable(error.to_string()))?;
    find(&text).ok_or_else(|| VmError::Unavailable(format!("{meta} names no kernel: {text}")))
}

/// From what `apt-cache depends` prints.
fn first_dependency(text: &str, prefix: &str) -> Option<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).next()
}

/// The files that hold packages, as the package client's lists have them.
fn file_names(names: &[&str]) -> Result<Vec<(String, String)>> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "download", "--print-uris"]).args(names);
    let text =
        host::capture(&mut command).map_err(|error| VmError::Unavailable(error.to_string()))?;
    names
        .iter()
        .map(|name| {
            let file = file_name(&text, name);
            let missing = || VmError::Unavailable(format!("apt-get knows no package {name}"));
            Ok(((*name).to_owned(), file.ok_or_else(missing)?))
        })
        .collect()
}

/// The file of a package, from lines of an address, a file, a size and a checksum.
fn file_name(text: &str, package: &str) -> Option<String> {
    let files = text.lines().filter_map(|line| line.split(' ').nth(1));
    let mut files = files.filter(|file| !file.contains('/') && file.ends_with(".deb"));
    files.find(|file| file.split('_').next() == Some(package)).map(str::to_owned)
}

/// Fetches a package, unless it is there, and unpacks it.
fn unpacked(name: &str, file: &str) -> Result<PathBuf> {
    let cache = cache();
    let folder = cache.join(file.trim_end_matches(".deb"));
    if folder.is_dir() {
        return Ok(folder);
    }
    let work = host::new_folder(&cache, name)?;
    let done = fetch_and_unpack(name, &work).and_then(|()| {
        match fs::rename(work.join("unpacked"), &folder) {
            // Another process was quicker.
            Err(_) if folder.is_dir() => Ok(()),
            renamed => renamed.map_err(|error| host::failed("Cannot make", &folder, &error)),
        }
    });
    let _ = fs::remove_dir_all(&work);
    done.map(|()| folder)
}

fn fetch_and_unpack(name: &str, work: &Path) -> Result<()> {
    let unavailable = |error: VmError| VmError::Unavailable(error.to_string());
    let mut download = Command::new("apt-get");
    // As root it would become another user, who cannot write here, and say so.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download", name]);
    host::capture(download.current_dir(work)).map_err(unavailable)?;
    let files = fs::read_dir(work).map_err(|error| host::failed("Cannot read", work, &error))?;
    let mut files = files.flatten().map(|entry| entry.path());
    let deb = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let deb = deb.ok_or_else(|| VmError::Unavailable(format!("apt-get fetched no {name}")))?;
    let mut unpack = Command::new("dpkg");
    host::capture(unpack.arg("-x").arg(deb).arg(work.join("unpacked"))).map(drop)
}

/// Where packages, and what is made from them, are kept between runs.
pub(crate) fn cache() -> PathBuf {
    let of_user = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from)?;
        Some(home.join(".cache"))
    });
    match of_user.filter(|folder| folder.is_absolute()) {
        Some(folder) => folder.join("tapdisk-vm"),
        None => host::work_folder().join("cache"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_the_one_that_the_meta_package_depends_on() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        let name = first_dependency(text, "linux-image-");
        assert_eq!(name.as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(first_dependency("linux-image-amd64\n", "linux-image-"), None);
    }

    #[test]
    fn the_file_of_a_package_is_found_by_the_whole_name() {
        let text = "'http://h/p/libxen-dev_4_amd64.deb' libxen-dev_4_amd64.deb 9 SHA256:0\n\
                    'http://h/p/libxen_1%3a4_amd64.deb' libxen_1%3a4_amd64.deb 7 SHA256:1\n";
        assert_eq!(file_name(text, "libxen").as_deref(), Some("libxen_1%3a4_amd64.deb"));
        assert_eq!(file_name(text, "libx"), None);
    }

    #[test]
    fn a_name_that_would_leave_the_cache_is_refused() {
        assert_eq!(file_name("'u' x_/../../etc.deb 9 SHA256:0\n", "x"), None);
    }
}
