//! QEMU: one qemu-io for all images, which checks and writes patterns.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::images::{self, Kind, Made};
use crate::model::{Model, Random};
use crate::{Folder, exists, for_each_seed, vhd_util};

/// Runs qemu-io with these commands, of which none may fail or complain.
fn qemu_io(folder: &Folder, commands: String) {
    let mut child = Command::new("qemu-io")
        .current_dir(&folder.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(commands.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let told: Vec<&str> = told.lines().map(|line| line.trim_start_matches("qemu-io> ")).collect();
    let complaints: Vec<&&str> = told.iter().filter(|line| !line.trim().is_empty()).collect();
    assert!(output.status.success() && complaints.is_empty(), "{complaints:#?}");
}

fn open(name: &str, is_read_only: bool) -> String {
    let read_only = if is_read_only { " -r" } else { "" };
    format!("open{read_only} -o driver=vpc {name}\n")
}

/// Finds in each image without a parent what the model says; how many there were.
pub(crate) fn finds(folder: &Folder, all: &[Made]) -> usize {
    let asked: Vec<&Made> = all.iter().filter(|made| made.kind != Kind::Child).collect();
    let mut commands = String::new();
    for made in &asked {
        commands.push_str(&open(&made.name, true));
        for (first, count, byte) in made.model.runs() {
            commands.push_str(&format!("read -q -P {byte} {} {}\n", first * 512, count * 512));
        }
        commands.push_str("close\n");
    }
    qemu_io(folder, commands);
    asked.len()
}

fn write(commands: &mut String, model: &Model) {
    for (first, count, byte) in model.runs().into_iter().filter(|(_, _, byte)| *byte != 0) {
        commands.push_str(&format!("write -q -P {byte} {} {}\n", first * 512, count * 512));
    }
}

/// Images that qemu-img makes, with sizes of a geometry and with exact ones, and QEMU writes.
pub(crate) fn made_by_qemu(folder: &Folder, count: u64) {
    let made = for_each_seed(count, |seed| {
        let mut random = Random::new(seed + 10_000);
        let kind = if random.below(3) == 0 { "fixed" } else { "dynamic" };
        let force = if random.below(2) == 0 { "on" } else { "off" };
        let sectors = 1 + random.below(9 << 11);
        let name = format!("{seed}.vhd");
        let status = Command::new("qemu-img")
            .args(["create", "-q", "-f", "vpc", "-o"])
            .arg(format!("subformat={kind},force_size={force}"))
            .args([&folder.at(&name), &(sectors * 512).to_string()])
            .status()
            .unwrap();
        assert!(status.success() && exists(&folder.path(&name)));
        let found = vhd_util(folder, &format!("query --json -n {name}"));
        let object: serde_json::Value = serde_json::from_slice(&found).unwrap();
        let found = object["virtual_size"].as_u64().unwrap() / 512;
        assert!(if force == "on" { found == sectors } else { found >= sectors }, "{name}");
        (name, Model::random(&mut random, sectors, 1).resized(found))
    });
    let mut commands = String::new();
    for (name, model) in &made {
        commands.push_str(&open(name, false));
        write(&mut commands, model);
        commands.push_str("close\n");
    }
    qemu_io(folder, commands);
    for_each_seed(count, |seed| {
        let (name, model) = &made[usize::try_from(seed - 1).unwrap()];
        vhd_util(folder, &format!("check -n {name}"));
        images::finds(folder, name, model);
        // And once more as one of ours.
        vhd_util(folder, &format!("convert -n {name} -N {name}.raw -O raw"));
        let raw = folder.path(&format!("{name}.raw"));
        assert!(std::fs::read(&raw).unwrap() == model.data());
        std::fs::remove_file(raw).unwrap();
    });
    println!("{} images made by qemu-img", made.len());
}

/// QEMU knows of no batmap: its first block goes over it, and over a footer, of which it keeps what
/// it does not write itself. So it is asked what it reads there.
pub(crate) fn written_by_qemu(folder: &Folder, count: u64) {
    let made = for_each_seed(count, |seed| {
        let mut random = Random::new(seed + 20_000);
        let sectors = 1 + random.below(9 << 11);
        let old = Model::random(&mut random, sectors, 1);
        let (raw, name) = (format!("{seed}.raw"), format!("{seed}.vhd"));
        old.write(&folder.path(&raw));
        vhd_util(folder, &format!("convert -f raw -n {raw} -N {name}"));
        (name, old, Model::random(&mut random, sectors, 1))
    });
    let mut commands = String::new();
    for (name, _, new) in &made {
        commands.push_str(&open(name, false));
        write(&mut commands, new);
        commands.push_str("close\n");
    }
    qemu_io(folder, commands);
    for_each_seed(count, |seed| {
        let (name, old, new) = &made[usize::try_from(seed - 1).unwrap()];
        let now = old.under(new);
        let theirs = folder.path(&format!("{name}.theirs"));
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-q", "-f", "vpc", "-O", "raw"]).arg(folder.path(name));
        assert!(convert.arg(&theirs).status().unwrap().success());
        let theirs = std::fs::read(theirs).unwrap();
        let ours = vhd_util(folder, &format!("read -r 0 -c {} -n {name}", now.sectors));
        assert!(ours == theirs, "{name}");
        for (first, count, byte) in now.runs().into_iter().filter(|(_, _, byte)| *byte != 0) {
            let range = first * 512..(first + count) * 512;
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert!(ours[range].iter().all(|it| *it == byte), "{name}: {count} sectors at {first}");
        }
        // What is done with it later does not trust the batmap either.
        vhd_util(folder, &format!("snapshot -n {name}.c -p {name}"));
        let child = vhd_util(folder, &format!("read -r 0 -c {} -n {name}.c", now.sectors));
        assert!(child == ours, "{name}");
    });
    println!("{} images of ours written by QEMU", made.len());
}
