//! A directory for one test, and the programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A program, in the directory, with nothing on its standard input.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let path = match program {
            "cbt-util" => env!("CARGO_BIN_EXE_cbt-util"),
            _ => panic!("there is no program {program}"),
        };
        let mut command = Command::new(path);
        command
            .args(arguments)
            .current_dir(&self.dir)
            .env_remove("VHD_UTIL_ERRORS")
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
