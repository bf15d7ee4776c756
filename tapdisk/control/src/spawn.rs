//! Starts a daemon and learns its pid.
//!
//! The daemon goes to the background on its own: its parent ends, and the process that stays prints
//! the path of its control socket, `<dir>/ctl<pid>`, on the standard output that it was started
//! with. Both of its outputs go to one pipe: nothing of them reaches a caller who parses ours, and
//! no descriptor of ours stays open in the daemon.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::connection::Deadline;
use crate::error::{ControlError, ErrorKind};
use crate::paths::pid_of_control_socket;

/// The name under which a daemon runs: a storage manager finds its processes by it.
pub const DAEMON_NAME: &str = "tapdisk";

/// How long a daemon may take to name its socket. It touches no storage before that; locking its
/// memory on a busy machine takes seconds.
pub const SPAWN_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a start that SIGUSR1 ended is repeated. Whoever collects debug output sends that
/// signal to everything called tapdisk, and a process that has just been started dies of it.
const ATTEMPTS_MAX: u32 = 10;

/// The most output that is read, in bytes.
const OUTPUT_SIZE_MAX: usize = 64 << 10;

/// How often the end of the daemon's parent is looked for.
const WAIT_STEP_MS: u8 = 10;

/// The daemon's program: what the variable `TAPDISK` names, else `tapdisk` beside this program,
/// else `/usr/libexec/tapdisk`, else the first in `PATH`.
#[must_use]
pub fn daemon_program() -> OsString {
    let beside = env::current_exe().ok().map(|own| own.with_file_name(DAEMON_NAME));
    choose_program(env::var_os("TAPDISK"), beside, Path::is_file)
}

fn choose_program(
    variable: Option<OsString>,
    beside: Option<PathBuf>,
    is_file: impl Fn(&Path) -> bool,
) -> OsString {
    if let Some(program) = variable.filter(|program| !program.is_empty()) {
        return program;
    }
    let candidates = beside.into_iter().chain([PathBuf::from("/usr/libexec/tapdisk")]);
    candidates
        .into_iter()
        .find(|candidate| is_file(candidate))
        .map_or_else(|| OsString::from(DAEMON_NAME), PathBuf::into_os_string)
}

/// Starts a daemon; returns its pid when it serves its control socket.
///
/// # Errors
/// The daemon's exit status as errno; EINTR when a signal ended it; ETIMEDOUT; EPROTO when it named
/// no socket; else what starting a process says.
pub fn spawn(program: &OsStr) -> Result<i32, ControlError> {
    spawn_within(program, &[], SPAWN_TIMEOUT)
}

fn spawn_within(
    program: &OsStr,
    arguments: &[&str],
    timeout: Duration,
) -> Result<i32, ControlError> {
    let mut attempts = 1;
    loop {
        match spawn_once(program, arguments, Deadline::after(Some(timeout)))? {
            Some(pid) => return Ok(pid),
            None if attempts < ATTEMPTS_MAX => attempts += 1,
            None => {
                let why = format!("SIGUSR1 ended it {ATTEMPTS_MAX} times");
                return Err(failed(program, Errno::EINTR as i32, &why));
            }
        }
    }
}

/// `None` when SIGUSR1 ended it.
fn spawn_once(
    program: &OsStr,
    arguments: &[&str],
    deadline: Deadline,
) -> Result<Option<i32>, ControlError> {
    let (mut child, mut pipe) = start(program, arguments)
        .map_err(|error| failed(program, error.raw_os_error().unwrap_or(Errno::EIO as i32), ""))?;
    let output = read_socket_name(&mut pipe, deadline);
    // One that goes on talking is told by this; a full pipe would hold it, and us, for ever.
    drop(pipe);
    let ended = output.and_then(|output| Ok((output, wait(&mut child, deadline)?)));
    let (output, status) = match ended {
        Ok(ended) => ended,
        Err(errno) => {
            // It is still there: nobody else will end or reap it. It may have ended just now.
            drop(child.kill());
            drop(child.wait());
            return Err(failed(program, errno as i32, "it named no control socket"));
        }
    };
    if let Some(signal) = status.signal() {
        if signal == Signal::SIGUSR1 as i32 {
            return Ok(None);
        }
        return Err(failed(program, Errno::EINTR as i32, &format!("signal {signal} ended it")));
    }
    let words = match last_line(&output) {
        words if words.is_empty() => String::new(),
        words => format!(", it said {words:?}"),
    };
    match (status.code(), pid_in(&output)) {
        (Some(0) | None, Some(pid)) => Ok(Some(pid)),
        (Some(0) | None, None) => {
            let why = format!("it named no control socket{words}");
            Err(failed(program, Errno::EPROTO as i32, &why))
        }
        (Some(code), _) => {
            Err(failed(program, code, &format!("it ended with status {code}{words}")))
        }
    }
}

fn start(program: &OsStr, arguments: &[&str]) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let child = Command::new(program)
        .arg0(DAEMON_NAME)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()?;
    // The command and with it our copies of the writing end are gone here: the end of file is the
    // daemon's.
    Ok((child, reader))
}

/// Reads up to and including the line that names a socket, or the end, or as much as is allowed.
fn read_socket_name(pipe: &mut PipeReader, deadline: Deadline) -> Result<Vec<u8>, Errno> {
    let mut output = Vec::new();
    let mut piece = [0; 1024];
    while output.len() < OUTPUT_SIZE_MAX && pid_in(complete_lines(&output)).is_none() {
        deadline.wait(pipe, PollFlags::POLLIN, || Ok(()))?;
        match pipe.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => output.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
    Ok(output)
}

/// Waits for the daemon's parent, which ended before the daemon spoke unless it does not go to the
/// background at all.
fn wait(child: &mut Child, deadline: Deadline) -> Result<ExitStatus, Errno> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
        deadline.check()?;
        match poll(&mut [], PollTimeout::from(WAIT_STEP_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn complete_lines(output: &[u8]) -> &[u8] {
    let end = output.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    output.get(..end).unwrap_or_default()
}

/// The pid in the first line that is the path of a control socket.
fn pid_in(output: &[u8]) -> Option<i32> {
    output.split(|byte| *byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (_, name) = line.trim_end().rsplit_once('/')?;
        pid_of_control_socket(name).filter(|pid| *pid > 0)
    })
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.trim_end().rsplit('\n').next().unwrap_or_default().chars().take(200).collect()
}

fn failed(program: &OsStr, status: i32, why: &str) -> ControlError {
    let mut attempt = format!("Starting {}", Path::new(program).display());
    if !why.is_empty() {
        attempt = format!("{attempt}: {why}");
    }
    ControlError::with_status(ErrorKind::Spawn, status, attempt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    /// Runs a shell script as if it were the daemon.
    fn run(script: &str) -> Result<i32, ControlError> {
        spawn_within(OsStr::new("/bin/sh"), &["-c", script], Duration::from_secs(20))
    }

    #[test]
    fn the_pid_is_that_of_the_socket_which_a_child_in_the_background_names() {
        let pid = run("(echo noise; echo /run/blktap-control/ctl4711) &");
        assert_eq!(pid, Ok(4711));
    }

    #[test]
    fn a_daemon_that_keeps_its_outputs_open_does_not_hold_us_up() {
        assert_eq!(run("(echo /x/ctl12; exec sleep 5) &"), Ok(12));
    }

    #[test]
    fn the_daemon_is_called_tapdisk_whatever_its_file_is_called() {
        assert_eq!(run("test \"$0\" = tapdisk && echo /x/ctl5"), Ok(5));
    }

    #[test]
    fn the_exit_status_is_the_errno() {
        let error = run("echo no memory to lock >&2; exit 12").unwrap_err();
        assert_eq!(error.errno(), 12);
        assert!(error.attempt().contains("no memory to lock"), "{error}");
        assert_eq!(run("echo /x/ctl12; exit 1").unwrap_err().errno(), 1);
    }

    #[test]
    fn a_start_that_sigusr1_ends_is_repeated() {
        let dir = TestDir::new("spawn-usr1");
        let mark = dir.path().join("second").display().to_string();
        let script = format!("test -e {mark} && echo /x/ctl5 && exit; : > {mark}; kill -USR1 $$");
        assert_eq!(run(&script), Ok(5));
    }

    #[test]
    fn a_start_that_sigusr1_always_ends_is_given_up() {
        let error = run("kill -USR1 $$").unwrap_err();
        assert_eq!(error.errno(), Errno::EINTR as i32);
    }

    #[test]
    fn another_signal_is_an_interruption() {
        let error = run("kill -TERM $$").unwrap_err();
        assert_eq!(error.errno(), Errno::EINTR as i32);
        assert!(error.attempt().contains("signal 15"), "{error}");
    }

    #[test]
    fn a_daemon_that_names_no_socket_breaks_the_protocol() {
        assert_eq!(run("echo hello").unwrap_err().errno(), Errno::EPROTO as i32);
        let endless = run("yes | head -c 200000; exit 0").unwrap_err();
        assert_eq!(endless.errno(), Errno::EPROTO as i32);
    }

    #[test]
    fn a_daemon_that_hangs_is_ended() {
        let error = spawn_within(OsStr::new("/bin/sleep"), &["600"], Duration::from_millis(50))
            .unwrap_err();
        assert_eq!(error.errno(), Errno::ETIMEDOUT as i32);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = spawn(OsStr::new("/nonexistent/tapdisk")).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT as i32);
        assert!(error.attempt().contains("/nonexistent/tapdisk"));
    }

    #[test]
    fn the_program_is_that_of_the_variable_then_a_neighbour_then_the_installed_one() {
        let beside = || Some(PathBuf::from("/b/tapdisk"));
        assert_eq!(choose_program(Some("x".into()), beside(), |_| true), "x");
        assert_eq!(choose_program(Some("".into()), beside(), |_| true), "/b/tapdisk");
        let installed = |path: &Path| path.starts_with("/usr/libexec");
        assert_eq!(choose_program(None, beside(), installed), "/usr/libexec/tapdisk");
        assert_eq!(choose_program(None, None, |_| false), "tapdisk");
    }
}
