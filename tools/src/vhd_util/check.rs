//! `vhd-util check`: is an image sound?

use std::ffi::OsStr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use serde_json::{Value, json};
use vhd::check::{CheckOptions, Checked, Finding, Stats, check_chain, stats};
use vhd::units::Timestamp;

use super::dump::Numbers;
use super::image::{self, Reading};
use super::read;
use super::watched::{WatchedFile, WatchedHost};
use crate::console::{Console, Failure, errno_of};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "check",
    short: "n:iItpbBsh",
    long: &["--json"],
    usage: "options: -n <file> [-i ignore missing primary footers] [-I ignore parent uuids] \
            [-t ignore timestamps] [-B do not check BAT for overlapping (precludes -s, -b)] \
            [-p check parents] [-b check bitmaps] [-s stats] [-h help]\n",
    usage_stream: Stream::Out,
    usage_status: 0,
    help: HELP,
    run,
};
const HELP: &str = "Footers, header, table, batmap and locators, and whether the parent is there. Prints 'NAME is valid'
(nothing for a fixed image), or what is wrong and what the metadata are; the exit status is 0 then,
and only then. Reads metadata alone, in time that grows with the blocks that are there.

  -n name  the image
  -i       a missing footer at the end is no fault: a crash leaves that, 'repair' mends it
  -I       nor is a parent with another identity
  -t       nor are times in the future
  -B       do not look for blocks that lie over each other
  -p       the parents too
  -b       read the data too: is there any where a bitmap says that there is none?
  -s       how many sectors are allocated, written, and new to the parents, instead
  --json   an array with an object for each image: all that was found, with codes
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let Some(name) = options.argument(b'n').filter(|_| options.operands().next().is_none()) else {
        return COMMAND.refuse(console, "Option -n is needed, and no other name");
    };
    if options.has(b'B') && (options.has(b's') || options.has(b'b')) {
        return COMMAND.refuse(console, "Option -B precludes -s and -b");
    }
    let path = Path::new(name);
    let wanted = CheckOptions {
        ignore_end_footer: options.has(b'i'),
        ignore_parent_uuid: options.has(b'I'),
        ignore_times: options.has(b't'),
        ignore_overlap: options.has(b'B'),
        read_data: options.has(b'b'),
    };
    check_file(console, path)?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = Timestamp::from_unix(seconds);
    // Only with -b there is something to wait for.
    let host = WatchedHost::new(wanted.read_data.then_some("check"));
    let opened = image::gate(path)
        .and_then(|gate| check_chain(&host, path, &gate, wanted, options.has(b'p'), now));
    host.finish();
    let checked = match opened {
        Ok(checked) => checked,
        Err(error) => {
            console.print(format!("error opening {}: {}\n", path.display(), -error.errno()))?;
            return Err(image::failure(path, &error));
        }
    };
    if options.has_long("--json") {
        let objects: Vec<Value> = checked.iter().map(object).collect();
        console.print(format!("{:#}\n", Value::Array(objects)))?;
        return first_invalid(&checked).map_or(Ok(()), |(one, finding)| Err(failure(one, finding)));
    }
    for (number, one) in checked.iter().enumerate() {
        // The leaf is called as it was named.
        let name = if number == 0 { path } else { &one.path };
        if let Some(finding) = one.report.invalid() {
            let refused = refuse(console, name, one, finding);
            if number > 0 {
                console.print(format!("error checking parents: {}\n", -finding.errno()))?;
            }
            return refused;
        }
        if !options.has(b's') && one.report.footer.is_some_and(|it| it.disk_type.has_blocks()) {
            console.print(format!("{} is valid\n", name.display()))?;
        }
    }
    if options.has(b's') {
        print_stats(console, &checked)?;
    }
    Ok(())
}

fn check_file(console: &mut Console, path: &Path) -> Result<(), Failure> {
    let name = path.display();
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) => {
            // As ever, the one errno that is positive.
            console.print(format!("cannot stat {name}: {}\n", errno_of(&error)))?;
            return Err(Failure::io(&name.to_string(), &error));
        }
    };
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    console.print(format!("{name} is not a regular file or block device\n"))?;
    Err(Failure::new(Errno::EINVAL, "Only files and devices are images"))
}

fn first_invalid<F>(checked: &[Checked<F>]) -> Option<(&Checked<F>, &Finding)> {
    checked.iter().find_map(|one| Some((one, one.report.invalid()?)))
}

fn failure<F>(one: &Checked<F>, finding: &Finding) -> Failure {
    let cause = finding.cause().map_or(String::new(), |cause| format!(": {cause}"));
    let explanation = format!("{}: {finding}{cause}", one.path.display());
    Failure::Errno { errno: finding.errno(), explanation }
}

/// What is wrong, and what the metadata are.
fn refuse(
    console: &mut Console,
    name: &Path,
    one: &Checked<WatchedFile>,
    finding: &Finding,
) -> Result<(), Failure> {
    // As ever: that it cannot be opened is said below.
    if finding.code() != "load" {
        console.print(format!("{finding}\n"))?;
    }
    console.print(format!("{} appears invalid; dumping metadata\n", name.display()))?;
    match image::open(name, Reading::Lenient) {
        Err(error) => read::not_open(console, name, error.errno(), Numbers::default())?,
        Ok(image) => match image.check_table(true) {
            Err(error) => {
                let (name, errno) = (name.display(), error.errno());
                console.print(format!("Failed to get bat for {name}: {}\n", -errno))?;
            }
            Ok(()) => read::headers(console, &image, Numbers::default())?,
        },
    }
    Err(failure(one, finding))
}

/// The ancestors first; those without blocks have nothing to count.
fn print_stats(console: &mut Console, checked: &[Checked<WatchedFile>]) -> Result<(), Failure> {
    let images: Vec<_> = checked.iter().filter_map(|one| one.image.as_ref()).collect();
    for (number, image) in images.iter().enumerate().rev() {
        if !image.footer().disk_type.has_blocks() {
            continue;
        }
        let ancestors: Vec<_> = images[number + 1..]
            .iter()
            .copied()
            .filter(|image| image.footer().disk_type.has_blocks())
            .collect();
        let path = &checked[number].path;
        let counted = stats(image, &ancestors).map_err(|error| image::failure(path, &error))?;
        let name = path.file_name().unwrap_or(OsStr::new("")).display().to_string();
        let has_ancestors = images.len() > number + 1;
        console.print(line(&name, &counted, has_ancestors))?;
    }
    Ok(())
}

fn line(name: &str, stats: &Stats, has_ancestors: bool) -> String {
    let Stats { allocated, written, not_in_parent, not_in_ancestors } = *stats;
    let mut line = format!(
        "{name}: secs allocated: {allocated:#x} secs written: {written:#x} ({}%)",
        percent(written, allocated)
    );
    if has_ancestors {
        line.push_str(&format!(
            " secs not in parent: {not_in_parent:#x} ({}%) secs not in ancestors: {:#x} ({}%)",
            percent(not_in_parent, written),
            not_in_ancestors,
            percent(not_in_ancestors, written)
        ));
    }
    line.push('\n');
    line
}

/// With two digits behind the point, rounded.
fn percent(part: u64, whole: u64) -> String {
    let whole = u128::from(whole.max(1));
    let hundredths = (u128::from(part) * 20_000 / whole).div_ceil(2);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

fn object(one: &Checked<WatchedFile>) -> Value {
    let findings = one.report.findings.iter().map(|finding| {
        json!({
            "code": finding.code(),
            "text": finding.to_string(),
            "is_note": finding.is_note(),
            "errno": finding.errno(),
            "block": finding.block().map(|block| block.0),
            "cause": finding.cause().map(ToString::to_string),
        })
    });
    let footer = one.report.footer.as_ref();
    json!({
        "path": one.path.to_string_lossy(),
        "type": footer.map(|footer| image::type_name(footer.disk_type)),
        "is_valid": one.report.is_valid(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_to_hundredths_of_a_percent() {
        for (part, whole, text) in [
            (0x100a, 0x4000, "25.06"),
            (1, 0x1000, "0.02"),
            (0, 0, "0.00"),
            (5, 5, "100.00"),
            (0xff9, 0x1002, "99.78"),
        ] {
            assert_eq!(percent(part, whole), text, "{part} of {whole}");
        }
    }
}
