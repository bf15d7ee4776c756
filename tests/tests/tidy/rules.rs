//! The rules: each a function of a path and a text, and each shown to bite.
//!
//! Words that a rule looks for are put together from pieces, so that it does not find itself.

use std::collections::BTreeSet;

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;
const BYTES_MAX: u64 = 100_000;

fn at(path: &str, index: usize, what: &str) -> String {
    format!("{path}:{}: {what}", index + 1)
}

/// A complaint on each line for which `is_bad` holds.
fn lines(path: &str, text: &str, what: &str, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let bad = text.lines().enumerate().filter(|(_, line)| is_bad(line));
    bad.map(|(index, _)| at(path, index, what)).collect()
}

/// Whether `word` stands in `line`, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Whether a file has code that the compiler does not check.
pub(super) fn has_unsafe(_path: &str, text: &str) -> bool {
    let word = "unsafe";
    text.lines().filter(|line| !is_comment(line)).any(|line| {
        ["{", "fn", "impl", "extern", "trait"]
            .iter()
            .any(|next| line.contains(&format!("{word} {next}")))
    })
}

/// Unsafe code in a file that does not say so at its top.
pub(super) fn unsafe_without_permission(path: &str, text: &str) -> Vec<String> {
    let permission = ["#![allow(", "unsafe", "_code)]"].concat();
    let lint = ["unsafe", "_code"].concat();
    let is_open = text.lines().any(|line| line.starts_with("#![allow(") && has_word(line, &lint));
    match (has_unsafe(path, text), is_open) {
        (true, false) => vec![format!("{path}: {permission} is missing")],
        (false, true) => vec![format!("{path}: {permission}, and nothing that needs it")],
        _ => Vec::new(),
    }
}

/// Marks of unfinished work. A key of the statistics that clients read starts with one of them.
pub(super) fn unfinished(path: &str, text: &str) -> Vec<String> {
    let calls = ["to\u{64}o!(", "un\u{69}mplemented!(", "d\u{62}g!("];
    let words = ["TO\u{44}O", "FIX\u{4d}E", "X\u{58}X"];
    lines(path, text, "unfinished", |line| {
        calls.iter().any(|call| line.contains(call))
            || words.iter().any(|word| has_word(line, word))
    })
}

/// Tests that never run and do not say why.
pub(super) fn ignored(path: &str, text: &str) -> Vec<String> {
    let bare = ["#[", "ignore", "]"].concat();
    lines(path, text, "ignored without a reason", |line| line.trim() == bare)
}

/// A file that does not open with what it is.
pub(super) fn opening(path: &str, text: &str) -> Vec<String> {
    let is_said =
        text.lines().next().is_some_and(|line| line.len() > 8 && line.starts_with("//! "));
    if is_said { Vec::new() } else { vec![format!("{path}: does not open with `//! what it is`")] }
}

/// Comments too wide, but for tables, diagrams and addresses. Code is rustfmt's business.
pub(super) fn wide(path: &str, text: &str) -> Vec<String> {
    lines(path, text, "wider than 100 columns", |line| {
        let breakable = is_comment(line)
            && !line.contains("://")
            && !line.contains("! |")
            && !line.contains("//!   ");
        breakable && line.chars().count() > COLUMNS_MAX
    })
}

/// A file that is more than one idea.
pub(super) fn long(path: &str, text: &str) -> Vec<String> {
    let count = text.lines().count();
    if count > LINES_MAX { vec![format!("{path}: {count} lines")] } else { Vec::new() }
}

/// A file that does not belong into a repository.
pub(super) fn large(path: &str, bytes: u64) -> Option<String> {
    (bytes > BYTES_MAX).then(|| format!("{path}: {bytes} bytes"))
}

/// Paths of one machine, hosts of registries, pages that readers do not have.
pub(super) fn places(path: &str, text: &str) -> Vec<String> {
    let words =
        ["/wo\u{72}k/", "/ro\u{6f}t/", "/ho\u{6d}e/", "crates\u{2e}io", "static\u{2e}rust-lang"];
    let page = ["sp", "ec "].concat();
    let cites = |line: &str| {
        line.match_indices(&page).any(|(start, _)| {
            let after = line[start + page.len()..].chars().next();
            let before = line[..start].chars().next_back();
            after.is_some_and(|letter| letter.is_ascii_digit())
                && !before.is_some_and(char::is_alphabetic)
        })
    };
    lines(path, text, "names a place that readers do not have", |line| {
        words.iter().any(|word| line.contains(word)) || cites(line)
    })
}

/// Relative links of a document that lead nowhere.
pub(super) fn links(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut complaints = Vec::new();
    for rest in text.split("](").skip(1) {
        let target = rest.split([')', '#']).next().unwrap_or("");
        if target.is_empty() || target.contains("://") {
            continue;
        }
        let target_path = format!("{folder}/{target}");
        if !exists(target_path.trim_start_matches('/')) {
            complaints.push(format!("{path}: the link to {target} leads nowhere"));
        }
    }
    complaints
}

/// `cargo xtask X` where xtask knows no X.
pub(super) fn commands(path: &str, text: &str, main: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for rest in text.split("cargo xtask ").skip(1) {
        let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
        if !name.is_empty() && !main.contains(&format!("name: \"{name}\"")) {
            complaints.push(format!("{path}: `cargo xtask {name}` does not exist"));
        }
    }
    complaints
}

/// What the rows of the first table under a heading start with, between backticks.
pub(super) fn table(document: &str, heading: &str) -> BTreeSet<String> {
    let is_end = |line: &&str| !(line.starts_with('#') && line.contains(' '));
    let section =
        document.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading);
    let rows = section.skip(1).take_while(is_end).filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).map(str::to_owned).collect()
}

/// What is in only one of two sets.
pub(super) fn both_ways(
    left: &BTreeSet<String>,
    right: &BTreeSet<String>,
    left_name: &str,
    right_name: &str,
) -> Vec<String> {
    let only =
        |names: (&str, &str), item: &String| format!("{item}: in {}, not in {}", names.0, names.1);
    let missing = right.difference(left).map(|item| only((right_name, left_name), item));
    let extra = left.difference(right).map(|item| only((left_name, right_name), item));
    missing.chain(extra).collect()
}

/// The `path = "..."` lines of a manifest that lead to source files.
pub(super) fn manifest_paths(manifest: &str) -> impl Iterator<Item = &str> {
    let values = manifest.lines().filter_map(|line| line.strip_prefix("path = \""));
    values.filter_map(|value| value.strip_suffix("\"")).filter(|path| path.ends_with(".rs"))
}

/// The dependencies of a manifest that are not paths in the tree.
pub(super) fn manifest_dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path ="))
        .filter_map(|line| line.split_once(" ="))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// The files that each `mod x;` of a file may mean.
pub(super) fn modules(path: &str, text: &str, is_root: bool) -> Vec<Vec<String>> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    let owns_folder = is_root || stem == "mod";
    let base = if owns_folder { folder.to_owned() } else { format!("{folder}/{stem}") };
    let mut modules = Vec::new();
    let mut given: Option<&str> = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            given = rest.split('"').next();
            continue;
        }
        let name = line.strip_suffix(';').and_then(|line| {
            let (before, name) = line.rsplit_once("mod ")?;
            let is_declaration = before.is_empty() || before.trim_end().ends_with("pub");
            (is_declaration || before.ends_with(") ")).then_some(name)
        });
        if let Some(name) = name {
            modules.push(match given.take() {
                Some(given) => vec![format!("{folder}/{given}")],
                None => vec![format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")],
            });
        }
    }
    modules
}

mod bite {
    //! Every rule finds what it is for, and lets the rest be.

    use super::*;

    #[test]
    fn unsafe_code_is_found_and_words_about_it_are_not() {
        let block = ["let x = un", "safe { f() };"].concat();
        assert!(has_unsafe("a.rs", &block));
        assert!(!has_unsafe("a.rs", &format!("// {block}")));
        assert!(!has_unsafe("a.rs", "#![forbid(unsafe_code)]"));
        assert_eq!(unsafe_without_permission("a.rs", &block).len(), 1);
        let permission = ["#![allow(", "unsafe", "_code)]"].concat();
        assert!(unsafe_without_permission("a.rs", &format!("{permission}\n{block}")).is_empty());
        assert_eq!(unsafe_without_permission("a.rs", &permission).len(), 1);
    }

    #[test]
    fn unfinished_work_is_found() {
        let marks = [["TO", "DO: x"], ["FIX", "ME"], ["X", "XX"], ["to", "do!()"], ["d", "bg!(x)"]];
        for mark in marks {
            assert_eq!(unfinished("a.rs", &mark.concat()).len(), 1, "{mark:?}");
        }
        assert!(unfinished("a.rs", &["FIX", "ME_enospc_redirect_count"].concat()).is_empty());
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        assert_eq!(ignored("a.rs", &["    #[ig", "nore]"].concat()).len(), 1);
        assert!(ignored("a.rs", &["#[ig", "nore = \"needs a disk\"]"].concat()).is_empty());
    }

    #[test]
    fn shape_is_measured() {
        assert_eq!(opening("a.rs", "use x;").len(), 1);
        assert!(opening("a.rs", "//! What it is.").is_empty());
        assert_eq!(wide("a.rs", &format!("// {}", "x ".repeat(50))).len(), 1);
        assert!(wide("a.rs", &format!("let a = \"{}\";", "x".repeat(200))).is_empty());
        assert_eq!(long("a.rs", &"\n".repeat(601)).len(), 1);
        assert!(long("a.rs", &"\n".repeat(600)).is_empty());
        assert!(large("a", 100_001).is_some() && large("a", 100_000).is_none());
    }

    #[test]
    fn places_are_found() {
        for place in [["/ho", "me/x"], ["crates", ".io"], ["sp", "ec 14"]] {
            assert_eq!(places("a.md", &place.concat()).len(), 1, "{place:?}");
        }
        assert!(places("a.md", "a specification of 1990, /run/x").is_empty());
    }

    #[test]
    fn links_and_commands_lead_somewhere() {
        let exists = |path: &str| path == "docs/a.md";
        assert!(links("docs/b.md", "[x](a.md#y) [z](https://e.org)", &exists).is_empty());
        assert_eq!(links("README.md", "[x](a.md)", &exists).len(), 1);
        assert_eq!(commands("a.md", "`cargo xtask frob`", "name: \"test\"").len(), 1);
        assert!(commands("a.md", "`cargo xtask test`", "name: \"test\"").is_empty());
    }

    #[test]
    fn tables_are_compared_both_ways() {
        let document = "# A\n| `no` | x |\n## B\n\n| file | why |\n|---|---|\n| `a` | `x` |\n| `b` | y |\n# C\n| `no` |";
        let listed = table(document, "B");
        assert_eq!(listed, BTreeSet::from(["a".into(), "b".into()]));
        let found = BTreeSet::from(["b".into(), "c".into()]);
        assert_eq!(
            both_ways(&listed, &found, "l", "r"),
            ["c: in r, not in l", "a: in l, not in r"]
        );
    }

    #[test]
    fn module_declarations_are_followed() {
        let text = "pub mod a;\n#[cfg(test)]\nmod b;\npub(crate) mod c;\n#[path = \"d_e.rs\"]\nmod d;\n// no mod x;\nmod inline {";
        let found = modules("t/src/f.rs", text, false);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0], ["t/src/f/a.rs", "t/src/f/a/mod.rs"]);
        assert_eq!(found[3], ["t/src/d_e.rs"]);
        assert_eq!(modules("t/src/main.rs", "mod a;", true)[0][0], "t/src/a.rs");
    }

    #[test]
    fn a_manifest_gives_paths_and_dependencies() {
        let manifest = "[dependencies]\nx-sys = { version = \"1\" }\nvhd = { path = \"../vhd\" }\n\n[[bin]]\npath = \"t/a.rs\"\n";
        assert_eq!(manifest_dependencies(manifest), BTreeSet::from(["x-sys".into()]));
        assert_eq!(manifest_paths(manifest).collect::<Vec<_>>(), ["t/a.rs"]);
    }
}
