//! QEMU: the words of its command line, its process, and whether it can use `/dev/kvm`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::debug_kernel::{SLOWER, is_debug_kernel};
use crate::machine::{Machine, Prepared};
use crate::plan::{Kind, Plan};
use crate::remote::lock;
use crate::{Result, VmError, host, packages};

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";

/// How long a machine may take until it takes commands. Emulated: 5 times what a loaded machine
/// with two processors needed for Xen.
const BOOT_EMULATED: Duration = Duration::from_secs(300);
/// With hardware virtualisation; one that does not work stops at once or never says a word.
const BOOT_VIRTUALISED: Duration = Duration::from_secs(20);

/// How often a process that nothing tells of is looked after.
const TICK: Duration = Duration::from_millis(20);

/// Who executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// Starts a machine.
pub(crate) fn boot(plan: &Plan) -> Result<Machine> {
    if host::find(PROGRAM).is_none() {
        return Err(VmError::Unavailable(format!(
            "{PROGRAM} is not installed (package qemu-system-x86)"
        )));
    }
    match chosen() {
        _ if plan.counts_instructions => start(plan, Accelerator::Tcg),
        Some(accelerator) => start(plan, accelerator),
        // An own look first, with a small machine: Xen needs more of KVM than Linux.
        None if plan.kind == Kind::Xen && !kvm_works() => start(plan, Accelerator::Tcg),
        None => try_kvm(plan),
    }
}

fn start(plan: &Plan, accelerator: Accelerator) -> Result<Machine> {
    let limit = match accelerator {
        Accelerator::Kvm => BOOT_VIRTUALISED,
        Accelerator::Tcg if is_debug_kernel() => BOOT_EMULATED * SLOWER,
        Accelerator::Tcg => BOOT_EMULATED,
    };
    Machine::start(&Prepared::new(plan)?, accelerator, limit)
}

/// With KVM if it works, else without; in both cases the next time it is known.
fn try_kvm(plan: &Plan) -> Result<Machine> {
    let booted = start(plan, Accelerator::Kvm);
    if let Err(VmError::Unavailable(_)) = booted {
        return booted;
    }
    // Of Xen it is not remembered: Linux may work.
    if plan.kind == Kind::Plain {
        remember(booted.is_ok());
    }
    booted.or_else(|_| start(plan, Accelerator::Tcg))
}

fn kvm_works() -> bool {
    let plan = Plan::new(Kind::Plain).label("probe");
    let works = start(&plan, Accelerator::Kvm).is_ok();
    remember(works);
    works
}

/// What was said or is known; nothing when it has to be tried.
fn chosen() -> Option<Accelerator> {
    match std::env::var("TAPDISK_VM_ACCELERATOR").as_deref() {
        Ok("kvm") => return Some(Accelerator::Kvm),
        Ok("tcg") => return Some(Accelerator::Tcg),
        _ => {}
    }
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Some(Accelerator::Tcg);
    }
    let known = fs::read_to_string(verdict_file()).unwrap_or_default();
    match known.strip_prefix(&this_boot()).map(str::trim) {
        // It is tried again, and costs nothing when it works.
        Some("yes") | None => None,
        Some(_) => Some(Accelerator::Tcg),
    }
}

fn remember(works: bool) {
    let text = format!("{}{}\n", this_boot(), if works { "yes" } else { "no" });
    // Without it the next run looks again.
    let _ = host::make_folder(&packages::cache());
    let _ = host::write_whole(&verdict_file(), text.as_bytes());
}

fn verdict_file() -> PathBuf {
    packages::cache().join("kvm-works")
}

/// This start of this machine.
fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// The command line of a machine.
pub(crate) fn words(plan: &Plan, prepared: &Prepared, accelerator: Accelerator) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |line: &str| words.extend(line.split(' ').map(str::to_owned));
    add("-M q35 -nodefaults -no-user-config -display none -no-reboot");
    // Xen's tools wait 10 and 40 seconds for many things, which a busy host would make too short:
    // there time passes by the instruction, 2^1 ns for each.
    let is_counted = plan.counts_instructions || plan.kind == Kind::Xen;
    add(match (accelerator, is_counted) {
        (Accelerator::Kvm, _) => "-accel kvm",
        (Accelerator::Tcg, false) => "-accel tcg,thread=multi,tb-size=512",
        (Accelerator::Tcg, true) => "-accel tcg,thread=single,tb-size=512 -icount shift=1,sleep=on",
    });
    // KVM has no such trouble: an emulated processor with SMAP stops a dom0 at once, and one with
    // RDTSCP stops PVH guests.
    add(match (accelerator, plan.kind) {
        (Accelerator::Kvm, _) => "-cpu host",
        (Accelerator::Tcg, Kind::Plain) => "-cpu max",
        (Accelerator::Tcg, Kind::Xen) => "-cpu max,-smap,-rdtscp",
    });
    add(&format!("-smp {} -m {}", plan.processors, plan.memory_mib));
    add("-device isa-debug-exit,iobase=0xf4,iosize=0x04");
    add("-device virtio-serial-pci,max_ports=4");
    add("-device virtserialport,chardev=agent,name=tapdisk.agent");
    if plan.has_terminal {
        add("-chardev stdio,id=terminal,signal=off -device virtconsole,chardev=terminal");
    }
    let folder = |name: &str| escaped(&prepared.folder.join(name));
    words.extend(["-serial".into(), format!("file:{}", prepared.console().display())]);
    words.extend([
        "-chardev".into(),
        format!("socket,id=agent,path={},server=on,wait=on", escaped(&prepared.socket)),
    ]);
    for (index, (name, _)) in prepared.disks.iter().enumerate() {
        let file = folder(&format!("{name}.img"));
        let drive =
            format!("file={file},format=raw,if=none,id=d{index},cache=unsafe,discard=unmap");
        let device = format!("virtio-blk-pci,drive=d{index},serial={name}");
        words.extend(["-drive".into(), drive, "-device".into(), device]);
    }
    let share = format!("local,id=share,path={},security_model=none", folder("share"));
    let device = "virtio-9p-pci,fsdev=share,mount_tag=share";
    words.extend(["-fsdev".into(), share, "-device".into(), device.into()]);
    words.extend(prepared.kernel_words.iter().cloned());
    words.extend(plan.qemu_words.iter().cloned());
    words
}

/// A comma ends a value of QEMU's; two are one.
pub(crate) fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The process. A thread of its own starts it and waits for it: the kernel ends QEMU when that
/// thread ends, which it does with this process, however that comes about.
#[derive(Debug)]
pub(crate) struct Qemu {
    status: Arc<Mutex<Option<ExitStatus>>>,
    orders: Sender<()>,
}

impl Qemu {
    /// Starts it; what it says goes to the log.
    pub(crate) fn start(words: Vec<String>, log: &Path, has_terminal: bool) -> Result<Self> {
        let file = File::create(log).map_err(|error| host::failed("Cannot make", log, &error))?;
        let status = Arc::new(Mutex::new(None));
        let (orders, inbox) = channel();
        let (started, starts) = channel();
        let shared = Arc::clone(&status);
        std::thread::spawn(move || {
            let child = spawn(&words, file, has_terminal);
            let failed = child.as_ref().err().map(ToString::to_string);
            // The other end waits for it.
            let _ = started.send(failed);
            if let Ok(child) = child {
                *lock(&shared) = Some(attend(child, &inbox));
            }
        });
        match starts.recv() {
            Ok(None) => Ok(Self { status, orders }),
            Ok(Some(error)) => Err(VmError::Failed(format!("Cannot run {PROGRAM}: {error}"))),
            Err(_) => Err(VmError::Failed("The thread that starts QEMU died".into())),
        }
    }

    /// How it ended; nothing while it runs.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *lock(&self.status)
    }

    /// Waits for its end.
    pub(crate) fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let end = std::time::Instant::now() + limit;
        while self.status().is_none() && std::time::Instant::now() < end {
            std::thread::park_timeout(TICK);
        }
        self.status()
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        // The thread is gone when the process is.
        let _ = self.orders.send(());
        let _ = self.wait(Duration::from_secs(30));
    }
}

fn spawn(words: &[String], log: File, has_terminal: bool) -> std::io::Result<Child> {
    let errors = log.try_clone()?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", PROGRAM]).args(words);
    if has_terminal {
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stdout(log);
    }
    command.stderr(errors).spawn()
}

fn attend(mut child: Child, inbox: &Receiver<()>) -> ExitStatus {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return status;
        }
        match inbox.recv_timeout(TICK) {
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left who wants it.
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                return child.wait().expect("it is our child");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_ends_no_value() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }
}
