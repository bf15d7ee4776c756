//! A machine that runs: its files, its process, its agent.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tapdisk_tests::Ran;

use crate::files::Files;
use crate::kernel::Kernel;
use crate::modules::Modules;
use crate::packages::Packages;
use crate::plan::{Kind, Plan, SHARE_MODULES};
use crate::qemu::{self, Accelerator, Qemu};
use crate::remote::{BOUND, Remote};
use crate::{Result, VmError, host, xen};

/// Where every machine finds programs.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs of this machine that every machine has: Debian has them everywhere.
const PROGRAMS: [&str; 7] = ["bash", "stat", "flock", "mke2fs", "e2fsck", "debugfs", "resize2fs"];

/// Words that spare a kernel what shows nothing here: emulated, its tests of ciphers take half a
/// second of a start, and with Xen a second and a half of its own clock.
pub(crate) const BRIEF: &str = "mitigations=off cryptomgr.notests";

/// How long a person may take.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What QEMU ends with when the machine ended itself.
const ORDERLY: i32 = 33;

/// How many lines of the console an error tells.
const LAST_LINES: usize = 30;

/// The files of a machine, before it starts.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) folder: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) disks: Vec<(String, u64)>,
    /// Which kernel, for QEMU.
    pub(crate) kernel_words: Vec<String>,
    plan: Plan,
    /// Nobody else uses the folder.
    lock: File,
}

impl Prepared {
    /// Puts them together.
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let kernel = Kernel::fetch()?;
        let mut names = vec!["busybox-static"];
        names.extend(plan.packages.iter().map(String::as_str));
        let mut packages = Packages::fetch(&names)?;
        if plan.kind == Kind::Xen {
            packages = packages.and(xen::fetch()?);
        }
        let (folder, lock) = own_folder(&plan.label)?;
        let mut disks = plan.disks.clone();
        disks.extend(plan.storage_bytes.map(|bytes| ("sr".to_owned(), bytes)));
        for (name, bytes) in &disks {
            make_disk(&folder.join(format!("{name}.img")), *bytes)?;
        }
        host::make_folder(&folder.join("share"))?;
        let mut modules = plan.modules.clone();
        if plan.has_share {
            modules.extend(SHARE_MODULES.map(str::to_owned));
        }
        if plan.kind == Kind::Xen {
            modules.extend(xen::MODULES.map(str::to_owned));
        }
        let mut files = base(&packages, &kernel, &modules)?;
        files.text("/etc/vm/start", &start_script(plan), 0o755);
        let initial = folder.join("initial.cpio");
        let kernel_words = match plan.kind {
            Kind::Plain => plain_words(plan, &kernel, &initial),
            Kind::Xen => {
                xen::add(&mut files, &packages, &kernel, &folder)?;
                xen::words(plan, &packages, &kernel, &folder, &initial)?
            }
        };
        // Last: what a test wants goes before what a package has.
        add_wishes(&mut files, &packages, plan)?;
        files.write(&initial)?;
        let socket = socket_path();
        Ok(Self { folder, socket, disks, kernel_words, plan: plan.clone(), lock })
    }

    /// The log of the machine's console.
    pub(crate) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }
}

/// A socket's address holds 107 bytes: it lies where paths are short.
fn socket_path() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tapdisk-vm-{}-{count}", std::process::id()))
}

/// `target/vm/LABEL`, empty, or the same with a number when somebody uses it.
fn own_folder(label: &str) -> Result<(PathBuf, File)> {
    for count in 1..100 {
        let name = if count == 1 { label.to_owned() } else { format!("{label}-{count}") };
        let folder = host::work_folder().join(&name);
        host::make_folder(&folder)?;
        let path = folder.with_added_extension("lock");
        let file =
            File::create(&path).map_err(|error| host::failed("Cannot make", &path, &error))?;
        if file.try_lock().is_ok() {
            fs::remove_dir_all(&folder)
                .map_err(|error| host::failed("Cannot remove", &folder, &error))?;
            host::make_folder(&folder)?;
            return Ok((folder, file));
        }
    }
    Err(VmError::Failed(format!("A hundred machines {label:?} run")))
}

fn make_disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).and_then(|file| file.set_len(bytes));
    file.map_err(|error| host::failed("Cannot make", path, &error))
}

/// What each machine has, and each guest.
pub(crate) fn base(packages: &Packages, kernel: &Kernel, modules: &[String]) -> Result<Files> {
    let mut files = Files::new(packages.library_folders());
    let busybox = packages.program("busybox");
    let busybox = busybox.ok_or_else(|| VmError::Failed("busybox-static has no busybox".into()))?;
    files.program(&busybox, "/bin/busybox")?;
    // Not busybox's: that one takes its own programs before those in PATH.
    files.link("/bin/sh", "/usr/bin/bash");
    files.program(&host::ours("vm-agent"), "/usr/sbin/vm-agent")?;
    files.link("/init", "/usr/sbin/vm-agent");
    for name in PROGRAMS {
        add_program(&mut files, None, name)?;
    }
    files.link("/bin/bash", "/usr/bin/bash");
    for kind in ["ext2", "ext3", "ext4"] {
        files.link(&format!("/usr/bin/mkfs.{kind}"), "mke2fs");
    }
    files.text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n", 0o644);
    files.text("/etc/group", "root:x:0:\n", 0o644);
    files.link("/etc/mtab", "/proc/mounts");
    for folder in ["/mnt", "/sr", "/share", "/var/log", "/var/lib"] {
        files.folder(folder);
    }
    files.link("/var/run", "/run");
    files.link("/var/lock", "/run");
    let found = Modules::find(&kernel.modules)?.with_needed(modules)?;
    let path = |name: &str| format!("/lib/modules/{}/{name}.ko\n", kernel.version);
    let list: String = found.iter().map(|module| path(&module.name)).collect();
    // The agent loads them before anything else.
    files.text("/etc/vm/modules", &list, 0o644);
    files.modules(&kernel.version, found);
    Ok(files)
}

fn add_program(files: &mut Files, packages: Option<&Packages>, name: &str) -> Result<()> {
    let path = host::find(name).or_else(|| packages?.program(name));
    let path = path.ok_or_else(|| VmError::Unavailable(format!("{name} is not installed")))?;
    files.program(&path, &format!("/usr/bin/{name}"))
}

fn add_wishes(files: &mut Files, packages: &Packages, plan: &Plan) -> Result<()> {
    for path in host::our_programs() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        files.program(&path, &format!("/usr/sbin/{}", name.unwrap_or_default()))?;
    }
    for name in &plan.programs {
        add_program(files, Some(packages), name)?;
    }
    for (from, path) in &plan.files {
        files.program(from, path)?;
    }
    for from in &plan.foreign_modules {
        let name = from.file_name().map(|name| name.to_string_lossy().into_owned());
        files.copy(from, &format!("/lib/modules/{}", name.unwrap_or_default()), 0o644);
    }
    Ok(())
}

/// What a machine does before it takes commands.
fn start_script(plan: &Plan) -> String {
    let mut script = String::from(
        "set -e\n\
         mkdir -p /dev/disk\n\
         for disk in /sys/block/vd*; do\n\
         \t[ -e \"$disk\" ] || continue\n\
         \tln -sf \"/dev/${disk##*/}\" \"/dev/disk/$(cat \"$disk/serial\")\"\n\
         done\n\
         hostname tapdisk\n\
         ip link set lo up\n",
    );
    if plan.has_share {
        script.push_str("mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share\n");
    }
    if plan.storage_bytes.is_some() {
        script.push_str("mke2fs -q -t ext4 -E lazy_itable_init=1 /dev/disk/sr\n");
        script.push_str("mount -t ext4 /dev/disk/sr /sr\n");
    }
    if plan.kind == Kind::Xen {
        script.push_str(xen::START);
    }
    script
}

/// The kernel's words that do not depend on the kind of machine.
pub(crate) fn common_words(plan: &Plan) -> String {
    // What the kernel does not know becomes the environment of its first process.
    let fixed = format!("{BRIEF} panic=-1 rdinit=/init PATH={PATH} VM_EXIT_PORT=1");
    let words = [fixed.as_str(), "VM_CHANNEL=/dev/vport0p1"];
    let more = plan.kernel_words.iter().map(String::as_str);
    words.into_iter().chain(more).collect::<Vec<_>>().join(" ")
}

fn plain_words(plan: &Plan, kernel: &Kernel, initial: &Path) -> Vec<String> {
    let line = format!("console=ttyS0 {}", common_words(plan));
    let words = [
        "-kernel",
        &kernel.image.to_string_lossy(),
        "-append",
        &line,
        "-initrd",
        &initial.to_string_lossy(),
    ];
    words.map(str::to_owned).to_vec()
}

/// A machine that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    remote: Remote,
    qemu: Qemu,
    prepared: Prepared,
    accelerator: Accelerator,
}

impl Deref for Machine {
    type Target = Remote;

    fn deref(&self) -> &Remote {
        &self.remote
    }
}

impl Machine {
    /// A plan for a Linux with nothing below it but QEMU.
    #[must_use]
    pub fn plain() -> Plan {
        Plan::new(Kind::Plain)
    }

    /// A plan for Xen with Linux as its dom0: commands run in dom0.
    #[must_use]
    pub fn xen() -> Plan {
        Plan::new(Kind::Xen)
    }

    pub(crate) fn start(
        prepared: &Prepared,
        accelerator: Accelerator,
        limit: Duration,
    ) -> Result<Self> {
        let prepared = Prepared {
            folder: prepared.folder.clone(),
            socket: prepared.socket.clone(),
            disks: prepared.disks.clone(),
            kernel_words: prepared.kernel_words.clone(),
            plan: prepared.plan.clone(),
            lock: prepared.lock.try_clone().map_err(|error| VmError::Failed(error.to_string()))?,
        };
        let words = qemu::words(&prepared.plan, &prepared, accelerator);
        let log = prepared.folder.join("qemu.log");
        let _ = fs::write(prepared.folder.join("qemu.words"), words.join("\n"));
        let qemu = Qemu::start(words, &log, prepared.plan.has_terminal)?;
        let connected = connect(&prepared, &qemu, limit);
        let _ = fs::remove_file(&prepared.socket);
        match connected {
            Ok(remote) => Ok(Self { remote, qemu, prepared, accelerator }),
            Err(error) => {
                qemu.kill();
                Err(told(&prepared, &error.to_string()))
            }
        }
    }

    /// The folder that the machine has as `/share`, if its plan says so.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.prepared.folder.join("share")
    }

    /// The file behind a disk of the machine.
    #[must_use]
    pub fn disk_file(&self, name: &str) -> PathBuf {
        self.prepared.folder.join(format!("{name}.img"))
    }

    /// What its console said.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(self.prepared.console()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the processor itself executes it: else it is emulated, and slow.
    #[must_use]
    pub fn is_accelerated(&self) -> bool {
        self.accelerator == Accelerator::Kvm
    }

    /// Whether it ended.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.remote.is_gone() || self.qemu.status().is_some()
    }

    /// Runs a command to its end, within three minutes. A machine in which it does not end is asked
    /// who waits for what - the answer is in its console's log - and killed.
    ///
    /// # Errors
    /// When the machine is gone or the command does not end.
    pub fn run<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.run_within(BOUND, words)
    }

    /// A line of shell, as [`Machine::run`].
    ///
    /// # Errors
    /// When the machine is gone or the command does not end.
    pub fn sh(&self, line: &str) -> Result<Ran> {
        self.run(["sh", "-c", line])
    }

    /// As [`Machine::run`], with another limit.
    ///
    /// # Errors
    /// When the machine is gone or the command does not end.
    pub fn run_within<S: AsRef<str>>(
        &self,
        limit: Duration,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Ran> {
        let ran = self.remote.start(words).and_then(|running| running.wait(limit));
        ran.map_err(|error| {
            self.ask_who_waits();
            self.qemu.kill();
            told(&self.prepared, &error.to_string())
        })
    }

    /// Lets the kernel write the blocked tasks, and then all of them, to the console.
    fn ask_who_waits(&self) {
        let line = "dmesg -n 8; echo w >/proc/sysrq-trigger; echo t >/proc/sysrq-trigger; sync";
        let asked = self.remote.start(["sh", "-c", line]);
        let _ = asked.and_then(|running| running.wait(Duration::from_secs(20)));
    }

    /// A shell on this process's terminal, until its end; its status.
    ///
    /// # Errors
    /// When the machine has no terminal, or is gone.
    pub fn terminal(&self) -> Result<i32> {
        if !self.prepared.plan.has_terminal {
            return Err(VmError::Failed("The machine has no terminal".into()));
        }
        // Under Xen the first one is Xen's.
        let device = match self.prepared.plan.kind {
            Kind::Plain => "/dev/hvc0",
            Kind::Xen => "/dev/hvc1",
        };
        // Not with `exec`: of the leader of a group, which a command is, setsid makes a child and
        // ends at once, and the machine with it.
        let size = terminal_size().map_or_else(String::new, |[rows, columns]| {
            format!("stty rows {rows} cols {columns}; ")
        });
        // What it knows of the size it forgets when nobody has it open.
        let line = format!(
            "cd /; export HOME=/ TERM=${{TERM:-linux}} PS1='tapdisk-vm:\\w# '; \
             {{ {size}setsid -c bash --norc -i; }} <{device} >{device} 2>&1; exit $?"
        );
        self.remote.start(["sh", "-c", &line])?.wait(DAY).map(|ran| ran.status)
    }

    /// Runs lines of shell as a person would type them, within a day; prints what they print when
    /// they have ended. Returns the status of the last one.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn script(&self, lines: &[u8]) -> Result<i32> {
        let running = self.remote.start(["bash"])?;
        running.write_input(lines)?;
        running.close_input()?;
        let ran = running.wait(DAY)?;
        print!("{}", ran.stdout);
        eprint!("{}", ran.stderr);
        Ok(ran.status)
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not end, or not as it should.
    pub fn power_off(self) -> Result<()> {
        self.remote.say_bye()?;
        match self.qemu.wait(BOUND) {
            Some(status) if status.code() == Some(ORDERLY) => Ok(()),
            Some(status) => Err(told(&self.prepared, &format!("QEMU ended with {status}"))),
            None => Err(told(&self.prepared, "The machine does not end")),
        }
    }

    pub(crate) fn transcript(&self, name: &str) -> Result<File> {
        transcript(&self.prepared.folder, name)
    }

    pub(crate) fn kind(&self) -> Kind {
        self.prepared.plan.kind
    }
}

/// Rows and columns of this process's terminal: the machine's own does not know them.
fn terminal_size() -> Option<[u16; 2]> {
    let size = Command::new("stty").arg("size").stdin(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8(size.stdout).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    Some([rows.parse().ok()?, columns.parse().ok()?])
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.qemu.status().is_none() {
            self.qemu.kill();
        }
    }
}

fn transcript(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(format!("{name}.transcript"));
    let file = File::options().create(true).append(true).open(&path);
    file.map_err(|error| host::failed("Cannot make", &path, &error))
}

/// Connects with the agent: QEMU waits for it before it starts the machine.
fn connect(prepared: &Prepared, qemu: &Qemu, limit: Duration) -> Result<Remote> {
    let end = Instant::now() + limit;
    let stream = loop {
        match UnixStream::connect(&prepared.socket) {
            Ok(stream) => break stream,
            Err(error) if qemu.status().is_some() || Instant::now() > end => {
                let log = fs::read_to_string(prepared.folder.join("qemu.log"));
                let said = log.unwrap_or_default();
                return Err(VmError::Failed(format!("QEMU did not start: {error}: {said}")));
            }
            Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
        }
    };
    let from = stream.try_clone().map_err(|error| VmError::Failed(error.to_string()))?;
    let name = &prepared.plan.label;
    Remote::connect(name, from, stream, transcript(&prepared.folder, name)?, limit)
}

/// An error, with what the console said last and where the rest is.
fn told(prepared: &Prepared, error: &str) -> VmError {
    let path = prepared.console();
    let bytes = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let place = path.display();
    VmError::Failed(format!("{error}\nthe console said last ({place}):\n{}", last.join("\n")))
}
