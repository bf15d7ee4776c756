//! System packages: which program comes from which package, and getting it there.
//!
//! On Debian and its derivatives, as root, what is missing is installed. Elsewhere it is named, and
//! who needs it is skipped with that reason.

use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use crate::Result;
use crate::command;

/// A program that is not part of this project.
#[derive(Debug)]
pub(crate) struct Package {
    /// The Debian package.
    name: &'static str,
    /// The programs that we call; of a package that has none, a file.
    programs: &'static [&'static str],
    /// Which commands and stages of ours call them.
    users: &'static [&'static str],
}

/// Every one of them.
const PACKAGES: [Package; 17] = [
    Package {
        name: "qemu-utils",
        programs: &["qemu-img", "qemu-nbd", "qemu-io"],
        users: &["demo", "test", "bench"],
    },
    Package { name: "libnbd-bin", programs: &["nbdinfo", "nbdcopy"], users: &["demo", "test"] },
    Package { name: "python3-libnbd", programs: &["nbdsh"], users: &["test"] },
    Package {
        name: "python3-libvhdi",
        programs: &["/usr/share/doc/python3-libvhdi/copyright"],
        users: &["demo", "test"],
    },
    Package {
        name: "python3-cryptography",
        programs: &["/usr/share/doc/python3-cryptography/copyright"],
        users: &["test"],
    },
    Package { name: "fio", programs: &["fio"], users: &["demo", "test", "bench"] },
    Package { name: "nbdkit", programs: &["nbdkit"], users: &["bench"] },
    Package {
        name: "e2fsprogs",
        programs: &["mke2fs", "e2fsck", "debugfs"],
        users: &["demo", "test", "vm", "bench"],
    },
    Package { name: "valgrind", programs: &["valgrind"], users: &["bench"] },
    Package { name: "linux-perf", programs: &["perf"], users: &["bench"] },
    Package { name: "strace", programs: &["strace"], users: &["bench", "test"] },
    Package { name: "shellcheck", programs: &["shellcheck"], users: &["test"] },
    Package { name: "g++", programs: &["g++"], users: &["fuzz"] },
    Package {
        name: "util-linux",
        programs: &["taskset", "setpriv", "flock"],
        users: &["bench", "test", "vm"],
    },
    Package { name: "qemu-system-x86", programs: &["qemu-system-x86_64"], users: &["test", "vm"] },
    Package { name: "xz-utils", programs: &["xz"], users: &["test", "vm"] },
    Package { name: "make", programs: &["make"], users: &["test", "vm"] },
];

/// Gets what `user` needs and returns what is still missing, as a reason; `None` is "all there".
pub(crate) fn provide(user: &str) -> Option<String> {
    let missing = missing(user, |program| command::find(program).is_some());
    if missing.is_empty() {
        return None;
    }
    if let Err(reason) = install(&missing) {
        return Some(format!("{}: {reason}", list(&missing)));
    }
    None
}

/// The packages of `user` of which some program is not `there`.
fn missing(user: &str, there: impl Fn(&str) -> bool) -> Vec<&'static Package> {
    PACKAGES
        .iter()
        .filter(|package| package.users.contains(&user))
        .filter(|package| !package.programs.iter().all(|program| there(program)))
        .collect()
}

fn list(packages: &[&Package]) -> String {
    let mut text = String::from("missing");
    for package in packages {
        let _ = write!(text, " {} (package {})", package.programs.join(" "), package.name);
    }
    text
}

fn install(packages: &[&Package]) -> Result<()> {
    if command::find("apt-get").is_none() {
        return Err("not installed, this is not Debian; install them".into());
    }
    if !is_root() {
        return Err("not installed, only root can; install them or run this as root".into());
    }
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    println!("{} installing {}", command::time_of_day(), names.join(" "));
    if apt_get(&[&["install", "-y", "--no-install-recommends"], names.as_slice()].concat()).is_ok()
    {
        return Ok(());
    }
    // The lists are missing (a fresh container) or too old.
    apt_get(&["update"])?;
    apt_get(&[&["install", "-y", "--no-install-recommends"], names.as_slice()].concat())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = command::tool("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    command::run(&mut command)
}

fn is_root() -> bool {
    // The second number is the effective user.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    users.and_then(|users| users.split_whitespace().nth(1)) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_only_what_is_missing_and_needed() {
        let missing = missing("demo", |program| program != "nbdcopy" && program != "nbdsh");
        assert_eq!(list(&missing), "missing nbdinfo nbdcopy (package libnbd-bin)");
    }

    #[test]
    fn nothing_is_missing_where_all_is_there() {
        assert!(missing("bench", |_| true).is_empty());
        assert_eq!(missing("vm", |_| false).len(), 5);
    }

    #[test]
    fn every_package_has_a_user_and_a_program() {
        for package in &PACKAGES {
            assert!(!package.users.is_empty() && !package.programs.is_empty(), "{package:?}");
        }
    }
}
