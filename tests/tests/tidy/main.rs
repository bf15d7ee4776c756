//! The tree itself: what ARCHITECTURE.md and the house rules say is so, is so.
//!
//! Each rule is a function of a path and a text (`rules.rs`, `direction.rs`), proved to bite by a
//! small test of its own; here it is held against every file.
#![allow(clippy::unwrap_used, reason = "a tree that cannot be read is a failed test")]

mod direction;
mod rules;
mod tree;

use std::collections::BTreeSet;

use tree::{Tree, read};

/// Fails with all complaints at once: a person wants to mend them together.
#[track_caller]
fn none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// A rule held against all files with one of these endings.
#[track_caller]
fn hold(endings: &[&str], rule: impl Fn(&str, &str) -> Vec<String>) {
    let tree = Tree::load();
    let files = tree.files.iter().filter(|(path, _)| endings.iter().any(|end| path.ends_with(end)));
    none(files.flat_map(|(path, text)| rule(path, text)));
}

const SOURCE: &[&str] = &[".rs"];
const WRITTEN: &[&str] = &[".rs", ".md", ".toml", ".ci/run", ".sh", ".yml"];

#[test]
fn unsafe_lives_in_the_rooms_that_architecture_lists_and_all_of_them_have_some() {
    let listed = rules::table(&read("ARCHITECTURE.md"), "Rooms with unsafe");
    let tree = Tree::load();
    let found: BTreeSet<String> = tree
        .source()
        .filter(|(path, text)| rules::has_unsafe(path, text))
        .map(|(path, _)| path.clone())
        .collect();
    none(rules::both_ways(&listed, &found, "ARCHITECTURE.md, \"Rooms with unsafe\"", "the tree"));
}

#[test]
fn every_room_with_unsafe_opts_out_of_the_lint_itself() {
    hold(SOURCE, rules::unsafe_without_permission);
}

#[test]
fn nothing_is_left_unfinished() {
    hold(SOURCE, rules::unfinished);
}

#[test]
fn no_test_is_ignored_without_a_reason() {
    hold(SOURCE, rules::ignored);
}

#[test]
fn every_source_file_is_part_of_a_program() {
    let tree = Tree::load();
    none(tree.dead().into_iter().map(|path| format!("{path}: no mod declaration leads here")));
}

#[test]
fn every_source_file_says_first_what_it_is() {
    hold(SOURCE, rules::opening);
}

#[test]
fn no_comment_is_wider_than_a_hundred_columns() {
    hold(SOURCE, rules::wide);
}

#[test]
fn no_source_file_is_longer_than_six_hundred_lines() {
    hold(SOURCE, rules::long);
}

#[test]
fn no_file_is_larger_than_a_hundred_kilobytes() {
    let tree = Tree::load();
    none(tree.sizes.iter().flat_map(|(path, bytes)| rules::large(path, *bytes)));
}

#[test]
fn nothing_names_one_machine_or_a_registry() {
    hold(WRITTEN, rules::places);
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    let tree = Tree::load();
    let exists = |path: &str| tree.root.join(path).exists();
    hold(&[".md"], |path, text| rules::links(path, text, &exists));
}

#[test]
fn every_xtask_command_in_a_document_exists() {
    let main = read("xtask/src/main.rs");
    hold(&[".md", ".ci/run"], |path, text| rules::commands(path, text, &main));
}

#[test]
fn readme_names_both_commands() {
    let readme = read("README.md");
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(readme.contains(command), "README.md does not name `{command}`");
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let tree = Tree::load();
    for (path, text) in &tree.files {
        // fuzz/ is a workspace of its own, with the same lints written out.
        if path.ends_with("/Cargo.toml") && path != "fuzz/Cargo.toml" {
            assert!(
                text.contains("[lints]\nworkspace = true"),
                "{path}: no [lints] workspace = true"
            );
        }
    }
}

#[test]
fn crates_depend_in_one_direction() {
    none(direction::crates(&tree::dependencies()));
}

#[test]
fn every_dependency_is_explained_and_every_explained_one_is_there() {
    let listed = rules::table(&read("ARCHITECTURE.md"), "Dependencies");
    let mut found = direction::foreign(&tree::dependencies());
    found.extend(rules::manifest_dependencies(&read("fuzz/Cargo.toml")));
    none(rules::both_ways(&listed, &found, "ARCHITECTURE.md, \"Dependencies\"", "the manifests"));
}

#[test]
fn the_scripts_for_xen_are_plain_shell() {
    if !tapdisk_tests::has_program("shellcheck") {
        return;
    }
    let folder = Tree::load().root.join("tools/xen");
    let scripts = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let output = std::process::Command::new("shellcheck").args(scripts).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn doors_images_and_the_queue_do_not_know_each_other() {
    hold(SOURCE, direction::modules);
}
