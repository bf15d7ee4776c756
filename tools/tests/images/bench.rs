//! A directory for one test, and the programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use vhd::testing::Spec;

/// Where a program is.
pub(crate) fn path_of(program: &str) -> &'static str {
    match program {
        "cbt-util" => env!("CARGO_BIN_EXE_cbt-util"),
        "td-util" => env!("CARGO_BIN_EXE_td-util"),
        "vhd-util" => env!("CARGO_BIN_EXE_vhd-util"),
        _ => panic!("there is no program {program}"),
    }
}

/// A directory that is removed at the end.
pub(crate) struct Bench {
    dir: PathBuf,
}

impl Bench {
    /// `name` is unique among the tests.
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tools-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    /// The same where nothing waits for storage: for a test of hundreds of small changes.
    pub(crate) fn in_memory(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let room = nix::sys::statvfs::statvfs(memory)
            .map_or(0, |it| it.blocks_available().saturating_mul(it.fragment_size()));
        if room < 512 << 20 {
            return Self::new(name);
        }
        let dir = memory.join(format!("tools-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A program, in the directory, with nothing on its standard input.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(path_of(program));
        command
            .args(arguments)
            .current_dir(&self.dir)
            .env_remove("VHD_UTIL_ERRORS")
            .env_remove("VHD_UTIL_PARENTS")
            .env_remove("TAPDISK_LOCK")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// Runs it; exit status, standard output, standard error.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> (i32, Vec<u8>, String) {
        told(&self.command(program, arguments).output().unwrap())
    }

    /// Runs it, which has to succeed; its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, program: &str, arguments: &[&str]) -> Vec<u8> {
        let (status, out, error) = self.run(program, arguments);
        assert_eq!((status, error.as_str()), (0, ""), "{program} {arguments:?}");
        out
    }
}

/// vhd-util, which nearly all of this is about: its arguments are one string.
impl Bench {
    /// Runs it; exit status and standard output.
    pub(crate) fn vhd(&self, arguments: &str) -> (i32, String) {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let (status, out, _) = self.run("vhd-util", &arguments);
        (status, String::from_utf8_lossy(&out).into_owned())
    }

    /// The same for what has to succeed; its bytes.
    #[track_caller]
    pub(crate) fn vhd_ok(&self, arguments: &str) -> Vec<u8> {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.ok("vhd-util", &arguments)
    }

    /// The same for text.
    #[track_caller]
    pub(crate) fn vhd_text(&self, arguments: &str) -> String {
        String::from_utf8(self.vhd_ok(arguments)).unwrap()
    }

    /// The same for one that fails; what it tells a person.
    #[track_caller]
    pub(crate) fn vhd_why(&self, arguments: &str, status: i32) -> String {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let mut command = self.command("vhd-util", &arguments);
        let (found, _, error) = told(&command.env("VHD_UTIL_ERRORS", "long").output().unwrap());
        assert_eq!(found, status, "{arguments:?}: {error}");
        error
    }

    /// Makes an image.
    pub(crate) fn make(&self, name: &str, spec: &Spec) {
        fs::write(self.path(name), spec.make()).unwrap();
    }

    /// The bytes of a file.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Changes bytes of a file.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.read(name);
        change(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

impl AsRef<Path> for Bench {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

pub(crate) fn told(output: &Output) -> (i32, Vec<u8>, String) {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code().expect("it died of a signal"), output.stdout.clone(), error)
}
