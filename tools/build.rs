//! Links the unwinder into the tools. A storage manager starts them all the time, and a library
//! that only a backtrace needs is looked for, opened and mapped each time: a tenth of all calls.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_target = |name: &str| std::env::var(name).unwrap_or_default();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let is_native = of_target("TARGET") == of_target("HOST");
    if of_target("CARGO_CFG_TARGET_ENV") != "gnu" || !is_native {
        return;
    }
    // Its static half; where there is none the library is linked as ever.
    let found = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output();
    let found = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if !found.is_ok_and(|path| Path::new(&path).is_absolute()) {
        return;
    }
    // `-lgcc_s` finds this script first.
    let folder = of_target("OUT_DIR");
    let script = Path::new(&folder).join("libgcc_s.so");
    if std::fs::write(script, "INPUT(-lgcc_eh -lc)\n").is_ok() {
        println!("cargo::rustc-link-search=native={folder}");
    }
}
