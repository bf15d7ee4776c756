//! Telling the demo: what a person would type, what it printed, what that shows.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;
use crate::janitor::Janitor;
use crate::{command, wait};

/// The most lines of a program's output that are shown.
const LINES_MAX: usize = 16;

/// A disk that is served.
pub(super) struct Disk {
    pub(super) pid: String,
    pub(super) minor: String,
    pub(super) uri: String,
}

/// Runs the programs and shows them.
pub(super) struct Story {
    janitor: Janitor,
    /// What does not take part, for want of a program.
    pub(super) left_out: Vec<&'static str>,
}

impl Story {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { janitor: Janitor::new("tapdisk-demo")?, left_out: Vec::new() })
    }

    /// Where the images are and where the programs run.
    pub(super) fn files(&self) -> &Path {
        self.janitor.files()
    }

    /// Where the sockets are.
    pub(super) fn run(&self) -> &Path {
        self.janitor.run()
    }

    /// Whether a program is there; when not, it is noted.
    pub(super) fn has(&mut self, program: &'static str) -> bool {
        let is_there = command::find(program).is_some();
        if !is_there && !self.left_out.contains(&program) {
            self.left_out.push(program);
        }
        is_there
    }

    /// Types a line with somebody else's program.
    pub(super) fn types<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut line = command::tool(program);
        line.args(arguments);
        self.show(line)
    }

    /// Types a line with tap-ctl.
    pub(super) fn tap_ctl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.show(self.ours("tap-ctl", arguments))
    }

    /// Types a line with vhd-util.
    pub(super) fn vhd_util<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.show(self.ours("vhd-util", arguments))
    }

    /// A line with a program of ours, unseen: for looking often.
    pub(super) fn quiet<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        command::capture(&mut self.ours(program, arguments))
    }

    fn ours<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut line = Command::new(command::target("release").join(program));
        line.args(arguments).env("TAPDISK_RUN_DIR", self.run()).current_dir(self.files());
        line
    }

    fn show(&self, mut line: Command) -> Result<String> {
        println!("$ {}", command::shown(&line));
        let output = command::output(line.current_dir(self.files()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let notes = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().chain(notes.lines()).collect();
        for line in lines.iter().filter(|line| !line.trim().is_empty()).take(LINES_MAX) {
            println!("    {line}");
        }
        if lines.len() > LINES_MAX {
            println!("    ...");
        }
        if output.status.success() {
            return Ok(text.into_owned());
        }
        Err(format!("`{}` failed: {}: {}", command::shown(&line), output.status, notes.trim()))
    }

    /// Starts a load in the background, as `line &` would.
    pub(super) fn background<S: AsRef<OsStr>>(
        &mut self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Load> {
        let mut line = command::tool(program);
        line.args(arguments).current_dir(self.files());
        println!("$ {} &", command::shown(&line));
        let shown = command::shown(&line);
        let child = line
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| format!("Cannot run `{shown}`: {error}"))?;
        self.janitor.watch(child.id())?;
        Ok(Load { child, shown })
    }

    /// Serves an image as a new disk.
    pub(super) fn create(&self, kind: &str, image: &str) -> Result<Disk> {
        let argument = format!("{kind}:{}", self.files().join(image).display());
        self.tap_ctl(["create", "-a", &argument])?;
        let list = self.tap_ctl(["list"])?;
        let (pid, minor) = find_disk(&list, &argument)
            .ok_or_else(|| format!("tap-ctl list does not show {argument}"))?;
        let socket = self.socket(&pid, &minor);
        wait::until(Duration::from_secs(5), "the disk's NBD socket", || {
            socket.exists().then_some(())
        })?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Disk { pid, minor, uri })
    }

    fn socket(&self, pid: &str, minor: &str) -> PathBuf {
        self.run().join(format!("nbd{pid}.{minor}"))
    }
}

/// A load in the background.
pub(super) struct Load {
    child: Child,
    shown: String,
}

impl Load {
    /// Whether it still runs.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, which must be a good one.
    pub(super) fn end(mut self, limit: Duration) -> Result<()> {
        let status = wait::until(limit, &self.shown, || self.child.try_wait().ok().flatten())?;
        if status.success() {
            return Ok(());
        }
        Err(format!("`{}` failed: {status}", self.shown))
    }
}

/// Process and minor of the disk with these arguments, from what `tap-ctl list` prints to a pipe.
fn find_disk(list: &str, arguments: &str) -> Option<(String, String)> {
    let line = list
        .lines()
        .find(|line| line.split_once("args=").is_some_and(|(_, shown)| shown == arguments))?;
    let value = |key: &str| Some(line.split(' ').find_map(|word| word.strip_prefix(key))?.into());
    Some((value("pid=")?, value("minor=")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_disk_that_serves_an_image() {
        let list =
            "pid=9 minor=0 state=0 args=aio:/d/b c.img\npid=10 minor=1 state=0 args=aio:/d/a\n";
        let found = Some(("10".to_owned(), "1".to_owned()));
        assert_eq!(find_disk(list, "aio:/d/a"), found);
        assert_eq!(find_disk(list, "aio:/d"), None);
    }
}
