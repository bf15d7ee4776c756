//! A host of a test's own: directories, programs, daemons.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapdisk_control::message::Params;
use tapdisk_control::{Client, Paths};

/// The directory of the programs, built for the profile that the tests were built for.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| build_programs(&["tapdisk", "tap-tools"]));

/// Builds the programs of these packages for the profile that the tests were built for; returns
/// their directory.
///
/// # Panics
/// When cargo fails.
#[must_use]
pub fn build_programs(packages: &[&str]) -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own path");
    let directory = executable
        .ancestors()
        .find(|directory| directory.join("deps").is_dir())
        .expect("a test lies in target/PROFILE/deps");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    build.arg("--target-dir").arg(directory.parent().expect("target/PROFILE has a parent"));
    match directory.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => {}
        Some(profile) => {
            build.args(["--profile", profile]);
        }
    }
    let status = build.status().expect("cargo runs, it built this");
    assert!(status.success(), "cargo builds the programs");
    directory.to_owned()
}

/// What a program came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status; 128 and the number of the signal that ended it.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Self {
            status: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// Its standard output, when it succeeded.
    ///
    /// # Panics
    /// When it did not: with all that it said.
    #[allow(clippy::must_use_candidate, reason = "often only the success matters")]
    pub fn expect_success(self) -> String {
        assert_eq!(self.status, 0, "{self:#?}");
        self.stdout
    }
}

/// The directories of one test.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    paths: OnceLock<Paths>,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// An empty host.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a socket has 107 bytes.
        let name = format!("td{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&directory);
        let mut private = std::fs::DirBuilder::new();
        // As the daemon wants its run directory, whatever the umask is.
        private.recursive(true).mode(0o700);
        for part in ["run", "dev", "shm"] {
            private.create(directory.join(part)).expect("room for a few directories");
        }
        Self { directory, paths: OnceLock::new() }
    }

    /// Where a file of this test lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the daemons have their sockets and markers.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        self.paths.get_or_init(|| Paths::new(self.path("run"), self.path("dev"), self.path("shm")))
    }

    /// Makes an image: `bytes` bytes, sparse.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).expect("an image can be made");
        file.set_len(bytes).expect("a sparse file takes no room");
        path
    }

    /// Reads from a file.
    ///
    /// # Panics
    /// When it is not that long.
    #[must_use]
    pub fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = File::open(path).expect("the file is there");
        file.read_exact_at(&mut bytes, offset).expect("the file is that long");
        bytes
    }

    /// A command with this host's environment; one of our programs by its bare name.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let ours = PROGRAMS.join(program);
        let mut command = if ours.is_file() { Command::new(ours) } else { Command::new(program) };
        command
            .env("TAPDISK_RUN_DIR", self.path("run"))
            .env("TAPDISK_DEV_DIR", self.path("dev"))
            .env("TAPDISK_SHM_DIR", self.path("shm"))
            .env("TAPDISK", PROGRAMS.join("tapdisk"))
            .env("LC_ALL", "C")
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Ran {
        let output = self.command(program).args(arguments).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}")).into()
    }

    /// Starts a daemon in the background, as `tap-ctl spawn` does; returns its pid.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn spawn(&self) -> i32 {
        let line = self.tap_ctl(&["spawn"]).expect_success();
        line.trim().parse().unwrap_or_else(|_| panic!("found {line:?} for a pid"))
    }

    /// The names in the run directory, those of sockets; the directory of the markers is not one.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn sockets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("run")).expect("made with the host");
        let names = entries.map(|entry| entry.expect("it can be read").file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| name != "tapdisk").collect();
        names.sort();
        names
    }

    /// Makes an image with these bytes.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn image_of(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("an image can be made");
        path
    }

    /// Runs `tap-ctl`.
    pub fn tap_ctl(&self, arguments: &[&str]) -> Ran {
        self.run("tap-ctl", arguments)
    }

    /// Starts a daemon in the foreground, and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn daemon(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.command("tapdisk");
        command.args(["-D", "--log", "stderr"]).args(arguments);
        self.daemon_by(command)
    }

    /// The same, by a command of the test's own, which ends in the daemon without another process.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn daemon_by(&self, mut command: Command) -> Daemon {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(self.path("tapdisk.log")).expect("a log can be made"))
            .spawn()
            .expect("tapdisk starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped above");
        BufReader::new(stdout).read_line(&mut line).expect("tapdisk prints its control path");
        let log = std::fs::read_to_string(self.path("tapdisk.log")).unwrap_or_default();
        assert!(line.contains("/ctl"), "found {line:?} for a control path; log: {log}");
        // Not the child's where a tracer is in between.
        let name = line.trim_end().rsplit('/').next().unwrap_or_default();
        let pid = tapdisk_control::paths::pid_of_control_socket(name).expect("checked above");
        Daemon { child, pid, client: Client::new(self.paths(), pid) }
    }

    /// Allocates a minor and attaches it to a daemon.
    ///
    /// # Panics
    /// When either fails.
    #[must_use]
    pub fn attach(&self, daemon: &Daemon) -> u16 {
        let path = self.tap_ctl(&["allocate"]).expect_success();
        let number = path.trim().rsplit('-').next().expect("rsplit gives one at least");
        let minor = number.parse().unwrap_or_else(|_| panic!("found {path:?} for a marker"));
        daemon.client.attach(minor).expect("a fresh minor attaches");
        minor
    }

    /// Attaches a disk and opens an image, `type:path`; returns its minor and its NBD socket.
    ///
    /// # Panics
    /// When either fails.
    #[must_use]
    pub fn serve(&self, daemon: &Daemon, image: &str) -> (u16, PathBuf) {
        let minor = self.attach(daemon);
        let params = Params { path: image.into(), ..Params::default() };
        daemon.client.open(minor, params).unwrap_or_else(|error| panic!("{image}: {error}"));
        (minor, self.nbd_socket(daemon.pid, minor))
    }

    /// Where the NBD socket of a disk is.
    #[must_use]
    pub fn nbd_socket(&self, pid: i32, minor: u16) -> PathBuf {
        self.paths().nbd_socket(pid, minor)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Daemons that tap-ctl spawned: each has its pid in the name of its socket.
        for entry in std::fs::read_dir(self.path("run")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(tapdisk_control::paths::pid_of_control_socket);
            // A socket that was left behind says nothing about who has its number now.
            let is_ours = |pid: &i32| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                name.is_ok_and(|name| name.trim_end() == "tapdisk")
            };
            if let Some(pid) = pid.filter(is_ours) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A daemon in the foreground.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Its process.
    pub pid: i32,
    /// Asks it.
    pub client: Client,
}

impl Daemon {
    /// Waits for its end.
    ///
    /// # Panics
    /// When waiting fails.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("it is our child")
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("it runs");
    }

    /// What it has logged so far.
    ///
    /// # Panics
    /// When there is no log.
    #[must_use]
    pub fn log(host: &Host) -> String {
        let bytes = std::fs::read(host.path("tapdisk.log")).expect("made at the start");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let list = std::fs::read_dir(format!("/proc/{}/fd", self.pid));
        list.expect("it runs").count()
    }

    /// Its resident memory, in KiB: counted page by page, because the numbers that the kernel keeps
    /// along the way are up to some hundred pages behind.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let sums = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid));
        let sums = sums.expect("it runs");
        let line = sums.lines().find_map(|line| line.strip_prefix("Rss:"));
        let number = line.and_then(|line| line.trim().split(' ').next());
        number.and_then(|number| number.parse().ok()).expect("every process has an Rss")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
