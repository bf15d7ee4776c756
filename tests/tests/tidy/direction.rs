//! Who may know whom: between crates, and between the rooms of the daemon.

use std::collections::BTreeSet;

/// Ours, and which of ours each may use. Who is not here may use all: tests and benches.
const CRATES: [(&str, &[&str]); 7] = [
    ("blktap-ioctl", &[]),
    ("vhd", &[]),
    ("vhd-files", &["vhd"]),
    ("tapdisk-control", &[]),
    ("tapdisk", &["vhd", "vhd-files", "blktap-ioctl", "tapdisk-control"]),
    ("tap-tools", &["tapdisk-control", "vhd", "vhd-files", "blktap-ioctl"]),
    ("xtask", &[]),
];

/// They start everything.
const EVERYTHING: [&str; 3] = ["tapdisk-tests", "tapdisk-vm", "tapdisk-benches"];

/// The one crate under another license stays away from all but this one.
const XENSTORE: (&str, &str) = ("xenstore", "tapback");

/// Rooms of the daemon, and the modules that each must not name.
const ROOMS: [(&str, &[&str]); 3] = [
    ("tapdisk/src/frontend/", &["image"]),
    ("tapdisk/src/image/", &["frontend"]),
    ("tapdisk/src/queue/", &["frontend", "image"]),
];

fn is_ours(name: &str) -> bool {
    CRATES.iter().any(|(ours, _)| *ours == name) || EVERYTHING.contains(&name)
}

/// Complaints on pairs of package and dependency; those of tests alone are free among ours.
pub(super) fn crates(pairs: &[(String, String, bool)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (package, dependency, is_dev) in pairs {
        let allowed = CRATES.iter().find(|(name, _)| name == package).map(|(_, allowed)| *allowed);
        let is_known = allowed.is_some() || EVERYTHING.contains(&package.as_str());
        if !is_known && package != XENSTORE.1 {
            complaints.push(format!("{package}: this crate has no place in the map"));
        }
        let is_refused = allowed.is_some_and(|allowed| !allowed.contains(&dependency.as_str()));
        if is_ours(dependency) && is_refused && !is_dev {
            complaints.push(format!("{package} must not depend on {dependency}"));
        }
        if dependency.starts_with(XENSTORE.0) && package != XENSTORE.1 {
            complaints.push(format!("only {} may depend on {dependency}", XENSTORE.1));
        }
    }
    complaints
}

/// The dependencies that are not ours.
pub(super) fn foreign(pairs: &[(String, String, bool)]) -> BTreeSet<String> {
    let names = pairs.iter().map(|(_, dependency, _)| dependency);
    names.filter(|name| !is_ours(name)).cloned().collect()
}

/// A room that names another one which it must not know.
pub(super) fn modules(path: &str, text: &str) -> Vec<String> {
    let room = ROOMS.iter().find(|(room, _)| path.starts_with(room));
    let named = named_modules(text);
    let refused = room.into_iter().flat_map(|(_, refused)| refused.iter());
    refused
        .filter(|module| named.contains(**module))
        .map(|module| format!("{path} names crate::{module}"))
        .collect()
}

/// The modules of a crate that `crate::x` and `crate::{x::.., y}` in a text name.
fn named_modules(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_usize;
            let mut first = String::new();
            for letter in group.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => named.extend(first_name(&std::mem::take(&mut first))),
                    _ if depth == 0 => first.push(letter),
                    _ => {}
                }
            }
            named.extend(first_name(&first));
        } else {
            named.extend(first_name(rest));
        }
    }
    named
}

fn first_name(path: &str) -> Option<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let name: String = path.trim_start().chars().take_while(|letter| is_part(*letter)).collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn a_crate_against_the_direction_is_found() {
    let pair = |from: &str, to: &str, is_dev| vec![(from.to_owned(), to.to_owned(), is_dev)];
    assert_eq!(crates(&pair("vhd", "tapdisk", false)).len(), 1);
    assert_eq!(crates(&pair("tap-tools", "tapdisk", false)).len(), 1);
    assert_eq!(crates(&pair("tapdisk", "xenstore-rs", false)).len(), 1);
    assert_eq!(crates(&pair("stranger", "libc", false)).len(), 1);
    assert!(crates(&pair("tapdisk", "vhd", false)).is_empty());
    assert!(crates(&pair("vhd", "tapdisk", true)).is_empty());
    assert!(crates(&pair("tapback", "xenstore-rs", false)).is_empty());
}

#[test]
fn a_door_that_names_an_image_is_found() {
    let door = "tapdisk/src/frontend/nbd/mod.rs";
    assert_eq!(modules(door, "use crate::image::raw;").len(), 1);
    assert_eq!(modules(door, "use crate::{memory::{Memory, image}, image::raw};").len(), 1);
    assert!(modules(door, "use crate::{memory::{Memory, image}, images};").is_empty());
    assert!(modules("tapdisk/src/vbd/mod.rs", "use crate::image::raw;").is_empty());
    assert_eq!(modules("tapdisk/src/queue/mod.rs", "crate::frontend::x crate::image::y").len(), 2);
}
