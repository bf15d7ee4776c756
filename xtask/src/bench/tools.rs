//! The offline tools: what one command costs, and how fast the long ones are.
//!
//! Instructions and system calls of whole processes stand beside those of the reference, which were
//! counted on another day (2 GiB allocated of 20 GiB); they hardly move. Rates are taken in turns
//! with `dd` and `qemu-img` on the same files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::numbers::{self, Spread};
use super::{Ground, callgrind, syscalls};
use crate::Result;
use crate::command;

/// A command, what is done before each run of it, and what the reference needed: millions of user
/// instructions, system calls.
struct Counted {
    arguments: &'static str,
    before: fn(&Folder) -> Result<()>,
    reference: Option<(f64, u64)>,
}

const COUNTED: [Counted; 12] = [
    Counted { arguments: "create -n new -s 20480", before: nothing, reference: Some((0.3, 78)) },
    Counted { arguments: "create -n new -s 2088960", before: nothing, reference: Some((8.8, 85)) },
    Counted { arguments: "snapshot -n new -p disk", before: nothing, reference: Some((0.4, 177)) },
    Counted { arguments: "query -vsafp -n disk", before: nothing, reference: Some((0.4, 73)) },
    Counted { arguments: "check -n disk", before: nothing, reference: Some((94.0, 128)) },
    Counted { arguments: "check -b -n disk", before: nothing, reference: Some((251.0, 5254)) },
    Counted { arguments: "scan -f -m many/?0?.vhd", before: nothing, reference: None },
    Counted {
        arguments: "scan -f -m many/[0-2]??.vhd",
        before: nothing,
        reference: Some((2.9, 2511)),
    },
    Counted {
        arguments: "copy -n parent -N new",
        before: nothing,
        reference: Some((611.0, 31912)),
    },
    Counted { arguments: "coalesce -n half", before: nothing, reference: Some((737.0, 71634)) },
    Counted {
        arguments: "resize -n grown -s 40960 -j j",
        before: |folder| folder.make_grown(),
        reference: Some((12.0, 261)),
    },
    Counted { arguments: "query -vsafp -n full", before: nothing, reference: None },
];

fn nothing(_: &Folder) -> Result<()> {
    Ok(())
}

/// Where the images are.
struct Folder {
    path: PathBuf,
    vhd_util: PathBuf,
}

/// Of the images with data, in bytes.
const DATA: u64 = 2 << 30;
/// A block with its bitmap, rounded up so that its data starts at a page, in sectors.
const STRIDE: u64 = 4104;

impl Folder {
    /// `disk`: 2 GiB of 20 allocated; `half`: a child of `below` with 1 GiB, and `child` of
    /// `parent` with 2; `full`: 2 TiB, every block there; `many`: a thousand.
    ///
    /// With `only`, what the rows need that begin so: all is eight GiB.
    fn fill(path: &Path, only: &str) -> Result<Self> {
        let vhd_util = command::target("release").join("vhd-util");
        let folder = Self { path: path.join("tools"), vhd_util };
        let io = |error: std::io::Error| format!("Cannot prepare {}: {error}", path.display());
        fs::create_dir_all(folder.path.join("many")).map_err(io)?;
        let is_wanted = |whats: &[&str]| whats.iter().any(|what| what.starts_with(only));
        if is_wanted(&["scan"]) {
            for number in 0..1000 {
                folder.vhd(&format!("create -n many/{number:03}.vhd -s 2048"))?;
            }
        }
        if is_wanted(&["check"]) {
            folder.make_full().map_err(io)?;
            folder.vhd("repair -n full")?;
        }
        if is_wanted(&["coalesce", "copy", "convert"]) {
            folder.fill_with_data(is_wanted(&["coalesce"])).map_err(io)??;
        }
        if only.is_empty() {
            folder.fill_counted().map_err(io)??;
        }
        Ok(folder)
    }

    /// `parent`; for a merge also `child`, and `scratch`, what `dd` writes over, of the same kind.
    fn fill_with_data(&self, is_merged: bool) -> std::io::Result<Result<()>> {
        let raw = File::create(self.path.join("raw"))?;
        let mut state = 1_u64;
        let mut piece = vec![0; 1 << 20];
        for at in 0..DATA >> 20 {
            super::scramble(&mut state, &mut piece);
            raw.write_all_at(&piece, at << 20)?;
        }
        let made = self.all(&["convert -f raw -n raw -N parent"]);
        if made.is_err() || !is_merged {
            return Ok(made);
        }
        fs::copy(self.path.join("parent"), self.path.join("scratch"))?;
        Ok(self.all(&["snapshot -n child -p parent", "fill -n child"]))
    }

    /// What only the counted commands need.
    fn fill_counted(&self) -> std::io::Result<Result<()>> {
        File::options().write(true).open(self.path.join("raw"))?.set_len(DATA / 2)?;
        let fill = format!("fill -n disk -b -f 0 -t {}", DATA / 512 - 1);
        Ok(self.all(&[
            "convert -f raw -n raw -N below",
            "snapshot -n half -p below",
            "fill -n half",
            "create -n disk -s 20480",
            &fill,
        ]))
    }

    fn all(&self, commands: &[&str]) -> Result<()> {
        commands.iter().try_for_each(|arguments| self.vhd(arguments))
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.vhd_util);
        command.args(arguments.split_whitespace()).current_dir(&self.path);
        command
    }

    fn vhd(&self, arguments: &str) -> Result<()> {
        command::capture(&mut self.command(arguments)).map(drop)
    }

    /// What a command makes is gone before it is run again.
    fn clear(&self) {
        for name in ["new", "j"] {
            drop(fs::remove_file(self.path.join(name)));
        }
    }

    fn make_grown(&self) -> Result<()> {
        drop(fs::remove_file(self.path.join("grown")));
        self.vhd("create -n grown -s 20480")?;
        self.vhd(&format!("fill -n grown -b -f 0 -t {}", DATA / 512 - 1))
    }

    /// Blocks behind each other, with empty bitmaps: holes. The footer at its end is repaired.
    fn make_full(&self) -> std::io::Result<()> {
        let create = self.command("create -n full -s 2088960").status()?;
        assert!(create.success(), "it was built");
        let path = self.path.join("full");
        let file = File::options().write(true).open(&path)?;
        let end_of_headers = fs::metadata(&path)?.len() - 512;
        let blocks = 2_088_960 / 2;
        // The bitmap is in the sector in front of a page.
        let first = end_of_headers.div_ceil(4096) * 8 + 7;
        let places = (0..blocks).map(|block| first + block * STRIDE);
        let table: Vec<u8> = places
            .flat_map(|place| u32::try_from(place).expect("below 2 TiB").to_be_bytes())
            .collect();
        file.write_all_at(&table, 1536)?;
        file.set_len((first + blocks * STRIDE) * 512)
    }
}

/// The tables of the tools; with `only=`, the rates of the rows that begin so, and nothing else.
pub(super) fn measure(ground: &mut Ground) -> Result<()> {
    let folder = Folder::fill(ground.folder(), &ground.only)?;
    if ground.only.is_empty() {
        count(ground, &folder)?;
        run_in_little_memory(&folder);
    }
    time(ground, &folder)
}

fn count(ground: &mut Ground, folder: &Folder) -> Result<()> {
    let has = |program| command::find(program).is_some();
    if !has("valgrind") || !has("strace") {
        println!("counts are left out: valgrind or strace is not installed");
        return Ok(());
    }
    let (of_us, of_reference) = ("million instructions", "of the reference");
    println!(
        "{:<34} {of_us:>20} {of_reference:>16} {:>13} {of_reference:>16}",
        "vhd-util", "system calls"
    );
    for counted in &COUNTED {
        let file = ground.fresh("count");
        (counted.before)(folder)?;
        folder.clear();
        let instructions = callgrind::around(&folder.command(counted.arguments), &file)?;
        (counted.before)(folder)?;
        folder.clear();
        let calls = syscalls::of_all(&folder.command(counted.arguments), &file)?;
        folder.clear();
        let millions = numbers::float(instructions) / 1e6;
        let (known, known_calls) = match counted.reference {
            Some((millions, calls)) => (format!("{millions:.1}"), calls.to_string()),
            None => ("-".into(), "-".into()),
        };
        let arguments = counted.arguments;
        println!("{arguments:<34} {millions:>20.2} {known:>16} {calls:>13} {known_calls:>16}");
    }
    Ok(())
}

/// The limit is of the address space: what is resident is less.
fn run_in_little_memory(folder: &Folder) {
    for arguments in ["query -vsafp -n full", "query --json -n full", "scan full"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -v 16384; exec \"$0\" \"$@\""]).arg(&folder.vhd_util);
        shell.args(arguments.split_whitespace()).current_dir(&folder.path);
        let end = match command::capture(&mut shell) {
            Ok(_) => "runs in 16 MiB of address space",
            Err(_) => "DOES NOT RUN in 16 MiB of address space",
        };
        println!("{arguments:<34} {end}");
    }
}

/// One way to do something, and what it moves.
struct Timed {
    what: &'static str,
    who: &'static str,
    command: Command,
    bytes: u64,
}

fn time(ground: &Ground, folder: &Folder) -> Result<()> {
    let dd = |options: &str| {
        let mut dd = command::tool("dd");
        dd.args(options.split_whitespace()).current_dir(&folder.path);
        dd
    };
    let qemu = |options: &str| {
        let mut qemu = command::tool("qemu-img");
        qemu.args(options.split_whitespace()).current_dir(&folder.path);
        qemu
    };
    let ours = |arguments: &str| folder.command(arguments);
    let timed = |what, who, command, bytes| Timed { what, who, command, bytes };
    let merge = "if=child of=scratch bs=1M iflag=direct oflag=direct conv=notrunc,fsync";
    let to_vpc = "convert -t none -T none -f vpc -O vpc -o force_size=on parent new";
    let to_raw = "convert -t none -T none -f vpc -O raw parent new";
    let mut all = vec![
        timed("create 20 GiB", "vhd-util", ours("create -n new -s 20480"), 0),
        timed("create 20 GiB", "qemu-img", qemu("create -q -f vpc new 20G"), 0),
        timed("scan of 1000", "vhd-util", ours("scan -f -m many/*.vhd"), 0),
        timed("check, 2 TiB full", "vhd-util", ours("check -n full"), 0),
        timed("coalesce 2 GiB", "vhd-util", ours("coalesce -n child"), DATA),
        timed("coalesce 2 GiB", "dd, direct", dd(&format!("{merge} status=none")), DATA),
        timed("copy 2 GiB", "vhd-util", ours("copy -n parent -N new"), DATA),
        timed("copy 2 GiB", "qemu-img", qemu(to_vpc), DATA),
        timed("convert 2 GiB to raw", "vhd-util", ours("convert -n parent -N new -O raw"), DATA),
        timed("convert 2 GiB to raw", "qemu-img", qemu(to_raw), DATA),
    ];
    let has_qemu = command::find("qemu-img").is_some();
    all.retain(|timed| has_qemu || timed.who != "qemu-img");
    all.retain(|timed| timed.what.starts_with(&ground.only));
    let mut seconds = vec![Vec::new(); all.len()];
    for _ in 0..ground.rounds {
        for (timed, seconds) in all.iter_mut().zip(&mut seconds) {
            folder.clear();
            let start = Instant::now();
            command::capture(&mut timed.command)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    folder.clear();
    println!("\n{:<24} {:<12} {:>8} {:>18} {:>8}", "what", "who", "seconds", "min to max", "MB/s");
    for (timed, seconds) in all.iter().zip(seconds) {
        let Some(Spread { median, min, max }) = Spread::of(seconds) else { continue };
        let rate = numbers::float(timed.bytes) / 1e6 / median;
        let rate = if timed.bytes == 0 { String::new() } else { format!("{rate:.0}") };
        let range = format!("{min:.3} to {max:.3}");
        println!("{:<24} {:<12} {median:>8.3} {range:>18} {rate:>8}", timed.what, timed.who);
    }
    Ok(())
}
