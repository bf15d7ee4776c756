//! `vhd-util scan`: many images at once, a line for each, or the tree that they are.
//!
//! A scan survives whatever is in a directory: what is no image gets a line that says so.

mod targets;
mod tree;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::{Value, json};
use vhd::ErrorKind;

use self::targets::{Source, Target};
use super::dump;
use super::image::{Image, Reading};
use crate::console::{Console, Failure, exit_status};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "scan",
    short: "m:fcl:pavMh",
    long: &["--json"],
    usage: "usage: [OPTIONS] FILES\noptions: [-m match filter] [-f fast] [-c continue on \
            failure] [-l LVM volume] [-p pretty print] [-a scan parents] [-v verbose] [-h \
            help] [-M show markers]\n",
    usage_stream: Stream::Out,
    usage_status: 0,
    help: HELP,
    run,
};

const HELP: &str =
    "A line for each image: vhd=NAME capacity=BYTES size=BYTES hidden=N parent=NAME, or
vhd=NAME scan-error=-ERRNO error-message='TEXT'. Each field has one '=', whatever is in a name.

  -m pattern  images that match: '*.vhd', '/srv/{a,b}/*.vhd'; with -l, volumes
  -f          fast: only the footer's copy and the header of each, in the order of the directory;
              parents are named as the images have them. Fixed images have no copy: an error
  -c          go on after an error, and exit with 0
  -l group    the volumes of an LVM group, active or not: read from where they start on the disk
  -a          also the parents, which may be elsewhere
  -p          as a tree, parents first; not with -f
  -v          names with directories
  -M          marker and key hash, too
  --json      an array of objects

  vhd-util scan -f -c -m '/var/run/sr-mount/1234/*.vhd'
  vhd-util scan -p -a leaf.vhd
";

/// What was asked for.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "these are the command's flags")]
struct How {
    is_fast: bool,
    goes_on: bool,
    is_tree: bool,
    has_parents: bool,
    is_verbose: bool,
    has_markers: bool,
    is_json: bool,
}

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let is_tree = options.has(b'p');
    let how = How {
        is_fast: options.has(b'f') && !is_tree,
        goes_on: options.has(b'c'),
        is_tree,
        has_parents: options.has(b'a'),
        is_verbose: options.has(b'v'),
        has_markers: options.has(b'M'),
        is_json: options.has_long("--json"),
    };
    let files: Vec<OsString> = options.operands().map(ToOwned::to_owned).collect();
    let pattern = options.argument(b'm');
    if files.is_empty() && pattern.is_none() {
        return COMMAND.refuse(console, "Files, or a pattern for them with -m, are needed");
    }
    let mut scan = Scan { console, how, others: Vec::new(), rows: Vec::new(), first: 0 };
    let found = match options.argument(b'l') {
        Some(group) => targets::of_group(group, pattern, &files),
        None => targets::of_files(pattern, &files, !how.is_fast),
    };
    let targets = scan.take(found)?;
    scan.images(targets)?;
    scan.finish()
}

/// Of the copy of the footer and the header, which comes behind it.
const BOTH_SIZE: u64 = 1536;

/// Of most lines.
const LINE_LENGTH: usize = 160;

/// A line.
#[derive(Debug)]
struct Row {
    target: Target,
    result: Result<Facts, (i32, &'static str)>,
}

/// What a line says of an image.
#[derive(Debug)]
struct Facts {
    capacity: u64,
    hidden: u8,
    marker: u8,
    keyhash: String,
    parent: Option<Parent>,
}

/// A parent, as it is named.
#[derive(Clone, Debug)]
struct Parent {
    name: PathBuf,
    /// Where it is, if it was looked for and found.
    path: Option<PathBuf>,
    is_raw: bool,
}

struct Scan<'a> {
    console: &'a mut Console,
    how: How,
    /// Volumes that parents may be.
    others: Vec<Target>,
    /// Those that are not printed at once.
    rows: Vec<Row>,
    /// The errno of the first error.
    first: i32,
}

impl Scan<'_> {
    /// Says what could not be looked at; ends the scan unless it goes on.
    fn take(&mut self, found: targets::Found) -> Result<Vec<Target>, Failure> {
        for (name, errno, why) in &found.errors {
            self.console.explain(why);
            self.error_line(name, *errno, "failure scanning target")?;
        }
        self.others = found.others;
        let first = found.errors.first().map_or(0, |(_, errno, _)| *errno);
        if first == 0 || self.how.goes_on {
            return Ok(found.targets);
        }
        if self.how.is_json {
            self.print_json()?;
        }
        self.console.complain(format!("scan failed: {}. Check syslog for details\n", -first));
        Err(Failure::Status(exit_status(first)))
    }

    fn images(&mut self, targets: Vec<Target>) -> Result<(), Failure> {
        let mut known: HashSet<PathBuf> = HashSet::new();
        if self.how.has_parents {
            known.extend(targets.iter().map(|it| self.key(it)));
        }
        // A tree has each image once; a list has what was asked for.
        let mut shown = HashSet::new();
        let mut queue: std::collections::VecDeque<Target> = targets.into();
        while let Some(target) = queue.pop_front() {
            if self.how.is_tree && !shown.insert(self.key(&target)) {
                continue;
            }
            let result = self.look_at(&target);
            let parent = result.as_ref().ok().and_then(|facts| facts.parent.clone());
            let parent = parent.filter(|_| self.how.has_parents);
            let errno = result.as_ref().err().map_or(0, |(errno, _)| *errno);
            self.row(&target, result)?;
            if errno != 0 && self.first == 0 {
                self.first = errno;
            }
            if errno != 0 && !self.how.goes_on {
                break;
            }
            let Some(parent) = parent else { continue };
            let is_raw = parent.is_raw;
            match self.parent_target(&target, &parent) {
                Ok(parent) => {
                    if known.insert(self.key(&parent)) {
                        queue.push_back(Target { is_raw, ..parent });
                    }
                }
                // It is only an ancestor: the exit status does not tell of it.
                Err(error) => {
                    let name = parent.name.display().to_string();
                    self.error_line(&name, error, "failure scanning target")?;
                }
            }
        }
        Ok(())
    }

    fn parent_target(&self, child: &Target, parent: &Parent) -> Result<Target, i32> {
        if let Source::File(_) = child.source {
            return child.parent_file(&parent.name, parent.path.as_deref());
        }
        let volume = self.others.iter().find(|volume| volume.name == parent.name);
        volume.cloned().ok_or(Errno::ENOENT as i32)
    }

    /// By what an image is known to be there already.
    fn key(&self, target: &Target) -> PathBuf {
        if self.how.is_fast {
            return target.name.file_name().map_or_else(PathBuf::new, PathBuf::from);
        }
        target.canonical.clone().unwrap_or_else(|| target.name.clone())
    }

    fn look_at(&self, target: &Target) -> Result<Facts, (i32, &'static str)> {
        if target.is_raw {
            let (hidden, marker, keyhash) = (1, 0, String::new());
            return Ok(Facts { capacity: target.size, hidden, marker, keyhash, parent: None });
        }
        let reading = match (&target.source, self.how.is_fast) {
            (Source::File(_), false) => Reading::Lenient,
            _ => Reading::Listing,
        };
        let image = target.open(reading).map_err(|error| {
            // As ever: the footer and the header are one read then.
            let is_short = reading == Reading::Listing && (1..BOTH_SIZE).contains(&target.size);
            let errno = if is_short { Errno::EIO as i32 } else { error.errno() };
            (errno, "opening file")
        })?;
        let hidden = image.hidden().map_err(|error| (error.errno(), "checking 'hidden' field"))?;
        let parent = self.parent(target, &image)?;
        let (mut marker, mut keyhash) = (0, String::new());
        if self.how.has_markers {
            marker = image.marker().unwrap_or(0);
            let hash = image.keyhash().ok().flatten();
            keyhash = hash.map_or_else(String::new, |keyhash| dump::hex(&keyhash.hash));
        }
        Ok(Facts { capacity: image.virtual_size(), hidden, marker, keyhash, parent })
    }

    fn parent(
        &self,
        target: &Target,
        image: &Image,
    ) -> Result<Option<Parent>, (i32, &'static str)> {
        if !image.is_differencing() {
            return Ok(None);
        }
        let is_raw = image.has_raw_parent();
        if let Source::Volume(_) = target.source {
            let name = image.header_parent_name().map_err(|it| (it.errno(), "finding parent"))?;
            let name = PathBuf::from(targets::volume_of(&name));
            return Ok(Some(Parent { name, path: None, is_raw }));
        }
        if self.how.is_fast {
            let name = image.header_parent_name().map_err(|it| (it.errno(), "finding parent"))?;
            return Ok(Some(Parent { name: name.into(), path: None, is_raw }));
        }
        match image.parent() {
            Ok(path) => Ok(Some(Parent { name: path.clone(), path: Some(path), is_raw })),
            Err(error) if matches!(error.kind(), ErrorKind::ParentNotFound { .. }) => {
                let name = image.parent_name();
                let name = name.map_err(|error| (error.errno(), "getting parent"))?;
                Ok(Some(Parent { name: name.into(), path: None, is_raw }))
            }
            Err(error) => Err((error.errno(), "getting parent")),
        }
    }

    /// At once, but in a tree and in JSON.
    fn row(
        &mut self,
        target: &Target,
        result: Result<Facts, (i32, &'static str)>,
    ) -> Result<(), Failure> {
        match result {
            Err((errno, message)) if !self.how.is_json => {
                let name = self.error_name(target);
                self.error_line(&name, errno, message)
            }
            Ok(facts) if !self.how.is_json && !self.how.is_tree => {
                let line = self.line(target, &facts, "");
                self.console.print(line)
            }
            result => {
                self.rows.push(Row { target: target.clone(), result });
                Ok(())
            }
        }
    }

    fn error_name(&self, target: &Target) -> String {
        let canonical = target.canonical.as_ref().filter(|_| self.how.is_tree);
        canonical.unwrap_or(&target.name).display().to_string()
    }

    fn error_line(&mut self, name: &str, errno: i32, message: &'static str) -> Result<(), Failure> {
        if self.how.is_json {
            let target = Target::missing(Path::new(name));
            self.rows.push(Row { target, result: Err((errno, message)) });
            return Ok(());
        }
        let name = one_line(name);
        let line = format!("vhd={name} scan-error={} error-message='{message}'\n", -errno);
        self.console.print(line)
    }

    fn line(&self, target: &Target, facts: &Facts, suffix: &str) -> String {
        let mut line = String::with_capacity(LINE_LENGTH);
        line.push_str("vhd=");
        line.push_str(&self.shown(target));
        let (capacity, hidden) = (facts.capacity, facts.hidden);
        let written = write!(line, " capacity={capacity} size={} hidden={hidden}", target.size);
        written.expect("there is memory");
        if self.how.has_markers {
            line.push_str(&format!(" marker={} keyhash={}", facts.marker, facts.keyhash));
        }
        let parent = facts.parent.as_ref().map(|parent| self.path(&parent.name));
        line.push_str(" parent=");
        line.push_str(parent.as_deref().unwrap_or("none"));
        line.push_str(suffix);
        line.push('\n');
        line
    }

    fn shown<'b>(&self, target: &'b Target) -> Cow<'b, str> {
        let canonical = target.canonical.as_ref().filter(|_| self.how.is_tree);
        self.path(canonical.unwrap_or(&target.name))
    }

    fn path<'b>(&self, path: &'b Path) -> Cow<'b, str> {
        let short = path.file_name().filter(|_| !self.how.is_verbose);
        match short.unwrap_or(path.as_os_str()).to_string_lossy() {
            name if name.contains(char::is_control) => Cow::Owned(one_line(&name)),
            name => name,
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        if self.how.is_json {
            self.print_json()?;
        } else if self.how.is_tree {
            for line in tree::lines(&self.rows) {
                let row = &self.rows[line.row];
                let Ok(facts) = &row.result else { continue };
                let suffix = if line.is_orphan { " (not found in scan)" } else { "" };
                let text = self.line(&row.target, facts, suffix);
                self.console.print(format!("{:1$}{text}", "", 3 * line.depth))?;
            }
        }
        match self.first {
            0 => Ok(()),
            _ if self.how.goes_on => Ok(()),
            errno => Err(Failure::Status(exit_status(errno))),
        }
    }

    fn print_json(&mut self) -> Result<(), Failure> {
        let rows: Vec<Value> = self.rows.iter().map(object).collect();
        self.console.print(format!("{:#}\n", Value::Array(rows)))
    }
}

/// A name cannot make a line of its own, nor move the cursor.
fn one_line(name: &str) -> String {
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

fn object(row: &Row) -> Value {
    let name = row.target.name.to_string_lossy();
    match &row.result {
        Ok(facts) => json!({
            "path": name,
            "virtual_size": facts.capacity,
            "size": row.target.size,
            "hidden": facts.hidden,
            "marker": facts.marker,
            "keyhash": if facts.keyhash.is_empty() { Value::Null } else { json!(facts.keyhash) },
            "parent": facts.parent.as_ref().map(|parent| parent.name.to_string_lossy()),
            "parent_is_raw": facts.parent.as_ref().map(|parent| parent.is_raw),
        }),
        Err((errno, message)) => json!({ "path": name, "errno": errno, "error": message }),
    }
}
