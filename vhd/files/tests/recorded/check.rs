//! What is found to be wrong with images.

use std::path::Path;

use serde_json::Value;
use vhd::check::{CheckOptions, FindingKind, check_chain, stats};
use vhd::footer::DiskType;
use vhd::gate::Gate;
use vhd::image::Image;
use vhd::units::Timestamp;
use vhd_files::file::ImageFile;
use vhd_files::host::LocalHost;

use super::{Unpacked, golden, list, parsed, text};

/// Cases in which the reference is wrong, and why.
const DEVIATIONS: &[(&str, &str)] = &[
    ("qemu-", "it refuses the geometry of disks that QEMU made with force_size"),
    ("bad-bm-size0", "it dies"),
    ("bad-bitmap-clear", "it does not look at the first byte of a sector"),
    ("bad-bat-max", "its sums overflow"),
    ("foreign-ms-diff", "one locator that leads nowhere, and another that leads to the parent"),
    ("bad-footer-511", "it cannot read the last block"),
    ("diff-raw-odd", "it leaves out a last block that is not whole"),
    ("diff-small-parent", "it takes sectors past the end of the parent for the parent's"),
    ("foreign-bs512k", "it counts in blocks of 2 MiB"),
    ("foreign-win-dyn", "the largest geometry says nothing in a disk of another creator"),
];

struct Wanted {
    options: CheckOptions,
    with_parents: bool,
    with_stats: bool,
    name: String,
}

/// What a command line asks for; `None` if the tool prints its usage.
fn options(arguments: &[Value]) -> Option<Wanted> {
    let mut wanted = Wanted {
        options: CheckOptions::default(),
        with_parents: false,
        with_stats: false,
        name: String::new(),
    };
    let mut rest = arguments.iter().filter_map(Value::as_str);
    while let Some(argument) = rest.next() {
        match argument {
            "--debug" => {}
            "-n" => rest.next()?.clone_into(&mut wanted.name),
            flags if flags.starts_with('-') => {
                for flag in flags.chars().skip(1) {
                    match flag {
                        'i' => wanted.options.ignore_end_footer = true,
                        'I' => wanted.options.ignore_parent_uuid = true,
                        't' => wanted.options.ignore_times = true,
                        'B' => wanted.options.ignore_overlap = true,
                        'b' => wanted.options.read_data = true,
                        'p' => wanted.with_parents = true,
                        's' => wanted.with_stats = true,
                        _ => return None,
                    }
                }
            }
            _ => return None,
        }
    }
    let is_contradiction = wanted.options.ignore_overlap && wanted.options.read_data;
    (!wanted.name.is_empty() && !is_contradiction).then_some(wanted)
}

/// The lines that the tool would print, up to a dump of metadata, and its exit status.
fn found(directory: &Path, wanted: &Wanted) -> (Vec<String>, i64) {
    let path = directory.join(&wanted.name);
    let now = Timestamp::from_unix(1_764_000_000 + 365 * 86_400);
    let gate = Gate::everywhere();
    let all = check_chain(&LocalHost, &path, &gate, wanted.options, wanted.with_parents, now);
    let all = match all {
        Ok(all) => all,
        Err(error) => return (vec![error.to_string()], error.errno().into()),
    };
    let mut lines = Vec::new();
    for (number, one) in all.iter().enumerate() {
        let name = if number == 0 { wanted.name.clone() } else { one.path.display().to_string() };
        let name = name.replace(directory.to_str().expect("a name of our own"), "@DIR@");
        if let Some(finding) = one.report.invalid() {
            let line = finding.to_string();
            // The reference says nothing of these.
            let is_said = *finding.kind() != FindingKind::Load;
            lines
                .extend(is_said.then(|| {
                    line.replace(directory.to_str().expect("a name of our own"), "@DIR@")
                }));
            lines.push(format!("{name} appears invalid; dumping metadata"));
            return (lines, finding.errno().into());
        }
        let is_fixed = one.report.footer.is_some_and(|footer| footer.disk_type == DiskType::Fixed);
        if !is_fixed && !wanted.with_stats {
            lines.push(format!("{name} is valid"));
        }
    }
    if wanted.with_stats {
        let images: Vec<&Image<ImageFile>> = all
            .iter()
            .filter_map(|one| one.image.as_ref())
            .filter(|it| it.header().is_some())
            .collect();
        for (number, image) in images.iter().enumerate().rev() {
            let name = image.source().path().file_name().expect("a file");
            let name = name.to_str().expect("text");
            lines.push(stats_line(name, image, images.get(number + 1..).unwrap_or_default()));
        }
    }
    (lines, 0)
}

fn stats_line(name: &str, image: &Image<ImageFile>, ancestors: &[&Image<ImageFile>]) -> String {
    let stats = stats(image, ancestors).expect("a sound image");
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    let percent =
        |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 * 100.0 / all as f64 };
    let mut line = format!(
        "{name}: secs allocated: {:#x} secs written: {:#x} ({:.2}%)",
        stats.allocated,
        stats.written,
        percent(stats.written, stats.allocated)
    );
    if !ancestors.is_empty() {
        line += &format!(
            " secs not in parent: {:#x} ({:.2}%) secs not in ancestors: {:#x} ({:.2}%)",
            stats.not_in_parent,
            percent(stats.not_in_parent, stats.written),
            stats.not_in_ancestors,
            percent(stats.not_in_ancestors, stats.written)
        );
    }
    line
}

/// The recorded lines, without a dump of metadata.
fn recorded(step: &Value) -> Vec<String> {
    let output = step.get("stdout").map(|output| text(output, "text")).unwrap_or_default();
    let lines = output.lines().map(str::to_owned).filter(|line| !line.is_empty());
    let mut kept = Vec::new();
    for line in lines {
        let is_last = line.ends_with("dumping metadata");
        kept.push(line);
        if is_last {
            break;
        }
    }
    kept
}

#[test]
fn every_image_has_the_findings_that_were_recorded() {
    let Some(folder) = golden() else { return };
    let manifest = parsed(&folder.join("manifest.json"));
    let (mut count, mut deviations) = (0, 0);
    let mut wrong = Vec::new();
    for case in list(&manifest, "cases") {
        let transcript = parsed(&folder.join(text(case, "transcripts")));
        let is_fixed = transcript.get("mutating") == Some(&Value::Bool(false));
        if !is_fixed || text(case, "archive").is_empty() {
            continue;
        }
        let unpacked = Unpacked::new(&folder, case, "check");
        let directory = std::fs::canonicalize(&unpacked.0).expect("it is there");
        for step in list(&transcript, "steps") {
            let arguments = list(step, "argv");
            let is_check = arguments.first().is_some_and(|it| it == "vhd-util")
                && arguments.get(1).is_some_and(|it| it == "check");
            let Some(wanted) = arguments.get(2..).and_then(options).filter(|_| is_check) else {
                continue;
            };
            if !directory.join(&wanted.name).exists() {
                continue;
            }
            count += 1;
            let found = found(&directory, &wanted);
            let exit = step.get("exit").and_then(Value::as_i64).unwrap_or(-1);
            let recorded = (recorded(step), exit);
            if found == recorded {
                continue;
            }
            if DEVIATIONS.iter().any(|(id, _)| text(case, "id").starts_with(id)) {
                deviations += 1;
                continue;
            }
            let command: Vec<_> = arguments.iter().filter_map(Value::as_str).collect();
            wrong.push(format!(
                "{} {command:?}\n  found  {found:?}\n  wanted {recorded:?}",
                text(case, "id")
            ));
        }
    }
    println!("{count} checks, {deviations} of them better than what was recorded");
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 0, "no check at all");
}
