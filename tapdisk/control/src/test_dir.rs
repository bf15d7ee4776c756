//! A directory for one test, removed at its end.

use std::fs;
use std::path::PathBuf;
use std::process;

use crate::paths::Paths;

#[derive(Debug)]
pub(crate) struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// `name` is unique among the tests of this crate; the pid among its runs.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tapdisk-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.path.join("run"), self.path.join("dev"), self.path.join("shm"))
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}
