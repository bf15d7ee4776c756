//! The first process of a machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, symlink};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

/// Where the device that ends QEMU listens; writing N makes QEMU end with 2N + 1.
const EXIT_PORT: u64 = 0xf4;
/// An end that was meant: QEMU's 33. A crash and a reset give it 0 or 1.
const ORDERLY: u8 = 16;
const BROKEN: u8 = 17;

/// What the machine's kernel has no place for until it is mounted: kind, folder.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];

/// Runs until the agent ends, then ends the machine.
pub(crate) fn run() -> ExitCode {
    let code = match prepare().and_then(|()| serve()) {
        Ok(()) => ORDERLY,
        Err(error) => {
            eprintln!("vm-agent: the machine could not be made ready: {error}");
            BROKEN
        }
    };
    end(code);
    ExitCode::FAILURE
}

fn prepare() -> io::Result<()> {
    for (kind, folder) in MOUNTS {
        fs::create_dir_all(folder)?;
        mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>)
            .map_err(|error| io::Error::other(format!("{folder}: {error}")))?;
    }
    // Programs, and the scripts of Xen, expect them; a bare devtmpfs has none.
    let links = [
        ("fd", "fd"),
        ("fd/0", "stdin"),
        ("fd/1", "stdout"),
        ("fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        let target = if target.starts_with("fd") {
            format!("/proc/self/{target}")
        } else {
            target.to_owned()
        };
        let link = format!("/dev/{name}");
        let _ = fs::remove_file(&link);
        symlink(target, link)?;
    }
    load_modules()?;
    run_to_end(Command::new("/bin/busybox").args(["--install", "-s", "/bin"]))?;
    run_to_end(Command::new("/bin/sh").arg("/etc/vm/start"))
}

/// Loads the modules of a list, in its order.
fn load_modules() -> io::Result<()> {
    for path in fs::read_to_string("/etc/vm/modules")?.lines() {
        match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(io::Error::other(format!("{path}: {error}"))),
        }
    }
    Ok(())
}

fn run_to_end(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{:?}: {status}", command.get_program())))
}

/// Starts the agent; returns when it ends. Meanwhile it collects whoever lost its parent.
fn serve() -> io::Result<()> {
    let channel = std::env::var("VM_CHANNEL").map_err(io::Error::other)?;
    let agent = Command::new("/proc/self/exe").args(["serve", &channel]).spawn()?;
    let agent = Pid::from_raw(i32::try_from(agent.id()).map_err(io::Error::other)?);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, status) if pid == agent => {
                let failed = || io::Error::other(format!("the agent ended with {status}"));
                return if status == 0 { Ok(()) } else { Err(failed()) };
            }
            WaitStatus::Signaled(pid, signal, _) if pid == agent => {
                return Err(io::Error::other(format!("the agent was ended by {signal}")));
            }
            _ => {}
        }
    }
}

/// Ends the machine: by QEMU's device where there is one, else as a computer is switched off.
fn end(code: u8) {
    nix::unistd::sync();
    if std::env::var_os("VM_EXIT_PORT").is_some() {
        let port = File::options().write(true).open("/dev/port");
        let _ = port.and_then(|port| port.write_at(&[code], EXIT_PORT));
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
