//! A command that runs beside others.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::Result;
use crate::command;

/// A command that runs while others do; what it prints is shown when it has ended. Killed when
/// dropped.
#[derive(Debug)]
pub(crate) struct Background {
    line: String,
    log: PathBuf,
    child: Child,
}

impl Background {
    /// Starts it; `log` is where its output goes meanwhile.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let line = command::shown(command);
        let file = fs::File::create(&log)
            .map_err(|error| format!("Cannot make {}: {error}", log.display()))?;
        let again = file
            .try_clone()
            .map_err(|error| format!("Cannot use {} twice: {error}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .spawn()
            .map_err(|error| format!("Cannot run `{line}`: {error}"))?;
        Ok(Self { line, log, child })
    }

    /// Waits for it and shows what it said; an error unless it exits with 0. What it runs has an
    /// end of its own: each test in it is bounded.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.child.wait();
        let status = status.map_err(|error| format!("Cannot wait for `{}`: {error}", self.line))?;
        let text = fs::read(&self.log)
            .map_err(|error| format!("Cannot read {}: {error}", self.log.display()))?;
        print!("{}", String::from_utf8_lossy(&text));
        if status.success() {
            return Ok(());
        }
        Err(format!("`{}` failed: {status}", self.line))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_runs_beside_the_rest_is_judged_and_its_output_kept() {
        let folder = command::temporary_folder(&std::env::temp_dir(), "beside").unwrap();
        let start = |script: &str| {
            let mut command = Command::new("sh");
            Background::start(command.args(["-c", script]), folder.join("log")).unwrap()
        };
        assert_eq!(start("echo fine").end(), Ok(()));
        assert_eq!(fs::read_to_string(folder.join("log")).unwrap(), "fine\n");
        let error = start("exit 3").end().unwrap_err();
        assert!(error.contains("exit 3") && error.contains("status: 3"), "{error}");
        let background = start("exec sleep 600");
        let process = Path::new("/proc").join(background.child.id().to_string());
        assert!(process.exists());
        drop(background);
        assert!(!process.exists(), "{} is left", process.display());
        fs::remove_dir_all(folder).unwrap();
    }
}
