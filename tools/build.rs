//! Links the C library and the unwinder into the tools. A storage manager starts them all the time,
//! and finding, mapping and relocating shared libraries was half of what a short command takes.
//!
//! `-C target-feature=+crt-static` would do it for every crate of a build, the daemon's too, and
//! only by a file of settings that who builds a package may not have. `TAPDISK_TOOLS_SHARED=1`
//! leaves the C library shared, for systems that mend it in one place.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TAPDISK_TOOLS_SHARED");
    println!("cargo::rerun-if-env-changed=CC");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let is_native = variable("TARGET") == variable("HOST");
    if variable("CARGO_CFG_TARGET_ENV") != "gnu" || !is_native {
        return;
    }
    // Its static half; where there is none the library is linked as ever.
    let Some(unwinder) = installed("libgcc_eh.a") else { return };
    let folder = PathBuf::from(variable("OUT_DIR"));
    let is_wanted = variable("TAPDISK_TOOLS_SHARED").is_empty();
    // The first one is what a program that has no fixed address starts with.
    let parts = ["rcrt1.o", "libgcc.a", "libc.a", "libm.a"].map(installed);
    if let [Some(_), Some(compiler), Some(c), Some(m)] = parts
        && is_wanted
    {
        // For programs only: tests stay as they are.
        let folder = folder.join("static");
        let group = format!("GROUP({unwinder} {compiler} {c})\n");
        let of_numbers = format!("INPUT({m})\n");
        let scripts = [("libgcc_s.so", &group), ("libc.so", &group), ("libm.so", &of_numbers)];
        let written = std::fs::create_dir_all(&folder).and_then(|()| {
            let mut scripts = scripts.iter();
            scripts.try_for_each(|(name, script)| std::fs::write(folder.join(name), script))
        });
        if written.is_ok() {
            println!("cargo::rustc-link-arg-bins=-static-pie");
            println!("cargo::rustc-link-arg-bins=-L{}", folder.display());
            return;
        }
    }
    // `-lgcc_s` finds this script first.
    if std::fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh -lc)\n").is_ok() {
        println!("cargo::rustc-link-search=native={}", folder.display());
    }
}

/// Where the C compiler has a file to link with, if it has it.
fn installed(name: &str) -> Option<String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let found = Command::new(compiler).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    Path::new(&path).is_absolute().then_some(path)
}
