//! libvhdi, by its Python module: all images in one process.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::images::Made;
use crate::{Folder, sha256};

/// For each line, a number of sectors, an image and its ancestors: prints the SHA-256 of so much of
/// the disk. It is read in small pieces: in pieces of a MiB this library (20210425) gives other
/// bytes for some runs than in pieces of a sector.
const PROGRAM: &str = "
import hashlib, sys, pyvhdi
for line in sys.stdin.read().splitlines():
    sectors, *names = line.split()
    files = []
    for name in names:
        file = pyvhdi.file()
        file.open(name)
        files.append(file)
    for child, parent in zip(files, files[1:]): child.set_parent(parent)
    digest, at, end = hashlib.sha256(), 0, int(sectors) * 512
    while at < end:
        piece = files[0].read_buffer_at_offset(min(4096, end - at), at)
        if not piece: break
        digest.update(piece)
        at += len(piece)
    print(digest.hexdigest())
    for file in files: file.close()
";

/// It finds in each what the model says; how many it was asked for.
pub(crate) fn finds(folder: &Folder, python: &str, all: &[Made]) -> usize {
    let asked: Vec<&Made> = all.iter().filter(|made| made.libvhdi_sectors > 0).collect();
    let mut lines = String::new();
    for made in &asked {
        let names: Vec<&str> =
            [&made.name].into_iter().chain(&made.ancestors).map(String::as_str).collect();
        lines.push_str(&format!("{} {}\n", made.libvhdi_sectors, names.join(" ")));
    }
    let mut child = Command::new(python)
        .args(["-c", PROGRAM])
        .current_dir(&folder.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let found = String::from_utf8(output.stdout).unwrap();
    let found: Vec<&str> = found.lines().collect();
    assert_eq!(found.len(), asked.len());
    for (made, found) in asked.iter().zip(found) {
        let data = made.model.data();
        let size = usize::try_from(made.libvhdi_sectors * 512).unwrap();
        assert_eq!(found, sha256(&data[..size]), "libvhdi reads something else: {made:?}");
    }
    asked.len()
}
