//! The servers that are measured: started on a socket, kept on a processor, ended.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Ground;
use super::client::Pattern;
use crate::Result;
use crate::{command, wait};

const PROCESSOR: u32 = 0;

/// Starting and ending under valgrind takes seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Clock ticks of `/proc/PID/stat` in a second: 100 on every platform that Linux has.
const TICKS_PER_SECOND: f64 = 100.0;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    /// The same once more: the difference to [`Kind::Ours`] is the noise of the machine.
    OursAgain,
    QemuIoUring,
    QemuNative,
    /// As it comes: through the page cache.
    Nbdkit,
    /// Asks the kernel, after each request, to drop what it cached.
    NbdkitUncached,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Ours,
        Self::OursAgain,
        Self::QemuIoUring,
        Self::QemuNative,
        Self::Nbdkit,
        Self::NbdkitUncached,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "tapdisk",
            Self::OursAgain => "tapdisk, again",
            Self::QemuIoUring => "qemu-nbd, io_uring",
            Self::QemuNative => "qemu-nbd, native",
            Self::Nbdkit => "nbdkit file",
            Self::NbdkitUncached => "nbdkit, cache=none",
        }
    }

    /// Whether it goes to the disk for each request, as the others do.
    pub(super) fn is_peer_in(self, pattern: &Pattern) -> bool {
        match self {
            Self::Nbdkit => pattern.reads_once(),
            Self::NbdkitUncached => pattern.is_read,
            _ => true,
        }
    }

    /// Whether instructions and system calls are counted: each program once.
    pub(super) fn is_counted(self) -> bool {
        !matches!(self, Self::OursAgain | Self::NbdkitUncached)
    }

    /// The servers that are wanted and whose programs are there.
    pub(super) fn present(ground: &Ground) -> Vec<Self> {
        let is_there = |kind: &Self| match kind {
            Self::Ours | Self::OursAgain => ours("tapdisk").is_file() && ours("tap-ctl").is_file(),
            Self::QemuIoUring | Self::QemuNative => command::find("qemu-nbd").is_some(),
            Self::Nbdkit | Self::NbdkitUncached => command::find("nbdkit").is_some(),
        };
        let is_wanted = |kind: &Self| kind.name().starts_with(&ground.only);
        Self::ALL.into_iter().filter(is_wanted).filter(is_there).collect()
    }
}

fn ours(program: &str) -> PathBuf {
    command::target("release").join(program)
}

/// One that runs.
pub(super) struct Server {
    pub(super) pid: u32,
    pub(super) socket: PathBuf,
    /// Ours: its run directory and its minor; it is ended through tap-ctl.
    tap: Option<(PathBuf, u32)>,
    /// `None` when it went into the background; then the janitor knows it by its control socket.
    child: Option<Child>,
}

impl Server {
    /// Starts it; `wrapper` is a program with its arguments that runs it, or empty.
    pub(super) fn start(ground: &mut Ground, kind: Kind, wrapper: &[String]) -> Result<Self> {
        match kind {
            Kind::Ours | Kind::OursAgain if wrapper.is_empty() => Self::create(ground),
            Kind::Ours | Kind::OursAgain => Self::attach(ground, wrapper),
            Kind::QemuIoUring | Kind::QemuNative => {
                let engine = if kind == Kind::QemuIoUring { "io_uring" } else { "native" };
                let socket = ground.fresh("qemu");
                let mut command = wrapped(ground, wrapper, &program("qemu-nbd")?);
                command.arg(format!("--socket={}", socket.display())).arg(&ground.image.path);
                command.args(["--cache=none", "--persistent", "--shared=8"]);
                command
                    .arg(format!("--format={}", if ground.image.is_vhd { "vpc" } else { "raw" }));
                command.arg(format!("--aio={engine}"));
                Self::child(ground, command, socket)
            }
            Kind::Nbdkit | Kind::NbdkitUncached => {
                let socket = ground.fresh("nbdkit");
                let mut command = wrapped(ground, wrapper, &program("nbdkit")?);
                command.args(["--foreground", "--unix"]).arg(&socket);
                command.arg("file").arg(&ground.image.path);
                if kind == Kind::NbdkitUncached {
                    command.arg("cache=none");
                }
                Self::child(ground, command, socket)
            }
        }
    }

    fn child(ground: &mut Ground, mut command: Command, socket: PathBuf) -> Result<Self> {
        let child = spawn(ground, &mut command)?;
        let server = Self { pid: child.id(), socket, tap: None, child: Some(child) };
        server.ready()
    }

    /// As a person does it.
    fn create(ground: &mut Ground) -> Result<Self> {
        let run = ground.janitor.run().to_path_buf();
        let mut create = ground.on_processor(PROCESSOR, &ours("tap-ctl"));
        create.args(["create", "-a", &image_argument(ground)]).env("TAPDISK_RUN_DIR", &run);
        command::capture(&mut create)?;
        let list = command::capture(tap_ctl(&run).arg("list"))?;
        let (pid, minor) = parse_list(&list)
            .ok_or_else(|| format!("tap-ctl list shows no disk after create: {list:?}"))?;
        let socket = run.join(format!("nbd{pid}.{minor}"));
        Self { pid, socket, tap: Some((run, minor)), child: None }.ready()
    }

    /// In the foreground, so that a wrapper can watch it.
    fn attach(ground: &mut Ground, wrapper: &[String]) -> Result<Self> {
        let run = ground.janitor.run().to_path_buf();
        let minor = allocate(&run)?;
        let mut command = wrapped(ground, wrapper, &ours("tapdisk"));
        command.arg("-D").env("TAPDISK_RUN_DIR", &run);
        let child = spawn(ground, &mut command)?;
        let pid = child.id();
        let socket = run.join(format!("nbd{pid}.{minor}"));
        let control = run.join(format!("ctl{pid}"));
        let server = Self { pid, socket, tap: Some((run.clone(), minor)), child: Some(child) };
        // It is there before anybody listens.
        wait::until(LIMIT, "the control socket", || UnixStream::connect(&control).ok())?;
        open(&run, pid, minor, &image_argument(ground))?;
        server.ready()
    }

    /// Ours: one more disk of its process, of the present image. It goes with [`Server::remove`].
    pub(super) fn beside(&self, ground: &Ground) -> Result<Self> {
        let (run, _) = self.tap.as_ref().ok_or("only tapdisk has several disks")?;
        let minor = allocate(run)?;
        open(run, self.pid, minor, &image_argument(ground))?;
        let socket = run.join(format!("nbd{}.{minor}", self.pid));
        Self { pid: self.pid, socket, tap: Some((run.clone(), minor)), child: None }.ready()
    }

    /// Ends the disk, not the process.
    pub(super) fn remove(mut self) -> Result<()> {
        let (run, minor) = self.tap.take().ok_or("only disks of tapdisk can be removed")?;
        destroy(&run, self.pid, minor)
    }

    fn ready(self) -> Result<Self> {
        let what = format!("a server on {}", self.socket.display());
        wait::until(LIMIT, &what, || UnixStream::connect(&self.socket).ok())?;
        Ok(self)
    }

    /// Ours: its disk goes on in a new image, `tap-ctl snapshot`.
    pub(super) fn snapshot(&self, new: &Path) -> Result<()> {
        let (run, minor) = self.tap.as_ref().ok_or("only a disk of tapdisk has snapshots")?;
        let mut snapshot = tap_ctl(run);
        snapshot.args(["snapshot", "-p", &self.pid.to_string(), "-m", &minor.to_string(), "-n"]);
        command::capture(snapshot.arg(new)).map(drop)
    }

    /// What it has in memory, in KiB.
    pub(super) fn resident_kib(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.pid);
        let text =
            fs::read_to_string(&file).map_err(|error| format!("Cannot read {file}: {error}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| format!("{file} says nothing of memory"))
    }

    /// Ends it in the way that it writes down what it counted, and waits until it is gone.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let pid = self.pid.to_string();
        if let Some((run, minor)) = self.tap.take() {
            destroy(&run, self.pid, minor)?;
        } else if self.child.is_some() {
            command::run(command::tool("kill").args(["-s", "TERM", &pid]))?;
        }
        let process = Path::new("/proc").join(&pid);
        match self.child.take() {
            Some(mut child) => wait::until(LIMIT, "the end of a server", || {
                child.try_wait().is_ok_and(|end| end.is_some()).then_some(())
            }),
            None => wait::until(LIMIT, "the end of a server", || (!process.exists()).then_some(())),
        }
    }

    /// The processor time that it has used, user and system, in seconds.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let file = format!("/proc/{}/stat", self.pid);
        let text =
            fs::read_to_string(&file).map_err(|error| format!("Cannot read {file}: {error}"))?;
        parse_cpu(&text).ok_or_else(|| format!("{file} holds no times: {text:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only after an error, which is what the caller reports; the janitor ends what this leaves.
        if self.child.is_some() || self.tap.is_some() {
            let _ = self.end();
        }
    }
}

fn program(name: &str) -> Result<PathBuf> {
    command::find(name).ok_or_else(|| format!("{name} is not installed"))
}

fn wrapped(ground: &Ground, wrapper: &[String], program: &Path) -> Command {
    match wrapper.split_first() {
        None => ground.on_processor(PROCESSOR, program),
        Some((first, rest)) => {
            let first = command::find(first).unwrap_or_else(|| first.into());
            let mut command = ground.on_processor(PROCESSOR, &first);
            command.args(rest).arg(program);
            command
        }
    }
}

fn spawn(ground: &mut Ground, command: &mut Command) -> Result<Child> {
    let log = ground.fresh("log");
    let file = fs::File::create(&log).map_err(|error| format!("Cannot make a log: {error}"))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(|error| format!("Cannot run `{}`: {error}", command::shown(command)))?;
    ground.janitor.watch(child.id())?;
    Ok(child)
}

fn tap_ctl(run: &Path) -> Command {
    let mut command = Command::new(ours("tap-ctl"));
    command.env("TAPDISK_RUN_DIR", run);
    command
}

fn allocate(run: &Path) -> Result<u32> {
    let name = command::capture(tap_ctl(run).arg("allocate"))?;
    let digits = name.trim().rsplit(|letter: char| !letter.is_ascii_digit()).next();
    let minor = digits.and_then(|digits| digits.parse().ok());
    minor.ok_or_else(|| format!("tap-ctl allocate printed no minor: {name:?}"))
}

/// Attaches a minor to a process and opens an image.
fn open(run: &Path, pid: u32, minor: u32, image: &str) -> Result<()> {
    let (pid, minor) = (pid.to_string(), minor.to_string());
    let disk = ["-p", pid.as_str(), "-m", minor.as_str()];
    command::capture(tap_ctl(run).arg("attach").args(disk))?;
    command::capture(tap_ctl(run).arg("open").args(disk).args(["-a", image])).map(drop)
}

fn destroy(run: &Path, pid: u32, minor: u32) -> Result<()> {
    let (pid, minor) = (pid.to_string(), minor.to_string());
    command::capture(tap_ctl(run).args(["destroy", "-p", &pid, "-m", &minor])).map(drop)
}

fn image_argument(ground: &Ground) -> String {
    let kind = if ground.image.is_vhd { "vhd" } else { "aio" };
    format!("{kind}:{}", ground.image.path.display())
}

/// The process and minor of the first disk in what `tap-ctl list` prints.
fn parse_list(text: &str) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let value = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key))?;
            word.parse().ok()
        };
        Some((value("pid=")?, value("minor=")?))
    })
}

/// User and system time of `/proc/PID/stat`, in seconds. The name, in parentheses, may hold
/// anything.
fn parse_cpu(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // Fields 14 and 15 of the line; the third is the first here.
    let mut fields = fields.split(' ').skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(f64::from(user.checked_add(system)?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_disk_in_a_list() {
        let text = "pid=7\npid=12 minor=3 state=0 args=aio:/a b=c\n";
        assert_eq!(parse_list(text), Some((12, 3)));
        assert_eq!(parse_list("minor=3\n"), None);
    }

    #[test]
    fn reads_times_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 9 0 0\n";
        assert!((parse_cpu(stat).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(parse_cpu("7 (name) S 1"), None);
    }
}
