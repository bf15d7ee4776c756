//! What other programs make of our images, and we of theirs: QEMU, libvhdi, an AES of another hand.
//!
//! A thousand images of random size, kind, blocks and contents, from a seed, alone and in chains,
//! some after a random operation. We, libvhdi, and QEMU where it can (it ignores parents), find in
//! each what a model says. Many images share one process of the other program.

#![allow(clippy::unwrap_used)]

mod encryption;
mod images;
mod libvhdi;
mod model;
mod qemu;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a thousand images of each test take at most, in bytes: four GiB were seen.
const ROOM: u64 = 6 << 30;

/// A directory that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    /// In memory, where there is room: nothing here is about storage.
    fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let room = nix::sys::statvfs::statvfs(memory)
            .map_or(0, |it| it.blocks_available().saturating_mul(it.fragment_size()));
        let place = if room > ROOM { memory.to_owned() } else { std::env::temp_dir() };
        let path = place.join(format!("witness-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
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
    wish.and_then(|wish| wish.parse().ok()).unwrap_or(1000)
}

/// Runs vhd-util, which has to succeed; what it printed.
#[track_caller]
fn vhd_util(folder: &Folder, arguments: &str) -> Vec<u8> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhd-util"));
    let output = command
        .args(arguments.split_whitespace())
        .current_dir(&folder.0)
        .env("VHD_UTIL_ERRORS", "long")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(500)]);
    assert!(output.status.success(), "vhd-util {arguments}: {error} {out}");
    output.stdout
}

/// Does something for each seed from 1 on, two at a time; the results in the order of the seeds.
fn for_each_seed<T: Send>(count: u64, action: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(1);
    let work = || {
        let mut done = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > count {
                return done;
            }
            done.push((seed, action(seed)));
        }
    };
    let mut all: Vec<(u64, T)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all.into_iter().map(|(_, result)| result).collect()
}

/// The Python that has Debian's modules, if it has this one.
fn python_with(module: &str) -> Option<&'static str> {
    let python = "/usr/bin/python3";
    let import = ["-c", &format!("import {module}")];
    let there = Command::new(python).args(import).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    println!("skipped: {python} has no module {module}");
    None
}

fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        println!("skipped: {program} is not installed");
    }
    there
}

fn sha256(data: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_thousand_random_images_are_what_every_reader_finds() {
    let folder = Folder::new("images");
    let made = for_each_seed(images(), |seed| images::make(&folder, seed));
    let kinds = images::Kinds::of(&made);
    println!("{} images: {kinds:?}", made.len());
    assert!(made.len() < 100 || kinds.are_all_there(), "{kinds:?}");
    for_each_seed(images(), |seed| {
        let image = &made[usize::try_from(seed - 1).unwrap()];
        images::ours_finds(&folder, image);
    });
    if is_there("qemu-io") {
        println!("{} of them by QEMU", qemu::finds(&folder, &made));
    }
    if let Some(python) = python_with("pyvhdi") {
        println!("{} of them by libvhdi", libvhdi::finds(&folder, python, &made));
    }
}

#[test]
fn what_qemu_makes_and_writes_is_what_we_find() {
    if is_there("qemu-img") && is_there("qemu-io") {
        qemu::made_by_qemu(&Folder::new("by-qemu"), images() / 4);
    }
}

#[test]
fn what_qemu_writes_into_our_images_is_what_we_find() {
    if is_there("qemu-io") {
        qemu::written_by_qemu(&Folder::new("into-ours"), images() / 8);
    }
}

#[test]
fn encrypted_sectors_are_what_another_aes_decrypts() {
    if let Some(python) = python_with("cryptography") {
        encryption::decrypts(&Folder::new("encryption"), python);
    }
}

#[test]
fn filled_and_merged_sectors_in_a_key_are_what_another_aes_finds() {
    if let Some(python) = python_with("cryptography") {
        encryption::fills_and_merges(&Folder::new("filled"), python, (images() / 50).max(6));
    }
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
