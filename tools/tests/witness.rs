//! What other programs make of our images, and we of theirs: qemu-img and libvhdi.
//!
//! Images of random size, kind and contents, from a seed; each is read back by us and by another
//! program, and both have to find what was written.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Numbers that a seed reproduces (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound.max(1)
    }
}

/// A directory that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("witness-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// How many images; `TAPDISK_WITNESS_IMAGES` for another number.
fn images() -> u64 {
    let wish = std::env::var("TAPDISK_WITNESS_IMAGES").ok();
    wish.and_then(|wish| wish.parse().ok()).unwrap_or(100)
}

/// A raw disk with a few pieces of data, up to 9 MiB of whole sectors.
fn disk(random: &mut Random, path: &Path) -> Vec<u8> {
    let sectors = 1 + random.below(9 << 11);
    let mut data = vec![0; usize::try_from(sectors * 512).unwrap()];
    for _ in 0..random.below(6) {
        let first = random.below(sectors);
        let count = 1 + random.below((sectors - first).min(3000));
        let range =
            usize::try_from(first * 512).unwrap()..usize::try_from((first + count) * 512).unwrap();
        let byte = u8::try_from(1 + random.below(255)).unwrap();
        for (at, it) in (0_u64..).zip(&mut data[range]) {
            *it = byte.wrapping_add(u8::try_from((at >> 9) & 0xff).unwrap());
        }
    }
    fs::write(path, &data).unwrap();
    data
}

fn vhd_util(arguments: &[&str]) {
    run(env!("CARGO_BIN_EXE_vhd-util"), arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn qemu_reads_what_we_write_and_we_what_qemu_writes() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skipped: qemu-img is not installed");
        return;
    }
    let folder = Folder::new("qemu");
    let [raw, ours, theirs, back] = ["raw", "ours", "theirs", "back"].map(|name| folder.at(name));
    for seed in 1..=images() {
        let mut random = Random(seed);
        let data = disk(&mut random, Path::new(&raw));
        let kind = if random.below(3) == 0 { "fixed" } else { "dynamic" };
        vhd_util(&["convert", "-f", "raw", "-n", &raw, "-N", &ours, "-O", kind]);
        vhd_util(&["check", "-n", &ours]);
        run("qemu-img", &["compare", "-q", "-f", "raw", "-F", "vpc", &raw, &ours]);
        let options = format!("subformat={kind},force_size=on");
        let to = ["convert", "-f", "raw", "-O", "vpc", "-o", &options, &raw, &theirs];
        run("qemu-img", &to);
        vhd_util(&["check", "-n", &theirs]);
        vhd_util(&["convert", "-n", &theirs, "-N", &back, "-O", "raw"]);
        assert!(fs::read(&back).unwrap() == data, "seed {seed}");
        for name in [&raw, &ours, &theirs, &back] {
            fs::remove_file(name).unwrap();
        }
    }
}

/// Prints the SHA-256 of each disk that is named on its standard input, as libvhdi reads it.
const LIBVHDI: &str = "
import hashlib, sys, pyvhdi
for name in sys.stdin.read().splitlines():
    disk = pyvhdi.file()
    disk.open(name)
    print(hashlib.sha256(disk.read_buffer_at_offset(disk.get_media_size(), 0)).hexdigest())
    disk.close()
";

/// The Python that has libvhdi: Debian's own.
fn python() -> Option<&'static str> {
    let python = "/usr/bin/python3";
    let there = Command::new(python).args(["-c", "import pyvhdi"]).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    println!("skipped: python3-libvhdi is not installed");
    None
}

#[test]
fn libvhdi_reads_what_we_write() {
    let Some(python) = python() else { return };
    let folder = Folder::new("libvhdi");
    let (mut names, mut wanted) = (String::new(), Vec::new());
    for seed in 1..=images() {
        let mut random = Random(seed + 5000);
        let (raw, ours) = (folder.at("raw"), folder.at(&format!("ours{seed}")));
        wanted.push(sha256(&disk(&mut random, Path::new(&raw))));
        let kind = if random.below(3) == 0 { "fixed" } else { "dynamic" };
        vhd_util(&["convert", "-f", "raw", "-n", &raw, "-N", &ours, "-O", kind]);
        names.push_str(&format!("{ours}\n"));
    }
    // One process for all of them.
    let mut child = Command::new(python)
        .args(["-c", LIBVHDI])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().collect::<Vec<_>>(), wanted);
}

fn sha256(data: &[u8]) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
