//! The files of the tree, and what cargo knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::rules;

/// What is built or found, not written.
const SKIPPED: [&str; 6] =
    [".git", "target", "fuzz/target", "fuzz/artifacts", "fuzz/grown", "fuzz/corpus"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the tree").into()
}

/// A file that must be there.
pub(super) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All of it.
pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// Path from the top, with text; what is no text is left out.
    pub(super) files: BTreeMap<String, String>,
    /// Path and bytes of every file, a corpus's included.
    pub(super) sizes: Vec<(String, u64)>,
}

impl Tree {
    pub(super) fn load() -> Self {
        let root = root();
        let mut tree = Self { root: root.clone(), files: BTreeMap::new(), sizes: Vec::new() };
        tree.walk(&root);
        assert!(tree.files.len() > 20, "the tree was not found");
        tree
    }

    fn walk(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&self.root).unwrap().to_str().unwrap().to_owned();
            // A corpus is bytes: only its sizes matter.
            let is_corpus = name == "fuzz/corpus";
            if SKIPPED.contains(&name.as_str()) && !is_corpus {
                continue;
            }
            if path.is_dir() {
                self.walk(&path);
                continue;
            }
            self.sizes.push((name.clone(), path.metadata().unwrap().len()));
            if name.starts_with("fuzz/corpus/") {
                continue;
            }
            if let Ok(text) = fs::read_to_string(&path) {
                self.files.insert(name, text);
            }
        }
    }

    /// The Rust files.
    pub(super) fn source(&self) -> impl Iterator<Item = (&String, &String)> {
        self.files.iter().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Rust files that no program or library reaches.
    pub(super) fn dead(&self) -> Vec<String> {
        let mut queue = targets(&self.root);
        let fuzz = self.files.get("fuzz/Cargo.toml").map_or("", String::as_str);
        queue.extend(rules::manifest_paths(fuzz).map(|path| format!("fuzz/{path}")));
        queue.push("fuzz/src/lib.rs".into());
        let roots: BTreeSet<String> = queue.iter().cloned().collect();
        let mut alive = BTreeSet::new();
        while let Some(path) = queue.pop() {
            let Some(text) = self.files.get(&path).filter(|_| alive.insert(path.clone())) else {
                continue;
            };
            for candidates in rules::modules(&path, text, roots.contains(&path)) {
                queue.extend(candidates.into_iter().filter(|path| self.files.contains_key(path)));
            }
        }
        self.source().map(|(path, _)| path.clone()).filter(|path| !alive.contains(path)).collect()
    }
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The first file of every program, library, test and bench of the workspace.
fn targets(root: &Path) -> Vec<String> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .flat_map(|package| package["targets"].as_array().unwrap())
        .map(|target| Path::new(target["src_path"].as_str().unwrap()))
        .filter_map(|path| path.strip_prefix(root).ok()?.to_str().map(str::to_owned))
        .collect()
}

/// Who depends on whom: the package, the dependency, and whether only its tests do.
pub(super) fn dependencies() -> Vec<(String, String, bool)> {
    let metadata = metadata();
    let mut all = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
            all.push((name(package), name(dependency), dependency["kind"] == "dev"));
        }
    }
    all
}
